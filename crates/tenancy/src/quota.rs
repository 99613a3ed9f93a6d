//! Quotas: what a tenant may use, and the meter that holds it to that.
//!
//! Three kinds of limit. The *rate* of requests is a generic cell rate algorithm: one number, the time at which the bucket
//! would be empty again, so a burst is allowed after a rest and nothing has to tick. *Concurrency* is a count of slots, each
//! given back by drop, so that a handler that panics or is cancelled frees its place. *Stock* (bytes, objects, models, jobs)
//! is reserved before the work and committed with it:
//!
//! ```text
//! let room = meter.reserve(Resource::StorageBytes, 4096)?;   // used + reserved + 4096 ≤ limit, or nothing happens
//! …write, and raise the durable counter in the same transaction…
//! room.commit();                                              // or drop it: given back
//! ```
//!
//! The meter lives as long as the tenant's store is open; the durable counters seed it when the store is opened and are
//! the truth again at the next opening. All of it is behind one lock that is held for a few additions, so N threads never
//! exceed a limit. What is deliberately missing: queues (a request over the limit is refused at the door, not parked) and
//! any number shared between tenants.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::act::QuotaClass;
use crate::error::{Error, Result};
use crate::usage::{Bucket, Counted, History, Leaving, Usage};

/// Largest rate and burst: below this the arithmetic in nanoseconds cannot overflow.
const RATE_MAX: u32 = 1_000_000;
/// Most requests of one tenant in flight that an operator may allow.
const CONCURRENCY_MAX: u32 = 100_000;
/// Largest weight: below it a share of the kernel's, which goes from 1 to 10,000, is still exact.
const WEIGHT_MAX: u32 = 100;
/// Most CPU an operator may allow: 1,024 cores.
const CPU_PERCENT_MAX: u32 = 102_400;
/// Least memory in which a cell starts.
const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Longest training an operator may allow: 30 days.
const JOB_SECONDS_MAX: u64 = 30 * 86_400;
/// When to come back if all slots are taken: nobody can know, a second is polite.
const CONCURRENCY_RETRY_SECONDS: u64 = 1;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What stands between a tenant's cells and the kernel that all tenants share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationClass {
    /// Namespaces, an allow-list of system calls, Landlock, control groups.
    #[default]
    Jail,
    /// A kernel of the cell's own, gVisor's, within walls like those; on nodes that have `runsc`.
    Gvisor,
}

impl IsolationClass {
    /// The detail of an entry of the ledger that says in which class of cell its work was done.
    pub const DETAIL: &'static str = "isolation";

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Jail => "jail",
            Self::Gvisor => "gvisor",
        }
    }
}

/// What a tenant may use. Every field has a default; an unknown field is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests a second, sustained.
    pub requests_per_second: u32,
    /// Requests at once after a rest.
    pub requests_burst: u32,
    /// Requests in flight.
    pub concurrency_max: u32,
    /// Share of the node among tenants that want it at the same time: twice the weight, twice the share.
    pub weight: u32,
    /// CPU of the tenant's cells, in per cent of one core.
    pub cpu_percent: u32,
    /// Memory of the tenant's cells, in bytes.
    pub memory_bytes: u64,
    /// Stored bytes, sealed.
    pub storage_bytes: u64,
    /// Stored objects.
    pub objects: u64,
    /// Registered models.
    pub models: u64,
    /// Deployments.
    pub deployments: u64,
    /// Members.
    pub members: u64,
    /// API keys that are not revoked.
    pub keys: u64,
    /// Training jobs running.
    pub jobs_running: u64,
    /// Training jobs waiting.
    pub jobs_queued: u64,
    /// Longest training, in seconds.
    pub job_seconds: u64,
    /// What its cells run in.
    pub isolation: IsolationClass,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_second: 100,
            requests_burst: 200,
            concurrency_max: 64,
            weight: 1,
            cpu_percent: 200,
            memory_bytes: 2 << 30,
            storage_bytes: 10 << 30,
            objects: 100_000,
            models: 1_000,
            deployments: 100,
            members: 1_000,
            keys: 1_000,
            jobs_running: 1,
            jobs_queued: 100,
            job_seconds: 3_600,
            isolation: IsolationClass::Jail,
        }
    }
}

