//! Metering: who used how much, when. A tenant sees its own; the operator sees numbers of all, to bill them and to find out who crowds whom.
//!
//! ```text
//! counters ─ tick ─► minutes (this node, memory)      ─► a tenant's `usage`, the operator's `neighbours`
//!                └─► hours ─ each minute ─► control rows ─► a tenant's `usage`, the operator's export
//! ```
//!
//! A crash loses at most the minute that was not written yet. What is not confirmed is sent again and added once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::act::QuotaRead;
use crate::clock::now_micros;
use crate::control::{USAGE_BATCH, USAGE_PAGE, UsageAdded, UsageRow};
use crate::error::{Error, Result};
use crate::kernel::{Inner, Kernel};
use crate::ledger::Outcome;
use crate::name::TenantId;
use crate::operator::Operator;
use crate::permit::Permit;
use crate::quota::Meter;
use crate::usage::{Bucket, HOUR_SECONDS, Leaving, MINUTES_MAX, Usage};

/// Days for which hours are kept.
pub const USAGE_DAYS_MAX: u32 = 31;
/// Name of the only node.
const ALONE: &str = "local";

/// What a tenant used lately.
#[derive(Debug, Clone, Default)]
pub struct UsageHistory {
    /// Minutes in which anything was used, on this node, oldest first.
    pub minutes: Vec<Bucket>,
    /// Hours, on all nodes, oldest first.
    pub hours: Vec<Bucket>,
}

/// One tenant on this node, for the operator.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// The tenant's name.
    pub name: String,
    /// Minutes in which it used anything, oldest first.
    pub minutes: Vec<Bucket>,
    /// All of them together.
    pub total: Usage,
}

/// An hour of a tenant on a node, for the bill.
#[derive(Debug, Clone)]
pub struct Metered {
    /// The tenant's name now.
    pub name: String,
    /// Its opaque id: names can be given again.
    pub id: String,
    /// When the hour begins, in seconds since 1970.
    pub hour: i64,
    /// The node.
    pub node: String,
    /// What was used.
    pub usage: Usage,
}

/// A walk through the metered hours, page by page.
pub struct MeteredPages {
    kernel: Kernel,
    since: i64,
    until: i64,
    last: Option<UsageRow>,
    ended: bool,
}

impl MeteredPages {
    /// The next page; empty at the end.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when the control store fails.
    pub async fn next(&mut self) -> Result<Vec<Metered>> {
        if self.ended {
            return Ok(Vec::new());
        }
        let rows = self.kernel.0.control.usage_page(self.since, self.until, self.last.as_ref()).await?;
        self.ended = rows.len() < USAGE_PAGE as usize;
        self.last = rows.last().cloned().or(self.last.take());
        let metered = |row: UsageRow| Metered { name: row.name, id: row.tenant.hex(), hour: row.hour, node: row.node, usage: row.usage };
        Ok(rows.into_iter().map(metered).collect())
    }
}

impl Permit<QuotaRead> {
    /// What the tenant used in its last `minutes` and `hours`.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when the control store fails.
    pub async fn usage_history(&self, minutes: u32, hours: u32) -> Result<UsageHistory> {
        let (island, now) = (&self.inner.island, seconds());
        island.meter.tick(now);
        let first_minute = now - i64::from(minutes) * 60;
        let first_hour = (now.div_euclid(HOUR_SECONDS) - i64::from(hours.min(USAGE_DAYS_MAX * 24)) + 1) * HOUR_SECONDS;
        let mut told = UsageHistory::default();
        if minutes > 0 {
            told.minutes = island.meter.minutes(first_minute);
        }
        if hours > 0 {
            told.hours = self.inner.kernel.0.control.usage_of(island.id, first_hour).await?;
            for bucket in island.meter.hours_waiting().into_iter().filter(|bucket| bucket.at >= first_hour) {
                match told.hours.binary_search_by_key(&bucket.at, |known| known.at) {
                    Ok(at) => told.hours.get_mut(at).into_iter().for_each(|known| known.usage.add(&bucket.usage)),
                    Err(at) => told.hours.insert(at, bucket),
                }
            }
        }
        Ok(told)
    }
}

