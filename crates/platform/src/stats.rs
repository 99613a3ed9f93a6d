//! Figures of the platform for the operator: counts and times, never content and never a tenant.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tenancy::IsolationClass;
use wire::Run;

use crate::page::Timestamp;

/// Upper bounds of the cold start buckets, in milliseconds; one more bucket takes the rest.
pub const COLD_START_BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 30_000];

/// Times in buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Per bucket of [`COLD_START_BOUNDS_MS`], not cumulated; the last bucket takes the rest.
    pub buckets: [u64; COLD_START_BOUNDS_MS.len() + 1],
    /// Their sum in microseconds.
    pub micros: u64,
}

/// Upper bounds of the buckets of batches, in rows; one more bucket takes the rest.
pub const BATCH_BOUNDS_ROWS: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Runs of models by their rows, where requests may be answered together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batches {
    /// Per bucket of [`BATCH_BOUNDS_ROWS`], not cumulated; the last bucket takes the rest.
    pub buckets: [u64; BATCH_BOUNDS_ROWS.len() + 1],
    /// Their rows together.
    pub rows: u64,
}

/// How many of each isolation class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByClass {
    /// Jailed.
    pub jail: u64,
    /// Under gVisor.
    pub gvisor: u64,
}

impl ByClass {
    /// All together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.jail + self.gvisor
    }

    /// With the word for each.
    #[must_use]
    pub fn each(self) -> [(&'static str, u64); 2] {
        [(IsolationClass::Jail.name(), self.jail), (IsolationClass::Gvisor.name(), self.gvisor)]
    }
}

impl FromIterator<IsolationClass> for ByClass {
    fn from_iter<I: IntoIterator<Item = IsolationClass>>(classes: I) -> Self {
        classes.into_iter().fold(Self::default(), |counted, class| match class {
            IsolationClass::Jail => Self { jail: counted.jail + 1, ..counted },
            IsolationClass::Gvisor => Self { gvisor: counted.gvisor + 1, ..counted },
        })
    }
}

/// A snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlatformStats {
    /// Live cells of all kinds.
    pub cells_live: u64,
    /// Of those, blank and ready; jailed.
    pub cells_blank: u64,
    /// Of those, serving predictions.
    pub cells_serving: ByClass,
    /// Of those, working on a job.
    pub cells_working: ByClass,
    /// Memory of all cells as last measured, in bytes.
    pub cells_memory_bytes: u64,
    /// Cells started since the start of the service.
    pub cells_started: ByClass,
    /// Cells that crashed, or were stopped because they were stuck.
    pub cells_failed: u64,
    /// Cells that ended at their memory limit.
    pub cells_out_of_memory: u64,
    /// Cells stopped because they broke the protocol.
    pub cells_hostile: u64,
    /// Serving cells stopped after idling.
    pub cells_evicted_idle: u64,
    /// Serving cells stopped to make room for others: a place, or memory.
    pub cells_evicted_room: u64,
    /// Fork servers that followed another one.
    pub zygotes_replaced: u64,
    /// Models loaded into cells.
    pub models_loaded: u64,
    /// Models put out of a cell to make room.
    pub models_evicted: u64,
    /// Predictions that had to wait for a cell or a model.
    pub cold_starts: u64,
    /// How long they waited.
    pub cold_start_times: Times,
    /// Waits of predictions for their turn, loading not counted.
    pub queued: Times,
    /// Waits of jobs from being queued to being begun.
    pub jobs_queued: Times,
    /// Runs of models whose requests may be answered together.
    pub batches: Batches,
    /// Predictions refused because too many waited.
    pub overloaded: u64,
    /// Training jobs claimed by this node that wait.
    pub trainings_waiting: u64,
    /// Training jobs that run.
    pub trainings_running: u64,
    /// Training jobs that succeeded, failed, and were cancelled while running.
    pub trainings_succeeded: u64,
    /// See `trainings_succeeded`.
    pub trainings_failed: u64,
    /// See `trainings_succeeded`.
    pub trainings_cancelled: u64,
    /// Jobs that asked about a whole data set and succeeded, failed, and were cancelled while running.
    pub predictions_succeeded: u64,
    /// See `predictions_succeeded`.
    pub predictions_failed: u64,
    /// See `predictions_succeeded`.
    pub predictions_cancelled: u64,
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) started_jail: AtomicU64,
    pub(crate) started_gvisor: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) out_of_memory: AtomicU64,
    pub(crate) hostile: AtomicU64,
    pub(crate) evicted_idle: AtomicU64,
    pub(crate) evicted_room: AtomicU64,
    pub(crate) models_loaded: AtomicU64,
    pub(crate) models_evicted: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) memory_bytes: AtomicU64,
    pub(crate) trainings_succeeded: AtomicU64,
    pub(crate) trainings_failed: AtomicU64,
    pub(crate) trainings_cancelled: AtomicU64,
    pub(crate) predictions_succeeded: AtomicU64,
    pub(crate) predictions_failed: AtomicU64,
    pub(crate) predictions_cancelled: AtomicU64,
    pub(crate) cold_starts: Histogram,
    pub(crate) queued: Histogram,
    pub(crate) jobs_queued: Histogram,
    pub(crate) batches: BatchHistogram,
}

