//! Traces of the service's own work, for the operator's collector: OTLP over HTTP, protobuf, through the one way out.
//!
//! ```text
//! request ── queue ── cold start ── cell ── engine        W3C traceparent in, traceresponse out
//! stream  ── message ── queue …
//! ```
//!
//! A span says what was done, how it ended and how long it took: the operation, the status, sizes, the tenant, the request id. Never a path,
//! a name that a tenant gave, a header or a body. Off by default, and then nothing of this exists: no trace is begun, no clock is read.
//!
//! Whether a request is traced is decided by its tenant's share ([`TracesConfig`]); a caller that brings a decision of its own is followed,
//! at most [`TRACES_PER_SECOND_MAX`] times a second, where the tenant has a share at all. What cannot be sent is dropped and counted: tracing
//! never holds anybody up.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use lru::LruCache;
use parking_lot::Mutex;
use platform::Legs;
use platform::tenancy::IslandToken;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::egress::{Egress, Message};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");
/// Traces of one tenant in one second, whatever its share.
const TRACES_PER_SECOND_MAX: u32 = 50;
/// Tenants whose traces of this second are counted.
const TENANTS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Traces that wait to be sent.
const WAITING_MAX: usize = 2048;
/// Traces in one message.
const MESSAGE_TRACES_MAX: usize = 256;
/// How long the first of a message waits for others.
const GATHER: Duration = Duration::from_millis(500);
/// How long a stop waits for the last message.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// What is traced, and where it goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TracesConfig {
    /// The collector's address, as in `https://collector.example:4318/v1/traces`.
    pub endpoint: String,
    /// Value of `Authorization`, if it wants one.
    pub authorization: Option<String>,
    /// Share of requests that is traced, from 0 to 1.
    pub sample: f64,
    /// The same for single tenants, by name.
    pub tenants: BTreeMap<String, f64>,
}

impl TracesConfig {
    fn share(&self, tenant: &str) -> f64 {
        self.tenants.get(tenant).copied().unwrap_or(self.sample)
    }
}

/// A trace and its span as W3C writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl Parent {
    /// `traceparent` of version 00; of a later version what this one knows of it. Anything else is no parent.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let ends = version != "00" || parts.next().is_none();
        let [version] = unhex::<1>(version)?;
        let (trace, span, [flags]) = (unhex::<16>(trace)?, unhex::<8>(span)?, unhex::<1>(flags)?);
        let fits = ends && version != 0xff && trace != [0; 16] && span != [0; 8];
        fits.then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }

    fn text(&self) -> String {
        format!("00-{}-{}-{:02x}", hex(&self.trace), hex(&self.span), u8::from(self.sampled))
    }
}

/// A request that may become a trace, or a message of its stream.
pub(crate) struct Begun {
    own: Parent,
    /// Span above it.
    above: Option<[u8; 8]>,
    /// Whether the caller wants it, or chance.
    followed: bool,
    /// Whether it is a request of its own.
    request: bool,
    at: SystemTime,
    since: Instant,
    /// The way of its prediction.
    pub(crate) legs: Arc<Legs>,
}

impl Begun {
    /// A message of this request begins: a span below it. The request's own span ends with the head of its answer.
    pub(crate) fn message(&self) -> Option<Self> {
        let own = Parent { span: random()?, ..self.own };
        let (at, since) = (SystemTime::now(), Instant::now());
        Some(Self { own, above: Some(self.own.span), followed: self.followed, request: false, at, since, legs: Arc::default() })
    }
}

/// What a request came to.
pub(crate) struct Ended<'a> {
    pub(crate) operation: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) island: IslandToken,
    pub(crate) request: &'a str,
    pub(crate) status: u16,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// The tracer of a service.
