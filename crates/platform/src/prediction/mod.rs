//! Predictions for a whole data set: a job that asks a deployment about every row and leaves the answers as a version of a data set.
//!
//! ```text
//! queued ──► running ──► succeeded     one transaction: version of the data set, blob, lineage, state
//!    │          ├──────► failed        a row, the model, or too many attempts
//!    └──────────┴──────► cancelled
//! ```
//! It runs as a training does: a row that is the truth, a ticket that says "look there", a cell of its own, and nothing to see before the last
//! transaction. The version that the deployment means is fixed when the job is queued: an alias that moves meanwhile does not give a table
//! with two models in it. A canary is not asked.

mod job;

use serde::{Deserialize, Serialize};
use tenancy::act::{PredictionCancel, PredictionCreate, PredictionRead};
use tenancy::{Name, Permit, Record, Rows};
use utoipa::ToSchema;

use crate::dataset::{Dataset, StoredVersion, version_key};
use crate::deployment::serving;
use crate::error::{Error, Result};
use crate::model::{ModelName, StoredModelVersion};
use crate::page::{Page, PageRequest, Timestamp};
use crate::platform::Platform;
use crate::training::{Failure, Progress, Run, Training, TrainingState, fresh_id};

pub(crate) use job::run;

/// Kind of the tickets.
pub(crate) const TICKET_KIND: &str = "prediction";
/// Rows in one run of the model, when nothing is said.
const BATCH_ROWS_DEFAULT: u32 = 256;
/// Most rows in one run of the model.
const BATCH_ROWS_MAX: u32 = 4096;
/// Most kept columns, and most features, of one request.
const COLUMNS_MAX: usize = 1000;
/// Jobs of one tenant that wait, whatever its limits say.
const QUEUED_MAX: u32 = 1000;

/// What to ask about what.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PredictionRequest {
    /// The deployment that is asked: the version it means now, not its canary.
    #[schema(value_type = String)]
    pub deployment: Name,
    /// Data set with the rows.
    #[schema(value_type = String)]
    pub dataset: Name,
    /// Its version; the newest at the time of the request when absent.
    pub version: Option<u64>,
    /// Data set that gets the answers as its next version.
    #[schema(value_type = String)]
    pub into: Name,
    /// Columns that are kept beside the answers.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Columns that are a model's one input, in its order; those it was trained on when absent, else all that are not kept.
    #[serde(default)]
    pub features: Vec<String>,
    /// Rows in one run of the model, 1 to 4,096; 256 when absent. It can change the last bits of an answer.
    pub batch_rows: Option<u32>,
}

/// A job that asks about every row of a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Prediction {
    /// Its id; newer ones come first in lists.
    pub id: String,
    /// The deployment.
    #[schema(value_type = String)]
    pub deployment: Name,
    /// Data set that gets the answers.
    #[schema(value_type = String)]
    pub into: Name,
    /// Where the answers come from.
    pub lineage: PredictionLineage,
    /// Columns that are kept beside the answers.
    pub keep: Vec<String>,
    /// Columns that are the model's one input; empty for all that are not kept, and for a model with several inputs.
    pub features: Vec<String>,
    /// Rows in one run of the model.
    pub batch_rows: u32,
    /// Where it stands.
    pub state: TrainingState,
    /// How far it is, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// Rows answered, once it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The version that holds the answers, once it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into_version: Option<u64>,
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

/// What a table of answers was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PredictionLineage {
    /// The job.
    pub prediction: String,
    /// Data set with the rows.
    #[schema(value_type = String)]
    pub dataset: Name,
    /// Its version.
    pub dataset_version: u64,
    /// SHA-256 of its bytes.
    pub dataset_sha256: String,
    /// The model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Its version.
    pub model_version: u64,
    /// SHA-256 of its ONNX file.
    pub model_sha256: String,
}

impl Record for Prediction {
    const KIND: &'static str = "prediction";
    fn key(&self) -> String {
        self.id.clone()
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("state", self.state.word().to_owned())]
    }
}

impl PredictionRequest {
    fn check(&self) -> Result<()> {
        if !(1..=BATCH_ROWS_MAX).contains(&self.batch_rows()) {
            return Err(Error::invalid(format!("`batch_rows` is 1 to {BATCH_ROWS_MAX}")));
        }
        for (field, columns) in [("keep", &self.keep), ("features", &self.features)] {
            if columns.len() > COLUMNS_MAX {
                return Err(Error::invalid(format!("`{field}` holds at most {COLUMNS_MAX} columns")));
            }
            if let Some((_, name)) = columns.iter().enumerate().find(|(at, name)| columns.iter().take(*at).any(|before| before == *name)) {
                return Err(Error::invalid(format!("`{field}` names `{name}` twice")));
            }
        }
        Ok(())
    }

    fn batch_rows(&self) -> u32 {
        self.batch_rows.unwrap_or(BATCH_ROWS_DEFAULT)
    }
}

