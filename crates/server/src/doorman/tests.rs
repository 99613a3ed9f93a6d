use std::pin::Pin;

use platform::PlatformStats;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::tls::{node_client_config, sha256_hex};

const LONG: Duration = Duration::from_secs(600);

/// Notes who is at work when a certificate is asked for, which is in the middle of a handshake, and goes on when the test lets it.
#[derive(Debug)]
struct Noting {
    key: Arc<CertifiedKey>,
    asked: Mutex<Vec<Asked>>,
    gate: Mutex<std::sync::mpsc::Receiver<()>>,
}

#[derive(Debug, Clone)]
struct Asked {
    name: String,
    thread: Option<String>,
    nice: i32,
}

impl ResolvesServerCert for Noting {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default().to_owned();
        let thread = thread::current().name().map(str::to_owned);
        self.asked.lock().push(Asked { name, thread, nice: getpriority_process(Some(gettid())).unwrap() });
        // Open once the test has dropped its end.
        let _ = self.gate.lock().recv();
        Some(self.key.clone())
    }
}

/// A door, and what it takes to come to it.
struct House {
    address: SocketAddr,
    connector: TlsConnector,
    noting: Arc<Noting>,
    gate: Option<std::sync::mpsc::Sender<()>>,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    doorman: thread::JoinHandle<()>,
    guests: mpsc::Receiver<Guest>,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<client::TlsStream<TcpStream>>> + Send>>;

impl House {
    async fn new() -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let connector = TlsConnector::from(Arc::new(node_client_config(&sha256_hex(made.cert.der())).unwrap()));
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let key = Arc::new(CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider).unwrap());
        let (gate, at_gate) = std::sync::mpsc::channel();
        let noting = Arc::new(Noting { key, asked: Mutex::default(), gate: Mutex::new(at_gate) });
        let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let config = config.with_no_client_auth().with_cert_resolver(noting.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (metrics, (stop, stopped)) = (Arc::new(Metrics::new(Vec::new())), watch::channel(false));
        let limits = Arc::new(ConnectionLimits { handshake_timeout: LONG, ..ConnectionLimits::default() });
        let doorman = Doorman { tls: TlsAcceptor::from(Arc::new(config)), limits, metrics: metrics.clone(), stop: stopped };
        let (doorman, guests) = doorman.open(listener).unwrap();
        Self { address, connector, noting, gate: Some(gate), metrics, stop, doorman, guests }
    }

