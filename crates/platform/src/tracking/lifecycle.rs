//! Deleted, and restored: what happened last counts.
//!
//! Deleting an experiment deletes its runs, and restoring it restores them, those that were deleted one by one before too. There may be
//! a hundred thousand of them, so nothing is written into a run when its experiment changes: each remembers what happened to it and when,
//! and of the two the later one says what is.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tenancy::act::{Act, Writes};
use tenancy::{Permit, Record, Tx};

use crate::error::Result;
use crate::page::Timestamp;

/// Days for which deleted things can be restored, unless the tenant says otherwise.
pub const RETENTION_DAYS_DEFAULT: u32 = 30;
/// Longest time that a tenant can set, in days.
pub const RETENTION_DAYS_MAX: u32 = 3650;

/// What happened last to a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lifecycle {
    /// Whether it was deleted; else it was made or restored.
    pub deleted: bool,
    /// When, in microseconds since 1970.
    pub at: i64,
}

impl Lifecycle {
    /// It happens now: after everything that these saw.
    pub(crate) fn now(deleted: bool, before: &[Self]) -> Self {
        let after = before.iter().map(|before| before.at.saturating_add(1)).max().unwrap_or_default();
        Self { deleted, at: Timestamp::now().micros().max(after) }
    }

    /// What is, of a thing and of what it is in.
    #[must_use]
    pub fn within(self, outer: Self) -> Self {
        if outer.at > self.at { outer } else { self }
    }

    /// MLflow's word.
    #[must_use]
    pub fn stage(self) -> &'static str {
        if self.deleted { "deleted" } else { "active" }
    }
}

/// Which of the living and the deleted are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ViewType {
    /// Those that are not deleted.
    #[default]
    ActiveOnly,
    /// The deleted ones.
    DeletedOnly,
    /// All of them.
    All,
}

impl ViewType {
    /// MLflow's word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "ACTIVE_ONLY" | "1" => Some(Self::ActiveOnly),
            "DELETED_ONLY" | "2" => Some(Self::DeletedOnly),
            "ALL" | "3" => Some(Self::All),
            _ => None,
        }
    }

    pub(crate) fn shows(self, lifecycle: Lifecycle) -> bool {
        match self {
            Self::ActiveOnly => !lifecycle.deleted,
            Self::DeletedOnly => lifecycle.deleted,
            Self::All => true,
        }
    }
}

/// How long deleted things of a tenant can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retention {
    pub(crate) days: u32,
}

impl Record for Retention {
    const KIND: &'static str = "tracking_retention";
    fn key(&self) -> String {
        Self::KEY.to_owned()
    }
}

impl Retention {
    /// The key of the one there is.
    pub(crate) const KEY: &'static str = "retention";

    /// For how long what is deleted can be restored, in microseconds.
    pub(crate) async fn micros(tx: &mut Tx<'_>) -> Result<i64> {
        let days = tx.get::<Self>(Self::KEY).await?.map_or(RETENTION_DAYS_DEFAULT, |set| set.days);
        let retention = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
        Ok(i64::try_from(retention.as_micros()).unwrap_or(i64::MAX))
    }
}

/// Something that was deleted and is to go for good, in the order of deletion. Restored, it stays behind and is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trash {
    pub(crate) at: i64,
    pub(crate) what: Deleted,
}

impl Trash {
    /// Notes that it was deleted now, and sees to it that it goes for good when it can no longer be restored.
    pub(crate) async fn put<A: Act<Mode = Writes>>(self, permit: &Permit<A>, tx: &mut Tx<'_>) -> Result<()> {
        permit.sweep_at(self.at.saturating_add(Retention::micros(tx).await?)).await?;
        Ok(tx.put(&self).await?)
    }
}

/// What was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Deleted {
    /// An experiment with everything in it.
    Experiment(String),
    /// One run.
    Run {
        /// Its id.
        id: String,
        /// The experiment it is in.
        experiment: String,
    },
    /// One logged model.
    LoggedModel(String),
}

impl Record for Trash {
    const KIND: &'static str = "tracking_trash";
    fn key(&self) -> String {
        let (kind, id) = match &self.what {
            Deleted::Experiment(id) => ("experiment", id),
            Deleted::Run { id, .. } => ("run", id),
            Deleted::LoggedModel(id) => ("model", id),
        };
        format!("{:020}/{kind}/{id}", self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_last_counts() {
        let event = |deleted, at| Lifecycle { deleted, at };
        for (run, experiment, deleted) in [
            (event(false, 1), event(false, 0), false),
            (event(true, 1), event(false, 0), true),
            (event(false, 1), event(true, 2), true),
            (event(true, 1), event(false, 2), false),
            (event(false, 3), event(true, 2), false),
        ] {
            assert_eq!(run.within(experiment).deleted, deleted, "{run:?} {experiment:?}");
        }
        let far = event(true, i64::MAX - 10);
        assert!(Lifecycle::now(false, &[far]).at > far.at, "a clock that was set back does not undo what was asked");
    }
}