impl Platform {
    /// Queues a job.
    ///
    /// # Errors
    /// No such deployment, data set or column; more jobs waiting than the tenant may have.
    pub async fn prediction_create(&self, permit: &Permit<PredictionCreate>, request: PredictionRequest) -> Result<Prediction> {
        request.check()?;
        let id = fresh_id(Timestamp::now());
        permit.detail("prediction", &id);
        permit.detail("deployment", &request.deployment);
        permit.detail("dataset", &request.dataset);
        permit.detail("into", &request.into);
        let rows = permit.rows();
        room_to_queue(&rows, permit.limits().jobs_queued).await?;
        let prediction = meant(&rows, id, request, permit.principal()).await?;
        permit.detail("model_version", prediction.lineage.model_version);
        // All that can be refused was: a ticket without a row is the trace of a crash, and rare.
        permit.enqueue(TICKET_KIND, &prediction.id).await?;
        let mut tx = permit.tx().await?;
        tx.insert(&prediction).await?;
        tx.commit().await?;
        self.scheduler().wake();
        Ok(prediction)
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn prediction_list(&self, permit: &Permit<PredictionRead>, page: &PageRequest) -> Result<Page<Prediction>> {
        let items = permit.rows().list::<Prediction>(page.after.as_deref(), page.limit(), None).await?;
        Ok(Page::of(items, Record::key).map(|prediction| self.prediction_live(permit, prediction)))
    }

    /// One job, with its progress while it runs.
    ///
    /// # Errors
    /// Not found.
    pub async fn prediction_get(&self, permit: &Permit<PredictionRead>) -> Result<Prediction> {
        let prediction = permit.rows().get::<Prediction>(permit.resource()).await?.ok_or(Error::not_found("prediction"))?;
        Ok(self.prediction_live(permit, prediction))
    }

    /// Cancels a job that has not come to its end. One that runs is stopped at once.
    ///
    /// # Errors
    /// Not found; a conflict when it has ended.
    pub async fn prediction_cancel(&self, permit: &Permit<PredictionCancel>) -> Result<Prediction> {
        let mut tx = permit.tx().await?;
        let mut prediction = tx.get::<Prediction>(permit.resource()).await?.ok_or(Error::not_found("prediction"))?;
        if prediction.state.is_final() {
            return Err(Error::conflict(format!("the job is already {}", prediction.state.word())));
        }
        prediction.state = TrainingState::Cancelled;
        prediction.finished_at = Some(Timestamp::now());
        tx.put(&prediction).await?;
        tx.commit().await?;
        self.scheduler().cancel(permit, &prediction.id);
        Ok(prediction)
    }

    fn prediction_live(&self, permit: &Permit<PredictionRead>, mut prediction: Prediction) -> Prediction {
        if prediction.state == TrainingState::Running {
            prediction.progress = self.scheduler().progress(permit, &prediction.id);
        }
        prediction
    }
}

/// The tenant may queue one more job, whatever kind the others are of.
async fn room_to_queue(rows: &Rows<'_>, jobs_queued: u64) -> Result<()> {
    let value = jobs_queued.min(QUEUED_MAX.into());
    let trainings = rows.count_found::<Training>("state", "queued").await?;
    let used = trainings + rows.count_found::<Prediction>("state", "queued").await?;
    if used >= value {
        let exceeded = tenancy::Exceeded { limit: "jobs_queued", value, used, retry_after_seconds: None };
        return Err(Error::Kernel(tenancy::Error::Quota(exceeded)));
    }
    Ok(())
}

/// The job, with everything that a name can come to mean fixed.
async fn meant(rows: &Rows<'_>, id: String, request: PredictionRequest, principal: &str) -> Result<Prediction> {
    let dataset = rows.get::<Dataset>(request.dataset.as_str()).await?.ok_or(Error::not_found("dataset"))?;
    let number = request.version.unwrap_or(dataset.latest_version);
    let stored = rows.get::<StoredVersion>(&version_key(dataset.name.as_str(), number)).await?;
    let source = stored.ok_or(Error::not_found("dataset version"))?.version;
    let known = |name: &String| source.columns.iter().any(|column| column.name == *name);
    if let Some(name) = request.keep.iter().chain(&request.features).find(|name| !known(name)) {
        return Err(Error::invalid(format!("the data set has no column `{name}`")));
    }
    let batch_rows = request.batch_rows();
    let serving = serving(rows, request.deployment.as_str()).await?;
    let (model, stable) = (serving.deployment.model, serving.stable);
    let features = match request.features.is_empty() && stable.onnx.inputs.len() == 1 {
        true => trained_on(rows, &model, stable.number).await?,
        false => request.features,
    };
    let lineage = PredictionLineage {
        prediction: id.clone(),
        dataset: request.dataset,
        dataset_version: number,
        dataset_sha256: source.sha256,
        model,
        model_version: stable.number,
        model_sha256: stable.onnx.sha256,
    };
    Ok(Prediction {
        id,
        deployment: request.deployment,
        into: request.into,
        lineage,
        keep: request.keep,
        features,
        batch_rows,
        state: TrainingState::Queued,
        progress: None,
        error: None,
        rows: None,
        into_version: None,
        attempts: 0,
        created_at: Timestamp::now(),
        created_by: principal.to_owned(),
        started_at: None,
        finished_at: None,
    })
}

/// The features of a model that was trained here; nothing for others.
async fn trained_on(rows: &Rows<'_>, model: &ModelName, version: u64) -> Result<Vec<String>> {
    let stored = rows.get::<StoredModelVersion>(&version_key(model.as_str(), version)).await?;
    let Some(run) = stored.and_then(|stored| stored.version.run_id) else { return Ok(Vec::new()) };
    Ok(rows.get::<Run>(&run).await?.map(|run| run.features).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked() {
        let check = |more: serde_json::Value| {
            let mut json = serde_json::json!({"deployment": "d", "dataset": "rows", "into": "answers"});
            json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let request: PredictionRequest = serde_json::from_value(json).map_err(|error| error.to_string())?;
            request.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(serde_json::json!({"keep": ["id"], "batch_rows": 4096})), Ok(()));
        assert!(check(serde_json::json!({"batch_rows": 0})).unwrap_err().contains("1 to 4096"));
        assert!(check(serde_json::json!({"keep": ["id", "id"]})).unwrap_err().contains("`id` twice"));
        assert!(check(serde_json::json!({"tenant": "other"})).unwrap_err().contains("unknown field"));
        assert!(check(serde_json::json!({"into": "../x"})).unwrap_err().contains("is not a name"));
    }
}
