//! Logged models (MLflow 3): what a run or a notebook logged as a model, with its own parameters, tags, metrics and artifacts, before
//! anybody registers it.
//!
//! A logged model is one record. Its artifacts lie at `mlflow-artifacts:/{experiment}/models/{id}/artifacts`. Deleted ones can be seen
//! when asked for by id, until they are swept with their experiment's deleted runs.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tenancy::act::{LoggedModelDelete, LoggedModelRead, LoggedModelWrite, ResourceKind};
use tenancy::{Permit, Record, Rows, Tx};

use super::artifact::{self, Artifact, Place};
use super::check::{KEY_CHARS_MAX, PARAM_CHARS_MAX, TAG_CHARS_MAX, kept_id, length, quoted};
use super::filter::{self, Attribute, Clause, Entity, Grammar, ID_LIST, NUMBER, TEXT, TEXT_LIST};
use super::hits::Hits;
use super::item::Balance;
use super::lifecycle::{Deleted, Trash};
use super::metric::{ModelMetric, Real};
use super::run::random_id;
use super::token::PageToken;
use crate::error::{Error, Result};
use crate::page::Timestamp;
use crate::platform::Platform;

/// Logged models on a page at most, and when nothing is asked for.
pub const LOGGED_MODELS_PAGE_MAX: usize = 1000;
const PAGE_DEFAULT: usize = 100;
/// Most logged models that one search looks at.
const SEARCHED_MAX: usize = 100_000;
/// Records looked up in one step.
const BATCH: u32 = 1000;
/// Most parameters and tags of a logged model.
const PARAMS_MAX: usize = 1000;
const TAGS_MAX: usize = 500;
/// Points of a model that are shown as they are; of more, the newest of each metric on each data set in each run.
const METRICS_MAX: usize = 1000;
/// Most points of a model that are looked at.
const METRICS_READ_MAX: usize = 200_000;
/// Points that one search holds while it puts models in order, and of one answer, but for those of its last model.
const SEARCHED_METRICS_MAX: usize = 500_000;
const ANSWER_METRICS_MAX: usize = 50_000;
/// Longest name and model type.
const NAME_CHARS_MAX: usize = 500;
/// What a logged model counts of the tenant's stored bytes beside its texts.
const MODEL_BYTES: u64 = 1024;
/// Tag that says under which names it is registered.
const VERSIONS_TAG: &str = "mlflow.modelVersions";

/// A logged model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoggedModel {
    /// `m-` and 32 hex digits.
    pub id: String,
    /// Where it belongs.
    pub experiment_id: String,
    /// For people; not unique.
    pub name: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: i64,
    /// When it last changed, milliseconds since 1970.
    pub updated_ms: i64,
    /// What kind of model its maker calls it.
    #[serde(default)]
    pub model_type: Option<String>,
    /// Whether its artifacts are complete.
    pub status: LoggedModelStatus,
    /// The run that logged it.
    #[serde(default)]
    pub source_run_id: Option<String>,
    /// Key and value texts, written once.
    #[serde(default)]
    pub params: BTreeMap<String, String>,
    /// Key and value texts.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// What was measured of it; records of their own.
    #[serde(skip)]
    pub metrics: Vec<LoggedMetric>,
    /// When it was deleted, milliseconds since 1970.
    #[serde(default)]
    pub deleted_ms: Option<i64>,
    /// Who made it.
    pub created_by: String,
}

/// How far a logged model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoggedModelStatus {
    /// Being uploaded.
    Pending,
    /// Complete.
    Ready,
    /// Its upload failed.
    Failed,
}

impl LoggedModelStatus {
    /// `PENDING`, `READY`, `FAILED`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Ready => "READY",
            Self::Failed => "FAILED",
        }
    }

    /// From a name, with or without MLflow's prefix.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix("LOGGED_MODEL_").unwrap_or(text).to_ascii_uppercase();
        let name = if name == "UPLOAD_FAILED" { "FAILED" } else { name.as_str() };
        [Self::Pending, Self::Ready, Self::Failed].into_iter().find(|status| status.name() == name)
    }
}

