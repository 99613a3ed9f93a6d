//! Two real TLS servers: the node that was asked, and the tenant's home.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hyper::service::service_fn;
use reqwest::StatusCode;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::body::RequestBody;
use crate::bulk::Bulk;
use crate::error::Form;
use crate::tls::{Certificates, NodeCertificate, server_config};

/// The home node: echoes bodies, remembers what it was asked.
struct Home {
    peer: Peer,
    seen: Mutex<Vec<(Method, String, HeaderMap)>>,
    accepted: AtomicUsize,
    /// A body broke off.
    broken: AtomicBool,
    connections: Mutex<JoinSet<()>>,
}

impl Home {
    async fn start() -> Arc<Self> {
        let keystore = tempfile::tempdir().unwrap();
        let certificates = Certificates::development(keystore.path(), "127.0.0.1".parse().unwrap()).unwrap();
        let node = NodeCertificate::new().unwrap();
        let sha256 = node.sha256().to_owned();
        certificates.for_nodes(node);
        Self::start_with(server_config(certificates).unwrap(), sha256).await
    }

    async fn start_with(tls: rustls::ServerConfig, certificate_sha256: String) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let home = Arc::new(Self {
            peer: Peer { name: "home".to_owned(), url, certificate_sha256 },
            seen: Mutex::default(),
            accepted: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let (acceptor, serving) = (TlsAcceptor::from(Arc::new(tls)), home.clone());
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                serving.accepted.fetch_add(1, Ordering::SeqCst);
                let (acceptor, home) = (acceptor.clone(), serving.clone());
                serving.connections.lock().spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let answer = service_fn(|request| home.answer(request));
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        home
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> io::Result<Response<AnswerBody>> {
        let (parts, incoming) = request.into_parts();
        let target = parts.uri.to_string();
        self.seen.lock().push((parts.method, target.clone(), parts.headers));
        if target == "/die" {
            return Err(io::Error::other("gone"));
        }
        if target == "/halfway" {
            let gone = async {
                tokio::time::sleep(Duration::from_millis(300)).await; // by then the first half has left
                Err(Fail::internal("gone"))
            };
            let pieces = stream::iter([Ok(Bytes::from_static(b"half"))]).chain(stream::once(gone));
            let mut response = Response::new(AnswerBody::stream(pieces.boxed(), Some(8)));
            *response.status_mut() = StatusCode::ACCEPTED;
            return Ok(response);
        }
        let reading = Reading { home: self.clone(), whole: false };
        let echo = stream::unfold((incoming, reading), |(mut incoming, mut reading)| async move {
            match incoming.frame().await {
                None => {
                    reading.ended();
                    None
                }
                Some(frame) => Some((frame.map(|frame| frame.into_data().unwrap()).map_err(Fail::internal), (incoming, reading))),
            }
        });
        let mut response = Response::new(AnswerBody::stream(echo.boxed(), None));
        *response.status_mut() = StatusCode::ACCEPTED;
        response.headers_mut().insert("ratelimit", HeaderValue::from_static("r=7"));
        response.headers_mut().insert("keep-alive", HeaderValue::from_static("timeout=5"));
        Ok(response)
    }
}

/// A body that is being read at home; tells when it did not come to its end.
struct Reading {
    home: Arc<Home>,
    whole: bool,
}

impl Reading {
    fn ended(&mut self) {
        self.whole = true;
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.home.broken.fetch_or(!self.whole, Ordering::SeqCst);
    }
}

/// The node that is asked: whatever it is asked, the tenant lives elsewhere.
struct Front {
    url: String,
    client: reqwest::Client,
}

impl Front {
    async fn start(peer: &Peer) -> Self {
        let keystore = tempfile::tempdir().unwrap();
        let certificates = Certificates::development(keystore.path(), "127.0.0.1".parse().unwrap()).unwrap();
        let ca = std::fs::read(certificates.ca_path().unwrap()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server_config(certificates).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let forwarder = Arc::new(Forwarder::new(&Peer { name: "front".to_owned(), ..peer.clone() }).unwrap());
        let peer = peer.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, forwarder, peer) = (acceptor.clone(), forwarder.clone(), peer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let answer = service_fn(|request| sent_on(&forwarder, &peer, request));
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        let ca = reqwest::Certificate::from_pem(&ca).unwrap();
        let client = reqwest::Client::builder().add_root_certificate(ca).no_proxy().http1_only().timeout(Duration::from_secs(20));
        Self { url, client: client.build().unwrap() }
    }

    fn request(&self, method: Method, target: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{target}", self.url))
    }
}

/// As the service does it: the handler has seen `Elsewhere` and dropped the body unread.
async fn sent_on(forwarder: &Forwarder, peer: &Peer, request: Request<Incoming>) -> Result<Response<AnswerBody>, Infallible> {
    let (parts, incoming) = request.into_parts();
    let limits = Arc::new(RequestLimits { request_timeout: Duration::from_secs(5), ..RequestLimits::default() });
    let body = RequestBody::new(incoming, limits.clone(), Bulk::new(1));
    let mark = body.mark();
    drop(body);
    let asked = Asked::of(&parts, &RequestId::parse("r-1").unwrap());
    Ok(match forwarder.forward(peer, asked, &mark, &limits, true).await {
        Ok(answer) => answer.0,
        Err(fail) => {
            mark.let_come(false).await;
            fail.answer(Form::Problem)
        }
    })
}

async fn code(response: reqwest::Response) -> (u16, String, Option<String>) {
    let status = response.status().as_u16();
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let body: serde_json::Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    (status, body["code"].as_str().unwrap().to_owned(), retry)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_on_and_nothing_is_held() {
    let home = Home::start().await;
    let front = Front::start(&home.peer).await;
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(1);
    let pieces = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let request = front
        .request(Method::PUT, "/v1/datasets/a%20b?format=csv&x=%2F")
        .bearer_auth("secret")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("te", "trailers")
        .header("x-other", "2");
    sender.send(Ok(Bytes::from_static(b"one"))).await.unwrap();
    let mut answer = request.body(reqwest::Body::wrap_stream(pieces)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert_eq!(answer.headers()["ratelimit"], "r=7");
    assert!(!answer.headers().contains_key("keep-alive"), "what is about one connection stays there");
    // The first piece is back before the second is sent.
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "one");
    for _ in 0..64 {
        let piece = Bytes::from(vec![7; 64 << 10]);
        sender.send(Ok(piece.clone())).await.unwrap();
        let mut back = 0;
        while back < piece.len() {
            back += answer.chunk().await.unwrap().unwrap().len();
        }
    }
    drop(sender);
    assert_eq!(answer.chunk().await.unwrap(), None);

    let seen = home.seen.lock();
    let (method, target, headers) = &seen[0];
    assert_eq!((method, target.as_str()), (&Method::PUT, "/v1/datasets/a%20b?format=csv&x=%2F"));
    assert_eq!(headers["authorization"], "Bearer secret");
    assert_eq!(
        (&headers["insula-forwarded"], &headers["x-request-id"], &headers["x-other"]),
        (&"front".parse().unwrap(), &"r-1".parse().unwrap(), &"2".parse().unwrap())
    );
    for gone in ["x-hop", "te", "connection"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_and_a_closed_one_is_no_error() {
    let home = Home::start().await;
    let front = Front::start(&home.peer).await;
    for round in 0..8 {
        let answer = front.request(Method::POST, "/x").body(format!("body {round}")).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), format!("body {round}"));
        let length = home.seen.lock().last().unwrap().2.get("content-length").cloned();
        assert_eq!(length.unwrap(), "6", "a known length stays known");
    }
    let accepted = home.accepted.load(Ordering::SeqCst);
    assert!(accepted <= 2, "{accepted} connections for 8 requests");
    home.connections.lock().abort_all();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = front.request(Method::GET, "/x").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert_eq!(home.accepted.load(Ordering::SeqCst), accepted + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_hop() {
    let home = Home::start().await;
    let front = Front::start(&home.peer).await;
    let answer = front.request(Method::GET, "/x").header("insula-forwarded", "anybody").send().await.unwrap();
    assert_eq!(code(answer).await, (503, "unavailable".to_owned(), Some("1".to_owned())));
    assert!(home.seen.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_not_there_is_unavailable() {
    let home = Home::start().await;
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let front = Front::start(&Peer { url: format!("https://127.0.0.1:{port}"), ..home.peer.clone() }).await;
    let answer = front.request(Method::POST, "/x").body(vec![1; 100_000]).send().await.unwrap();
    assert_eq!(code(answer).await, (503, "unavailable".to_owned(), Some("1".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_lost_says_that_nothing_is_known() {
    let home = Home::start().await;
    let front = Front::start(&home.peer).await;
    assert_eq!(code(front.request(Method::POST, "/die").body("x").send().await.unwrap()).await, (502, "node_lost".to_owned(), None));
    let halfway = front.request(Method::GET, "/halfway").send().await.unwrap();
    assert_eq!(halfway.status(), StatusCode::ACCEPTED);
    assert!(halfway.bytes().await.is_err(), "half an answer is no answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_does_not_look_whole_to_the_home_node() {
    let home = Home::start().await;
    let front = Front::start(&home.peer).await;
    for known in [true, false] {
        home.broken.store(false, Ordering::SeqCst);
        let unplugged = async {
            tokio::time::sleep(Duration::from_millis(300)).await; // by then the first part has arrived
            Err(io::Error::other("unplugged"))
        };
        let pieces = stream::iter([Ok(Bytes::from_static(b"part"))]).chain(stream::once(unplugged));
        let mut request = front.request(Method::POST, "/x");
        if known {
            request = request.header("content-length", 1000);
        }
        if let Ok(answer) = request.body(reqwest::Body::wrap_stream(pieces)).send().await {
            assert!(answer.bytes().await.is_err(), "the echo of half a body is not whole either");
        }
        let told = async {
            while !home.broken.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(5), told).await.expect("the home node is told");
    }
    home.broken.store(false, Ordering::SeqCst);
    front.request(Method::POST, "/x").body("whole").send().await.unwrap().text().await.unwrap();
    assert!(!home.broken.load(Ordering::SeqCst), "a whole body is whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_one_certificate_is_believed() {
    let home = Home::start().await;
    let other = NodeCertificate::new().unwrap();
    let front = Front::start(&Peer { certificate_sha256: other.sha256().to_owned(), ..home.peer.clone() }).await;
    let answer = front.request(Method::GET, "/x").bearer_auth("secret").send().await.unwrap();
    assert_eq!(code(answer).await.0, 503);
    assert!(home.seen.lock().is_empty(), "no credential goes to a stranger");

    // Who has the certificate but not its key is a stranger too.
    let own = rcgen::generate_simple_self_signed([NODE_NAME.to_owned()]).unwrap();
    let stolen = rcgen::generate_simple_self_signed([NODE_NAME.to_owned()]).unwrap();
    let key = any_supported_type(&PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap()).unwrap();
    let impostor = Arc::new(Impostor(Arc::new(CertifiedKey::new(vec![stolen.cert.der().clone()], key))));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_cert_resolver(impostor);
    let impostor = Home::start_with(config, crate::tls::sha256_hex(stolen.cert.der())).await;
    let front = Front::start(&impostor.peer).await;
    assert_eq!(code(front.request(Method::GET, "/x").send().await.unwrap()).await.0, 503);
    assert!(impostor.seen.lock().is_empty());
}

#[derive(Debug)]
struct Impostor(Arc<CertifiedKey>);

impl ResolvesServerCert for Impostor {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[test]
fn a_peer_that_was_started_anew_replaces_the_one_before() {
    let peer = Peer { name: "b".to_owned(), url: "https://10.0.0.2:8443".to_owned(), certificate_sha256: "00".repeat(32) };
    let forwarder = Forwarder::new(&peer).unwrap();
    let first = forwarder.way(&peer).unwrap();
    assert!(Arc::ptr_eq(&first, &forwarder.way(&peer).unwrap()));
    forwarder.way(&Peer { certificate_sha256: "11".repeat(32), ..peer.clone() }).unwrap();
    assert_eq!(forwarder.peers.lock().len(), 1);
    for port in 0..PEERS_MAX + 10 {
        forwarder.way(&Peer { url: format!("https://10.0.0.3:{}", port + 1), ..peer.clone() }).unwrap();
    }
    assert_eq!(forwarder.peers.lock().len(), PEERS_MAX);
    assert!(forwarder.way(&Peer { url: "http://10.0.0.2".to_owned(), ..peer }).is_err());
}

/// Requests that stay away for long, because the home hangs.
#[tokio::test]
async fn one_tenant_does_not_take_the_seats_of_all() {
    let home = Home::start().await;
    let way = Arc::new(Way::new(&home.peer).unwrap());
    let greedy = Some(Payer::Operators);
    let mut seats: Vec<Seat> = (0..REQUESTS_PER_TENANT_MAX).map(|_| way.seat(greedy).unwrap()).collect();
    assert!(way.seat(greedy).is_err_and(|fail| fail.code() == "overloaded"));
    let other = way.seat(None).unwrap();
    seats.pop();
    seats.push(way.seat(greedy).unwrap());
    assert!(way.seat(greedy).is_err(), "one went, and one came");
    drop((seats, other));
    assert!(way.state.lock().taken.is_empty() && way.seats.available_permits() == REQUESTS_PER_PEER_MAX, "nothing is kept of who is gone");
}