impl Limits {
    /// Refuses limits that make no sense. A stock may be 0: the tenant then has none of it.
    ///
    /// # Errors
    /// `Invalid` naming the field and its range.
    pub fn validate(&self) -> Result<()> {
        let within = |field: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(Error::Invalid(format!("`{field}` is {value}: give {min} to {max}")))
        };
        within("requests_per_second", self.requests_per_second.into(), 1, RATE_MAX.into())?;
        within("requests_burst", self.requests_burst.into(), 1, RATE_MAX.into())?;
        within("concurrency_max", self.concurrency_max.into(), 1, CONCURRENCY_MAX.into())?;
        within("weight", self.weight.into(), 1, WEIGHT_MAX.into())?;
        within("cpu_percent", self.cpu_percent.into(), 1, CPU_PERCENT_MAX.into())?;
        within("memory_bytes", self.memory_bytes, MEMORY_BYTES_MIN, i64::MAX as u64)?;
        within("job_seconds", self.job_seconds, 1, JOB_SECONDS_MAX)?;
        // Durable counters are signed 64-bit.
        Resource::ALL.iter().try_for_each(|what| within(what.name(), self.of(*what), 0, i64::MAX as u64))
    }

    /// The limit of a stock.
    #[must_use]
    pub fn of(&self, what: Resource) -> u64 {
        match what {
            Resource::StorageBytes => self.storage_bytes,
            Resource::Objects => self.objects,
            Resource::Models => self.models,
            Resource::Deployments => self.deployments,
            Resource::Members => self.members,
            Resource::Keys => self.keys,
            Resource::JobsRunning => self.jobs_running,
            Resource::JobsQueued => self.jobs_queued,
        }
    }
}

/// A stock: what can be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// [`Limits::storage_bytes`].
    StorageBytes,
    /// [`Limits::objects`].
    Objects,
    /// [`Limits::models`].
    Models,
    /// [`Limits::deployments`].
    Deployments,
    /// [`Limits::members`].
    Members,
    /// [`Limits::keys`].
    Keys,
    /// [`Limits::jobs_running`].
    JobsRunning,
    /// [`Limits::jobs_queued`].
    JobsQueued,
}

impl Resource {
    /// All stocks.
    pub const ALL: [Self; 8] = [
        Self::StorageBytes,
        Self::Objects,
        Self::Models,
        Self::Deployments,
        Self::Members,
        Self::Keys,
        Self::JobsRunning,
        Self::JobsQueued,
    ];

    /// Field of [`Limits`], and name of the durable counter.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::StorageBytes => "storage_bytes",
            Self::Objects => "objects",
            Self::Models => "models",
            Self::Deployments => "deployments",
            Self::Members => "members",
            Self::Keys => "keys",
            Self::JobsRunning => "jobs_running",
            Self::JobsQueued => "jobs_queued",
        }
    }
}

/// A refusal by a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// Name of the limit, a field of [`Limits`].
    pub limit: &'static str,
    /// Its value, in the unit of the field.
    pub value: u64,
    /// What is used of it, in the same unit.
    pub used: u64,
    /// When asking again may help, in seconds; none if only freeing something or a higher limit helps.
    pub retry_after_seconds: Option<u64>,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the limit `{}` of {} is reached", self.limit, self.value)?;
        match self.retry_after_seconds {
            Some(1) => f.write_str("; try again in 1 second"),
            Some(seconds) => write!(f, "; try again in {seconds} seconds"),
            None => write!(f, ": {} in use; free some or ask the operator for more", self.used),
        }
    }
}

