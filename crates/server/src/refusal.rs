//! A refusal has a pace of its own. It costs little, but nobody's rate pays for it, so whoever asks again at once, over many connections,
//! could have as many as the cores can make. The first of a second are said at once. Each of those beyond takes the next place in the line of
//! its asker, a tenant, or an address that showed no credential, and is said when it is its turn or after [`WAIT_MAX`], whichever is first:
//!
//! ```text
//! refused at ....||||||||||||||||       (burst used up) said at |   |   |   |
//! ```
//!
//! While it waits it holds nothing but its connection: no turn, no place among the tenant's requests, no body. A client that comes again
//! when it was told to (`Retry-After`) notices nothing, and nobody else ever does.
//!
//! What is deliberately missing: anything about answers that are no refusals. Somebody's rate pays for those, and the few that are public
//! tell a balancer whether this node lives, so they must not become slow because others are refused behind the same address.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use platform::tenancy::IslandToken;

use crate::doorman::counted_as;
use crate::error::Fail;

/// Longest delay of a refusal.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How much of the pace may be used at once after a rest.
const BURST: Duration = Duration::from_secs(1);
/// Askers that are remembered; of those refused longest ago nothing is known any more.
const ASKERS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Who is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// A member of a tenant.
    Tenant(IslandToken),
    /// Nobody that is known, from this address.
    Stranger(IpAddr),
}

impl Asker {
    /// Whoever it is: a tenant if that is known.
    pub(crate) fn of(island: Option<IslandToken>, peer: SocketAddr) -> Self {
        island.map_or_else(|| Self::Stranger(counted_as(peer.ip())), Self::Tenant)
    }

    /// Whether the refusal has been paid for: with a place in the tenant's rate.
    fn has_paid(self, fail: &Fail) -> bool {
        match self {
            Self::Tenant(_) => !fail.came_quickly(),
            Self::Stranger(_) => false,
        }
    }
}

/// The pace of refusals.
pub(crate) struct Refusals {
    /// From one to the next.
    every: Duration,
    /// When the places that an asker took are all over.
    taken_until: Mutex<LruCache<Asker, Instant>>,
}

impl Refusals {
    /// So many a second of each asker.
    pub(crate) fn new(per_second: u32) -> Self {
        Self { every: Duration::from_secs(1) / per_second.max(1), taken_until: Mutex::new(LruCache::new(ASKERS_MAX)) }
    }

    /// How long this refusal is to wait, if at all.
    pub(crate) fn wait(&self, asker: Asker, fail: &Fail) -> Option<Duration> {
        if asker.has_paid(fail) {
            return None;
        }
        Some(self.place(asker, Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// The next place of this asker, from now. Generic cell rate algorithm: one number, and nothing has to tick.
    fn place(&self, asker: Asker, now: Instant) -> Duration {
        let mut all = self.taken_until.lock();
        let until = all.get_or_insert_mut(asker, || now);
        // Whatever is beyond the longest wait is forgiven.
        *until = ((*until).max(now) + self.every).min(now + BURST + WAIT_MAX);
        until.duration_since(now).saturating_sub(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_beyond_the_first_takes_the_next_place_of_its_asker() {
        let refusals = Refusals::new(10);
        let (greedy, other) = (Asker::of(None, "192.0.2.1:1".parse().unwrap()), Asker::of(None, "192.0.2.2:1".parse().unwrap()));
        assert_eq!(greedy, Asker::of(None, "192.0.2.1:2".parse().unwrap()), "whichever connection it comes from");
        let (millis, begun) = (Duration::from_millis, Instant::now());
        let many = |asker, count, now| (0..count).map(|_| refusals.place(asker, now).as_millis()).collect::<Vec<_>>();
        assert_eq!(many(greedy, 10, begun), [0; 10], "a second's worth at once");
        assert_eq!(many(greedy, 3, begun), [100, 200, 300]);
        assert_eq!(many(other, 10, begun), [0; 10], "nobody waits for another");
        assert_eq!(many(greedy, 9, begun), [400, 500, 600, 700, 800, 900, 1000, 1000, 1000], "and nobody for long");
        assert_eq!(many(greedy, 1, begun + millis(1_100)), [0], "the line has gone on");
        // Who keeps the pace never waits again, and a rest saves up no more than a burst.
        assert!((0..100).all(|at| refusals.place(greedy, begun + millis(5_000 + at * 100)).is_zero()));
        assert_eq!(many(greedy, 12, begun + Duration::from_secs(3_600)), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 200]);
    }

    #[test]
    fn strangers_are_remembered_in_bounds() {
        let refusals = Refusals::new(1);
        for address in 0..20_000u32 {
            refusals.place(Asker::Stranger(IpAddr::V4(address.into())), Instant::now());
        }
        assert_eq!(refusals.taken_until.lock().len(), ASKERS_MAX.get());
    }
}
