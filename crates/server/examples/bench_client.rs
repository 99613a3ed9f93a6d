//! The client of `cargo xtask bench`: HTTP/1.1 over TLS (plain for `http://`, as peers are asked) with keep-alive, in a process of its own
//! so that its CPU is not counted.
//!
//! Started as `bench_client URL CA.pem`, it reads one JSON command a line and answers each with one JSON line:
//!
//! ```text
//! {"requests": [{"method","path","token","body"?,"file"?}…], "total"?, "connections"?, "per_second"?, "gap_micros"?, "bodies"?,
//!  "seconds"?, "own"?, "hostile"?: {"fresh"?, "trickle_millis"?}}
//! {"seconds", "micros": [… one for each request, in their order], "statuses": {"200": n}, "failure"?, "bodies"?: […], "done": […], "broken"}
//! ```
//!
//! Connections and their handshakes are made before the clock runs. `total` goes through the requests again and again. With
//! `per_second` requests are due at fixed times, told by a thread of its own because the runtime's timer only knows milliseconds; one that
//! finds no free connection is measured from when it was due, so that a stall is seen by all who had to wait for it. With `seconds` it ends
//! then, however many they were. With `own` each connection has its request and sends no other; `done` counts them by request.
//!
//! A `hostile` client does not mind refusals and broken connections, which are counted, and tells no times. `fresh` makes a connection for each
//! request; `trickle_millis` is the pause after each byte of a body.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;
type Body = BoxBody<Bytes, std::io::Error>;

/// Bytes of a file that are read at once.
const FILE_PIECE_BYTES: usize = 256 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    requests: Vec<Ask>,
    total: Option<usize>,
    #[serde(default = "one")]
    connections: usize,
    per_second: Option<f64>,
    gap_micros: Option<u64>,
    #[serde(default)]
    bodies: bool,
    seconds: Option<f64>,
    #[serde(default)]
    own: bool,
    hostile: Option<Hostile>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
struct Hostile {
    #[serde(default)]
    fresh: bool,
    trickle_millis: Option<u64>,
}

fn one() -> usize {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    method: String,
    path: String,
    token: String,
    body: Option<String>,
    file: Option<String>,
}

#[derive(Serialize, Default)]
struct Told {
    seconds: f64,
    micros: Vec<f64>,
    statuses: BTreeMap<u16, usize>,
    failure: Option<String>,
    bodies: Vec<String>,
    /// Answered requests, by their place in the command.
    done: Vec<usize>,
    /// Connections that broke.
    broken: usize,
}

/// What one connection saw: place, microseconds, status, body if it is wanted or tells of a failure.
type Seen = (usize, f64, u16, Option<String>);

struct Target {
    address: String,
    host: String,
    name: ServerName<'static>,
    /// None for plain text.
    tls: Option<TlsConnector>,
}

fn main() -> Result<()> {
    // Elsewhere it would have a machine of its own: here at least nobody keeps it from a core at the moment it is answered.
    platform::jail::take_turns(platform::jail::Turns::Short)?;
    let mut arguments = std::env::args().skip(1);
    let (url, ca) = arguments.next().zip(arguments.next()).ok_or("usage: bench_client URL CA.pem")?;
    let target = Arc::new(Target::new(&url, &ca)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?)?;
        let local = tokio::task::LocalSet::new();
        let told = local.block_on(&runtime, run(Arc::clone(&target), command))?;
        let mut output = std::io::stdout().lock();
        writeln!(output, "{}", serde_json::to_string(&told)?)?;
        output.flush()?;
    }
    Ok(())
}

impl Target {
    fn new(url: &str, ca: &str) -> Result<Self> {
        let plain = url.strip_prefix("http://");
        let host = url.strip_prefix("https://").or(plain).ok_or("give an http or https URL")?.trim_end_matches('/').to_owned();
        let (name, port) = host.rsplit_once(':').ok_or("give a URL with a port")?;
        let address = format!("127.0.0.1:{port}");
        let name = ServerName::try_from(name.to_owned())?;
        if plain.is_some() {
            return Ok(Self { address, host, name, tls: None });
        }
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { address, host, name, tls: Some(TlsConnector::from(Arc::new(config))) })
    }

    async fn connect(&self) -> Result<SendRequest<Body>> {
        let socket = TcpStream::connect(&self.address).await?;
        socket.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
            tokio::task::spawn_local(connection);
            return Ok(sender);
        };
        let stream = tls.connect(self.name.clone(), socket).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }
}