/// State of the request rate for the `RateLimit` headers (draft-ietf-httpapi-ratelimit-headers-10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitState {
    /// Name of the policy.
    pub name: &'static str,
    /// Requests in a window: the burst.
    pub limit: u64,
    /// Window in seconds: in which an empty bucket fills again.
    pub window_seconds: u64,
    /// Requests left now.
    pub remaining: u64,
    /// Seconds until the bucket is full again.
    pub reset_seconds: u64,
}

impl RateLimitState {
    /// Value of `RateLimit-Policy`, as in `"requests";q=200;w=2`.
    #[must_use]
    pub fn policy_header(&self) -> String {
        format!("\"{}\";q={};w={}", self.name, self.limit, self.window_seconds)
    }

    /// Value of `RateLimit`, as in `"requests";r=150;t=1`.
    #[must_use]
    pub fn header(&self) -> String {
        format!("\"{}\";r={};t={}", self.name, self.remaining, self.reset_seconds)
    }
}

/// One tenant's meter.
pub(crate) struct Meter {
    clock: Clock,
    state: Mutex<State>,
    counted: Counted,
    history: Mutex<History>,
}

impl Meter {
    /// A meter with nothing used.
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Self::with_clock(limits, Clock::Monotonic(Instant::now()))
    }

    fn with_clock(limits: Limits, clock: Clock) -> Arc<Self> {
        let state = State { limits, empty_at_nanos: 0, in_flight: 0, stock: [Stock::default(); Resource::ALL.len()] };
        Arc::new(Self { clock, state: Mutex::new(state), counted: Counted::default(), history: Mutex::default() })
    }

    /// The limits in force.
    pub(crate) fn limits(&self) -> Limits {
        self.state.lock().limits
    }

    /// Changes the limits at once. What is above a lower limit stays; only more is refused.
    pub(crate) fn set_limits(&self, limits: Limits) {
        let mut state = self.state.lock();
        let rate = |limits: &Limits| (limits.requests_per_second, limits.requests_burst);
        if rate(&state.limits) != rate(&limits) {
            // A debt in units of the old rate says nothing about the new one.
            state.empty_at_nanos = 0;
        }
        state.limits = limits;
    }

    /// Takes one request's place: concurrency, then rate. The slot frees the concurrency when dropped; the rate is spent.
    pub(crate) fn admit(self: &Arc<Self>, class: QuotaClass) -> Result<Slot, Exceeded> {
        let admitted = self.state.lock().admit(self.clock.now_nanos());
        match admitted {
            Ok(()) => {
                let counter = match class {
                    QuotaClass::Request => &self.counted.requests,
                    QuotaClass::Prediction => &self.counted.predictions,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                Ok(Slot { meter: Arc::clone(self) })
            }
            Err(exceeded) => {
                self.counted.refused.fetch_add(1, Ordering::Relaxed);
                Err(exceeded)
            }
        }
    }

    /// Sets what the durable counter says: when the store is opened, before the first `reserve` of that stock.
    pub(crate) fn seed(&self, what: Resource, used: u64) {
        self.state.lock().stock_mut(what).used = used;
    }

    /// Reserves `amount` if used + reserved + amount stays within the limit. Given back by drop unless committed.
    pub(crate) fn reserve(self: &Arc<Self>, what: Resource, amount: u64) -> Result<Reservation, Exceeded> {
        self.state.lock().reserve(what, amount)?;
        Ok(Reservation { meter: Arc::clone(self), what, amount })
    }

    /// Something was deleted and its transaction is committed.
    pub(crate) fn release(&self, what: Resource, amount: u64) {
        let mut state = self.state.lock();
        let stock = state.stock_mut(what);
        stock.used = stock.used.saturating_sub(amount);
    }

    /// Committed plus reserved.
    pub(crate) fn used(&self, what: Resource) -> u64 {
        self.state.lock().stock_mut(what).total()
    }

    /// For the answer's headers.
    pub(crate) fn rate_state(&self) -> RateLimitState {
        self.state.lock().rate_state(self.clock.now_nanos())
    }

    /// Counters since the meter began.
    pub(crate) fn usage(&self) -> Usage {
        self.counted.read()
    }

    /// Moves what the counters grew by into the present minute and hour.
    pub(crate) fn tick(&self, seconds: i64) {
        let mut history = self.history.lock();
        history.tick(&self.usage(), seconds);
    }

    /// Minutes from `since` on in which anything was used.
    pub(crate) fn minutes(&self, since: i64) -> Vec<Bucket> {
        self.history.lock().minutes(since)
    }

    /// Hours that are not written yet.
    pub(crate) fn hours_waiting(&self) -> Vec<Bucket> {
        self.history.lock().hours().into_iter().map(|(at, usage)| Bucket { at, usage }).collect()
    }

    /// As [`History::hours_send`].
    pub(crate) fn hours_send(&self, mark: u64) -> Leaving {
        self.history.lock().hours_send(mark)
    }

    /// As [`History::hours_written`].
    pub(crate) fn hours_written(&self) {
        self.history.lock().hours_written();
    }

    /// Adds memory that a cell held for a while, in bytes times seconds, and the while itself, in microseconds.
    pub(crate) fn count_held(&self, byte_seconds: u64, micros: u64) {
        self.counted.memory_byte_seconds.fetch_add(byte_seconds, Ordering::Relaxed);
        self.counted.cell_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Adds CPU that a cell spent, in microseconds.
    pub(crate) fn count_cpu(&self, micros: u64) {
        self.counted.cpu_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Adds a prediction that waited for a cell or a model.
    pub(crate) fn count_cold_start(&self, micros: u64) {
        self.counted.cold_starts.fetch_add(1, Ordering::Relaxed);
        self.counted.cold_start_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Adds time that a prediction waited for its turn, in microseconds.
    pub(crate) fn count_queued(&self, micros: u64) {
        self.counted.queue_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Adds a cell that ended badly.
    pub(crate) fn count_cell_failed(&self) {
        self.counted.cells_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds a cell that was stopped to make room, or because it idled.
    pub(crate) fn count_cell_evicted(&self) {
        self.counted.cells_evicted.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds time that a job ran, in microseconds.
    pub(crate) fn count_job(&self, micros: u64) {
        self.counted.training_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Adds bytes received and sent.
    pub(crate) fn count_bytes(&self, received: u64, sent: u64) {
        self.counted.bytes_in.fetch_add(received, Ordering::Relaxed);
        self.counted.bytes_out.fetch_add(sent, Ordering::Relaxed);
    }
}

/// A place among the requests in flight; free when dropped.
pub(crate) struct Slot {
    meter: Arc<Meter>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.meter.state.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
    }
}

/// Something reserved; given back when dropped unless committed.
pub(crate) struct Reservation {
    meter: Arc<Meter>,
    what: Resource,
    amount: u64,
}

impl Reservation {
    /// Reserves more of the same, for an upload whose length is not known at its start.
    pub(crate) fn grow(&mut self, amount: u64) -> Result<(), Exceeded> {
        self.meter.state.lock().reserve(self.what, amount)?;
        self.amount += amount;
        Ok(())
    }

    /// What is reserved.
    #[cfg(test)]
    pub(crate) fn amount(&self) -> u64 {
        self.amount
    }

    /// Keeps it as used: the durable counter was raised in the same transaction.
    pub(crate) fn commit(mut self) {
        {
            let mut state = self.meter.state.lock();
            let stock = state.stock_mut(self.what);
            stock.used = stock.used.saturating_add(self.amount);
            stock.reserved = stock.reserved.saturating_sub(self.amount);
        }
        self.amount = 0; // nothing is left for drop to give back
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.meter.state.lock();
        let stock = state.stock_mut(self.what);
        stock.reserved = stock.reserved.saturating_sub(self.amount);
    }
}

/// Time that never goes back, in nanoseconds since the meter was made.
enum Clock {
    Monotonic(Instant),
    #[cfg(test)]
    Held(Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    fn now_nanos(&self) -> u64 {
        match self {
            Self::Monotonic(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX / 2),
            #[cfg(test)]
            Self::Held(nanos) => nanos.load(Ordering::SeqCst),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Stock {
    used: u64,
    reserved: u64,
}

impl Stock {
    fn total(&self) -> u64 {
        self.used.saturating_add(self.reserved)
    }
}

struct State {
    limits: Limits,
    /// When the bucket of spent requests is empty again: the "theoretical arrival time" of the algorithm.
    empty_at_nanos: u64,
    in_flight: u32,
    stock: [Stock; Resource::ALL.len()],
}

impl State {
    fn admit(&mut self, now_nanos: u64) -> Result<(), Exceeded> {
        if self.in_flight >= self.limits.concurrency_max {
            return Err(Exceeded {
                limit: "concurrency_max",
                value: self.limits.concurrency_max.into(),
                used: self.in_flight.into(),
                retry_after_seconds: Some(CONCURRENCY_RETRY_SECONDS),
            });
        }
        let (interval, depth) = self.bucket_nanos();
        let empty_at = self.empty_at_nanos.max(now_nanos) + interval;
        let over = (empty_at - now_nanos).saturating_sub(depth);
        if over > 0 {
            return Err(Exceeded {
                limit: "requests_per_second",
                value: self.limits.requests_per_second.into(),
                used: self.limits.requests_burst.into(),
                retry_after_seconds: Some(over.div_ceil(NANOS_PER_SECOND)),
            });
        }
        self.empty_at_nanos = empty_at;
        self.in_flight += 1;
        Ok(())
    }

    fn rate_state(&self, now_nanos: u64) -> RateLimitState {
        let (interval, depth) = self.bucket_nanos();
        let spent = self.empty_at_nanos.saturating_sub(now_nanos);
        RateLimitState {
            name: "requests",
            limit: self.limits.requests_burst.into(),
            window_seconds: depth.div_ceil(NANOS_PER_SECOND),
            remaining: depth.saturating_sub(spent) / interval,
            reset_seconds: spent.div_ceil(NANOS_PER_SECOND),
        }
    }

    /// (between two requests at the sustained rate, for a whole burst)
    fn bucket_nanos(&self) -> (u64, u64) {
        let interval = NANOS_PER_SECOND / u64::from(self.limits.requests_per_second.clamp(1, RATE_MAX));
        (interval, interval * u64::from(self.limits.requests_burst.clamp(1, RATE_MAX)))
    }

    fn reserve(&mut self, what: Resource, amount: u64) -> Result<(), Exceeded> {
        let value = self.limits.of(what);
        let stock = self.stock_mut(what);
        let used = stock.total();
        if used.checked_add(amount).is_none_or(|total| total > value) {
            return Err(Exceeded { limit: what.name(), value, used, retry_after_seconds: None });
        }
        stock.reserved += amount;
        Ok(())
    }

    #[expect(clippy::indexing_slicing, reason = "the array has one place for each variant")]
    fn stock_mut(&mut self, what: Resource) -> &mut Stock {
        &mut self.stock[what as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize};

    use super::*;

    fn held(limits: Limits) -> (Arc<Meter>, Arc<AtomicU64>) {
        let clock = Arc::new(AtomicU64::new(0));
        (Meter::with_clock(limits, Clock::Held(Arc::clone(&clock))), clock)
    }

    fn rate(requests_per_second: u32, requests_burst: u32) -> Limits {
        Limits { requests_per_second, requests_burst, ..Limits::default() }
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (meter, clock) = held(rate(10, 3));
        for _ in 0..3 {
            meter.admit(QuotaClass::Request).unwrap();
        }
        let refused = meter.admit(QuotaClass::Request).err().unwrap();
        assert_eq!(refused, Exceeded { limit: "requests_per_second", value: 10, used: 3, retry_after_seconds: Some(1) });
        assert_eq!(refused.to_string(), "the limit `requests_per_second` of 10 is reached; try again in 1 second");
        clock.store(99_999_999, Ordering::SeqCst);
        assert!(meter.admit(QuotaClass::Request).is_err(), "one nanosecond before the next is due");
        clock.store(100_000_000, Ordering::SeqCst);
        meter.admit(QuotaClass::Prediction).unwrap();
        assert!(meter.admit(QuotaClass::Request).is_err());
        // An hour of rest gives one burst, not an hour's worth.
        clock.store(3_600 * NANOS_PER_SECOND, Ordering::SeqCst);
        assert_eq!((0..100).filter(|_| meter.admit(QuotaClass::Request).is_ok()).count(), 3);
        let usage = meter.usage();
        assert_eq!((usage.requests, usage.predictions, usage.refused), (6, 1, 3 + 97));
    }

    #[test]
    fn over_a_long_time_the_rate_is_the_rate() {
        let (meter, clock) = held(rate(50, 10));
        let mut admitted = 0;
        for millis in 0..10_000u64 {
            clock.store(millis * 1_000_000, Ordering::SeqCst);
            admitted += u32::from(meter.admit(QuotaClass::Request).is_ok());
        }
        assert_eq!(admitted, 50 * 10 + 10 - 1, "10 s at 50/s and the burst; the last one is due at 10.0 s");
    }

    #[test]
    fn headers_count_down_and_back() {
        let (meter, clock) = held(rate(2, 4));
        assert_eq!(meter.rate_state().policy_header(), r#""requests";q=4;w=2"#);
        assert_eq!(meter.rate_state().header(), r#""requests";r=4;t=0"#);
        meter.admit(QuotaClass::Request).unwrap();
        assert_eq!(meter.rate_state().header(), r#""requests";r=3;t=1"#);
        for _ in 0..3 {
            meter.admit(QuotaClass::Request).unwrap();
        }
        assert_eq!(meter.rate_state().header(), r#""requests";r=0;t=2"#);
        clock.store(NANOS_PER_SECOND, Ordering::SeqCst);
        assert_eq!(meter.rate_state().header(), r#""requests";r=2;t=1"#);
    }

    #[test]
    fn slots_come_back_when_dropped_also_by_a_panic() {
        let (meter, _) = held(Limits { concurrency_max: 2, ..rate(1000, 1000) });
        let first = meter.admit(QuotaClass::Request).unwrap();
        let _second = meter.admit(QuotaClass::Request).unwrap();
        let refused = meter.admit(QuotaClass::Request).err().unwrap();
        assert_eq!((refused.limit, refused.used, refused.retry_after_seconds), ("concurrency_max", 2, Some(1)));
        drop(first);
        let slot = meter.admit(QuotaClass::Request).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _slot = slot;
            panic!("handler");
        }));
        assert!(panicked.is_err());
        assert!(meter.admit(QuotaClass::Request).is_ok());
    }

    #[test]
    fn a_refusal_for_concurrency_costs_no_rate() {
        let (meter, _) = held(Limits { concurrency_max: 1, ..rate(1, 2) });
        let slot = meter.admit(QuotaClass::Request).unwrap();
        for _ in 0..10 {
            assert_eq!(meter.admit(QuotaClass::Request).err().unwrap().limit, "concurrency_max");
        }
        drop(slot);
        assert!(meter.admit(QuotaClass::Request).is_ok());
    }

    #[test]
    fn stock_is_reserved_committed_given_back() {
        let (meter, _) = held(Limits { storage_bytes: 100, ..Limits::default() });
        meter.seed(Resource::StorageBytes, 40);
        let mut first = meter.reserve(Resource::StorageBytes, 30).unwrap();
        first.grow(20).unwrap();
        let refused = first.grow(11).unwrap_err();
        assert_eq!(refused, Exceeded { limit: "storage_bytes", value: 100, used: 90, retry_after_seconds: None });
        assert_eq!(refused.to_string(), "the limit `storage_bytes` of 100 is reached: 90 in use; free some or ask the operator for more");
        assert_eq!(first.amount(), 50);
        drop(meter.reserve(Resource::StorageBytes, 10).unwrap());
        first.commit();
        assert_eq!(meter.used(Resource::StorageBytes), 90);
        assert!(meter.reserve(Resource::StorageBytes, 11).is_err());
        assert!(meter.reserve(Resource::StorageBytes, u64::MAX).is_err(), "overflow is a refusal");
        meter.release(Resource::StorageBytes, 60);
        assert!(meter.reserve(Resource::StorageBytes, 70).is_ok());
        assert_eq!(meter.used(Resource::StorageBytes), 30, "a dropped reservation is given back");
        // Lowering a limit below what is used refuses more and takes nothing away.
        meter.set_limits(Limits { storage_bytes: 10, ..Limits::default() });
        assert_eq!(meter.used(Resource::StorageBytes), 30);
        assert!(meter.reserve(Resource::StorageBytes, 1).is_err());
        assert_eq!(meter.used(Resource::Objects), 0, "stocks are apart");
    }

    #[test]
    fn many_threads_never_exceed() {
        let limits = Limits { concurrency_max: 5, objects: 1_000, ..rate(1, 400) };
        let (meter, _) = held(limits);
        let (in_flight, peak, admitted, committed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8usize {
                let (meter, in_flight, peak, admitted, committed) = (&meter, &in_flight, &peak, &admitted, &committed);
                scope.spawn(move || {
                    for round in 0..2_000usize {
                        if let Ok(slot) = meter.admit(QuotaClass::Request) {
                            peak.fetch_max(in_flight.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            admitted.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            in_flight.fetch_sub(1, Ordering::SeqCst);
                            drop(slot);
                        }
                        if let Ok(room) = meter.reserve(Resource::Objects, 1 + (thread as u64 % 3)) {
                            assert!(meter.used(Resource::Objects) <= 1_000);
                            if round % 2 == 0 {
                                committed.fetch_add(room.amount() as usize, Ordering::SeqCst);
                                room.commit();
                            }
                        }
                    }
                });
            }
        });
        assert!(peak.load(Ordering::SeqCst) <= 5);
        assert_eq!(admitted.load(Ordering::SeqCst), 400, "the clock stands: exactly the burst");
        assert_eq!(meter.used(Resource::Objects) as usize, committed.load(Ordering::SeqCst));
        assert!(committed.load(Ordering::SeqCst) >= 998, "and they do fill it");
    }

    #[test]
    fn limits_are_strict() {
        Limits::default().validate().unwrap();
        assert_eq!(serde_json::from_str::<Limits>("{}").unwrap(), Limits::default());
        assert!(serde_json::from_str::<Limits>(r#"{"request_per_second": 1}"#).unwrap_err().to_string().contains("`request_per_second`"));
        assert!(serde_json::from_str::<Limits>(r#"{"models": -1}"#).is_err());
        let bad = [
            Limits { requests_per_second: 0, ..Limits::default() },
            Limits { requests_burst: RATE_MAX + 1, ..Limits::default() },
            Limits { concurrency_max: 0, ..Limits::default() },
            Limits { cpu_percent: 0, ..Limits::default() },
            Limits { memory_bytes: 1, ..Limits::default() },
            Limits { job_seconds: 0, ..Limits::default() },
            Limits { storage_bytes: u64::MAX, ..Limits::default() },
        ];
        for limits in bad {
            assert!(matches!(limits.validate(), Err(Error::Invalid(_))), "{limits:?}");
        }
        assert_eq!(bad[0].validate().unwrap_err().to_string(), "`requests_per_second` is 0: give 1 to 1000000");
    }

    #[test]
    fn every_stock_has_its_place_and_its_limit() {
        let json = serde_json::to_value(Limits::default()).unwrap();
        for (place, what) in Resource::ALL.into_iter().enumerate() {
            assert_eq!(what as usize, place);
            assert_eq!(json[what.name()], Limits::default().of(what), "{}", what.name());
        }
    }
}