/// Runs as they come, in the words of cells.
#[derive(Debug, Default)]
pub(crate) struct BatchHistogram {
    buckets: [AtomicU64; BATCH_BOUNDS_ROWS.len() + 1],
    rows: AtomicU64,
}

impl BatchHistogram {
    /// Adds the run that an answer tells of, if it is the answer that tells of it.
    pub(crate) fn add(&self, run: Run) {
        if run.batch > 0 {
            let bucket = BATCH_BOUNDS_ROWS.iter().position(|bound| u64::from(run.batch) <= *bound).unwrap_or(BATCH_BOUNDS_ROWS.len());
            if let Some(counter) = self.buckets.get(bucket) {
                bump(counter);
            }
            self.rows.fetch_add(run.batch.into(), Ordering::Relaxed);
        }
    }

    fn snapshot(&self) -> Batches {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Batches { buckets: std::array::from_fn(|at| self.buckets.get(at).map_or(0, get)), rows: get(&self.rows) }
    }
}

/// Times as they come.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; COLD_START_BOUNDS_MS.len() + 1],
    micros: AtomicU64,
}

/// Adds one.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Histogram {
    /// Adds one.
    pub(crate) fn add(&self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = COLD_START_BOUNDS_MS.iter().position(|bound| ms <= *bound).unwrap_or(COLD_START_BOUNDS_MS.len());
        if let Some(counter) = self.buckets.get(bucket) {
            bump(counter);
        }
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn snapshot(&self) -> Times {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Times { buckets: std::array::from_fn(|at| self.buckets.get(at).map_or(0, get)), micros: get(&self.micros) }
    }
}

impl Counters {
    /// A job's first attempt begins.
    pub(crate) fn job_begun(&self, attempts: u32, queued_at: Timestamp) {
        if attempts <= 1 {
            let waited = Timestamp::now().micros().saturating_sub(queued_at.micros());
            self.jobs_queued.add(Duration::from_micros(u64::try_from(waited).unwrap_or(0)));
        }
    }

    /// What is counted here; live numbers are added by their owners.
    pub(crate) fn snapshot(&self) -> PlatformStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let cold_start_times = self.cold_starts.snapshot();
        PlatformStats {
            cells_memory_bytes: get(&self.memory_bytes),
            cells_started: ByClass { jail: get(&self.started_jail), gvisor: get(&self.started_gvisor) },
            cells_failed: get(&self.failed),
            cells_out_of_memory: get(&self.out_of_memory),
            cells_hostile: get(&self.hostile),
            cells_evicted_idle: get(&self.evicted_idle),
            cells_evicted_room: get(&self.evicted_room),
            models_loaded: get(&self.models_loaded),
            models_evicted: get(&self.models_evicted),
            cold_starts: cold_start_times.buckets.iter().sum(),
            cold_start_times,
            queued: self.queued.snapshot(),
            batches: self.batches.snapshot(),
            jobs_queued: self.jobs_queued.snapshot(),
            overloaded: get(&self.overloaded),
            trainings_succeeded: get(&self.trainings_succeeded),
            trainings_failed: get(&self.trainings_failed),
            trainings_cancelled: get(&self.trainings_cancelled),
            predictions_succeeded: get(&self.predictions_succeeded),
            predictions_failed: get(&self.predictions_failed),
            predictions_cancelled: get(&self.predictions_cancelled),
            ..PlatformStats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_starts_fall_into_buckets() {
        let counters = Counters::default();
        for ms in [0, 1, 4, 60_000] {
            counters.cold_starts.add(Duration::from_millis(ms));
        }
        let stats = counters.snapshot();
        let Times { buckets, micros } = stats.cold_start_times;
        assert_eq!((stats.cold_starts, buckets[0], buckets[2], buckets[12]), (4, 2, 1, 1));
        assert_eq!((micros, stats.queued), (60_005_000, Times::default()));
    }
}