/// One measurement of a logged model.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedMetric {
    /// Name.
    pub name: String,
    /// Value.
    pub value: Real,
    /// When, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Step.
    pub step: i64,
    /// The run that measured it.
    pub run_id: String,
    /// On which data set.
    pub dataset_name: Option<String>,
    /// Which state of it.
    pub dataset_digest: Option<String>,
}

impl LoggedMetric {
    /// What one point replaces another of.
    fn kind(&self) -> (&str, &str, Option<&str>, Option<&str>) {
        (&self.name, &self.run_id, self.dataset_name.as_deref(), self.dataset_digest.as_deref())
    }
}

impl From<ModelMetric> for LoggedMetric {
    fn from(metric: ModelMetric) -> Self {
        let ModelMetric { key, point, link, run_id, .. } = metric;
        let (dataset_name, dataset_digest) = (link.dataset_name, link.dataset_digest);
        Self { name: key, value: Real(point.value), timestamp_ms: point.timestamp, step: point.step, run_id, dataset_name, dataset_digest }
    }
}

impl LoggedModel {
    /// What it is ordered by.
    fn brief(&self) -> Self {
        Self {
            id: self.id.clone(),
            experiment_id: String::new(),
            name: self.name.clone(),
            created_ms: self.created_ms,
            updated_ms: self.updated_ms,
            model_type: self.model_type.clone(),
            status: self.status,
            source_run_id: self.source_run_id.clone(),
            params: BTreeMap::new(),
            tags: BTreeMap::new(),
            metrics: Vec::new(),
            deleted_ms: None,
            created_by: String::new(),
        }
    }

    /// Where its artifacts are.
    #[must_use]
    pub fn artifact_uri(&self) -> String {
        format!("mlflow-artifacts:/{}", self.root())
    }

    pub(crate) fn root(&self) -> String {
        artifact::model_root(&self.experiment_id, &self.id)
    }

    /// What it counts of the tenant's stored bytes, its artifacts aside.
    fn stored_bytes(&self) -> u64 {
        let texts = self.params.iter().chain(&self.tags).map(|(key, value)| key.len() + value.len()).sum::<usize>();
        MODEL_BYTES + texts as u64
    }

    fn params_add(&mut self, params: Vec<(String, String)>) -> Result<()> {
        for (key, value) in params {
            text_checked("param", &key, KEY_CHARS_MAX)?;
            text_checked("param value", &value, PARAM_CHARS_MAX)?;
            if self.params.get(&key).is_some_and(|before| *before != value) {
                return Err(Error::invalid(format!("Changing param values is not allowed. Param with key='{key}' was already logged")));
            }
            self.params.insert(key, value);
        }
        if self.params.len() > PARAMS_MAX {
            return Err(Error::invalid(format!("a logged model has at most {PARAMS_MAX} params")));
        }
        Ok(())
    }

    fn tags_set(&mut self, tags: Vec<(String, String)>) -> Result<()> {
        for (key, value) in tags {
            text_checked("tag", &key, KEY_CHARS_MAX)?;
            text_checked("tag value", &value, TAG_CHARS_MAX)?;
            self.tags.insert(key, value);
        }
        if self.tags.len() > TAGS_MAX {
            return Err(Error::invalid(format!("a logged model has at most {TAGS_MAX} tags")));
        }
        Ok(())
    }

    /// Adds points, which come in no order. When there are too many to show, only the newest of each kind stay.
    fn measured(&mut self, points: Vec<ModelMetric>) {
        self.metrics.extend(points.into_iter().map(LoggedMetric::from));
        if self.metrics.len() > METRICS_MAX {
            self.metrics.sort_by(|a, b| a.kind().cmp(&b.kind()).then((b.step, b.timestamp_ms).cmp(&(a.step, a.timestamp_ms))));
            self.metrics.dedup_by(|later, first| later.kind() == first.kind());
        }
    }

