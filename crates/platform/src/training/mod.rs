//! Training jobs: queued as a row and a content-free ticket, run in a cell of their own, ending in a run and a model version.
//!
//! ```text
//! queued ──► running ──► succeeded     one transaction: run, model version, blob, state
//!    │          ├──────► failed        the tenant's input, the model, or too many attempts
//!    └──────────┴──────► cancelled
//! ```
//!
//! The row is the truth and the ticket only says "look there". Any step may be the last before a crash: the ticket is claimed again, the row
//! is read again, and a job that is not finished starts anew. What it makes becomes visible in the last transaction alone, so a second
//! attempt never leaves two results.

mod job;
mod scheduler;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tenancy::act::{RunRead, TrainingCancel, TrainingCreate, TrainingRead};
use tenancy::{Name, Permit, Record};
use utoipa::ToSchema;
use wire::{Algorithm, Task};

use crate::dataset::{Dataset, StoredVersion, version_key};
use crate::error::{Error, Result};
use crate::page::{Page, PageRequest, Timestamp};
use crate::platform::Platform;

pub use job::JobStep;
pub(crate) use job::{POSTPONE, ROWLESS_CLAIMS_MAX, ROWLESS_PAUSE, Stop, Verdict, resumed};
pub(crate) use scheduler::{Live, Scheduler};

/// Lines kept of a training's log; later ones are counted, not kept.
pub const LOG_LINES_MAX: u64 = 2000;
/// Lines of one answer.
pub const LOG_PAGE_LINES_MAX: usize = 500;
/// Pieces of a log read at once.
const LOG_CHUNKS_READ: u32 = 100;
/// Trainings of one tenant that wait, whatever its limits say.
const QUEUED_MAX: u32 = 1000;
/// Kind of the tickets.
pub(crate) const TICKET_KIND: &str = "training";
/// Share of rows held out when nothing is said.
const TEST_SHARE_DEFAULT: f64 = 0.2;
/// Most parameters and excluded columns of one request.
const LIST_ITEMS_MAX: usize = 1000;

/// What to train on, and how.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainingRequest {
    /// Name under which the result is registered, as its next version.
    #[schema(value_type = String)]
    pub name: Name,
    /// Data set.
    #[schema(value_type = String)]
    pub dataset: Name,
    /// Its version; the newest at the time of the request when absent.
    pub version: Option<u64>,
    /// Column to predict.
    pub target: String,
    /// Columns to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// `classification` or `regression`.
    #[schema(value_type = String)]
    pub task: Task,
    /// `gradient_boosting` (when absent) or `linear`.
    #[schema(value_type = Option<String>)]
    pub algorithm: Option<Algorithm>,
    /// Parameters of the algorithm by their usual names.
    #[serde(default)]
    pub parameters: BTreeMap<String, f64>,
    /// How rows are held out.
    #[serde(default)]
    pub split: SplitRequest,
}

/// How rows are held out for the evaluation.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitRequest {
    /// Share of rows held out, in (0, 1); 0.2 when absent.
    pub test_share: Option<f64>,
    /// Seed of the shuffle; 0 when absent.
    pub seed: Option<u64>,
}

