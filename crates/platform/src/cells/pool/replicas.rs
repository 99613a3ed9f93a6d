//! More than one cell for one tenant's predictions, up to the CPU it may use.
//!
//! A cell has one thread, so a tenant whose CPU is two cores needs two cells to use them. A further one, a replica, is opened by the request
//! that finds somebody waiting in every cell there is, while a core of the node is free, and goes when it idles. All of them share what the
//! tenant may use: with two cells each has half of the memory, half of the CPU and half of the weight, so that a tenant gets no more by being
//! busy. A tenant whose models do not fit into such a share stays with one cell; if one comes later, the others answer what they have and go
//! first. A replica starts only where a place is free without anybody being put out, and goes before other cells do.
//!
//! What a cell is given of the memory, the others have not: whoever asks knows how many there were when it asked, which may be long ago, so
//! what counts is what the others have at that moment ([`Cells::granted`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::routes::Resolved;
use super::{Island, Lane, Serving, models_budget};
use crate::cells::Cells;
use crate::cells::process::Owner;
use crate::error::{Error, Result};

/// Cells of one tenant, whatever its CPU.
const CELLS_PER_TENANT_MAX: u32 = 16;
/// Requests in a lane at which somebody waits there.
const WAITING_FROM: usize = 2;
/// A wait that is worth another cell. Shorter ones cost less than two cells that take turns on a core.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// How long a model that needs more than a share waits for the other cells to answer what they have, and how often it looks.
const LEAVING_TIME_MAX: Duration = Duration::from_secs(5);
const LEAVING_LOOK: Duration = Duration::from_millis(5);

/// Most cells that a tenant's predictions may have: one for each whole core of its own, as far as the node has them.
fn cells_max(cpu_percent: u32, cores: usize) -> u32 {
    (cpu_percent / 100).min(u32::try_from(cores).unwrap_or(u32::MAX)).clamp(1, CELLS_PER_TENANT_MAX)
}

/// A lane with a cell, as far as the choice goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Requests that wait there or are worked on.
    here: usize,
    /// How long one of them takes.
    takes: Duration,
    /// Memory of the models that its cell has loaded, in bytes.
    memory_bytes: u64,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// Into the lane at this place.
    Known(usize),
    /// Into a new one.
    New,
}

/// The lane with the fewest requests; a new one when somebody waits in each, there may be one more, and all of them fit into smaller shares.
fn choose(seen: &[Seen], cells_max: u32, memory_bytes: u64, expected_bytes: u64) -> Choice {
    let Some((place, least)) = seen.iter().enumerate().min_by_key(|(_, seen)| seen.here) else { return Choice::Known(0) };
    let more = seen.len() as u64 + 1;
    let budget = models_budget(memory_bytes / more);
    let fits = expected_bytes <= budget && seen.iter().all(|seen| seen.memory_bytes <= budget);
    let waits = least.here >= WAITING_FROM && least.takes.saturating_mul(u32::try_from(least.here).unwrap_or(u32::MAX)) >= WAIT_MIN;
    if waits && more <= cells_max.into() && fits { Choice::New } else { Choice::Known(place) }
}

