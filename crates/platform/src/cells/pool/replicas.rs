//! More than one cell for one tenant's predictions, up to the CPU it may use.
//!
//! A cell has one thread, so a tenant whose CPU is two cores needs two cells to use them. A further one, a replica, is opened by the request
//! that finds somebody waiting in every cell there is, while a core of the node is free, and goes when it idles. All of them share what the
//! tenant may use: with two cells each has half of the memory, half of the CPU and half of the weight, so that a tenant gets no more by being
//! busy. A tenant whose models do not fit into such a share stays with one cell. A replica starts only where a place is free without anybody
//! being put out, and goes before other cells do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::routes::Resolved;
use super::{Island, Lane, models_budget};
use crate::cells::Cells;
use crate::cells::process::Owner;

/// Cells of one tenant, whatever its CPU.
const CELLS_PER_TENANT_MAX: u32 = 16;
/// Requests in a lane at which somebody waits there.
const WAITING_FROM: usize = 2;

/// Most cells that a tenant's predictions may have: one for each whole core of its own, as far as the node has them.
fn cells_max(cpu_percent: u32, cores: usize) -> u32 {
    (cpu_percent / 100).min(u32::try_from(cores).unwrap_or(u32::MAX)).clamp(1, CELLS_PER_TENANT_MAX)
}

/// A lane with a cell, as far as the choice goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Requests that wait there or are worked on.
    here: usize,
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
    if least.here >= WAITING_FROM && more <= cells_max.into() && fits { Choice::New } else { Choice::Known(place) }
}

impl Cells {
    /// The lane for a request to this model, and what its cell may use; `None` for a tenant with one.
    pub(super) fn spread(&self, main: &Arc<Island>, owner: &Owner, resolved: &Resolved) -> Option<(Arc<Island>, Owner)> {
        let cells_max = cells_max(owner.limits.cpu_percent, self.config().cores);
        if cells_max == 1 {
            return None;
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
            // A model that came later and needs more than a share: what idles goes, and the first cell has all of it again.
            for replica in lanes.iter().skip(1) {
                if let Some(cell) = replica.take_if_idle(Duration::ZERO) {
                    cell.evicted(&self.counters().evicted_room);
                }
            }
            return None;
        }
        let seen: Vec<Seen> = lanes.iter().map(|lane| lane.seen()).collect();
        match choose(&seen, cells_max, owner.limits.memory_bytes, resolved.expected_bytes()) {
            Choice::New if self.0.gate.has_spare() && self.0.places.available_permits() > 0 => {
                let smaller = owner.share(sharing + 1);
                let fits = |lane: &Arc<Island>| lane.bill() <= models_budget(smaller.limits.memory_bytes);
                if !lanes.iter().all(fits) {
                    // What runs there takes more just now.
                    return Some((Arc::clone(main), share));
                }
                // Room is made before anybody gets it.
                lanes.iter().for_each(|lane| lane.adjust(&smaller));
                let taken = |n: &u32| lanes.iter().any(|lane| lane.lane == Lane::Replica(*n));
                let free = (1..cells_max).find(|n| !taken(n))?;
                Some((self.lane(owner.island, Lane::Replica(free)), smaller))
            }
            Choice::New => Some((Arc::clone(main), share)),
            // One that took more while it was alone is not cut down under its models.
            Choice::Known(place) if seen.get(place)?.memory_bytes > models_budget(share.limits.memory_bytes) => None,
            Choice::Known(place) => Some((Arc::clone(lanes.get(place)?), share)),
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
        Seen { here: self.here(), memory_bytes: cell.map_or(0, |cell| loaded(&cell)) }
    }

    fn adjust(&self, owner: &Owner) {
        if let Some(cell) = self.serving.lock().clone() {
            cell.process.adjust(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seen(here: usize, mib: u64) -> Seen {
        Seen { here, memory_bytes: mib * MIB }
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
    }

    #[test]
    fn what_does_not_fit_into_a_share_is_not_shared() {
        // A share of two is 300 MiB, of which models may take 60 %.
        assert_eq!(choose(&[seen(9, 179)], 2, 600 * MIB, 179 * MIB), Choice::New);
        assert_eq!(choose(&[seen(9, 181)], 2, 600 * MIB, 10 * MIB), Choice::Known(0), "the first cell holds more already");
        assert_eq!(choose(&[seen(9, 10)], 2, 600 * MIB, 181 * MIB), Choice::Known(0), "the model needs more");
    }
}
