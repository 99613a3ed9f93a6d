//! Large bodies: whose bytes come in next, and how many of them lie in memory.
//!
//! A small body is a part of its request, and what comes of it takes its turn at the cells. A large one is work long before that: every byte
//! of it is received, decrypted, copied and hashed, or sealed, on the threads that serve everybody. So beyond a small start, which is free,
//! bytes cost time while anybody else is at work:
//!
//! ```text
//! a body reads a stretch ─► turn among bodies of its tenant ─► turn among tenants ─► holds it for what the stretch costs ─► reads the next
//! ```
//!
//! Whoever has no turn does not read, so its bytes wait in the sender's kernel. All large bodies of a node together are read at
//! a pace (`limits.large_bytes_per_second`; [`pace_of`] the cores when that is not set), a small part of what the cores could do; in turn a stretch of each tenant that has any, however many
//! connections it has. A slow sender holds up nobody: a turn is only waited out between two stretches, never while the sender is waited for.
//!
//! A tenant that is alone on the node reads as fast as its bytes come ([`COMPANY_TIME`]). What nobody answers for (bodies that came
//! without a credential) has one turn together, as if it were one tenant's; so have the operators, who do not wait behind strangers.
//!
//! A body that is held whole has its [`Room`] before it grows large: of the node, and of the tenant.
//!
//! What is deliberately missing: weights. A stretch is a stretch.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use platform::tenancy::IslandToken;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep_until;

use crate::error::{Fail, Result};

/// The start of each body, and of each message of a stream, that is free, in bytes.
pub(crate) const FREE_BYTES: u64 = 64 << 10;
/// Read between two turns, in bytes: a tenth of a millisecond or so, which is what somebody's small request waits for at worst.
pub(crate) const STRETCH_BYTES: u64 = 64 << 10;
/// What is read of large bodies, in bytes a second and core, while there is company.
const PACE_BYTES: u64 = 16 << 20;
/// A timer is as coarse as this: so much that was waited too long is not waited again.
const COARSE: Duration = Duration::from_millis(1);
/// Somebody whose last request came in within this time is company.
const COMPANY_TIME: Duration = Duration::from_secs(1);
/// From here on a body that is held whole needs room, in bytes.
pub(crate) const LARGE_BYTES: u64 = 1 << 20;
/// Room of the node, and of one tenant, in units.
const ROOM_NODE: usize = 512;
const ROOM_TENANT: usize = 128;
/// Bytes of a unit of room.
const ROOM_BYTES: u64 = 1 << 20;
/// Longest wait for room.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(20);
/// Purses that are remembered before those that nobody uses are forgotten.
const PURSES_MAX: usize = 1024;

/// The pace of a node with so many cores, in bytes a second.
pub(crate) fn pace_of(cores: usize) -> u64 {
    PACE_BYTES.saturating_mul(u64::try_from(cores).unwrap_or(u64::MAX))
}

/// Who answers for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Payer {
    Tenant(IslandToken),
    /// All of them together.
    Operators,
}

/// The large bodies of a node; `T` is who answers for one.
pub(crate) struct Bulk<T = Payer> {
    /// Nanoseconds that a stretch costs.
    stretch_nanos: u64,
    /// Held by who reads; until when it is paid for.
    turn: tokio::sync::Mutex<Instant>,
    room: Arc<Semaphore>,
    room_wait: Duration,
    purses: Mutex<HashMap<T, Arc<Purse<T>>>>,
    /// Of what nobody answers for.
    nobody: Arc<Purse<T>>,
    /// The two tenants that came last, the last one first.
    last: Mutex<[Option<(T, Instant)>; 2]>,
}

/// One tenant's part of it.
pub(crate) struct Purse<T = Payer> {
    owner: Option<T>,
    turn: tokio::sync::Mutex<()>,
    room: Arc<Semaphore>,
    /// Bytes that bodies left unpaid when they ended.
    left: AtomicU64,
}

