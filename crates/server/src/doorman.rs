//! The doorman: accepts connections and shakes hands, on a thread of its own that gives way to everybody who is in already.
//!
//! A TLS handshake takes a good part of a millisecond of a core, and anybody can ask for one. On the threads that serve requests a flood of
//! them would take its time from everybody's work. Here it gets what the others leave, and never less than the small share that the
//! kernel keeps for a thread of low priority: newcomers come in later, they are not shut out.
//!
//! ```text
//! accept ─► seat ─► something to read ─► turn among its address ─► turn among addresses ─► one step of the handshake ─► … ─► hall
//! ```
//!
//! One step at a time is computed, and in turn one of each address, however many of its connections wait. Whoever is waited for has no turn:
//! a handshake that hangs keeps its seat until its deadline, and nobody from coming in. Behind the door, in the hall, a connection is
//! served by other threads ([`crate::connection`]); this one knows nothing of the house.
//!
//! What is deliberately missing: a cap on handshakes under way beside the caps on connections. Strangers who say nothing would fill it,
//! and close the door.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::gettid;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::ConnectionLimits;
use crate::drip::Collecting;
use crate::metrics::Metrics;

/// Name of the thread; the kernel shows 15 bytes.
const THREAD: &str = "insula-doorman";
/// By how much it is nicer than the others: beside one busy thread of theirs on the same core it gets about a tenth of it.
const NICER: i32 = 10;
/// The kernel's lowest priority.
const NICE_MAX: i32 = 19;
/// Pause after an accept error such as "too many open files".
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Connections between the door and the hall.
const GUESTS_WAITING_MAX: usize = 64;

/// A connection whose handshake is done.
pub(crate) struct Guest {
    pub(crate) stream: TlsStream<Collecting<TcpStream>>,
    pub(crate) peer: SocketAddr,
    pub(crate) seat: Seat,
}

impl Guest {
    /// From here on the runtime that asks watches the socket, and no longer the doorman's.
    pub(crate) fn come_in(&mut self) -> io::Result<()> {
        let socket = self.stream.get_mut().0;
        let same = std::net::TcpStream::from(socket.get_ref().as_fd().try_clone_to_owned()?);
        *socket = Collecting::new(TcpStream::from_std(same)?);
        Ok(())
    }
}

/// What the doorman has to know.
pub(crate) struct Doorman {
    pub(crate) tls: TlsAcceptor,
    pub(crate) limits: Arc<ConnectionLimits>,
    pub(crate) metrics: Arc<Metrics>,
    /// Once true, or gone, nobody is let in.
    pub(crate) stop: watch::Receiver<bool>,
}

impl Doorman {
    /// Opens the door. It closes, and the thread ends, with a stop: at once, also for who is in the middle of a handshake.
    pub(crate) fn open(self, listener: TcpListener) -> io::Result<(thread::JoinHandle<()>, mpsc::Receiver<Guest>)> {
        let listener = listener.into_std()?;
        let (hall, guests) = mpsc::channel(GUESTS_WAITING_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let working = move || {
            if let Err(error) = give_way() {
                tracing::warn!(%error, "handshakes cannot give way to requests");
            }
            runtime.block_on(async {
                match TcpListener::from_std(listener) {
                    Ok(listener) => self.keep(listener, hall).await,
                    Err(error) => tracing::error!(%error, "cannot listen"),
                }
            });
        };
        Ok((thread::Builder::new().name(THREAD.to_owned()).spawn(working)?, guests))
    }

    async fn keep(mut self, listener: TcpListener, hall: mpsc::Sender<Guest>) {
        let seats = Arc::new(Seats { metrics: self.metrics.clone(), taken: Mutex::default() });
        let door = Arc::new(Door { tls: self.tls, turn: tokio::sync::Mutex::default(), limits: self.limits.clone(), hall });
        let mut shaking = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stopped| *stopped) => break,
                Some(ended) = shaking.join_next() => {
                    if ended.is_err() {
                        self.metrics.panicked();
                        tracing::error!("a handshake panicked; only that connection was lost");
                    }
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => match seats.seat(peer, &self.limits) {
                    Some(seat) => drop(shaking.spawn(door.clone().let_in(tcp, peer, seat))),
                    None => self.metrics.connection_refused(),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_ERROR_PAUSE).await;
                }
            }
        }
    }
}

/// The calling thread's work comes after that of the others, from now on.
fn give_way() -> io::Result<()> {
    // What the kernel calls a process here is a thread.
    let thread = Some(gettid());
    Ok(setpriority_process(thread, (getpriority_process(thread)? + NICER).min(NICE_MAX))?)
}

/// What handshakes share.
struct Door {
    tls: TlsAcceptor,
    /// Held by whoever's handshake is computed.
    turn: tokio::sync::Mutex<()>,
    limits: Arc<ConnectionLimits>,
    hall: mpsc::Sender<Guest>,
}

impl Door {
    async fn let_in(self: Arc<Self>, tcp: TcpStream, peer: SocketAddr, seat: Seat) {
        match timeout(self.limits.handshake_timeout, self.shake(tcp, &seat)).await {
            // A hall that is closed takes nobody; and of a handshake that failed there is nothing to say.
            Ok(Ok(stream)) => drop(self.hall.send(Guest { stream, peer, seat }).await),
            Ok(Err(_)) => {}
            Err(_) => seat.seats.metrics.connection_cut("handshake"),
        }
    }

    async fn shake(&self, tcp: TcpStream, seat: &Seat) -> io::Result<TlsStream<Collecting<TcpStream>>> {
        tcp.set_nodelay(true)?;
        // Who says nothing is nobody's turn.
        tcp.readable().await?;
        let mut shaking = pin!(self.tls.accept(Collecting::new(tcp)));
        loop {
            {
                let _among_its_own = seat.turn.lock().await;
                let _among_addresses = self.turn.lock().await;
                // Whoever came in the meantime gets in line before this one computes, and so before it can come again.
                yield_now().await;
                if let Poll::Ready(shaken) = poll_fn(|cx| Poll::Ready(shaking.as_mut().poll(cx))).await {
                    return shaken;
                }
            }
            let mut asleep = false;
            // The handshake has left word with its socket, which wakes this task.
            poll_fn(|_| if std::mem::replace(&mut asleep, true) { Poll::Ready(()) } else { Poll::Pending }).await;
        }
    }
}

/// Open connections, in all and by address; an IPv6 customer is counted by its /64.
struct Seats {
    metrics: Arc<Metrics>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, OfAddress>,
}

#[derive(Default)]
struct OfAddress {
    taken: usize,
    /// Handshakes of one address take turns among themselves first.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Seats {
    fn seat(self: &Arc<Self>, peer: SocketAddr, limits: &ConnectionLimits) -> Option<Seat> {
        let address = counted_as(peer.ip());
        let mut taken = self.taken.lock();
        let of = taken.by_address.get(&address).map_or(0, |of| of.taken);
        if taken.all >= limits.connections_max || of >= limits.connections_per_address_max {
            return None;
        }
        taken.all += 1;
        let of = taken.by_address.entry(address).or_default();
        of.taken += 1;
        self.metrics.connection_opened();
        Some(Seat { seats: self.clone(), address, turn: of.turn.clone() })
    }
}

/// Under which address a peer's connections are counted.
pub(crate) fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// One counted connection; dropping it frees the place.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(of) = taken.by_address.get_mut(&self.address) {
            of.taken = of.taken.saturating_sub(1);
            if of.taken == 0 {
                taken.by_address.remove(&self.address);
            }
        }
        self.seats.metrics.connection_closed();
    }
}

#[cfg(test)]
mod tests;
