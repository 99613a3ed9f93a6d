//! A request for a tenant that has its home on another node goes on to that node, as it is.
//!
//! ```text
//! client ──TLS──▶ this node: authenticate, open_tenant → `Elsewhere(peer)` ──TLS, pinned──▶ home node: everything
//! ```
//!
//! Method, path, query, headers and body go on; the body in both directions piece by piece, none of it held. The home node does
//! everything, as if the client had come to it: credential, policy, quota, ledger. This node adds no authority, only the header
//! [`FORWARDED`], which says that there is no second hop. Whoever sends that header himself gains nothing but the same refusal.
//!
//! The peer is believed by the hash of its certificate (see [`crate::tls`]). A peer that cannot be reached is a 503 and nothing was
//! done; one that is lost after the request went out is a 502 that says so, because nobody knows what was done.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use platform::tenancy::{NodeConfig, Peer, RequestId};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::api::Reply;
use crate::body::{Again, AnswerBody, BodyMark};
use crate::bulk::Payer;
use crate::config::RequestLimits;
use crate::error::{Fail, Result};
use crate::grpc;
use crate::service::REQUEST_ID;
use crate::tls::{NODE_NAME, TlsError, node_client_config};

/// Set on a request that has come from another node; its value is that node's name.
pub(crate) const FORWARDED: HeaderName = HeaderName::from_static("insula-forwarded");

/// Requests on their way to one peer at once, and those of one tenant among them: its home has the tenant's own limit, but a home that is slow
/// or hangs would let it take every seat of this node first.
const REQUESTS_PER_PEER_MAX: usize = 512;
const REQUESTS_PER_TENANT_MAX: usize = 128;
/// Connections to one peer that are kept for the next request.
const IDLE_PER_PEER_MAX: usize = 64;
/// How long one is kept; shorter than a door keeps it.
const IDLE_TIME_MAX: Duration = Duration::from_secs(20);
/// Known peers; who was not asked for longest goes.
const PEERS_MAX: usize = 256;
/// Connecting and the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// What the way costs, on top of the peer's own deadline.
const WAY_TIME: Duration = Duration::from_secs(5);
/// The head of an answer to a request that streams: an upload is inspected before it is answered.
const STREAM_HEAD_TIMEOUT: Duration = Duration::from_mins(15);
/// Silence inside an answer.
const ANSWER_SILENCE_MAX: Duration = Duration::from_mins(2);
/// A peer whose machine is gone is noticed after this long.
const PEER_GONE_AFTER: Duration = Duration::from_secs(15);

/// Headers that are about one connection and never go on (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] =
    [CONNECTION, HeaderName::from_static("keep-alive"), PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// The way to other nodes.
pub(crate) struct Forwarder {
    node: HeaderValue,
    peers: Mutex<HashMap<(String, String), Arc<Way>>>,
}

/// What is asked, without its body.
pub(crate) struct Asked {
    method: Method,
    target: Uri,
    headers: HeaderMap,
}

impl Asked {
    /// Keeps what a peer needs.
    pub(crate) fn of(parts: &Parts, id: &RequestId) -> Self {
        let target = parts.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |target| Uri::from(target.clone()));
        let mut headers = parts.headers.clone();
        if let Ok(id) = HeaderValue::from_str(id.as_str()) {
            headers.insert(REQUEST_ID, id);
        }
        Self { method: parts.method.clone(), target, headers }
    }

    fn is_grpc(&self) -> bool {
        grpc::is_method(self.target.path())
    }
}

/// What a peer answered. Only this module makes one.
pub(crate) struct Forwarded(Response<AnswerBody>);

impl Forwarded {
    /// As any other reply.
    pub(crate) fn into_reply(self) -> Reply {
        let (parts, body) = self.0.into_parts();
        let headers = parts.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Reply { status: parts.status, headers, body }
    }
}

impl Forwarder {
    /// For this node.
    pub(crate) fn new(node: &NodeConfig) -> Result<Self, TlsError> {
        let node = HeaderValue::from_str(&node.name).map_err(|error| TlsError(format!("the name of the node: {error}")))?;
        Ok(Self { node, peers: Mutex::default() })
    }

    /// Asks the peer and gives its answer. `mark` has the body, of which nothing was read but what is kept.
    pub(crate) async fn forward(
        &self,
        peer: &Peer,
        asked: Asked,
        mark: &Arc<BodyMark>,
        limits: &Arc<RequestLimits>,
        streams: bool,
    ) -> Result<Forwarded> {
        if asked.headers.contains_key(FORWARDED) {
            return Err(Fail::new("unavailable", "the tenant is just moving from node to node: try again").retry_after(1));
        }
        let Some(body) = mark.again(limits) else {
            return Err(Fail::new("unavailable", "the tenant has just moved to another node: send it again").retry_after(1));
        };
        let way = self.way(peer)?;
        let body = match body {
            Again::Coming(body) if streams && asked.is_grpc() => Again::Coming(body.patient()),
            body => body,
        };
        let request = way.request(asked, &self.node, SentBody::from(body));
        let head = if streams { STREAM_HEAD_TIMEOUT } else { limits.request_timeout.saturating_add(WAY_TIME) };
        tracing::debug!(peer = peer.name, "forwarded");
        // A body that broke off is the client's doing, whatever became of the connection.
        way.ask(request, mark.owner(), head).await.map_err(|fail| mark.take_fault().unwrap_or(fail))
    }