/// What was asked for, defaults filled in: with the data it determines the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Recipe {
    /// Column to predict.
    pub target: String,
    /// Columns left out.
    pub exclude: Vec<String>,
    /// `classification` or `regression`.
    #[schema(value_type = String)]
    pub task: Task,
    /// `gradient_boosting` or `linear`.
    #[schema(value_type = String)]
    pub algorithm: Algorithm,
    /// Parameters; before the run as asked for, after it as used.
    pub parameters: BTreeMap<String, f64>,
    /// Share of rows held out.
    pub test_share: f64,
    /// Seed of the shuffle.
    pub seed: u64,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainingState {
    /// Waits for its turn.
    Queued,
    /// A cell works on it.
    Running,
    /// Done: run and model version exist.
    Succeeded,
    /// Given up; `error` says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl TrainingState {
    /// Nothing will change any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Training {
    /// Its id; newer ones come first in lists.
    pub id: String,
    /// Name under which the result is registered.
    #[schema(value_type = String)]
    pub name: Name,
    /// Data set.
    #[schema(value_type = String)]
    pub dataset: Name,
    /// Its version.
    pub dataset_version: u64,
    /// What was asked for.
    pub recipe: Recipe,
    /// Where it stands.
    pub state: TrainingState,
    /// How far it is, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// The recorded run, once it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The registered version, once it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_version: Option<u64>,
    /// Times it was begun.
    pub attempts: u32,
    /// When it was queued.
    pub created_at: Timestamp,
    /// Who queued it.
    pub created_by: String,
    /// When its last attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// `reading`, `training`, `evaluating`, `writing`, …
    pub stage: String,
    /// Done, of `total`.
    pub done: u64,
    /// Units of work; 0 when unknown.
    pub total: u64,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Stable code.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Lines of a training's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrainingLogs {
    /// The lines.
    pub lines: Vec<LogLine>,
    /// Give it as `after` to get what comes later.
    pub next: u64,
    /// Whether more can come.
    pub complete: bool,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// 1, 2, 3, …
    pub number: u64,
    /// When it came.
    pub at: Timestamp,
    /// Text.
    pub text: String,
}

/// A recorded run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// Its id.
    pub id: String,
    /// The training that made it.
    pub training: String,
    /// Data set.
    #[schema(value_type = String)]
    pub dataset: Name,
    /// Its version.
    pub dataset_version: u64,
    /// SHA-256 of its bytes.
    pub dataset_sha256: String,
    /// What was done, parameters as used.
    pub recipe: Recipe,
    /// Figures on the held-out rows.
    pub metrics: BTreeMap<String, f64>,
    /// Feature names in the order of the model's inputs.
    pub features: Vec<String>,
    /// Class labels in the order of the probabilities; empty for regression.
    pub classes: Vec<String>,
    /// Rows trained on.
    pub rows_train: u64,
    /// Rows evaluated on.
    pub rows_test: u64,
    /// CPU time of the fit alone in milliseconds.
    pub fit_ms: u64,
    /// Registered model.
    #[schema(value_type = String)]
    pub model: Name,
    /// Its version.
    pub model_version: u64,
    /// SHA-256 of the ONNX file.
    pub model_sha256: String,
    /// When the training began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Who queued it.
    pub created_by: String,
}

/// A piece of a training's log as the rows hold it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LogChunk {
    pub(crate) training: String,
    pub(crate) attempt: u32,
    pub(crate) lines: Vec<LogLine>,
}

impl Record for Training {
    const KIND: &'static str = "training";
    fn key(&self) -> String {
        self.id.clone()
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("state", self.state.word().to_owned()), ("model", self.name.to_string())]
    }
}

impl Record for Run {
    const KIND: &'static str = "run";
    fn key(&self) -> String {
        self.id.clone()
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("model", self.model.to_string()), ("dataset", self.dataset.to_string())]
    }
}

impl Record for LogChunk {
    const KIND: &'static str = "training_log";
    fn key(&self) -> String {
        version_key(&self.training, self.lines.first().map_or(0, |line| line.number))
    }
}

impl Platform {
    /// Queues a training.
    ///
    /// # Errors
    /// Parameters out of range, more jobs waiting than the tenant may have, no such data set.
    pub async fn training_create(&self, permit: &Permit<TrainingCreate>, request: TrainingRequest) -> Result<Training> {
        let mut training = request.checked(permit.principal())?;
        permit.detail("training", &training.id);
        permit.detail("dataset", &training.dataset);
        permit.detail("model", &training.name);
        self.training_checked(permit, &mut training, request.version).await?;
        // All that can be refused was: a ticket without a row is the trace of a crash, and rare.
        permit.enqueue(TICKET_KIND, &training.id).await?;
        let mut tx = permit.tx().await?;
        tx.insert(&training).await?;
        tx.commit().await?;
        self.scheduler().wake();
        Ok(training)
    }

