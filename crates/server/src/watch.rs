//! What one connection is doing, seen from the bytes: since when it is idle, since when a header is unfinished, since when
//! a write is blocked. [`Watched`] wraps the TLS stream and keeps [`Watch`] current; the accept loop's tick asks
//! [`Watch::overdue`].
//!
//! On HTTP/1 the wrapper also reads along in the header, because hyper resolves `Content-Length` next to
//! `Transfer-Encoding` silently (it drops the length) and a proxy in front may resolve it the other way: such a request is
//! refused by the guard, which asks [`Work::is_ambiguous`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::ConnectionLimits;
use crate::drip::Drops;

/// State of one connection. Times are milliseconds since `born`, 0 is "not now".
pub(crate) struct Watch {
    born: Instant,
    in_flight: AtomicUsize,
    served: AtomicBool,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    write_blocked_since: AtomicU64,
    head: Option<Mutex<HeadReader>>,
    drops: Drops,
}

impl Watch {
    /// `reads_heads`: whether the connection speaks HTTP/1.
    pub(crate) fn new(reads_heads: bool, drops: Drops) -> Self {
        Self {
            born: Instant::now(),
            in_flight: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            write_blocked_since: AtomicU64::new(0),
            head: reads_heads.then(|| Mutex::new(HeadReader::default())),
            drops,
        }
    }

    /// A request has been read; it is in flight until the returned value is dropped with the end of its answer.
    pub(crate) fn begin(self: &Arc<Self>) -> Work {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.served.store(true, Ordering::Release);
        self.head_since.store(0, Ordering::Release);
        self.drops.forget();
        Work(self.clone())
    }

    /// Which deadline has passed, if any.
    pub(crate) fn overdue(&self, limits: &ConnectionLimits) -> Option<&'static str> {
        let past = |since: &AtomicU64, allowed: Duration| {
            let since = since.load(Ordering::Acquire);
            since != 0 && self.now().saturating_sub(since) > u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX)
        };
        if past(&self.write_blocked_since, limits.write_timeout) {
            return Some("write");
        }
        if self.in_flight.load(Ordering::Acquire) > 0 {
            return None; // the body has deadlines of its own
        }
        if past(&self.head_since, limits.header_timeout) {
            return Some("header");
        }
        let (idle, why) =
            if self.served.load(Ordering::Acquire) { (limits.idle_timeout, "idle") } else { (limits.first_byte_timeout, "first byte") };
        past(&self.idle_since, idle).then_some(why)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn read(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.in_flight.load(Ordering::Acquire) == 0 && self.head.is_some() {
            let _ = self.head_since.compare_exchange(0, self.now(), Ordering::AcqRel, Ordering::Relaxed);
        }
        if let Some(head) = &self.head {
            head.lock().read(bytes);
        }
    }

    fn wrote(&self, blocked: bool) {
        if !blocked {
            self.write_blocked_since.store(0, Ordering::Release);
        } else if self.write_blocked_since.load(Ordering::Acquire) == 0 {
            self.write_blocked_since.store(self.now(), Ordering::Release);
        }
    }
}

/// A request in flight.
pub(crate) struct Work(Arc<Watch>);

impl Work {
    /// Whether a header on this connection had both a length and a transfer encoding.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.0.head.as_ref().is_some_and(|head| head.lock().ambiguous)
    }

    /// Whether the connection speaks HTTP/1.
    pub(crate) fn is_http1(&self) -> bool {
        self.0.head.is_some()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle_since.store(self.0.now(), Ordering::Release);
        }
    }
}