    fn way(&self, peer: &Peer) -> Result<Arc<Way>> {
        let key = (peer.url.clone(), peer.certificate_sha256.clone());
        let mut peers = self.peers.lock();
        if let Some(way) = peers.get(&key) {
            way.state.lock().asked = Instant::now();
            return Ok(way.clone());
        }
        let way = Arc::new(Way::new(peer)?);
        if peers.len() >= PEERS_MAX {
            let oldest = peers.iter().min_by_key(|(_, way)| way.state.lock().asked).map(|(key, _)| key.clone());
            oldest.and_then(|key| peers.remove(&key));
        }
        // A peer that was started anew has another certificate: connections to the one before are of no use.
        peers.retain(|(url, _), _| *url != key.0);
        peers.insert(key, way.clone());
        Ok(way)
    }
}

/// The connections to one peer.
struct Way {
    name: String,
    host: String,
    port: u16,
    authority: HeaderValue,
    tls: TlsConnector,
    seats: Arc<Semaphore>,
    state: Mutex<WayState>,
}

struct WayState {
    asked: Instant,
    /// Seats that are taken, by whose request sits there.
    taken: HashMap<Option<Payer>, usize>,
    idle: Vec<(Instant, SendRequest<SentBody>)>,
}

impl Way {
    fn new(peer: &Peer) -> Result<Self> {
        let wrong = |what: &dyn Display| Fail::internal(format!("the row of node `{}` is wrong: {what}", peer.name));
        let url: Uri = peer.url.parse().map_err(|error| wrong(&error))?;
        let authority = url.authority().filter(|_| url.scheme_str() == Some("https")).ok_or_else(|| wrong(&"no https URL"))?;
        Ok(Self {
            name: peer.name.clone(),
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(443),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|error| wrong(&error))?,
            tls: TlsConnector::from(Arc::new(node_client_config(&peer.certificate_sha256).map_err(Fail::internal)?)),
            seats: Arc::new(Semaphore::new(REQUESTS_PER_PEER_MAX)),
            state: Mutex::new(WayState { asked: Instant::now(), taken: HashMap::new(), idle: Vec::new() }),
        })
    }

    /// The request as the peer gets it.
    fn request(&self, asked: Asked, node: &HeaderValue, body: SentBody) -> Request<SentBody> {
        let trailers = asked.is_grpc();
        let Asked { method, target, mut headers } = asked;
        strip(&mut headers);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        // This door has let the body come already, and hyper says again how long it is.
        headers.remove(EXPECT);
        headers.remove(CONTENT_LENGTH);
        headers.insert(HOST, self.authority.clone());
        headers.insert(FORWARDED, node.clone());
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = target;
        *request.headers_mut() = headers;
        request
    }

    /// A seat for a request that this one answers for.
    fn seat(self: &Arc<Self>, owner: Option<Payer>) -> Result<Seat> {
        let full = || Fail::new("overloaded", "too much is on its way to the tenant's node: try again").retry_after(1);
        let permit = self.seats.clone().try_acquire_owned().map_err(|_| full())?;
        let mut state = self.state.lock();
        let taken = state.taken.entry(owner).or_default();
        if *taken >= REQUESTS_PER_TENANT_MAX {
            return Err(full());
        }
        *taken += 1;
        Ok(Seat { way: self.clone(), owner, _permit: permit })
    }

    /// Sends it over a kept connection, or a new one.
    async fn ask(self: &Arc<Self>, mut request: Request<SentBody>, owner: Option<Payer>, head: Duration) -> Result<Forwarded> {
        let seat = self.seat(owner)?;
        loop {
            let (kept, mut sender) = match self.kept() {
                Some(sender) => (true, sender),
                None => (false, self.connect().await?),
            };
            let Ok(sent) = timeout(head, sender.try_send_request(request)).await else {
                return Err(Fail::new("deadline_exceeded", format!("no result within {} s", head.as_secs())));
            };
            match sent {
                Ok(answer) => return Ok(Forwarded(self.answer(answer, sender, seat))),
                Err(mut failed) => match failed.take_message() {
                    // The peer had closed it: nothing was sent.
                    Some(unsent) if kept => request = unsent,
                    Some(_) => return Err(self.unreachable(failed.error())),
                    None => return Err(self.lost(failed.error())),
                },
            }
        }
    }

    /// A kept connection that still lives.
    fn kept(&self) -> Option<SendRequest<SentBody>> {
        let mut state = self.state.lock();
        while let Some((since, sender)) = state.idle.pop() {
            if since.elapsed() < IDLE_TIME_MAX && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: SendRequest<SentBody>) {
        let mut state = self.state.lock();
        state.idle.retain(|(since, sender)| since.elapsed() < IDLE_TIME_MAX && !sender.is_closed());
        if state.idle.len() < IDLE_PER_PEER_MAX && !sender.is_closed() {
            state.idle.push((Instant::now(), sender));
        }
    }

    async fn connect(&self) -> Result<SendRequest<SentBody>> {
        let connecting = async {
            let stream = self.handshake().await?;
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
        };
        let connected = timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (mut sender, connection) = connected.map_err(|error| self.unreachable(error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to another node ended early");
            }
        });
        sender.ready().await.map_err(|error| self.unreachable(error))?;
        Ok(sender)
    }

    async fn handshake(&self) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        notice_death(&tcp)?;
        let name = ServerName::try_from(NODE_NAME).map_err(io::Error::other)?;
        self.tls.connect(name, tcp).await
    }

    /// The peer's answer as ours. The connection comes back when the last byte is here.
    fn answer(self: &Arc<Self>, answer: Response<Incoming>, sender: SendRequest<SentBody>, seat: Seat) -> Response<AnswerBody> {
        let (mut parts, incoming) = answer.into_parts();
        strip(&mut parts.headers);
        parts.headers.remove(CONTENT_LENGTH);
        parts.extensions.clear();
        if incoming.is_end_stream() {
            self.keep(sender);
            return Response::from_parts(parts, AnswerBody::full(Bytes::new()));
        }
        let length = incoming.size_hint().exact();
        let coming = Coming { way: self.clone(), incoming, sender, _seat: seat };
        Response::from_parts(parts, AnswerBody::stream_frames(coming.frames(), length))
    }

    fn unreachable(&self, error: impl Display) -> Fail {
        tracing::warn!(peer = self.name, %error, "another node cannot be reached");
        Fail::new("unavailable", "the tenant's node cannot be reached: try again").retry_after(1)
    }

    fn lost(&self, error: impl Display) -> Fail {
        tracing::warn!(peer = self.name, %error, "another node was lost before it answered");
        Fail::new("node_lost", "the tenant's node was lost before it answered: whether this was done is not known")
    }
}