    /// The data set's version and target exist, and the tenant may queue one more.
    async fn training_checked(&self, permit: &Permit<TrainingCreate>, training: &mut Training, version: Option<u64>) -> Result<()> {
        let rows = permit.rows();
        let dataset = rows.get::<Dataset>(training.dataset.as_str()).await?.ok_or(Error::not_found("dataset"))?;
        training.dataset_version = version.unwrap_or(dataset.latest_version);
        let key = version_key(dataset.name.as_str(), training.dataset_version);
        let stored = rows.get::<StoredVersion>(&key).await?.ok_or(Error::not_found("dataset version"))?;
        if !stored.version.columns.iter().any(|column| column.name == training.recipe.target) {
            return Err(Error::invalid(format!("`target`: the data set has no column `{}`", training.recipe.target)));
        }
        let queued_max = permit.limits().jobs_queued.min(QUEUED_MAX.into());
        let queued = rows.count_found::<Training>("state", "queued").await?;
        if queued >= queued_max {
            let exceeded = tenancy::Exceeded { limit: "jobs_queued", value: queued_max, used: queued, retry_after_seconds: None };
            return Err(Error::Kernel(tenancy::Error::Quota(exceeded)));
        }
        Ok(())
    }

    /// Trainings, newest first.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn training_list(&self, permit: &Permit<TrainingRead>, page: &PageRequest) -> Result<Page<Training>> {
        let items = permit.rows().list::<Training>(page.after.as_deref(), page.limit(), None).await?;
        let page = Page::of(items, Record::key);
        Ok(page.map(|training| self.scheduler().live(permit, training)))
    }

    /// One training, with its progress while it runs.
    ///
    /// # Errors
    /// Not found.
    pub async fn training_get(&self, permit: &Permit<TrainingRead>) -> Result<Training> {
        let training = permit.rows().get::<Training>(permit.resource()).await?.ok_or(Error::not_found("training"))?;
        Ok(self.scheduler().live(permit, training))
    }

    /// Log lines after number `after`.
    ///
    /// # Errors
    /// Not found.
    pub async fn training_logs(&self, permit: &Permit<TrainingRead>, after: u64) -> Result<TrainingLogs> {
        let training = permit.rows().get::<Training>(permit.resource()).await?.ok_or(Error::not_found("training"))?;
        let complete = training.state.is_final();
        let lines = match self.scheduler().live_lines(permit, &training.id) {
            Some(lines) => lines,
            None => stored_lines(permit, &training).await?,
        };
        let lines: Vec<_> = lines.into_iter().filter(|line| line.number > after).take(LOG_PAGE_LINES_MAX).collect();
        let next = lines.last().map_or(after, |line| line.number);
        Ok(TrainingLogs { complete: complete && lines.len() < LOG_PAGE_LINES_MAX, lines, next })
    }

    /// Cancels a training that has not come to its end. One that runs is stopped at once.
    ///
    /// # Errors
    /// Not found; a conflict when it has ended.
    pub async fn training_cancel(&self, permit: &Permit<TrainingCancel>) -> Result<Training> {
        let mut tx = permit.tx().await?;
        let mut training = tx.get::<Training>(permit.resource()).await?.ok_or(Error::not_found("training"))?;
        if training.state.is_final() {
            return Err(Error::conflict(format!("the training is already {}", training.state.word())));
        }
        training.state = TrainingState::Cancelled;
        training.finished_at = Some(Timestamp::now());
        tx.put(&training).await?;
        tx.commit().await?;
        self.scheduler().cancel(permit, &training.id);
        Ok(training)
    }

    /// Runs, newest first; of one model when `model` is given.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn run_list(&self, permit: &Permit<RunRead>, model: Option<&str>, page: &PageRequest) -> Result<Page<Run>> {
        let (rows, after, limit) = (permit.rows(), page.after.as_deref(), page.limit());
        let listed = match model {
            Some(model) => rows.find::<Run>("model", model, after, limit).await?,
            None => rows.list::<Run>(after, limit, None).await?,
        };
        Ok(Page::of(listed, Record::key))
    }

    /// One run.
    ///
    /// # Errors
    /// Not found.
    pub async fn run_get(&self, permit: &Permit<RunRead>) -> Result<Run> {
        permit.rows().get::<Run>(permit.resource()).await?.ok_or(Error::not_found("run"))
    }
}

