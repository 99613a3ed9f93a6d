//! What a tenant uses, counted as it happens, and kept by minute and by hour.
//!
//! Counters only grow; a bucket is how much they grew meanwhile. The minutes of the last hour are in memory and this node's; hours go to
//! the control rows, where they add up over nodes and restarts ([`crate::metering`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Minutes that are remembered.
pub(crate) const MINUTES_MAX: usize = 60;
/// Hours that wait to be written when the control rows cannot be reached; the oldest go first.
const HOURS_WAITING_MAX: usize = 31 * 24;
const MINUTE_SECONDS: i64 = 60;
/// Seconds of an hour.
pub(crate) const HOUR_SECONDS: i64 = 3_600;

/// One list of counters: as numbers, as they are counted, and by name.
macro_rules! counters {
    ($($(#[$about:meta])* $name:ident,)+) => {
        /// What a tenant used: since its meter began, or in a stretch of time.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Usage {
            $($(#[$about])* pub $name: u64,)+
        }

        impl Usage {
            /// Names of the counters.
            pub const NAMES: &[&'static str] = &[$(stringify!($name)),+];

            /// The counters in the order of their names.
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name),+]
            }

            /// Adds another stretch of time.
            pub fn add(&mut self, more: &Self) {
                $(self.$name = self.$name.saturating_add(more.$name);)+
            }

            /// By how much it grew.
            fn since(&self, before: &Self) -> Self {
                Self { $($name: self.$name.saturating_sub(before.$name),)+ }
            }
        }

        /// The counters, alive.
        #[derive(Default)]
        pub(crate) struct Counted {
            $(pub(crate) $name: AtomicU64,)+
        }

        impl Counted {
            pub(crate) fn read(&self) -> Usage {
                Usage { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Requests admitted, predictions not counted.
    requests,
    /// Predictions admitted.
    predictions,
    /// Requests and predictions refused by rate or concurrency.
    refused,
    /// CPU of the tenant's cells, in microseconds.
    cpu_micros,
    /// Memory of the tenant's cells times how long they held it, in bytes times seconds.
    memory_byte_seconds,
    /// How long the tenant's cells lived, together, in microseconds: each holds one of the node's places.
    cell_micros,
    /// Predictions that waited for a cell or a model.
    cold_starts,
    /// Sum of those waits, in microseconds.
    cold_start_micros,
    /// Time that predictions waited for their turn: among tenants, and in their cell behind others, in microseconds.
    queue_micros,
    /// Cells that ended badly and were replaced when they were needed again.
    cells_failed,
    /// Cells that were stopped because they idled, or to make room.
    cells_evicted,
    /// Time that jobs ran (trainings, and predictions for whole data sets), in microseconds.
    training_micros,
    /// Bytes received.
    bytes_in,
    /// Bytes sent.
    bytes_out,
}

/// A stretch of time and what was used in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// When it begins, in seconds since 1970.
    pub at: i64,
    /// What was used.
    pub usage: Usage,
}

/// What a meter remembers of the time before.
#[derive(Default)]
pub(crate) struct History {
    last: Usage,
    minutes: VecDeque<Bucket>,
    /// By their beginning: what is not in the control rows yet.
    hours: BTreeMap<i64, Usage>,
    /// What is on its way there, or may have arrived without a word.
    leaving: Leaving,
}

/// Hours on their way to the control rows, and the mark by which they are known there: sent twice, they are added once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaving {
    pub(crate) mark: u64,
    pub(crate) hours: BTreeMap<i64, Usage>,
}

impl History {
    /// Takes over what the counters grew by since the last time; it counts for the minute and hour of `seconds`.
    pub(crate) fn tick(&mut self, now: &Usage, seconds: i64) {
        let grown = now.since(&self.last);
        self.last = *now;
        if grown == Usage::default() {
            return;
        }
        // A clock that was set back adds to the newest minute: buckets stay in order.
        let minute = seconds.div_euclid(MINUTE_SECONDS) * MINUTE_SECONDS;
        match self.minutes.back_mut() {
            Some(newest) if newest.at >= minute => newest.usage.add(&grown),
            _ => self.minutes.push_back(Bucket { at: minute, usage: grown }),
        }
        while self.minutes.front().is_some_and(|oldest| oldest.at <= minute - MINUTES_MAX as i64 * MINUTE_SECONDS) {
            self.minutes.pop_front();
        }
        self.hours.entry(seconds.div_euclid(HOUR_SECONDS) * HOUR_SECONDS).or_default().add(&grown);
        while self.hours.len() > HOURS_WAITING_MAX {
            self.hours.pop_first();
        }
    }

    /// Minutes from `since` on in which anything was used.
    pub(crate) fn minutes(&self, since: i64) -> Vec<Bucket> {
        self.minutes.iter().filter(|bucket| bucket.at >= since).copied().collect()
    }

    /// Hours that are not in the control rows yet, as far as is known.
    pub(crate) fn hours(&self) -> BTreeMap<i64, Usage> {
        let mut all = self.leaving.hours.clone();
        self.hours.iter().for_each(|(hour, usage)| all.entry(*hour).or_default().add(usage));
        all
    }

    /// What is to be written: again what was sent before and never confirmed; else what waits, under this mark.
    pub(crate) fn hours_send(&mut self, mark: u64) -> Leaving {
        if self.leaving.hours.is_empty() {
            self.leaving = Leaving { mark, hours: std::mem::take(&mut self.hours) };
        }
        self.leaving.clone()
    }

    /// What was sent is written.
    pub(crate) fn hours_written(&mut self) {
        self.leaving.hours.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(predictions: u64) -> Usage {
        Usage { predictions, cpu_micros: predictions * 10, ..Usage::default() }
    }

    #[test]
    fn every_growth_is_in_one_minute_and_one_hour() {
        let mut history = History::default();
        for (count, seconds) in [(1, 3_599), (4, 3_599), (4, 3_600), (9, 3_661), (9, 4_000), (10, 3_000)] {
            history.tick(&used(count), seconds);
        }
        let minutes: Vec<_> = history.minutes(0).iter().map(|bucket| (bucket.at, bucket.usage.predictions)).collect();
        assert_eq!(minutes, [(3_540, 4), (3_660, 6)], "a clock set back opens no minute twice");
        let hours: Vec<_> = history.hours().iter().map(|(at, usage)| (*at, usage.predictions, usage.cpu_micros)).collect();
        assert_eq!(hours, [(0, 5, 50), (3_600, 5, 50)]);
        assert_eq!(history.minutes(3_600).len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_was_not_confirmed_is_sent_again() {
        let mut history = History::default();
        for minute in 0..100_000i64 {
            history.tick(&used(minute as u64 + 1), minute * 60);
        }
        assert_eq!(history.minutes(0).len(), MINUTES_MAX);
        assert_eq!(history.hours().len(), HOURS_WAITING_MAX);
        let sum = |hours: &BTreeMap<i64, Usage>| hours.values().map(|usage| usage.predictions).sum::<u64>();
        let all = 60 * HOURS_WAITING_MAX as u64 - 20;
        let sent = history.hours_send(1);
        history.tick(&used(100_007), 100_000 * 60);
        assert_eq!((sum(&sent.hours), sum(&history.hours())), (all, all + 7));
        let again = history.hours_send(2);
        assert_eq!((again.mark, again.hours), (1, sent.hours), "nobody confirmed it: the same, under the same mark");
        history.hours_written();
        let next = history.hours_send(3);
        assert_eq!((next.mark, sum(&next.hours)), (3, 7));
    }

    #[test]
    fn names_and_values_go_together() {
        let usage = Usage { bytes_out: 7, ..used(3) };
        assert_eq!(usage.values().len(), Usage::NAMES.len());
        let json = serde_json::to_value(usage).unwrap();
        assert!(Usage::NAMES.iter().zip(usage.values()).all(|(name, value)| json[*name] == value));
    }
}