impl Operator {
    /// Who used what of this node in the last `minutes`, at most an hour; the largest user of CPU first.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when the ledger cannot be written.
    pub async fn neighbours(&self, minutes: u32) -> Result<Vec<Neighbour>> {
        let (kernel, act) = (&self.kernel.0, "NeighboursRead");
        kernel.record_anywhere("operator", &self.via, &self.request, act, "service:", Outcome::Allowed, "operator").await?;
        let (now, meters) = (seconds(), kernel.meters_all());
        let since = now - i64::from(minutes.min(MINUTES_MAX as u32)) * 60;
        let told = meters.into_iter().filter_map(|(_, name, meter)| {
            meter.tick(now);
            let minutes = meter.minutes(since);
            let mut total = Usage::default();
            minutes.iter().for_each(|bucket| total.add(&bucket.usage));
            (!minutes.is_empty()).then_some(Neighbour { name, minutes, total })
        });
        let mut told: Vec<_> = told.collect();
        told.sort_by(|one, other| other.total.cpu_micros.cmp(&one.total.cpu_micros).then_with(|| one.name.cmp(&other.name)));
        Ok(told)
    }

    /// Everybody's hours that begin in `since..until` (seconds since 1970), by time. What is under way is written first.
    ///
    /// # Errors
    /// [`crate::Error::Internal`] when the control store or the ledger fails.
    pub async fn metered(&self, since: i64, until: i64) -> Result<MeteredPages> {
        // In a task of its own: what it has begun is ended, whether or not somebody waits for it.
        let kernel = self.kernel.clone();
        let written = async { tokio::spawn(async move { kernel.0.usage_flush().await }).await.map_err(Error::internal)? };
        self.acted("UsageExport", "service:", written).await?;
        Ok(MeteredPages { kernel: self.kernel.clone(), since, until, last: None, ended: false })
    }
}

impl Inner {
    fn meters_all(&self) -> Vec<(TenantId, String, Arc<Meter>)> {
        self.meters.lock().iter().map(|(id, (name, meter))| (*id, name.to_string(), Arc::clone(meter))).collect()
    }

    /// Moves what the counters grew by into their minutes and hours. Call it every second or so.
    pub(crate) fn usage_tick(&self) {
        let now = seconds();
        self.meters_all().into_iter().for_each(|(_, _, meter)| meter.tick(now));
    }

    /// Writes the hours that wait; what cannot be written waits on.
    pub(crate) async fn usage_flush(&self) -> Result<()> {
        let _one = self.usage_flushing.lock().await;
        self.usage_tick();
        // Under a mark, because a commit can succeed without anybody being told: what is sent again is added once.
        let mark = u64::from_ne_bytes(crate::seal::random()?);
        let (mut rows, mut meters) = (Vec::new(), Vec::new());
        for (id, _, meter) in self.meters_all() {
            let Leaving { mark, hours } = meter.hours_send(mark);
            rows.extend(hours.into_iter().map(|(hour, usage)| UsageAdded { tenant: id, hour, usage, mark }));
            meters.push((meter, rows.len()));
        }
        let node = self.config.stores.node.as_ref().map_or(ALONE, |node| node.name.as_str());
        let (mut result, mut written) = (Ok(()), 0);
        for batch in rows.chunks(USAGE_BATCH) {
            result = self.control.usage_add(node, batch).await;
            if result.is_err() {
                break;
            }
            written += batch.len();
        }
        meters.iter().filter(|(_, end)| *end <= written).for_each(|(meter, _)| meter.hours_written());
        let oldest = (seconds().div_euclid(HOUR_SECONDS) - i64::from(USAGE_DAYS_MAX) * 24) * HOUR_SECONDS;
        if result.is_ok() && self.usage_pruned.swap(oldest, Ordering::AcqRel) != oldest {
            self.control.usage_prune(oldest).await?;
        }
        result
    }
}

fn seconds() -> i64 {
    now_micros().div_euclid(1_000_000)
}
