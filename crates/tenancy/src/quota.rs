//! Quotas: being filled in.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::act::QuotaClass;
use crate::error::Result;

/// What a tenant may use. Every field has a default; an unknown field is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests a second, sustained.
    pub requests_per_second: u32,
    /// Requests at once after a rest.
    pub requests_burst: u32,
    /// Requests in flight.
    pub concurrency_max: u32,
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
}

impl Default for Limits {
    fn default() -> Self {
        todo!()
    }
}

impl Limits {
    /// Refuses limits that make no sense.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn validate(&self) -> Result<()> {
        todo!()
    }
}

/// What can be reserved.
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

/// What was exceeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// Name of the limit, a field of [`Limits`].
    pub limit: &'static str,
    /// Its value.
    pub value: u64,
    /// What is used of it.
    pub used: u64,
    /// When asking again may help, in seconds; none if only freeing something helps.
    pub retry_after_seconds: Option<u64>,
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the limit `{}` of {} is used up", self.limit, self.value)
    }
}

/// State of the request rate for the `RateLimit` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitState {
    /// Name of the policy.
    pub name: &'static str,
    /// Requests in the window.
    pub limit: u64,
    /// Window in seconds.
    pub window_seconds: u64,
    /// Requests left now.
    pub remaining: u64,
    /// Seconds until all are back.
    pub reset_seconds: u64,
}

impl RateLimitState {
    /// Value of `RateLimit-Policy`.
    #[must_use]
    pub fn policy_header(&self) -> String {
        todo!()
    }
    /// Value of `RateLimit`.
    #[must_use]
    pub fn header(&self) -> String {
        todo!()
    }
}

/// What a tenant used since its store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Requests admitted.
    pub requests: u64,
    /// Predictions admitted.
    pub predictions: u64,
    /// Requests refused by a limit.
    pub refused: u64,
    /// CPU of cells, in microseconds.
    pub cpu_micros: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
}

/// One tenant's meter.
pub(crate) struct Meter;

impl Meter {
    pub(crate) fn new(_limits: Limits) -> Arc<Self> {
        todo!()
    }
    pub(crate) fn limits(&self) -> Limits {
        todo!()
    }
    pub(crate) fn set_limits(&self, _limits: Limits) {
        todo!()
    }
    /// Rate and concurrency. The slot frees its place when dropped.
    pub(crate) fn admit(self: &Arc<Self>, _class: QuotaClass) -> std::result::Result<Slot, Exceeded> {
        todo!()
    }
    /// What the durable counters say at open. Must be called before the first `reserve` of that resource.
    pub(crate) fn seed(&self, _what: Resource, _used: u64) {
        todo!()
    }
    /// Atomic: used + reserved + amount ≤ limit, else `Exceeded`. Dropped without `commit` = given back.
    pub(crate) fn reserve(self: &Arc<Self>, _what: Resource, _amount: u64) -> std::result::Result<Reservation, Exceeded> {
        todo!()
    }
    /// After a committed delete.
    pub(crate) fn release(&self, _what: Resource, _amount: u64) {
        todo!()
    }
    /// Committed plus reserved.
    pub(crate) fn used(&self, _what: Resource) -> u64 {
        todo!()
    }
    pub(crate) fn rate_state(&self) -> RateLimitState {
        todo!()
    }
    pub(crate) fn usage(&self) -> Usage {
        todo!()
    }
    pub(crate) fn count_cpu(&self, _micros: u64) {
        todo!()
    }
    pub(crate) fn count_bytes(&self, _received: u64, _sent: u64) {
        todo!()
    }
}

/// A place among the requests in flight; free when dropped.
pub(crate) struct Slot {
    _meter: Arc<Meter>,
}

/// Something reserved; given back when dropped unless committed.
pub(crate) struct Reservation {
    _meter: Arc<Meter>,
}

impl Reservation {
    /// Reserves more of the same (an upload that grows).
    pub(crate) fn grow(&mut self, _amount: u64) -> std::result::Result<(), Exceeded> {
        todo!()
    }
    pub(crate) fn amount(&self) -> u64 {
        todo!()
    }
    /// The durable counter was raised in the same transaction: keep it as used.
    pub(crate) fn commit(self) {
        todo!()
    }
}