    /// The newest value of a metric on the data sets asked for; on any when none is.
    fn metric(&self, name: &str, datasets: &[DatasetWanted]) -> Option<f64> {
        let mut found: Vec<&LoggedMetric> = self.metrics.iter().filter(|metric| metric.name == name && on_any(metric, datasets)).collect();
        found.sort_by_key(|metric| (metric.step, metric.timestamp_ms));
        found.last().map(|metric| metric.value.0)
    }
}

impl Record for LoggedModel {
    const KIND: &'static str = "logged_model";
    fn key(&self) -> String {
        self.id.clone()
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("experiment", self.experiment_id.clone())]
    }
}

/// What makes a logged model.
#[derive(Debug, Clone, Default)]
pub struct LoggedModelRequest {
    /// The id it had where it comes from; a fresh one when absent.
    pub id: Option<String>,
    /// Where it belongs.
    pub experiment_id: String,
    /// For people; one is made up when absent.
    pub name: Option<String>,
    /// What kind of model its maker calls it.
    pub model_type: Option<String>,
    /// The run that logs it.
    pub source_run_id: Option<String>,
    /// Key and value texts.
    pub params: Vec<(String, String)>,
    /// Key and value texts.
    pub tags: Vec<(String, String)>,
}

/// Which logged models are asked for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LoggedModelSearch {
    /// In these experiments.
    pub experiment_ids: Vec<String>,
    /// In MLflow's language.
    pub filter: String,
    /// Measured on these data sets.
    pub datasets: Vec<DatasetWanted>,
    /// By what, first things first.
    pub order_by: Vec<LoggedModelOrder>,
    /// Most in one answer.
    #[serde(skip)]
    pub limit: Option<usize>,
    /// Where the answer before ended.
    #[serde(skip)]
    pub page_token: Option<String>,
}

/// A data set on which something was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatasetWanted {
    /// Its name.
    pub dataset_name: String,
    /// Its state; any when absent.
    #[serde(default)]
    pub dataset_digest: Option<String>,
}

/// One key to order logged models by.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoggedModelOrder {
    /// `creation_time`, `name`, `metrics.accuracy`, …
    pub field_name: String,
    /// Smallest first; so when absent.
    #[serde(default)]
    pub ascending: Option<bool>,
    /// For a metric: on this data set.
    #[serde(default)]
    pub dataset_name: Option<String>,
    /// For a metric: in this state.
    #[serde(default)]
    pub dataset_digest: Option<String>,
}

const GRAMMAR: Grammar = Grammar {
    prefixes: &[
        ("attribute", Entity::Attribute),
        ("attributes", Entity::Attribute),
        ("metric", Entity::Metric),
        ("metrics", Entity::Metric),
        ("param", Entity::Param),
        ("params", Entity::Param),
        ("tag", Entity::Tag),
        ("tags", Entity::Tag),
    ],
    attributes: &[
        Attribute { names: &["name"], rule: &TEXT_LIST },
        Attribute { names: &["model_id"], rule: &ID_LIST },
        Attribute { names: &["model_type"], rule: &TEXT_LIST },
        Attribute { names: &["status"], rule: &ID_LIST },
        Attribute { names: &["source_run_id"], rule: &ID_LIST },
        Attribute { names: &["creation_timestamp", "creation_time", "creation_timestamp_ms"], rule: &NUMBER },
        Attribute { names: &["last_updated_timestamp", "last_updated_time", "last_updated_timestamp_ms"], rule: &NUMBER },
    ],
    entities: &[(Entity::Metric, &NUMBER, &[]), (Entity::Param, &TEXT, &[]), (Entity::Tag, &TEXT, &[])],
    order_attributes: &["name", "model_id", "model_type", "status", "source_run_id", "creation_timestamp", "last_updated_timestamp"],
    order_entities: &[Entity::Metric],
};

