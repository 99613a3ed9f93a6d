//! What was deleted goes for good once its retention time has passed: records, artifacts, their bytes and keys, and the space they took.
//!
//! ```text
//! delete ─► trash record, and the tenant's sweep is due when the retention time is over
//! a round of the tenant's home ─► claims the sweep ─► Permit<RetentionSweep> ─► some of the trash, a transaction each ─► due again, or done
//! ```
//! Whoever deletes sees to it that the tenant's sweep is due in time; nobody has to write anything for it to happen. Each step takes a
//! bounded part away in a transaction of its own and with an entry of its own, so one that is cut is gone on with by the next. The trash is
//! the truth: what was restored meanwhile stays behind in it and is passed over.

use std::time::Duration;

use tenancy::act::RetentionSweep;
use tenancy::{Lease, Permit, Record, Resource, Tx};

use super::artifact;
use super::experiment::{self, DEFAULT_ID, Experiment};
use super::index::Touch;
use super::item;
use super::lifecycle::{Deleted, Retention, Trash};
use super::logged_model;
use super::run::{RUN_BYTES, TrackedRun};
use super::trace;
use crate::error::Result;
use crate::platform::Platform;

/// Most records that one step takes away.
const SWEPT_RECORDS_MAX: u32 = 500;
/// Most deleted things that are looked at for it.
const SWEPT_THINGS_MAX: u32 = 8;
/// Most steps for one tenant before it is another's turn.
const STEPS_MAX: u32 = 20;
/// Most turns of one round; the next one goes on.
const TURNS_MAX: u32 = 1000;
/// Pause before a sweep that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// Runs that went; hold it beyond the commit.
#[must_use = "the runs are marked when this is dropped, which has to be after the commit"]
struct Swept {
    runs: Vec<Touch>,
    records: u32,
}

impl Swept {
    fn left(&self) -> u32 {
        SWEPT_RECORDS_MAX.saturating_sub(self.records)
    }
}

impl Platform {
    /// One round: every sweep that is due at `now`, in microseconds since 1970, of tenants whose home is here. How many turns that took.
    ///
    /// # Errors
    /// The control store's; what goes wrong inside a tenant is tried again later.
    pub async fn retention_round(&self, now: i64) -> Result<u32> {
        let mut turns = 0;
        while turns < TURNS_MAX
            && !self.is_closed()
            && let Some(lease) = self.kernel().claim_sweep(&self.config().node, now).await?
        {
            turns += 1;
            match self.retention_turn(&lease, now).await {
                Ok(Some(due)) => self.kernel().postpone_sweep(lease, due).await?,
                Ok(None) => self.kernel().release(lease).await?,
                Err(error) => {
                    tracing::warn!(%error, private = error.private(), "what was deleted long ago is not cleared away yet");
                    let pause = i64::try_from(AGAIN_AFTER.as_micros()).unwrap_or(i64::MAX);
                    self.kernel().postpone_sweep(lease, now.saturating_add(pause)).await?;
                }
            }
        }
        Ok(turns)
    }

    /// One tenant's turn; when it is due again, if there is anything left.
    async fn retention_turn(&self, lease: &Lease, now: i64) -> Result<Option<i64>> {
        let tenant = self.kernel().resume_sweep(lease).await?;
        for _ in 0..STEPS_MAX {
            let permit = tenant.allow::<RetentionSweep>("")?;
            match self.retention_step(&permit, now).await {
                Ok(due) => {
                    let _ = permit.finish()?;
                    if due.is_none_or(|due| due > now) {
                        return Ok(due);
                    }
                }
                Err(error) => {
                    let _ = permit.failed(error.code())?;
                    return Err(error);
                }
            }
        }
        // Behind the others that are due.
        Ok(Some(now))
    }