/// The TLS stream, watched.
pub(crate) struct Watched<S> {
    stream: S,
    watch: Arc<Watch>,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, watch: Arc<Watch>) -> Self {
        Self { stream, watch }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, into);
        if let Poll::Ready(Ok(())) = &polled {
            self.watch.read(into.filled().get(before..).unwrap_or_default());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch.wrote(polled.is_pending());
        polled
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.watch.wrote(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch.wrote(polled.is_pending());
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Longest header line that is looked at; hyper's own limit on the whole header is smaller than many of these.
const LINE_BYTES_SEEN_MAX: usize = 64;

/// Follows HTTP/1 headers byte by byte, enough to see `Content-Length` and `Transfer-Encoding` of each request.
#[derive(Default)]
struct HeadReader {
    line: Vec<u8>,
    line_bytes: usize,
    length: Option<u64>,
    encoded: bool,
    skip: u64,
    ambiguous: bool,
    /// After a chunked request the end of the body is not followed: the answer closes the connection.
    lost: bool,
}

impl HeadReader {
    fn read(&mut self, mut bytes: &[u8]) {
        while !self.lost && !bytes.is_empty() {
            if self.skip > 0 {
                let step = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= u64::try_from(step).unwrap_or(u64::MAX).min(self.skip);
                bytes = bytes.get(step..).unwrap_or_default();
                continue;
            }
            let end = bytes.iter().position(|b| *b == b'\n');
            let piece = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
            let room = LINE_BYTES_SEEN_MAX.saturating_sub(self.line.len()).min(piece.len());
            self.line.extend_from_slice(piece.get(..room).unwrap_or_default());
            self.line_bytes += piece.len();
            bytes = bytes.get(end.map_or(bytes.len(), |at| at + 1)..).unwrap_or_default();
            if end.is_some() {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let long = std::mem::take(&mut self.line_bytes) > LINE_BYTES_SEEN_MAX;
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.is_empty() && !long {
            self.ambiguous |= self.encoded && self.length.is_some();
            self.lost = self.encoded;
            self.skip = self.length.take().unwrap_or(0);
            self.encoded = false;
            return;
        }
        let Some((name, value)) = line.iter().position(|b| *b == b':').and_then(|at| line.split_at_checked(at)) else { return };
        let name = name.trim_ascii();
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encoded = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            // What is no number hyper refuses; what is one too many it refuses too.
            self.length = Some(std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ambiguous(text: &str, step: usize) -> bool {
        let mut head = HeadReader::default();
        text.as_bytes().chunks(step).for_each(|piece| head.read(piece));
        head.ambiguous
    }

    #[test]
    fn a_length_next_to_an_encoding_is_seen_wherever_it_stands() {
        let table = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", false),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", true),
            ("POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\nCONTENT-LENGTH:3\r\n\r\n", true),
            ("GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: x\r\n\r\n", true),
            // a body that looks like a header is a body
            ("POST / HTTP/1.1\r\nContent-Length: 25\r\n\r\nTransfer-Encoding: chunk\r\nGET / HTTP/1.1\r\n\r\n", false),
        ];
        for (text, expected) in table {
            for step in [1, 2, 7, 1000] {
                assert_eq!(ambiguous(text, step), expected, "{text:?} in pieces of {step}");
            }
        }
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "y".repeat(500));
        assert!(ambiguous(&long, 3));
    }

    #[test]
    fn small_reads_that_became_a_request_are_forgotten() {
        let drops = Drops::default();
        let watch = Arc::new(Watch::new(false, drops.clone()));
        while drops.fall().is_none() {}
        assert!(drops.fall().is_some());
        let _work = watch.begin();
        assert!(drops.fall().is_none());
    }

    #[test]
    fn deadlines_follow_the_state() {
        let limits = ConnectionLimits { header_timeout: Duration::ZERO, ..ConnectionLimits::default() };
        let watch = Arc::new(Watch::new(true, Drops::default()));
        assert_eq!(watch.overdue(&limits), None);
        watch.read(b"GET / HT");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(watch.overdue(&limits), Some("header"));
        let work = watch.begin();
        assert_eq!(watch.overdue(&limits), None, "a request in flight has other deadlines");
        drop(work);
        let limits = ConnectionLimits { idle_timeout: Duration::ZERO, ..ConnectionLimits::default() };
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(watch.overdue(&limits), Some("idle"));
        watch.wrote(true);
        let limits = ConnectionLimits { write_timeout: Duration::ZERO, ..ConnectionLimits::default() };
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(watch.overdue(&limits), Some("write"));
        watch.wrote(false);
        assert_eq!(watch.overdue(&limits), None);
    }
}
