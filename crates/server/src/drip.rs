//! What comes drop by drop is let collect. Each read costs a wake-up, a system call, a look at TLS and at HTTP, whether it brings one byte
//! or thousands, so somebody who sends single bytes over many connections would have the cores with almost nothing.
//!
//! ```text
//! small read ─► small read ─► … the ninth ─► rest 50 ms ─► what has collected in the kernel: still little? ─► rest 100 ms ─► …
//! ```
//!
//! Small reads count only as long as they lead to nothing. A request that begins, anything that is written, a read of some size, and a rest in which
//! nothing came each let it begin anew: who sends small requests, or takes a long answer, is never made to rest. A header or body in
//! large pieces has no small reads in a row.
//!
//! This stands below TLS, where headers, bodies, frames and records of every protocol are alike. Deadlines are kept above, where they are
//! told by the bytes that were read; the longest rest is short beside all of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A read of fewer bytes is small.
const SMALL_BYTES: usize = 512;
/// The same after a rest, in which more should have come.
const SMALL_RESTED_BYTES: usize = 2048;
/// Small reads in a row that are free.
const FREE_READS: u32 = 8;
/// By how much each rest is longer than the one before, and how long they get.
const REST_STEP: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_millis(250);

/// Small reads of a connection in a row that led to nothing.
#[derive(Clone, Default)]
pub(crate) struct Drops(Arc<AtomicU32>);

impl Drops {
    /// They led to something.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// One more, and how long to rest after it.
    pub(crate) fn fall(&self) -> Option<Duration> {
        let beyond = self.0.fetch_add(1, Ordering::Relaxed).saturating_add(1).saturating_sub(FREE_READS);
        (beyond > 0).then(|| REST_STEP.saturating_mul(beyond).min(REST_MAX))
    }
}

/// A stream whose drops collect.
pub(crate) struct Collecting<S> {
    stream: S,
    drops: Drops,
    rest: Option<Pin<Box<Sleep>>>,
}

impl<S> Collecting<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, drops: Drops::default(), rest: None }
    }

    /// What it counts.
    pub(crate) fn drops(&self) -> Drops {
        self.drops.clone()
    }

    /// The stream itself.
    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Collecting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rested = self.rest.is_some();
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, into);
        let read = into.filled().len().saturating_sub(before);
        let small = if rested { SMALL_RESTED_BYTES } else { SMALL_BYTES };
        match &polled {
            Poll::Ready(Ok(())) if (1..small).contains(&read) && into.remaining() > 0 => {
                self.rest = self.drops.fall().map(|rest| Box::pin(sleep(rest)));
            }
            Poll::Pending if !rested => {}
            _ => self.drops.forget(),
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Collecting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.drops.forget();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, pieces: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.drops.forget();
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::timeout;

    use super::*;

    struct Both {
        near: DuplexStream,
        far: Collecting<DuplexStream>,
    }

    impl Both {
        fn new() -> Self {
            let (near, far) = tokio::io::duplex(64 << 10);
            Self { near, far: Collecting::new(far) }
        }

        /// Sends so many bytes, reads them with one read, and says whether the stream rests after that.
        async fn rests_after(&mut self, bytes: usize) -> bool {
            self.near.write_all(&vec![7; bytes]).await.unwrap();
            assert_eq!(self.far.read(&mut [0; 8192]).await.unwrap(), bytes);
            self.far.rest.is_some()
        }
    }

    #[tokio::test]
    async fn only_small_reads_in_a_row_that_lead_to_nothing_are_followed_by_a_rest() {
        let mut both = Both::new();
        for _ in 0..100 {
            assert!(!both.rests_after(SMALL_BYTES).await, "large pieces");
        }
        for _ in 0..10 {
            for _ in 0..FREE_READS {
                assert!(!both.rests_after(100).await, "a few small ones");
            }
            assert!(!both.rests_after(1000).await, "and a larger one again");
        }
        for _ in 0..100 {
            assert!(!both.rests_after(100).await, "small ones that become requests");
            both.far.drops().forget();
        }
        for _ in 0..100 {
            assert!(!both.rests_after(100).await, "small ones that are answered");
            both.far.write_all(b"x").await.unwrap();
            both.near.read_exact(&mut [0]).await.unwrap();
        }
        for _ in 0..FREE_READS {
            assert!(!both.rests_after(1).await);
        }
        assert!(both.rests_after(1).await);
        // What collects in a rest is more than a small read, but not what somebody sends who is in a hurry.
        let begun = Instant::now();
        assert!(both.rests_after(SMALL_RESTED_BYTES - 1).await);
        assert!(begun.elapsed() >= REST_STEP);
        assert!(!both.rests_after(SMALL_RESTED_BYTES).await);
        assert!(begun.elapsed() >= REST_STEP * 3, "each rest is longer than the one before");
        assert!(!both.rests_after(1).await, "it begins anew");
    }

    #[tokio::test]
    async fn where_nothing_collects_there_is_no_second_rest() {
        let mut both = Both::new();
        while !both.rests_after(1).await {}
        assert!(timeout(REST_STEP * 4, both.far.read(&mut [0])).await.is_err());
        for _ in 0..FREE_READS {
            assert!(!both.rests_after(1).await);
        }
        assert!(both.rests_after(1).await);
        drop(both.near);
        assert_eq!(both.far.read(&mut [0]).await.unwrap(), 0, "its end comes through");
    }

    #[tokio::test]
    async fn a_drip_is_read_a_few_times_a_second() {
        const DROPS: usize = 100;
        let Both { mut near, mut far } = Both::new();
        let begun = Instant::now();
        let sending = tokio::spawn(async move {
            for _ in 0..DROPS {
                near.write_all(&[7]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            near
        });
        let (mut reads, mut bytes) = (0, 0);
        while bytes < DROPS {
            bytes += far.read(&mut [0; 4096]).await.unwrap();
            reads += 1;
        }
        drop(sending);
        let longest = usize::try_from(begun.elapsed().as_millis() / REST_MAX.as_millis()).unwrap();
        assert!(reads <= 8 + 5 + longest, "{reads} reads of {DROPS} bytes in {:?}", begun.elapsed());
    }
}