    /// Takes away some of what is past its retention time. When the rest is due, if there is any.
    async fn retention_step(&self, permit: &Permit<RetentionSweep>, now: i64) -> Result<Option<i64>> {
        let mut tx = permit.tx().await?;
        let retention = Retention::micros(&mut tx).await?;
        let mut swept = Swept { runs: Vec::new(), records: 0 };
        for trash in tx.list::<Trash>(None, SWEPT_THINGS_MAX, None).await?.records {
            if trash.at.saturating_add(retention) > now || swept.left() == 0 {
                break;
            }
            let done = match &trash.what {
                Deleted::Run { id, experiment } => self.run_sweep(permit, &mut tx, id, experiment, trash.at, &mut swept).await?,
                Deleted::Experiment(id) => self.experiment_sweep(permit, &mut tx, id, trash.at, &mut swept).await?,
                Deleted::LoggedModel(id) => {
                    let (removed, all) = logged_model::sweep(&mut tx, id, trash.at, swept.left()).await?;
                    swept.records += removed;
                    all
                }
            };
            if !done {
                break;
            }
            tx.delete::<Trash>(&trash.key()).await?;
        }
        permit.detail("swept_records", swept.records);
        let rest = tx.list::<Trash>(None, 1, None).await?.records.pop();
        tx.commit().await?;
        Ok(rest.map(|trash| trash.at.saturating_add(retention)))
    }

    /// Whether all of a run is gone, or it was restored.
    async fn run_sweep(
        &self,
        permit: &Permit<RetentionSweep>,
        tx: &mut Tx<'_>,
        id: &str,
        experiment: &str,
        at: i64,
        swept: &mut Swept,
    ) -> Result<bool> {
        if let Some(run) = tx.get::<TrackedRun>(id).await? {
            let outer = experiment::one(tx.get(experiment).await?, experiment).map(|found| found.lifecycle).unwrap_or_default();
            if run.lifecycle.at != at || !run.lifecycle.within(outer).deleted {
                return Ok(true);
            }
        }
        self.run_remove(permit, tx, id, experiment, at, swept).await
    }

    /// Removes a run; the record first, so that it cannot come back in part. Whether all of it is gone.
    async fn run_remove(
        &self,
        permit: &Permit<RetentionSweep>,
        tx: &mut Tx<'_>,
        id: &str,
        experiment: &str,
        at: i64,
        swept: &mut Swept,
    ) -> Result<bool> {
        swept.runs.push(self.tracking().touch(permit, id));
        if tx.delete::<TrackedRun>(id).await? {
            tx.refund(Resource::StorageBytes, RUN_BYTES).await?;
        }
        swept.records += item::remove(tx, id, swept.left()).await? + 1;
        swept.records += artifact::remove_some(tx, &artifact::run_root(experiment, id), swept.left()).await?;
        if swept.left() == 0 {
            // Its record is gone: what is left of it is found again by this alone.
            tx.put(&Trash { at, what: Deleted::Run { id: id.to_owned(), experiment: experiment.to_owned() } }).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether all of an experiment is gone, or it was restored.
    async fn experiment_sweep(
        &self,
        permit: &Permit<RetentionSweep>,
        tx: &mut Tx<'_>,
        id: &str,
        at: i64,
        swept: &mut Swept,
    ) -> Result<bool> {
        let stored = tx.get::<Experiment>(id).await?;
        match &stored {
            Some(found) if found.lifecycle.at != at || !found.lifecycle.deleted => return Ok(true),
            // The default experiment stays what it is: it would be there again at the next look.
            Some(found) if id != DEFAULT_ID => experiment::remove(tx, found).await?,
            _ => {}
        }
        let mut after: Option<String> = None;
        loop {
            let runs = tx.find::<TrackedRun>("experiment", id, after.as_deref(), SWEPT_THINGS_MAX).await?;
            for run in runs.records {
                // Of the default experiment a run may have been restored alone; any other one is gone with all that was in it.
                let kept = id == DEFAULT_ID && stored.as_ref().is_some_and(|found| !run.lifecycle.within(found.lifecycle).deleted);
                if !kept && !self.run_remove(permit, tx, &run.id, id, at, swept).await? {
                    return Ok(false);
                }
            }
            after = runs.next;
            if after.is_none() {
                break;
            }
        }
        swept.records += trace::remove_some(tx, id, swept.left()).await?;
        if swept.left() == 0 {
            return Ok(false);
        }
        let (removed, all) = logged_model::sweep_in(tx, id, swept.left()).await?;
        swept.records += removed;
        if all && id != DEFAULT_ID {
            // Of what nobody made a record for.
            swept.records += artifact::remove_some_in(tx, id, swept.left()).await?;
        }
        Ok(all && swept.left() > 0)
    }
}