impl Cells {
    /// The lane for a request to this model, and what its cell may use; `None` for a tenant with one.
    ///
    /// # Errors
    /// `Overloaded` when the model needs the memory of cells that do not come to an end.
    pub(super) async fn spread(&self, main: &Arc<Island>, owner: &Owner, resolved: &Resolved) -> Result<Option<(Arc<Island>, Owner)>> {
        let cells_max = cells_max(owner.limits.cpu_percent, self.config().cores);
        if cells_max == 1 {
            return Ok(None);
        }
        let mut lanes = vec![Arc::clone(main)];
        {
            let islands = self.0.islands.lock();
            let replicas = (1..cells_max).filter_map(|n| islands.get(&(owner.island, Lane::Replica(n))).cloned());
            lanes.extend(replicas.filter(|lane| lane.is_serving() || lane.here() > 0));
        }
        let sharing = u32::try_from(lanes.len()).unwrap_or(u32::MAX);
        let share = owner.share(sharing);
        if sharing > 1 && resolved.expected_bytes() > models_budget(share.limits.memory_bytes) {
            self.alone(lanes.get(1..).unwrap_or_default()).await?;
            return Ok(None);
        }
        let stays = |lane: &&Arc<Island>| !lane.leaves.load(Ordering::Acquire);
        let open: Vec<&Arc<Island>> = lanes.iter().filter(stays).collect();
        let seen: Vec<Seen> = open.iter().map(|lane| lane.seen()).collect();
        let choice = choose(&seen, cells_max, owner.limits.memory_bytes, resolved.expected_bytes());
        let more = open.len() == lanes.len() && self.0.gate.has_spare() && self.0.places.available_permits() > 0;
        Ok(match choice {
            Choice::New if more => {
                let smaller = owner.share(sharing + 1);
                let fits = |lane: &Arc<Island>| lane.bill() <= models_budget(smaller.limits.memory_bytes);
                if !lanes.iter().all(fits) {
                    // What runs there takes more just now.
                    return Ok(Some((Arc::clone(main), share)));
                }
                // Room is made before anybody gets it.
                lanes.iter().for_each(|lane| self.adjust_lane(lane, &smaller));
                let taken = |n: &u32| lanes.iter().any(|lane| lane.lane == Lane::Replica(*n));
                let Some(free) = (1..cells_max).find(|n| !taken(n)) else { return Ok(Some((Arc::clone(main), share))) };
                let lane = self.lane(owner.island, Lane::Replica(free));
                lane.leaves.store(false, Ordering::Release);
                Some((lane, smaller))
            }
            Choice::New => Some((Arc::clone(main), share)),
            Choice::Known(place) => Some((Arc::clone(open.get(place).copied().unwrap_or(main)), share)),
        })
    }

    /// A model needs more than a share: the other cells get no more requests, and go when they have answered what they have. The first
    /// cell has all of the memory again then.
    async fn alone(&self, replicas: &[Arc<Island>]) -> Result<()> {
        replicas.iter().for_each(|replica| replica.leaves.store(true, Ordering::Release));
        let begun = Instant::now();
        loop {
            for replica in replicas.iter().filter(|replica| replica.here() == 0) {
                if let Some(cell) = replica.take_if_idle(Duration::ZERO) {
                    cell.evicted(&self.counters().evicted_room);
                }
            }
            if !replicas.iter().any(|replica| replica.is_serving() || replica.here() > 0) {
                return Ok(());
            }
            if begun.elapsed() > LEAVING_TIME_MAX {
                return Err(Error::Overloaded("the memory of this tenant's cells"));
            }
            tokio::time::sleep(LEAVING_LOOK).await;
        }
    }

    /// What a cell in this lane may have, noted there: what it is to have, as far as the others of its tenant have not got it. For a cell that
    /// serves already, and is gone meanwhile, nothing is noted: its memory was given back when it went.
    fn granted(&self, island: &Island, owner: &Owner, serves: Option<&Serving>) -> u64 {
        if island.lane == Lane::Shadow || island.memory_bytes.load(Ordering::Acquire) == owner.limits.memory_bytes {
            return owner.limits.memory_bytes;
        }
        // Also the lock under which one is given something after the other.
        let islands = self.0.islands.lock();
        let lanes = [Lane::Live].into_iter().chain((1..CELLS_PER_TENANT_MAX).map(Lane::Replica)).filter(|lane| *lane != island.lane);
        let others = lanes.filter_map(|lane| Some(islands.get(&(owner.island, lane))?.memory_bytes.load(Ordering::Acquire)));
        let granted = match owner.memory_bytes.checked_sub(others.sum()) {
            Some(left) => owner.limits.memory_bytes.min(left),
            // The tenant's limit was lowered: the others give back when they are next asked, or idle.
            None => owner.limits.memory_bytes,
        };
        // Held while it is noted: nobody takes the cell away in between.
        let serving = island.serving.lock();
        if serves.is_none_or(|cell| serving.as_ref().is_some_and(|now| std::ptr::eq(Arc::as_ptr(now), cell))) {
            island.memory_bytes.store(granted, Ordering::Release);
        }
        granted
    }