pub(crate) struct Tracer {
    config: TracesConfig,
    /// The greatest share of anybody.
    most: f64,
    spent: Mutex<LruCache<IslandToken, (u64, u32)>>,
    since: Instant,
    counts: Arc<Counts>,
    sender: Mutex<Option<mpsc::Sender<Vec<Span>>>>,
    sending: Mutex<Option<JoinHandle<()>>>,
}

impl Tracer {
    /// Begins to send.
    pub(crate) fn start(config: TracesConfig, egress: Egress, node: &str) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let most = config.tenants.values().copied().fold(config.sample, f64::max);
        let counts = Arc::<Counts>::default();
        let sending = tokio::spawn(send(receiver, egress, config.clone(), node.to_owned(), counts.clone()));
        Self {
            config,
            most,
            spent: Mutex::new(LruCache::new(TENANTS_MAX)),
            since: Instant::now(),
            counts,
            sender: Mutex::new(Some(sender)),
            sending: Mutex::new(Some(sending)),
        }
    }

    /// Sends what waits, for a short while.
    pub(crate) async fn stop(&self) {
        self.sender.lock().take();
        let sending = self.sending.lock().take();
        if let Some(sending) = sending {
            let _ = timeout(STOP_WAIT, sending).await;
        }
    }

    /// A request comes. None when it cannot become a trace, whosever it is.
    pub(crate) fn begin(&self, headers: &HeaderMap) -> Option<Begun> {
        let parent = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).and_then(Parent::parse);
        let trace = match &parent {
            Some(parent) => Some(parent.trace).filter(|_| parent.sampled && self.most > 0.0),
            None => Some(random()?).filter(|trace| chosen(trace, self.most)),
        };
        let own = Parent { trace: trace?, span: random()?, sampled: true };
        let (above, at, since) = (parent.map(|parent| parent.span), SystemTime::now(), Instant::now());
        Some(Begun { own, above, followed: above.is_some(), request: true, at, since, legs: Arc::default() })
    }

    /// It is answered; what the answer says of its trace.
    pub(crate) fn end(&self, begun: &Begun, ended: &Ended<'_>) -> Option<HeaderValue> {
        let share = self.config.share(ended.tenant);
        let wanted = if begun.followed { share > 0.0 } else { chosen(&begun.own.trace, share) };
        let sampled = wanted && self.may_spend(ended.island);
        if sampled {
            let sender = self.sender.lock().clone();
            if sender.is_none_or(|sender| sender.try_send(spans(begun, ended)).is_err()) {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        HeaderValue::from_str(&Parent { sampled, ..begun.own }.text()).ok()
    }

    /// For the operator's metrics.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (name, about, count) in [
            ("insula_traces_sent_total", "traces that the collector took", &self.counts.sent),
            ("insula_traces_dropped_total", "traces that could not be sent", &self.counts.dropped),
        ] {
            let count = count.load(Ordering::Relaxed);
            text += &format!("# HELP {name} {about}\n# TYPE {name} counter\n{name} {count}\n");
        }
        text
    }

    fn may_spend(&self, island: IslandToken) -> bool {
        let second = self.since.elapsed().as_secs();
        let mut spent = self.spent.lock();
        let (last, count) = spent.get_or_insert_mut(island, || (second, 0));
        if *last != second {
            (*last, *count) = (second, 0);
        }
        *count += 1;
        *count <= TRACES_PER_SECOND_MAX
    }
}

/// Whether a trace is among this share of all: by its random part, so that every service that asks decides the same.
fn chosen(trace: &[u8; 16], share: f64) -> bool {
    let [.., a, b, c, d, e, f, g] = *trace;
    let part = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
    (part as f64) < share * (1u64 << 56) as f64
}