/// An answer that is on its way.
struct Coming {
    way: Arc<Way>,
    incoming: Incoming,
    sender: SendRequest<SentBody>,
    _seat: Seat,
}

/// A request's place on the way; free when dropped.
struct Seat {
    way: Arc<Way>,
    owner: Option<Payer>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.way.state.lock();
        if let Some(taken) = state.taken.get_mut(&self.owner) {
            *taken -= 1;
            if *taken == 0 {
                state.taken.remove(&self.owner);
            }
        }
    }
}

impl Coming {
    fn frames(self) -> BoxStream<'static, Result<Frame<Bytes>>> {
        stream::unfold(Some(self), |coming| async move {
            let mut coming = coming?;
            loop {
                return match timeout(ANSWER_SILENCE_MAX, coming.incoming.frame()).await {
                    Err(_) => Some((Err(coming.way.lost("silence")), None)),
                    Ok(Some(Err(error))) => Some((Err(coming.way.lost(error)), None)),
                    Ok(Some(Ok(frame))) => match frame.into_data() {
                        Ok(piece) => Some((Ok(Frame::data(piece)), Some(coming))),
                        Err(frame) => match frame.into_trailers() {
                            Ok(trailers) => Some((Ok(Frame::trailers(trailers)), Some(coming))),
                            Err(_unknown) => continue,
                        },
                    },
                    Ok(None) => {
                        coming.way.keep(coming.sender);
                        None
                    }
                };
            }
        })
        .boxed()
    }
}

/// A body as it goes on: nothing of it is held but the piece that is on its way.
struct SentBody {
    pieces: BoxStream<'static, io::Result<Bytes>>,
    length: Option<u64>,
}

impl From<Again> for SentBody {
    fn from(body: Again) -> Self {
        match body {
            Again::Whole(bytes) => {
                let length = u64::try_from(bytes.len()).ok();
                Self { pieces: stream::iter((!bytes.is_empty()).then_some(Ok(bytes))).boxed(), length }
            }
            // The home node has the caps; deadlines and pace are watched here, where the client is.
            Again::Coming(body) => {
                let length = body.length();
                Self { pieces: body.stream(u64::MAX).boxed(), length }
            }
        }
    }
}

impl Body for SentBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.pieces.as_mut().poll_next(cx).map(|next| next.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.length == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Removes what is about one connection: the known names, and those that `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Asks the operating system to end the connection when the other machine is gone without a word.
fn notice_death(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let looks = 3;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, PEER_GONE_AFTER / (looks + 1))?;
    sockopt::set_tcp_keepintvl(tcp, PEER_GONE_AFTER / (looks + 1))?;
    sockopt::set_tcp_keepcnt(tcp, looks)?;
    sockopt::set_tcp_user_timeout(tcp, u32::try_from(PEER_GONE_AFTER.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

#[cfg(test)]
mod tests;