impl Platform {
    /// Makes a logged model, to be finalized when its artifacts are there.
    ///
    /// # Errors
    /// An experiment that is not there; texts over their bounds; an id that is taken, or is none.
    pub async fn logged_model_create(&self, permit: &Permit<LoggedModelWrite>, request: LoggedModelRequest) -> Result<LoggedModel> {
        permit.within(ResourceKind::Experiment, &request.experiment_id)?;
        let now = Timestamp::now().millis();
        let mut tx = permit.tx().await?;
        super::experiment::require(&mut tx, &request.experiment_id).await?.active()?;
        let id = match request.id {
            Some(id) => id_free(&mut tx, kept_id("model_id", "m-", id)?).await?,
            None => fresh_id()?,
        };
        let name = match request.name.filter(|name| !name.is_empty()) {
            Some(name) => name_checked(name)?,
            None => format!("model-{}", id.get(2..10).unwrap_or_default()),
        };
        let mut model = LoggedModel {
            id,
            experiment_id: request.experiment_id,
            name,
            created_ms: now,
            updated_ms: now,
            model_type: request.model_type.filter(|text| !text.is_empty()),
            status: LoggedModelStatus::Pending,
            source_run_id: request.source_run_id.filter(|id| !id.is_empty()),
            params: BTreeMap::new(),
            tags: BTreeMap::new(),
            metrics: Vec::new(),
            deleted_ms: None,
            created_by: permit.principal().to_owned(),
        };
        text_checked("model type", model.model_type.as_deref().unwrap_or_default(), NAME_CHARS_MAX)?;
        text_checked("run id", model.source_run_id.as_deref().unwrap_or_default(), KEY_CHARS_MAX)?;
        model.params_add(request.params)?;
        model.tags_set(request.tags)?;
        Balance { added: model.stored_bytes(), removed: 0 }.settle(&mut tx).await?;
        tx.insert(&model).await?;
        permit.detail("logged_model", &model.id);
        tx.commit().await?;
        Ok(model)
    }

    /// One logged model; a deleted one only if asked for.
    ///
    /// # Errors
    /// Not found.
    pub async fn logged_model_get(&self, permit: &Permit<LoggedModelRead>, deleted_too: bool) -> Result<LoggedModel> {
        let model = permit.rows().get::<LoggedModel>(permit.resource()).await?;
        let mut model = model.filter(|model| deleted_too || model.deleted_ms.is_none()).ok_or(Error::not_found("logged model"))?;
        permit.within(ResourceKind::Experiment, &model.experiment_id)?;
        measure(&permit.rows(), &mut model).await?;
        Ok(model)
    }

    /// What is in a folder of its artifacts.
    ///
    /// # Errors
    /// Not found; a path that leads out.
    pub async fn logged_model_artifacts(&self, permit: &Permit<LoggedModelRead>, path: &str) -> Result<(LoggedModel, Vec<Artifact>)> {
        let model = self.logged_model_get(permit, false).await?;
        let artifacts = artifact::list(&permit.rows(), &Place::below(model.root(), path)?).await?;
        Ok((model, artifacts))
    }

    /// Its artifacts are complete, or failed.
    ///
    /// # Errors
    /// Not found.
    pub async fn logged_model_finalize(&self, permit: &Permit<LoggedModelWrite>, status: LoggedModelStatus) -> Result<LoggedModel> {
        self.logged_model_change(permit, |model| {
            model.status = status;
            Ok(())
        })
        .await
    }

    /// Adds parameters; what is there stays as it is.
    ///
    /// # Errors
    /// Not found; a parameter that would change; texts over their bounds.
    pub async fn logged_model_params(&self, permit: &Permit<LoggedModelWrite>, params: Vec<(String, String)>) -> Result<LoggedModel> {
        self.logged_model_change(permit, |model| model.params_add(params)).await
    }

