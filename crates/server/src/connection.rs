//! A connection after its handshake ([`crate::doorman`]). Frameworks leave deadlines to luck, so these are ours: for its first byte, its
//! header, its idle time and a blocked write. A panic stays in the task of its connection; a stop finishes accepted work and then closes.
//!
//! One watch per connection (see [`crate::watch`]) sees the bytes and the requests in flight; a tick compares it with the
//! limits. Cutting a connection is dropping it: nothing of it lives elsewhere.

use std::pin::pin;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::ConnectionLimits;
use crate::doorman::Guest;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::watch::{Watch, Watched};

/// Serves whoever comes in until `stop` turns true, then finishes accepted work for at most `limits.drain_timeout`.
pub(crate) async fn serve(
    mut guests: mpsc::Receiver<Guest>,
    service: Arc<Service>,
    limits: Arc<ConnectionLimits>,
    mut stop: watch::Receiver<bool>,
) {
    let builders = Arc::new(Builders::new(&limits));
    let mut tasks = JoinSet::new();
    loop {
        let guest = tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => break,
            Some(ended) = tasks.join_next() => { report(&service.metrics, ended); continue }
            Some(guest) = guests.recv() => guest,
        };
        let (service, limits, builders, stop) = (service.clone(), limits.clone(), builders.clone(), stop.clone());
        tasks.spawn(async move { connection(guest, service, &limits, &builders, stop).await });
    }
    drop(guests);
    let drained = timeout(limits.drain_timeout, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(left = tasks.len(), "stopped waiting for connections that did not finish in time");
    }
    tasks.shutdown().await;
}

fn report(metrics: &Metrics, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        metrics.panicked();
        tracing::error!("a connection task panicked; only that connection was lost");
    }
}

async fn connection(
    mut guest: Guest,
    service: Arc<Service>,
    limits: &ConnectionLimits,
    builders: &Builders,
    mut stop: watch::Receiver<bool>,
) {
    if let Err(error) = guest.come_in() {
        tracing::warn!(%error, "cannot take over a connection");
        return;
    }
    let Guest { stream, peer, seat: _seat } = guest;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let watch = Arc::new(Watch::new(!http2, stream.get_ref().0.drops()));
    let io = TokioIo::new(Watched::new(stream, watch.clone()));
    let answer = {
        let (service, watch) = (service.clone(), watch.clone());
        service_fn(move |request| {
            let (service, work) = (service.clone(), watch.begin());
            async move { Ok::<_, std::convert::Infallible>(service.answer(request, peer, work).await) }
        })
    };
    let builder = if http2 { &builders.http2 } else { &builders.http1 };
    let mut served = pin!(builder.serve_connection(io, answer));
    let mut tick = interval(limits.watch_every());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = served.as_mut() => {
                if let Err(error) = ended { tracing::debug!(%error, "a connection ended early") }
                break;
            }
            _ = tick.tick() => match watch.overdue(limits) {
                None => {}
                // Who only idles is told first: a request on its way at this moment is not lost without a word.
                Some("idle") if !stopping => {
                    stopping = true;
                    service.metrics.connection_cut("idle");
                    served.as_mut().graceful_shutdown();
                }
                Some(why) => {
                    service.metrics.connection_cut(why);
                    break;
                }
            },
            _ = stop.wait_for(|stopped| *stopped), if !stopping => {
                stopping = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The two protocol builders; which one serves a connection is what ALPN agreed on, never what the first bytes claim.
struct Builders {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
}

impl Builders {
    fn new(limits: &ConnectionLimits) -> Self {
        let mut http1 = auto::Builder::new(TokioExecutor::new()).http1_only();
        http1.http1().timer(TokioTimer::new()).max_buf_size(limits.header_bytes_max).max_headers(limits.headers_max).half_close(false);
        let mut http2 = auto::Builder::new(TokioExecutor::new()).http2_only();
        http2
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.http2_streams_max)
            .max_pending_accept_reset_streams(limits.http2_resets_pending_max)
            .max_local_error_reset_streams(limits.http2_resets_local_max)
            .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
            .initial_stream_window_size(limits.http2_stream_window_bytes)
            .initial_connection_window_size(limits.http2_connection_window_bytes)
            .max_send_buf_size(limits.http2_send_buffer_bytes_max);
        Self { http1, http2 }
    }
}
