//! The accept loop. Frameworks leave deadlines to luck, so this one is ours: every connection has a deadline for its
//! handshake, its first byte, its header, its idle time and a blocked write, and there is a cap on connections in total and
//! per address. A panic stays in the task of its connection; a stop finishes accepted work and then closes.
//!
//! One watch per connection (see [`crate::watch`]) sees the bytes and the requests in flight; a tick compares it with the
//! limits. Cutting a connection is dropping it: nothing of it lives elsewhere.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::config::ConnectionLimits;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::watch::{Watch, Watched};

/// Pause after an accept error such as "too many open files".
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop` turns true, then finishes accepted work for at most `limits.drain_timeout`.
pub(crate) async fn accept_loop(
    listener: TcpListener,
    tls: TlsAcceptor,
    service: Arc<Service>,
    limits: ConnectionLimits,
    mut stop: watch::Receiver<bool>,
) {
    let addresses = Arc::new(Addresses::default());
    let builders = Arc::new(Builders::new(&limits));
    let limits = Arc::new(limits);
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stopped| *stopped) => break,
            Some(ended) = tasks.join_next() => { report(&service.metrics, ended); continue }
            accepted = listener.accept() => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_ERROR_PAUSE).await;
                continue;
            }
        };
        let seat = (tasks.len() < limits.connections_max).then(|| addresses.seat(peer, limits.connections_per_address_max)).flatten();
        let Some(seat) = seat else {
            service.metrics.connection_refused();
            drop(tcp);
            continue;
        };
        service.metrics.connection_opened();
        let (tls, service, limits, builders, stop) = (tls.clone(), service.clone(), limits.clone(), builders.clone(), stop.clone());
        tasks.spawn(async move {
            let _seat = seat;
            connection(tcp, peer, tls, service, &limits, &builders, stop).await;
        });
    }
    drop(listener);
    let drained = timeout(limits.drain_timeout, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(left = tasks.len(), "stopped waiting for connections that did not finish in time");
    }
    tasks.shutdown().await;
}

fn report(metrics: &Metrics, ended: Result<(), tokio::task::JoinError>) {
    metrics.connection_closed();
    if let Err(error) = ended
        && error.is_panic()
    {
        metrics.panicked();
        tracing::error!("a connection task panicked; only that connection was lost");
    }
}

async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    service: Arc<Service>,
    limits: &ConnectionLimits,
    builders: &Builders,
    mut stop: watch::Receiver<bool>,
) {
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let Ok(handshake) = timeout(limits.handshake_timeout, tls.accept(tcp)).await else {
        service.metrics.connection_cut("handshake");
        return;
    };
    let Ok(stream) = handshake else { return };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let watch = Arc::new(Watch::new(!http2));
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

/// Open connections per address; an IPv6 customer is counted by its /64.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    fn seat(self: &Arc<Self>, peer: SocketAddr, most: usize) -> Option<Seat> {
        let address = counted_as(peer.ip());
        let mut open = self.0.lock();
        let count = open.entry(address).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Seat { addresses: self.clone(), address })
    }
}

fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// One counted connection; dropping it frees the place.
struct Seat {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.addresses.0.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_seats_and_gets_them_back() {
        let addresses = Arc::new(Addresses::default());
        let peer: SocketAddr = "[2001:db8::1]:5".parse().unwrap();
        let neighbour: SocketAddr = "[2001:db8::ffff]:6".parse().unwrap();
        let other: SocketAddr = "[2001:db8:0:1::1]:7".parse().unwrap();
        let seat = addresses.seat(peer, 1).unwrap();
        assert!(addresses.seat(neighbour, 1).is_none(), "the same /64 is the same customer");
        assert!(addresses.seat(other, 1).is_some());
        drop(seat);
        assert!(addresses.seat(neighbour, 1).is_some());
        assert!(addresses.0.lock().is_empty(), "nothing is remembered of those who left");
    }
}
