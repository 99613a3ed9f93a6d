//! Tracking, in MLflow's words: experiments, runs with parameters, metrics and tags, and the search over them.

pub(crate) mod artifact;
pub(crate) mod check;
pub(crate) mod experiment;
pub(crate) mod filter;
mod history;
pub(crate) mod hits;
pub(crate) mod index;
pub(crate) mod item;
mod journal;
pub(crate) mod lifecycle;
pub(crate) mod logged_model;
pub(crate) mod metric;
pub(crate) mod run;
mod sweep;
pub(crate) mod token;
pub(crate) mod trace;
pub(crate) mod training;
pub(crate) mod webhook;

pub use experiment::{EXPERIMENTS_PAGE_DEFAULT, EXPERIMENTS_PAGE_MAX, Experiment, ExperimentRequest, ExperimentSearch};
pub use history::{HISTORY_RUNS_MAX, History};
pub use index::{DatasetSummary, RUNS_PAGE_DEFAULT, RUNS_PAGE_MAX, RunSearch};
pub use item::{DatasetInfo, DatasetInput, ModelInput, ModelOutput, Text};
pub use lifecycle::{Lifecycle, RETENTION_DAYS_DEFAULT, RETENTION_DAYS_MAX, ViewType};
pub use metric::{HISTORY_POINTS_MAX, MetricPoint, ModelLink, Point, Real};
pub use run::{
    Batch, INPUTS_PER_BATCH_MAX, METRICS_PER_BATCH_MAX, RunRequest, RunStatus, RunUpdate, RunView, TEXTS_PER_BATCH_MAX, TrackedRun,
};

/// The latest value of a metric of a run.
pub(crate) async fn run_metric(tx: &mut tenancy::Tx<'_>, run: &str, name: &str) -> crate::error::Result<Option<f64>> {
    Ok(journal::latest(tx, run, name).await?.map(|point| point.value))
}

/// The experiment that a run belongs to.
pub(crate) async fn run_experiment(rows: &tenancy::Rows<'_>, run: &str) -> crate::error::Result<Option<String>> {
    Ok(rows.get::<run::TrackedRun>(run).await?.map(|run| run.experiment_id))
}