    /// Sets tags.
    ///
    /// # Errors
    /// Not found; texts over their bounds.
    pub async fn logged_model_tags(&self, permit: &Permit<LoggedModelWrite>, tags: Vec<(String, String)>) -> Result<LoggedModel> {
        self.logged_model_change(permit, |model| model.tags_set(tags)).await
    }

    /// Removes a tag.
    ///
    /// # Errors
    /// Not found.
    pub async fn logged_model_tag_delete(&self, permit: &Permit<LoggedModelWrite>, key: &str) -> Result<LoggedModel> {
        self.logged_model_change(permit, |model| model.tags.remove(key).map(drop).ok_or(Error::not_found("tag"))).await
    }

    async fn logged_model_change(
        &self,
        permit: &Permit<LoggedModelWrite>,
        change: impl FnOnce(&mut LoggedModel) -> Result<()>,
    ) -> Result<LoggedModel> {
        let mut tx = permit.tx().await?;
        let mut model = stored(&mut tx, permit.resource()).await?;
        permit.within(ResourceKind::Experiment, &model.experiment_id)?;
        let removed = model.stored_bytes();
        change(&mut model)?;
        Balance { added: model.stored_bytes(), removed }.settle(&mut tx).await?;
        model.updated_ms = Timestamp::now().millis();
        tx.put(&model).await?;
        tx.commit().await?;
        Ok(model)
    }