/// A span as it is sent.
struct Span {
    trace: [u8; 16],
    span: [u8; 8],
    parent: Option<[u8; 8]>,
    name: String,
    server: bool,
    begun: SystemTime,
    ended: SystemTime,
    failed: bool,
    texts: Vec<(&'static str, String)>,
    numbers: Vec<(&'static str, u64)>,
}

fn spans(begun: &Begun, ended: &Ended<'_>) -> Vec<Span> {
    let at = |moment: Instant| begun.at + moment.saturating_duration_since(begun.since);
    let root = Span {
        trace: begun.own.trace,
        span: begun.own.span,
        parent: begun.above,
        name: ended.operation.to_owned(),
        server: begun.request,
        begun: begun.at,
        ended: at(Instant::now()),
        failed: ended.status >= 500,
        texts: vec![("insula.tenant", ended.tenant.to_owned()), ("insula.request", ended.request.to_owned())],
        numbers: vec![
            ("http.response.status_code", ended.status.into()),
            ("http.request.body.size", ended.received),
            ("http.response.body.size", ended.sent),
        ],
    };
    let legs: Vec<_> = begun.legs.take().into_iter().filter_map(|leg| Some((leg, random()?))).collect();
    // The engine's work is a part of what happened in the cell; all else is a part of the request.
    let cell = legs.iter().find(|(leg, _)| leg.name == "cell").map(|(_, span)| *span);
    let spans = legs.iter().map(|(leg, span)| Span {
        trace: begun.own.trace,
        span: *span,
        parent: cell.filter(|_| leg.name == "engine").or(Some(begun.own.span)),
        name: leg.name.to_owned(),
        server: false,
        begun: at(leg.begun),
        ended: at(leg.ended),
        failed: false,
        texts: Vec::new(),
        numbers: Vec::new(),
    });
    std::iter::once(root).chain(spans).collect()
}

/// Gathers and sends, until nobody brings any more.
async fn send(mut receiver: mpsc::Receiver<Vec<Span>>, egress: Egress, config: TracesConfig, node: String, counts: Arc<Counts>) {
    let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))]);
    headers.extend(config.authorization.as_ref().and_then(|text| HeaderValue::from_str(text).ok()).map(|value| (AUTHORIZATION, value)));
    let mut traces = Vec::new();
    while receiver.recv_many(&mut traces, MESSAGE_TRACES_MAX).await > 0 {
        if traces.len() < MESSAGE_TRACES_MAX && !receiver.is_closed() {
            sleep(GATHER).await;
            while traces.len() < MESSAGE_TRACES_MAX
                && let Ok(trace) = receiver.try_recv()
            {
                traces.push(trace);
            }
        }
        let count = traces.len() as u64;
        let body = encoded(&node, traces.drain(..).flatten());
        let sent = egress.post(&Message { url: config.endpoint.clone(), headers: headers.clone(), body }).await;
        match sent {
            Ok(answered) if answered.status < 300 => {
                counts.sent.fetch_add(count, Ordering::Relaxed);
            }
            Ok(answered) => {
                counts.dropped.fetch_add(count, Ordering::Relaxed);
                tracing::debug!(status = answered.status, "the collector refused traces");
            }
            Err(error) => {
                counts.dropped.fetch_add(count, Ordering::Relaxed);
                tracing::debug!(%error, "traces could not be sent");
            }
        }
    }
}

/// `ExportTraceServiceRequest` of opentelemetry-proto.
fn encoded(node: &str, spans: impl Iterator<Item = Span>) -> Bytes {
    let mut resource = Vec::new();
    for (key, text) in [("service.name", "insula"), ("service.version", env!("CARGO_PKG_VERSION")), ("service.instance.id", node)] {
        field(&mut resource, 1, &attribute(key, &text_value(text)));
    }
    let mut scope = Vec::new();
    field(&mut scope, 1, &{
        let mut name = Vec::new();
        field(&mut name, 1, b"insula");
        name
    });
    spans.for_each(|span| field(&mut scope, 2, &span.encoded()));
    let mut all = Vec::new();
    field(&mut all, 1, &resource);
    field(&mut all, 2, &scope);
    let mut request = Vec::new();
    field(&mut request, 1, &all);
    request.into()
}