async fn stored_lines(permit: &Permit<TrainingRead>, training: &Training) -> Result<Vec<LogLine>> {
    let prefix = format!("{}/", training.id);
    let (mut lines, mut after) = (Vec::new(), None::<String>);
    loop {
        let chunks = permit.rows().list::<LogChunk>(after.as_deref(), LOG_CHUNKS_READ, Some(&prefix)).await?;
        lines.extend(chunks.records.into_iter().filter(|chunk| chunk.attempt == training.attempts).flat_map(|chunk| chunk.lines));
        after = chunks.next;
        if after.is_none() {
            return Ok(lines);
        }
    }
}

impl TrainingRequest {
    /// A queued job, defaults filled in. The cell checks the parameters themselves: it knows the algorithms.
    fn checked(&self, principal: &str) -> Result<Training> {
        let test_share = self.split.test_share.unwrap_or(TEST_SHARE_DEFAULT);
        if !(test_share > 0.0 && test_share < 1.0) {
            return Err(Error::invalid("`split.test_share` must lie between 0 and 1"));
        }
        if self.parameters.len() > LIST_ITEMS_MAX || self.exclude.len() > LIST_ITEMS_MAX {
            return Err(Error::invalid(format!("`parameters` and `exclude` hold at most {LIST_ITEMS_MAX} items")));
        }
        if let Some((name, _)) = self.parameters.iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::invalid(format!("`parameters.{name}` is not a number")));
        }
        let now = Timestamp::now();
        Ok(Training {
            id: fresh_id(now),
            name: self.name.clone(),
            dataset: self.dataset.clone(),
            dataset_version: 0,
            recipe: Recipe {
                target: self.target.clone(),
                exclude: self.exclude.clone(),
                task: self.task,
                algorithm: self.algorithm.unwrap_or(Algorithm::GradientBoosting),
                parameters: self.parameters.clone(),
                test_share,
                seed: self.split.seed.unwrap_or(0),
            },
            state: TrainingState::Queued,
            progress: None,
            error: None,
            run_id: None,
            model_version: None,
            attempts: 0,
            created_at: now,
            created_by: principal.to_owned(),
            started_at: None,
            finished_at: None,
        })
    }
}

/// 32 hex digits that sort newest first: time counted down, then chance.
pub(crate) fn fresh_id(now: Timestamp) -> String {
    use std::hash::{BuildHasher, RandomState};
    let down = u64::MAX - u64::try_from(now.micros()).unwrap_or(0);
    format!("{down:016x}{:016x}", RandomState::new().hash_one(down))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: serde_json::Value) -> Result<Training, String> {
        let request: TrainingRequest = serde_json::from_value(json).map_err(|error| error.to_string())?;
        request.checked("ada").map_err(|error| error.to_string())
    }

    #[test]
    fn requests_are_filled_in_and_checked() {
        let base = serde_json::json!({"name": "m", "dataset": "d", "target": "y", "task": "regression"});
        let with = |key: &str, value: serde_json::Value| {
            let mut json = base.clone();
            json[key] = value;
            request(json)
        };
        let training = request(base.clone()).unwrap();
        assert_eq!((training.recipe.test_share, training.recipe.seed), (0.2, 0));
        assert_eq!(training.recipe.algorithm, Algorithm::GradientBoosting);
        assert!(with("split", serde_json::json!({"test_share": 1.0})).unwrap_err().contains("between 0 and 1"));
        assert!(with("tenant", serde_json::json!("other")).unwrap_err().contains("unknown field `tenant`"));
        assert!(with("name", serde_json::json!("../x")).unwrap_err().contains("is not a name"));
    }

    #[test]
    fn newer_ids_sort_first() {
        let first = Timestamp::now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(fresh_id(Timestamp::now()) < fresh_id(first));
        assert_ne!(fresh_id(first), fresh_id(first));
        assert_eq!(fresh_id(first).len(), 32);
    }
}