    /// Deletes it; its artifacts go when the time for a change of mind is over.
    ///
    /// # Errors
    /// Not found.
    pub async fn logged_model_delete(&self, permit: &Permit<LoggedModelDelete>) -> Result<()> {
        let mut tx = permit.tx().await?;
        let mut model = stored(&mut tx, permit.resource()).await?;
        permit.within(ResourceKind::Experiment, &model.experiment_id)?;
        let at = Timestamp::now().micros();
        (model.deleted_ms, model.updated_ms) = (Some(at / 1000), at / 1000);
        tx.put(&model).await?;
        Trash { at, what: Deleted::LoggedModel(model.id) }.put(permit, &mut tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The logged models that a search finds, and the token for those after them.
    ///
    /// # Errors
    /// A filter or key that does not parse, a token of another search.
    pub async fn logged_model_search(
        &self,
        permit: &Permit<LoggedModelRead>,
        search: &LoggedModelSearch,
    ) -> Result<(Vec<LoggedModel>, Option<String>)> {
        let clauses = filter::parse(&GRAMMAR, &search.filter)?;
        let order = search.order_by.iter().map(SortKey::new).collect::<Result<Vec<_>>>()?;
        let shape = PageToken::shape(search);
        let skip = PageToken::open(permit, search.page_token.as_deref(), "logged_models", &shape)?;
        let (measured, plain): (Vec<Clause>, Vec<Clause>) = clauses.into_iter().partition(|clause| clause.entity == Entity::Metric);
        let _turn = self.tracking().search_turn(permit).await?;
        let mut found = self.logged_model_all(permit, &search.experiment_ids, |model| matches(model, &plain)).await?;
        // Metrics are records of their own: read for all only where all are asked.
        let early = !measured.is_empty() || !search.datasets.is_empty() || order.iter().any(|key| matches!(key.key, OrderKey::Metric(..)));
        if early {
            let mut points = 0;
            for model in found.keys() {
                measure(&permit.rows(), model).await?;
                points += model.metrics.len();
                if points > SEARCHED_METRICS_MAX {
                    return Err(too_many());
                }
            }
            found.retain(|model| measures(model, &measured, &search.datasets));
        }
        found.sort(|a, b| {
            let by = order.iter().map(|key| key.compare(a, b, &search.datasets)).find(|by| by.is_ne());
            by.unwrap_or(Ordering::Equal).then(b.created_ms.cmp(&a.created_ms)).then_with(|| a.id.cmp(&b.id))
        });
        let limit = search.limit.unwrap_or(PAGE_DEFAULT).clamp(1, LOGGED_MODELS_PAGE_MAX);
        let (page, mut next) = found.page(&permit.rows(), skip, limit, |brief| brief.id.clone()).await?;
        let (mut models, mut points, count) = (Vec::with_capacity(page.len()), 0, page.len());
        for (brief, mut model) in page {
            if points > ANSWER_METRICS_MAX {
                // What is left out here comes first on the next page.
                next = Some(next.unwrap_or(skip.saturating_add(count)).saturating_sub(count - models.len()));
                break;
            }
            match early {
                true => model.metrics = brief.metrics,
                false => measure(&permit.rows(), &mut model).await?,
            }
            points += model.metrics.len();
            models.push(model);
        }
        let token = next.map(|skip| PageToken::seal(permit, "logged_models", &shape, skip)).transpose()?;
        Ok((models, token))
    }

    async fn logged_model_all(
        &self,
        permit: &Permit<LoggedModelRead>,
        experiments: &[String],
        wanted: impl Fn(&LoggedModel) -> bool,
    ) -> Result<Hits<LoggedModel, LoggedModel>> {
        let rows = permit.rows();
        let brief = |model: &LoggedModel| (model.deleted_ms.is_none() && wanted(model)).then(|| model.brief());
        let (mut found, mut looked_at) = (Hits::new(), 0);
        let mut experiments: Vec<&String> = experiments.iter().collect();
        experiments.sort_unstable();
        experiments.dedup();
        for experiment in experiments.into_iter().filter(|experiment| permit.may(ResourceKind::Experiment, experiment)) {
            let mut after: Option<String> = None;
            loop {
                let page = rows.find::<LoggedModel>("experiment", experiment, after.as_deref(), BATCH).await?;
                looked_at += page.records.len();
                after = found.add(page, brief);
                if looked_at > SEARCHED_MAX {
                    return Err(too_many());
                }
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// A key to order by, read.
struct SortKey {
    key: OrderKey,
    ascending: bool,
}

enum OrderKey {
    Attribute(&'static str),
    Metric(String, Vec<DatasetWanted>),
}

impl SortKey {
    fn new(order: &LoggedModelOrder) -> Result<Self> {
        let unknown = || Error::invalid(format!("Invalid order by field name: {}", order.field_name));
        let key = match order.field_name.split_once('.') {
            Some(("metrics", name)) => {
                let dataset = order
                    .dataset_name
                    .clone()
                    .map(|dataset_name| DatasetWanted { dataset_name, dataset_digest: order.dataset_digest.clone() });
                OrderKey::Metric(name.trim_matches('`').to_owned(), dataset.into_iter().collect())
            }
            Some(_) => {
                return Err(Error::invalid(format!("Invalid order by field name: {}. Only metrics are supported.", order.field_name)));
            }
            None => {
                let found = GRAMMAR.attributes.iter().find(|attribute| attribute.names.contains(&order.field_name.as_str()));
                OrderKey::Attribute(found.and_then(|attribute| attribute.names.first()).ok_or_else(unknown)?)
            }
        };
        Ok(Self { key, ascending: order.ascending.unwrap_or(true) })
    }

    /// What is absent comes last, either way.
    fn compare(&self, a: &LoggedModel, b: &LoggedModel, datasets: &[DatasetWanted]) -> Ordering {
        let turned = |by: Ordering| if self.ascending { by } else { by.reverse() };
        match &self.key {
            OrderKey::Metric(name, on) => {
                let on = if on.is_empty() { datasets } else { on };
                match (a.metric(name, on), b.metric(name, on)) {
                    (Some(a), Some(b)) => turned(a.total_cmp(&b)),
                    (a, b) => a.is_none().cmp(&b.is_none()),
                }
            }
            OrderKey::Attribute(name) => match (text(a, name), text(b, name)) {
                (Some(a), Some(b)) => turned(a.cmp(b)),
                (None, None) => turned(number(a, name).cmp(&number(b, name))),
                (a, b) => a.is_none().cmp(&b.is_none()),
            },
        }
    }
}

fn text<'m>(model: &'m LoggedModel, key: &str) -> Option<&'m str> {
    match key {
        "name" => Some(&model.name),
        "model_id" => Some(&model.id),
        "model_type" => model.model_type.as_deref(),
        "status" => Some(model.status.name()),
        "source_run_id" => model.source_run_id.as_deref(),
        _ => None,
    }
}

fn number(model: &LoggedModel, key: &str) -> Option<i64> {
    match key {
        "creation_timestamp" => Some(model.created_ms),
        "last_updated_timestamp" => Some(model.updated_ms),
        _ => None,
    }
}

fn on_any(metric: &LoggedMetric, datasets: &[DatasetWanted]) -> bool {
    datasets.is_empty()
        || datasets.iter().any(|wanted| {
            metric.dataset_name.as_deref() == Some(&wanted.dataset_name)
                && wanted.dataset_digest.as_ref().is_none_or(|digest| metric.dataset_digest.as_ref() == Some(digest))
        })
}

/// What does not ask for metrics.
fn matches(model: &LoggedModel, clauses: &[Clause]) -> bool {
    clauses.iter().all(|clause| match clause.entity {
        Entity::Param => clause.test.text(model.params.get(&clause.key).map(String::as_str)),
        Entity::Tag => clause.test.text(model.tags.get(&clause.key).map(String::as_str)),
        _ if matches!(clause.key.as_str(), "creation_timestamp" | "last_updated_timestamp") => {
            clause.test.integer(number(model, &clause.key))
        }
        _ => clause.test.text(text(model, &clause.key)),
    })
}

/// What asks for metrics; without a clause, for any on the data sets.
fn measures(model: &LoggedModel, clauses: &[Clause], datasets: &[DatasetWanted]) -> bool {
    let any = datasets.is_empty() || !clauses.is_empty() || model.metrics.iter().any(|metric| on_any(metric, datasets));
    any && clauses.iter().all(|clause| clause.test.real(model.metric(&clause.key, datasets)))
}

fn too_many() -> Error {
    Error::invalid(format!(
        "there are more than {SEARCHED_MAX} logged models, or more points of them than one search can hold: search fewer experiments at once"
    ))
}

/// Adds what was measured of it.
async fn measure(rows: &Rows<'_>, model: &mut LoggedModel) -> Result<()> {
    let (prefix, mut read, mut after) = (format!("{}/", model.id), 0, None);
    while read < METRICS_READ_MAX {
        let page = rows.list::<ModelMetric>(after.as_deref(), BATCH, Some(&prefix)).await?;
        read += page.records.len();
        model.measured(page.records);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(())
}

/// One that is there and not deleted.
pub(crate) async fn stored(tx: &mut Tx<'_>, id: &str) -> Result<LoggedModel> {
    let model = tx.get::<LoggedModel>(id).await?;
    model.filter(|model| model.deleted_ms.is_none()).ok_or(Error::not_found("logged model"))
}

/// One of this experiment that is there and not deleted.
pub(crate) async fn stored_in(rows: &Rows<'_>, experiment: &str, id: &str) -> Result<LoggedModel> {
    let model = rows.get::<LoggedModel>(id).await?;
    model.filter(|model| model.deleted_ms.is_none() && model.experiment_id == experiment).ok_or(Error::not_found("logged model"))
}

/// The newest value of a metric of a model, on whatever data set.
pub(crate) async fn measured(tx: &mut Tx<'_>, id: &str, metric: &str) -> Result<Option<f64>> {
    let Some(mut model) = tx.get::<LoggedModel>(id).await? else { return Ok(None) };
    let (prefix, mut read, mut after) = (format!("{id}/"), 0, None);
    while read < METRICS_READ_MAX {
        let page = tx.list::<ModelMetric>(after.as_deref(), BATCH, Some(&prefix)).await?;
        read += page.records.len();
        model.measured(page.records);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(model.metric(metric, &[]))
}

/// Notes on a model that it was registered.
pub(crate) async fn registered(tx: &mut Tx<'_>, id: &str, name: &str, version: u64) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Registered {
        name: String,
        version: u64,
    }
    let Some(mut model) = tx.get::<LoggedModel>(id).await? else { return Ok(()) };
    let known = model.tags.get(VERSIONS_TAG).and_then(|text| serde_json::from_str::<Vec<Registered>>(text).ok());
    let mut known = known.unwrap_or_default();
    known.push(Registered { name: name.to_owned(), version });
    let text = serde_json::to_string(&known).map_err(tenancy::Error::internal)?;
    // A model that is registered so often keeps what is noted.
    if text.len() <= TAG_CHARS_MAX {
        let removed = model.stored_bytes();
        model.tags.insert(VERSIONS_TAG.to_owned(), text);
        Balance { added: model.stored_bytes(), removed }.settle(tx).await?;
        tx.put(&model).await?;
    }
    Ok(())
}

/// Really deletes a model that was deleted at `at` (microseconds since 1970), at most about `most` records; how many went, and whether
/// all did.
pub(crate) async fn sweep(tx: &mut Tx<'_>, id: &str, at: i64, most: u32) -> Result<(u32, bool)> {
    match tx.get::<LoggedModel>(id).await? {
        Some(model) if model.deleted_ms == Some(at / 1000) => remove(tx, &model, most).await,
        _ => Ok((0, true)),
    }
}

/// The same with the models of an experiment.
pub(crate) async fn sweep_in(tx: &mut Tx<'_>, experiment: &str, most: u32) -> Result<(u32, bool)> {
    let mut removed = 0;
    while removed < most {
        let Some(model) = tx.find::<LoggedModel>("experiment", experiment, None, 1).await?.records.pop() else {
            return Ok((removed, true));
        };
        removed += remove(tx, &model, most - removed).await?.0;
    }
    Ok((removed, false))
}

/// Its own record last: what is left is found by it.
async fn remove(tx: &mut Tx<'_>, model: &LoggedModel, most: u32) -> Result<(u32, bool)> {
    let mut removed = artifact::remove_some(tx, &model.root(), most).await?;
    let (prefix, mut balance, mut all) = (format!("{}/", model.id), Balance::default(), false);
    while !all && removed < most {
        let metrics = tx.list::<ModelMetric>(None, most - removed, Some(&prefix)).await?;
        for metric in &metrics.records {
            tx.delete::<ModelMetric>(&metric.key()).await?;
            balance.removed += metric.stored_bytes();
            removed += 1;
        }
        all = metrics.next.is_none();
    }
    if all {
        tx.delete::<LoggedModel>(&model.id).await?;
        balance.removed += model.stored_bytes();
        removed += 1;
    }
    balance.settle(tx).await?;
    Ok((removed, all))
}

/// That nobody has the id. A model goes with all that belongs to it in one step, so its record says it.
async fn id_free(tx: &mut Tx<'_>, id: String) -> Result<String> {
    match tx.get::<LoggedModel>(&id).await? {
        Some(_) => Err(Error::conflict(format!("Logged model(id={id}) already exists."))),
        None => Ok(id),
    }
}

/// `m-` and 128 random bits.
fn fresh_id() -> Result<String> {
    Ok(format!("m-{}", random_id()?))
}

/// As MLflow's.
fn name_checked(name: String) -> Result<String> {
    if name.chars().any(|c| matches!(c, '/' | ':' | '.' | '%' | '"' | '\'')) {
        return Err(Error::invalid(format!(
            "Invalid model name ({}) provided. Model name must be a non-empty string and cannot contain the following characters: ('/', ':', '.', '%', '\"', \"'\")",
            quoted(&name)
        )));
    }
    text_checked("name", &name, NAME_CHARS_MAX)?;
    Ok(name)
}

fn text_checked(what: &str, text: &str, chars_max: usize) -> Result<()> {
    length(what, chars_max, text)?;
    if text.contains('\0') { Err(Error::invalid(format!("the {what} has a NUL character"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