impl Span {
    fn encoded(&self) -> Vec<u8> {
        /// Kinds of spans.
        const INTERNAL: u64 = 1;
        const SERVER: u64 = 2;
        /// A status code.
        const ERROR: u64 = 2;
        let mut out = Vec::with_capacity(256);
        field(&mut out, 1, &self.trace);
        field(&mut out, 2, &self.span);
        if let Some(parent) = &self.parent {
            field(&mut out, 4, parent);
        }
        field(&mut out, 5, self.name.as_bytes());
        number(&mut out, 6, if self.server { SERVER } else { INTERNAL });
        fixed(&mut out, 7, nanos(self.begun));
        fixed(&mut out, 8, nanos(self.ended));
        for (key, text) in &self.texts {
            field(&mut out, 9, &attribute(key, &text_value(text)));
        }
        for (key, value) in &self.numbers {
            let mut any = Vec::new();
            number(&mut any, 3, *value);
            field(&mut out, 9, &attribute(key, &any));
        }
        if self.failed {
            let mut status = Vec::new();
            number(&mut status, 3, ERROR);
            field(&mut out, 15, &status);
        }
        out
    }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn attribute(key: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + value.len() + 8);
    field(&mut out, 1, key.as_bytes());
    field(&mut out, 2, value);
    out
}

fn text_value(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 4);
    field(&mut out, 1, text.as_bytes());
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of bytes, text or a message.
fn field(out: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    varint(out, at << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn number(out: &mut Vec<u8>, at: u64, value: u64) {
    varint(out, at << 3);
    varint(out, value);
}

fn fixed(out: &mut Vec<u8>, at: u64, value: u64) {
    varint(out, at << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Random bytes that are not all zero; none without randomness, and then there is no trace.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    (bytes != [0; N]).then_some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly `N` bytes of lower-case hex.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_as_w3c_writes_them() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{span}-01");
        let parent = Parent::parse(&good).unwrap();
        assert!(parent.sampled);
        assert_eq!(parent.text(), good);
        assert!(!Parent::parse(&format!("00-{trace}-{span}-00")).unwrap().sampled);
        assert!(Parent::parse(&format!("cc-{trace}-{span}-01-what-comes-later")).is_some(), "a later version");
        for bad in [
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-1"),
            format!("00-{trace}é-{span}-01"),
            String::new(),
        ] {
            assert_eq!(Parent::parse(&bad), None, "`{bad}`");
        }
    }

    #[test]
    fn a_share_is_a_share() {
        let traces: Vec<[u8; 16]> = (0..20_000).map(|_| random().unwrap()).collect();
        let count = |share| traces.iter().filter(|trace| chosen(trace, share)).count();
        assert_eq!((count(0.0), count(1.0)), (0, traces.len()));
        let tenth = count(0.1);
        assert!((1_700..2_300).contains(&tenth), "{tenth}");
        assert!(traces.iter().all(|trace| !chosen(trace, 0.1) || chosen(trace, 0.2)), "who has a larger share has the same ones and more");
    }

    #[test]
    fn what_is_sent_is_read_by_our_own_reader_of_otlp() {
        let span = Span {
            trace: [7; 16],
            span: [8; 8],
            parent: Some([9; 8]),
            name: "predict".to_owned(),
            server: true,
            begun: UNIX_EPOCH + Duration::from_nanos(1_795_000_000_123_456_789),
            ended: UNIX_EPOCH + Duration::from_nanos(1_795_000_000_223_456_789),
            failed: true,
            texts: vec![("insula.tenant", "clinic".to_owned())],
            numbers: vec![("http.response.status_code", 503)],
        };
        let read = crate::mlflow::otlp::spans(&encoded("node", std::iter::once(span))).unwrap();
        let [read] = read.as_slice() else { panic!("one span") };
        let text = serde_json::to_string(&format!("{read:?}")).unwrap();
        for part in ["clinic", "503", "predict"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