    async fn tcp(&self, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from.parse().unwrap()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// A handshake whose first message is on its way.
    async fn shaking(&self, from: &str, name: &'static str) -> Connecting {
        let tcp = self.tcp(from).await;
        let mut connecting: Connecting = Box::pin(self.connector.connect(ServerName::try_from(name).unwrap(), tcp));
        assert!(poll_fn(|cx| Poll::Ready(connecting.as_mut().poll(cx))).await.is_pending());
        connecting
    }

    fn asked(&self) -> Vec<Asked> {
        self.noting.asked.lock().clone()
    }

    async fn ended(doorman: thread::JoinHandle<()>) {
        let ended = tokio::task::spawn_blocking(|| doorman.join());
        timeout(Duration::from_secs(20), ended).await.expect("the door closes at once").unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_are_computed_on_a_thread_that_gives_way() {
    // Where tests have the lowest priority themselves, nothing could give way to them; whoever may go up does.
    let _ = setpriority_process(Some(gettid()), 0);
    let own = getpriority_process(Some(gettid())).unwrap();
    let mut house = House::new().await;
    house.gate.take();
    let shaking = house.shaking("127.0.0.1:0", "localhost").await;
    let (client, guest) = tokio::join!(shaking, house.guests.recv());
    let (mut client, mut guest) = (client.unwrap(), guest.unwrap());
    let asked = house.asked();
    assert_eq!((asked[0].thread.as_deref(), asked[0].nice), (Some(THREAD), (own + NICER).min(NICE_MAX)));

    // Once it is in, a connection needs no doorman.
    guest.come_in().unwrap();
    house.stop.send(true).unwrap();
    House::ended(house.doorman).await;
    assert!(TcpStream::connect(house.address).await.is_err(), "the door is closed");
    for _ in 0..2 {
        let mut byte = [0];
        client.write_all(b"?").await.unwrap();
        guest.stream.read_exact(&mut byte).await.unwrap();
        guest.stream.write_all(b"!").await.unwrap();
        guest.stream.flush().await.unwrap();
        client.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"!");
    }
    drop(guest);
    let text = house.metrics.operator_text(&PlatformStats::default(), &[], 0);
    assert!(text.contains("\ninsula_connections 0\n"), "its seat is free again: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_with_many_handshakes_waiting_goes_behind_one_with_few() {
    const FLOOD: usize = 24;
    let mut house = House::new().await;
    let mut shaking = vec![house.shaking("127.0.0.1:0", "first").await];
    while house.asked().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    // The doorman has its hands full, and this is what it finds afterwards.
    for _ in 0..FLOOD {
        shaking.push(house.shaking("127.0.0.1:0", "flood").await);
    }
    shaking.push(house.shaking("127.0.0.2:0", "newcomer").await);
    house.gate.take();
    let done = futures_util::future::join_all(shaking);
    let (done, ()) = tokio::join!(done, async {
        for _ in 0..FLOOD + 2 {
            house.guests.recv().await.unwrap();
        }
    });
    assert!(done.iter().all(Result::is_ok));
    let names: Vec<String> = house.asked().into_iter().map(|asked| asked.name).collect();
    let place = names.iter().position(|name| name == "newcomer").unwrap();
    assert!(place <= 4, "it came last of all and waits for a few: {names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_hang_keep_nobody_out_and_end_with_a_stop() {
    let mut house = House::new().await;
    house.gate.take();
    let mut hanging = Vec::new();
    for at in 0..200 {
        let mut tcp = house.tcp("127.0.0.1:0").await;
        // Half of them begin to say something.
        if at % 2 == 0 {
            tcp.write_all(&[0x16, 3, 1, 1]).await.unwrap();
        }
        hanging.push(tcp);
    }
    let shaking = house.shaking("127.0.0.1:0", "localhost").await;
    let (client, guest) = tokio::join!(shaking, house.guests.recv());
    assert!(client.is_ok() && guest.is_some());
    house.stop.send(true).unwrap();
    House::ended(house.doorman).await;
    for mut tcp in hanging {
        let read = timeout(Duration::from_secs(20), tcp.read(&mut [0; 16])).await.expect("it is cut");
        assert!(read.map_or(true, |bytes| bytes == 0));
    }
}

#[test]
fn an_address_has_its_seats_and_gets_them_back() {
    let seats = Arc::new(Seats { metrics: Arc::new(Metrics::new(Vec::new())), taken: Mutex::default() });
    let peer: SocketAddr = "[2001:db8::1]:5".parse().unwrap();
    let neighbour: SocketAddr = "[2001:db8::ffff]:6".parse().unwrap();
    let other: SocketAddr = "[2001:db8:0:1::1]:7".parse().unwrap();
    let third: SocketAddr = "192.0.2.1:8".parse().unwrap();
    let limits = ConnectionLimits { connections_per_address_max: 1, connections_max: 2, ..ConnectionLimits::default() };
    let seat = seats.seat(peer, &limits).unwrap();
    assert!(seats.seat(neighbour, &limits).is_none(), "the same /64 is the same customer");
    let others = seats.seat(other, &limits).unwrap();
    assert!(seats.seat(third, &limits).is_none(), "the house is full");
    drop(seat);
    drop(seats.seat(neighbour, &limits).unwrap());
    drop(seats.seat(third, &limits).unwrap());
    drop(others);
    assert!(seats.taken.lock().by_address.is_empty() && seats.taken.lock().all == 0, "nothing is remembered of those who left");
}
