//! The points of metrics as clients read them: page by page, of several runs at once, and spread out for a chart.

use tenancy::Permit;
use tenancy::act::{ResourceKind, RunRead};

use super::experiment;
use super::journal;
use super::metric::{HISTORY_POINTS_MAX, Point};
use super::run::{TrackedRun, readable};
use super::token::PageToken;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// Most runs of one request for histories.
pub const HISTORY_RUNS_MAX: usize = 100;

/// A page of a metric's history.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// Points by time, step and value.
    pub points: Vec<Point>,
    /// Token for more.
    pub next: Option<String>,
}

impl Platform {
    /// A page of the history of one metric of the run that the permit is about.
    ///
    /// # Errors
    /// Not found; a token of another query.
    pub async fn tracking_history(&self, permit: &Permit<RunRead>, key: &str, limit: Option<u32>, token: Option<&str>) -> Result<History> {
        let run = readable(permit, &mut permit.rows().snapshot().await?, permit.resource()).await?;
        let shape = PageToken::shape(&(&run.id, key));
        let skip = PageToken::open(permit, token, "history", &shape)?;
        let limit = experiment::page_limit(
            limit.map(|limit| if limit > HISTORY_POINTS_MAX { HISTORY_POINTS_MAX } else { limit }),
            HISTORY_POINTS_MAX,
            HISTORY_POINTS_MAX,
        )?;
        let rows = permit.rows();
        let Some(metric) = journal::metric(&rows, &run, key).await? else { return Ok(History { points: Vec::new(), next: None }) };
        let (points, more) = metric.history(&rows, &run.id, skip as u64, limit).await?;
        let next = more.then(|| PageToken::seal(permit, "history", &shape, skip + points.len())).transpose()?;
        Ok(History { points, next })
    }

    /// The beginnings of the histories of one metric of several runs, at most `limit` points in all; runs by id.
    ///
    /// # Errors
    /// Too many runs.
    pub async fn tracking_histories(
        &self,
        permit: &Permit<RunRead>,
        runs: &[String],
        key: &str,
        limit: u32,
    ) -> Result<Vec<(String, Vec<Point>)>> {
        let mut left = limit.min(HISTORY_POINTS_MAX) as usize;
        let mut found = Vec::new();
        for run in self.history_runs(permit, runs).await?.into_iter().flatten() {
            let rows = permit.rows();
            if let Some(metric) = journal::metric(&rows, &run, key).await? {
                let (points, _) = metric.history(&rows, &run.id, 0, left).await?;
                left -= points.len();
                found.push((run.id, points));
            }
        }
        Ok(found)
    }

    /// At most `limit` points of one metric of each of several runs, spread evenly between two steps.
    ///
    /// # Errors
    /// Too many runs; one that is not found.
    pub async fn tracking_samples(
        &self,
        permit: &Permit<RunRead>,
        runs: &[String],
        key: &str,
        steps: Option<(i64, i64)>,
        limit: u32,
    ) -> Result<Vec<(String, Vec<Point>)>> {
        let mut found = Vec::new();
        for run in self.history_runs(permit, runs).await? {
            let run = run.ok_or(Error::not_found("run"))?;
            let rows = permit.rows();
            if let Some(metric) = journal::metric(&rows, &run, key).await? {
                let points = metric.sampled(&rows, &run.id, steps, limit.clamp(1, HISTORY_POINTS_MAX) as usize).await?;
                found.push((run.id, points));
            }
        }
        Ok(found)
    }

    /// Runs by id that may be read; `None` for those that may not.
    async fn history_runs(&self, permit: &Permit<RunRead>, ids: &[String]) -> Result<Vec<Option<TrackedRun>>> {
        if ids.is_empty() {
            return Err(Error::invalid("GetMetricHistoryBulk request must specify at least one run_id."));
        }
        if ids.len() > HISTORY_RUNS_MAX {
            return Err(Error::invalid(format!(
                "GetMetricHistoryBulk request cannot specify more than {HISTORY_RUNS_MAX} run_ids. Received {} run_ids.",
                ids.len()
            )));
        }
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let runs = permit.rows().get_all::<TrackedRun>(&ids).await?;
        Ok(runs.into_iter().map(|run| run.filter(|run| permit.may(ResourceKind::Experiment, &run.experiment_id))).collect())
    }
}