async fn run(target: Arc<Target>, command: Command) -> Result<Told> {
    let command = Arc::new(command);
    let end = |began: Instant| command.seconds.map(|seconds| began + Duration::from_secs_f64(seconds));
    let total = command.total.unwrap_or(if command.seconds.is_some() { usize::MAX } else { command.requests.len() });
    if let Some(hostile) = command.hostile {
        let began = Instant::now();
        let turns = Arc::new(Turns::new(total, command.per_second, end(began)));
        return attack(target, Arc::clone(&command), hostile, turns, began).await;
    }
    let mut senders = Vec::new();
    for _ in 0..command.connections.max(1) {
        senders.push(target.connect().await?);
    }
    let began = Instant::now();
    let turns = Arc::new(Turns::new(total, command.per_second, end(began)));
    let workers: Vec<_> = senders
        .into_iter()
        .enumerate()
        .map(|(place, sender)| {
            let own = command.own.then_some(place);
            tokio::task::spawn_local(work(Arc::clone(&target), Arc::clone(&command), sender, Arc::clone(&turns), own))
        })
        .collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await?.map_err(|error| format!("a request failed: {error}"))?);
    }
    let mut told = Told { seconds: began.elapsed().as_secs_f64(), done: vec![0; command.requests.len()], ..Told::default() };
    all.sort_unstable_by_key(|(at, ..)| *at);
    for (at, micros, status, body) in all {
        if let Some(count) = told.done.get_mut(at % command.requests.len().max(1)) {
            *count += 1;
        }
        told.micros.push(micros);
        *told.statuses.entry(status).or_default() += 1;
        if status >= 300 && told.failure.is_none() {
            told.failure = Some(format!("{status}: {}", body.as_deref().unwrap_or_default()));
        }
        if command.bodies {
            told.bodies.push(body.unwrap_or_default());
        }
    }
    Ok(told)
}

/// Sends whatever comes back, or does not.
async fn attack(target: Arc<Target>, command: Arc<Command>, hostile: Hostile, turns: Arc<Turns>, began: Instant) -> Result<Told> {
    let workers: Vec<_> = (0..command.connections.max(1))
        .map(|_| {
            let (target, command, turns) = (Arc::clone(&target), Arc::clone(&command), Arc::clone(&turns));
            tokio::task::spawn_local(async move {
                let (mut sender, mut statuses, mut broken) = (None, BTreeMap::<u16, usize>::new(), 0);
                while let Some((at, _)) = turns.next().await {
                    let Some(ask) = command.requests.get(at % command.requests.len().max(1)) else { break };
                    let asked = async {
                        let open = match sender.take().filter(|_| !hostile.fresh) {
                            Some(sender) => sender,
                            None => target.connect().await.map_err(|error| error.to_string())?,
                        };
                        let mut open: SendRequest<Body> = open;
                        let request = request(&target, ask, hostile.trickle_millis).map_err(|error| error.to_string())?;
                        open.ready().await.map_err(|error| error.to_string())?;
                        let answer = open.send_request(request).await.map_err(|error| error.to_string())?;
                        let status = answer.status().as_u16();
                        answer.into_body().collect().await.map_err(|error| error.to_string())?;
                        Ok::<_, String>((status, open))
                    };
                    // A request that never ends is cut off with the attack.
                    let asked = match turns.end() {
                        Some(end) => match tokio::time::timeout_at(end.into(), asked).await {
                            Ok(asked) => asked,
                            Err(_) => break,
                        },
                        None => asked.await,
                    };
                    match asked {
                        Ok((status, open)) => {
                            *statuses.entry(status).or_default() += 1;
                            sender = Some(open);
                        }
                        Err(_) => {
                            broken += 1;
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    }
                }
                (statuses, broken)
            })
        })
        .collect();
    let mut told = Told::default();
    for worker in workers {
        let (statuses, broken) = worker.await?;
        told.broken += broken;
        statuses.into_iter().for_each(|(status, count)| *told.statuses.entry(status).or_default() += count);
    }
    told.seconds = began.elapsed().as_secs_f64();
    Ok(told)
}

/// One connection: takes the next request until none is left, or its own again and again.
async fn work(
    target: Arc<Target>,
    command: Arc<Command>,
    mut sender: SendRequest<Body>,
    turns: Arc<Turns>,
    own: Option<usize>,
) -> Result<Vec<Seen>, String> {
    let mut seen = Vec::new();
    while let Some((at, due)) = turns.next().await {
        let at = own.unwrap_or(at);
        let ask = command.requests.get(at % command.requests.len().max(1)).ok_or("there is no request")?;
        let request = request(&target, ask, None).map_err(|error| error.to_string())?;
        let start = due.unwrap_or_else(Instant::now);
        sender.ready().await.map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        let micros = start.elapsed().as_secs_f64() * 1e6;
        let kept = (command.bodies || status >= 300).then(|| String::from_utf8_lossy(&body).into_owned());
        seen.push((at, micros, status, kept));
        if let Some(gap) = command.gap_micros {
            tokio::time::sleep(Duration::from_micros(gap)).await;
        }
    }
    Ok(seen)
}

/// Whose turn it is: as soon as a connection is free, or at fixed times; until the end, if there is one.
struct Turns {
    pace: Pace,
    end: Option<Instant>,
}

enum Pace {
    Free { next: AtomicUsize, total: usize },
    Paced(tokio::sync::Mutex<mpsc::UnboundedReceiver<(usize, Instant)>>),
}

impl Turns {
    fn new(total: usize, per_second: Option<f64>, end: Option<Instant>) -> Self {
        let Some(pace) = per_second else { return Self { pace: Pace::Free { next: AtomicUsize::new(0), total }, end } };
        let (sender, receiver) = mpsc::unbounded_channel();
        let began = Instant::now();
        std::thread::spawn(move || {
            for at in 0..total {
                let due = began + Duration::from_secs_f64(at as f64 / pace);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                // A sleep ends a little late: that is this client's fault, not the service's.
                if sender.send((at, Instant::now())).is_err() {
                    break;
                }
            }
        });
        Self { pace: Pace::Paced(tokio::sync::Mutex::new(receiver)), end }
    }

    fn end(&self) -> Option<Instant> {
        self.end
    }

    /// The next request's place, and when it was due.
    async fn next(&self) -> Option<(usize, Option<Instant>)> {
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return None;
        }
        match &self.pace {
            Pace::Free { next, total } => Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| at < total).map(|at| (at, None)),
            Pace::Paced(receiver) => receiver.lock().await.recv().await.map(|(at, due)| (at, Some(due))),
        }
    }
}

