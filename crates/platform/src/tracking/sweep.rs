//! What was deleted goes for good once its retention time has passed: records, artifacts, their bytes and keys, and the space they took.
//!
//! Nobody may open a tenant in nobody's name, so there is no sweeper on its own: whoever makes or deletes runs and experiments takes some of
//! the old away, a bounded amount each time: in the same transaction where little else waits for it, after a new run in one of its own.

use tenancy::act::{Act, Writes};
use tenancy::{Permit, Resource, Tx};

use super::experiment::{self, DEFAULT_ID, Experiment};
use super::index::Touch;
use super::item;
use super::lifecycle::{Deleted, Retention, Trash};
use super::logged_model;
use super::run::{RUN_BYTES, TrackedRun};
use super::trace;
use crate::error::Result;
use crate::platform::Platform;

/// Most records that one request takes away beside its own work.
const SWEPT_RECORDS_MAX: u32 = 500;
/// Most deleted things that are looked at for it.
const SWEPT_THINGS_MAX: u32 = 8;

/// Runs that went; hold it beyond the commit.
#[must_use = "the runs are marked when this is dropped, which has to be after the commit"]
pub(crate) struct Swept {
    runs: Vec<Touch>,
    records: u32,
}

impl Swept {
    fn left(&self) -> u32 {
        SWEPT_RECORDS_MAX.saturating_sub(self.records)
    }
}

impl Platform {
    /// The same in a transaction of its own, after the caller's work is done: what goes wrong is tried again by the next one.
    pub(crate) async fn tracking_swept<A: Act<Mode = Writes>>(&self, permit: &Permit<A>) {
        let sweep = async {
            if permit.rows().list::<Trash>(None, 1, None).await?.is_empty() {
                return Ok(());
            }
            let mut tx = permit.tx().await?;
            let _swept = self.tracking_sweep(permit, &mut tx).await?;
            Ok::<_, crate::Error>(tx.commit().await?)
        };
        if let Err(error) = sweep.await {
            tracing::warn!(%error, "what was deleted long ago is not cleared away yet");
        }
    }

    /// Takes away some of what is past its retention time.
    pub(crate) async fn tracking_sweep<A: Act<Mode = Writes>>(&self, permit: &Permit<A>, tx: &mut Tx<'_>) -> Result<Swept> {
        let mut swept = Swept { runs: Vec::new(), records: 0 };
        let oldest = tx.list::<Trash>(None, SWEPT_THINGS_MAX, None).await?;
        if oldest.is_empty() {
            return Ok(swept);
        }
        let horizon = Retention::horizon(tx).await?;
        for trash in oldest.into_iter().take_while(|trash| trash.at <= horizon) {
            let done = match &trash.what {
                Deleted::Run { id, experiment } => self.run_sweep(permit, tx, id, experiment, trash.at, &mut swept).await?,
                Deleted::Experiment(id) => self.experiment_sweep(permit, tx, id, trash.at, &mut swept).await?,
                Deleted::LoggedModel(id) => {
                    swept.records += logged_model::sweep(tx, id, trash.at).await?;
                    true
                }
            };
            if !done {
                break;
            }
            tx.delete::<Trash>(&tenancy::Record::key(&trash)).await?;
        }
        if swept.records > 0 {
            permit.detail("swept_records", swept.records);
        }
        Ok(swept)
    }

    /// Whether all of a run is gone, or it was restored.
    async fn run_sweep<A: Act<Mode = Writes>>(
        &self,
        permit: &Permit<A>,
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
    async fn run_remove<A: Act<Mode = Writes>>(
        &self,
        permit: &Permit<A>,
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
        let removed = item::remove(tx, id, swept.left()).await?;
        swept.records += removed + 1;
        if swept.left() == 0 {
            // Its record is gone: what is left of it is found again by this alone.
            tx.put(&Trash { at, what: Deleted::Run { id: id.to_owned(), experiment: experiment.to_owned() } }).await?;
            return Ok(false);
        }
        super::artifacts_remove(tx, &format!("{experiment}/{id}/artifacts")).await?;
        Ok(true)
    }

    /// Whether all of an experiment is gone, or it was restored.
    async fn experiment_sweep<A: Act<Mode = Writes>>(
        &self,
        permit: &Permit<A>,
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
            let Some(last) = runs.last() else { break };
            after = Some(last.id.clone());
            for run in runs {
                // Of the default experiment a run may have been restored alone; any other one is gone with all that was in it.
                let kept = id == DEFAULT_ID && stored.as_ref().is_some_and(|found| !run.lifecycle.within(found.lifecycle).deleted);
                if !kept && !self.run_remove(permit, tx, &run.id, id, at, swept).await? {
                    return Ok(false);
                }
            }
        }
        swept.records += trace::remove_some(tx, id, swept.left()).await?;
        if swept.left() == 0 {
            return Ok(false);
        }
        let (removed, all) = logged_model::sweep_in(tx, id, swept.left()).await?;
        swept.records += removed;
        Ok(all)
    }
}