    /// A cell follows what it may use now.
    pub(super) fn adjust(&self, island: &Island, cell: &Serving, owner: &Owner) {
        cell.process.adjust(&owner.with_memory(self.granted(island, owner, Some(cell))));
    }

    fn adjust_lane(&self, island: &Island, owner: &Owner) {
        let cell = island.serving.lock().clone();
        if let Some(cell) = cell {
            self.adjust(island, &cell, owner);
        }
    }
}

/// What a cell that is being started may use. Dropped before it serves, its memory is free again.
pub(super) struct Granted<'a> {
    pub(super) owner: Owner,
    island: &'a Island,
    kept: bool,
}

impl<'a> Granted<'a> {
    pub(super) fn to(cells: &Cells, island: &'a Island, owner: &Owner) -> Self {
        Self { owner: owner.with_memory(cells.granted(island, owner, None)), island, kept: false }
    }

    pub(super) fn kept(mut self) {
        self.kept = true;
    }
}

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.island.memory_bytes.store(0, Ordering::Release);
        }
    }
}

impl Island {
    fn here(&self) -> usize {
        self.here.load(Ordering::Acquire)
    }

    fn seen(&self) -> Seen {
        let cell = self.serving.lock().clone();
        let loaded =
            |cell: &super::Serving| cell.slots.lock().loaded.iter().fold(0u64, |sum, (_, slot)| sum.saturating_add(slot.resident_bytes));
        let takes = Duration::from_nanos(self.takes.load(Ordering::Relaxed));
        Seen { here: self.here(), takes, memory_bytes: cell.map_or(0, |cell| loaded(&cell)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seen(here: usize, mib: u64) -> Seen {
        Seen { here, takes: WAIT_MIN / 2, memory_bytes: mib * MIB }
    }

    #[test]
    fn a_cell_a_core_of_the_tenants_and_of_the_node() {
        assert_eq!([0, 50, 100, 199, 200, 350, 102_400].map(|percent| cells_max(percent, 64)), [1, 1, 1, 1, 2, 3, CELLS_PER_TENANT_MAX]);
        assert_eq!([1, 2, 3].map(|cores| cells_max(250, cores)), [1, 2, 2]);
    }

    #[test]
    fn a_request_goes_where_fewest_are_and_opens_a_cell_when_all_wait() {
        let choose = |of: &[Seen]| choose(of, 3, 600 * MIB, 10 * MIB);
        assert_eq!(choose(&[seen(0, 10)]), Choice::Known(0));
        assert_eq!(choose(&[seen(1, 10)]), Choice::Known(0), "it is worked on, and nobody waits behind it");
        assert_eq!(choose(&[seen(2, 10)]), Choice::New);
        assert_eq!(choose(&[seen(5, 10), seen(1, 10)]), Choice::Known(1));
        assert_eq!(choose(&[seen(2, 10), seen(2, 10)]), Choice::New);
        assert_eq!(choose(&[seen(9, 10), seen(7, 10), seen(8, 10)]), Choice::Known(1), "there are no more cores");
        assert_eq!(choose(&[seen(0, 10), seen(0, 10)]), Choice::Known(0), "without a crowd the others idle, and go");
        let short = Seen { takes: WAIT_MIN / 100, ..seen(50, 10) };
        assert_eq!(choose(&[short]), Choice::Known(0), "they are answered before another cell would have begun");
    }

    #[test]
    fn what_does_not_fit_into_a_share_is_not_shared() {
        // A share of two is 300 MiB, of which models may take 60 %.
        assert_eq!(choose(&[seen(9, 179)], 2, 600 * MIB, 179 * MIB), Choice::New);
        assert_eq!(choose(&[seen(9, 181)], 2, 600 * MIB, 10 * MIB), Choice::Known(0), "the first cell holds more already");
        assert_eq!(choose(&[seen(9, 10)], 2, 600 * MIB, 181 * MIB), Choice::Known(0), "the model needs more");
    }
}