fn request(target: &Target, ask: &Ask, trickle_millis: Option<u64>) -> Result<Request<Body>> {
    let mut request = Request::builder().method(ask.method.as_str()).uri(ask.path.as_str()).header(header::HOST, &target.host);
    if !ask.token.is_empty() {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", ask.token));
    }
    if ask.body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    if let (Some(millis), Some(body)) = (trickle_millis, &ask.body) {
        return Ok(request
            .header(header::CONTENT_LENGTH, body.len())
            .body(drops(body.clone().into_bytes(), Duration::from_millis(millis)))?);
    }
    Ok(match (&ask.file, &ask.body) {
        (Some(file), _) => {
            let bytes = std::fs::metadata(file)?.len();
            request.header(header::CONTENT_LENGTH, bytes).body(pieces(std::fs::File::open(file)?))?
        }
        (None, Some(body)) => request.body(Full::new(Bytes::from(body.clone())).map_err(|never| match never {}).boxed())?,
        (None, None) => request.body(Full::default().map_err(|never| match never {}).boxed())?,
    })
}

/// A file as a body, never whole in memory.
fn pieces(file: std::fs::File) -> Body {
    let read = |mut file: std::fs::File| async move {
        use std::io::Read;
        let mut piece = vec![0; FILE_PIECE_BYTES];
        match file.read(&mut piece) {
            Ok(0) => None,
            Ok(got) => {
                piece.truncate(got);
                Some((Ok(Frame::data(Bytes::from(piece))), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    };
    BodyExt::boxed(StreamBody::new(stream::unfold(file, read)))
}

/// A body that comes byte by byte.
fn drops(body: Vec<u8>, pause: Duration) -> Body {
    let next = move |mut rest: std::vec::IntoIter<u8>| async move {
        let byte = rest.next()?;
        tokio::time::sleep(pause).await;
        Some((Ok(Frame::data(Bytes::copy_from_slice(&[byte]))), rest))
    };
    BodyExt::boxed(StreamBody::new(stream::unfold(body.into_iter(), next)))
}