/// Room for a body in memory; free when dropped.
pub(crate) struct Room(#[expect(dead_code, reason = "held, not read")] [OwnedSemaphorePermit; 2]);

impl<T> Purse<T> {
    fn new(owner: Option<T>) -> Arc<Self> {
        let room = Arc::new(Semaphore::new(ROOM_TENANT));
        Arc::new(Self { owner, turn: tokio::sync::Mutex::default(), room, left: AtomicU64::new(0) })
    }

    /// Whether so many bytes, beside what was left unpaid, are a stretch.
    pub(crate) fn is_due(&self, owed: u64) -> bool {
        owed > 0 && owed.saturating_add(self.left.load(Ordering::Relaxed)) >= STRETCH_BYTES
    }

    /// A body has ended before its last bytes were paid for: the next one of its tenant does it.
    pub(crate) fn leave(&self, owed: u64) {
        self.left.fetch_add(owed, Ordering::Relaxed);
    }
}

impl<T: Copy + Eq + Hash> Bulk<T> {
    /// At so many bytes a second.
    pub(crate) fn new(pace: u64) -> Arc<Self> {
        Arc::new(Self {
            stretch_nanos: STRETCH_BYTES.saturating_mul(1_000_000_000) / pace.max(1),
            turn: tokio::sync::Mutex::new(Instant::now()),
            room: Arc::new(Semaphore::new(ROOM_NODE)),
            room_wait: ROOM_WAIT_MAX,
            purses: Mutex::default(),
            nobody: Purse::new(None),
            last: Mutex::default(),
        })
    }

    /// A request of this tenant came in.
    pub(crate) fn came(&self, tenant: T) {
        let mut last = self.last.lock();
        let [first, second] = &mut *last;
        if first.is_some_and(|(known, _)| known != tenant) {
            *second = *first;
        }
        *first = Some((tenant, Instant::now()));
    }

    /// Whose bytes they are, for the rest of a body.
    pub(crate) fn purse(&self, owner: Option<T>) -> Arc<Purse<T>> {
        let Some(owner) = owner else { return Arc::clone(&self.nobody) };
        let mut purses = self.purses.lock();
        if purses.len() >= PURSES_MAX {
            purses.retain(|_, purse| Arc::strong_count(purse) > 1 || purse.room.available_permits() < ROOM_TENANT);
        }
        Arc::clone(purses.entry(owner).or_insert_with(|| Purse::new(Some(owner))))
    }

    /// Whether anybody but this tenant is at work.
    fn has_company(&self, owner: Option<T>) -> bool {
        let last = self.last.lock();
        last.iter().flatten().any(|(tenant, at)| Some(*tenant) != owner && at.elapsed() < COMPANY_TIME)
    }

    /// Waits until the bytes that were read are paid for.
    pub(crate) async fn pay(&self, purse: &Purse<T>, owed: u64) {
        if !self.has_company(purse.owner) {
            purse.left.store(0, Ordering::Relaxed);
            return;
        }
        let _among_its_own = purse.turn.lock().await;
        let mut paid = self.turn.lock().await;
        let bytes = owed.saturating_add(purse.left.swap(0, Ordering::Relaxed));
        let nanos = u128::from(self.stretch_nanos) * u128::from(bytes) / u128::from(STRETCH_BYTES);
        let now = Instant::now();
        *paid = (*paid).max(now.checked_sub(COARSE).unwrap_or(now)) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        if *paid > now {
            sleep_until((*paid).into()).await;
        }
    }

    /// Room for a body of so many bytes. Waits for it, not for long: whoever has it may be slow.
    pub(crate) async fn room(&self, purse: &Purse<T>, bytes: u64) -> Result<Room> {
        let units = usize::try_from(bytes.div_ceil(ROOM_BYTES)).unwrap_or(usize::MAX).min(ROOM_TENANT);
        let units = u32::try_from(units).map_err(Fail::internal)?;
        // Its own first: who waits for that keeps nothing of the node's.
        let room = async {
            let own = Arc::clone(&purse.room).acquire_many_owned(units).await.map_err(Fail::internal)?;
            let nodes = Arc::clone(&self.room).acquire_many_owned(units).await.map_err(Fail::internal)?;
            Ok(Room([own, nodes]))
        };
        let full = || Fail::new("overloaded", "too many large bodies are coming in: try again").retry_after(1);
        tokio::time::timeout(self.room_wait, room).await.unwrap_or_else(|_| Err(full()))
    }
}

#[cfg(test)]
mod tests;
