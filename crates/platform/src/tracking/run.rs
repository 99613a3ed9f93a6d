//! Runs: what a client records while it works. The record of a run is small and seldom changes; its parts are in [`super::item`].
//!
//! Every write asks the policy once more for the experiment that the run turns out to be in, refuses what is deleted, and tells the
//! search index after its commit which run it touched.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tenancy::act::{ResourceKind, RunDelete, RunRead, RunWrite};
use tenancy::{Permit, Record, Snapshot, Tx};

use super::check::{KEY_CHARS_MAX, PARAM_CHARS_MAX, TAG_CHARS_MAX, entity_name, kept_id, length, quoted, truncated};
use super::experiment::{self, Experiment};
use super::item::{self, Balance, DatasetInput, ModelInput, ModelOutput, Part, RunItem, Text, param_key, tag_key};
use super::journal;
use super::lifecycle::{Deleted, Lifecycle, Trash};
use super::metric::{self, Metric, MetricHead, MetricPoint, ModelMetric, Point};
use crate::dataset::hex;
use crate::error::{Error, Result};
use crate::page::Timestamp;
use crate::platform::Platform;

/// Most metrics of one request.
pub const METRICS_PER_BATCH_MAX: usize = 1000;
/// Most parameters, and most tags, of one request.
pub const TEXTS_PER_BATCH_MAX: usize = 100;
/// Most of all of these together.
const ITEMS_PER_BATCH_MAX: usize = 1000;
/// Most data sets or models of one request.
pub const INPUTS_PER_BATCH_MAX: usize = 1000;
const DATASET_NAME_CHARS_MAX: usize = 500;
const DATASET_DIGEST_CHARS_MAX: usize = 36;
const DATASET_SOURCE_CHARS_MAX: usize = 65_535;
/// Schema and profile of a data set together, in bytes: less than a record may hold.
const DATASET_TEXT_BYTES_MAX: usize = 700_000;
const INPUT_TAG_KEY_CHARS_MAX: usize = 255;
const INPUT_TAG_VALUE_CHARS_MAX: usize = 500;
pub(crate) const NAME_TAG: &str = "mlflow.runName";
const MODELS_TAG: &str = "mlflow.log-model.history";
const USER_CHARS_MAX: usize = 256;
/// What a run's own record counts of the tenant's stored bytes.
pub(crate) const RUN_BYTES: u64 = 1024;
/// Longest id of a run in bytes.
pub(crate) const RUN_ID_BYTES_MAX: usize = 64;
/// Longest id of a logged model in bytes.
const MODEL_ID_BYTES_MAX: usize = 64;

/// A run's own record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackedRun {
    /// 32 hex digits.
    pub id: String,
    /// The experiment it is in.
    pub experiment_id: String,
    /// For people.
    pub name: String,
    /// Who the client says it is.
    pub user: String,
    /// Where it stands.
    pub status: RunStatus,
    /// When it began, in milliseconds since 1970.
    pub start_ms: i64,
    /// When it ended, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<i64>,
    /// Where its artifacts are.
    pub artifact_uri: String,
    /// What happened last to it; its experiment's may count more.
    pub lifecycle: Lifecycle,
    /// How many requests wait in its journal; none as long as many metrics were never logged to it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) journal: Option<u64>,
}

impl Record for TrackedRun {
    const KIND: &'static str = "tracked_run";
    fn key(&self) -> String {
        self.id.clone()
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("experiment", self.experiment_id.clone())]
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RunStatus {
    /// Still being recorded.
    Running,
    /// Not begun.
    Scheduled,
    /// Done.
    Finished,
    /// It failed.
    Failed,
    /// Somebody ended it.
    Killed,
}

impl RunStatus {
    /// By MLflow's word, or the number it has in MLflow's messages.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "RUNNING" | "1" => Self::Running,
            "SCHEDULED" | "2" => Self::Scheduled,
            "FINISHED" | "3" => Self::Finished,
            "FAILED" | "4" => Self::Failed,
            "KILLED" | "5" => Self::Killed,
            _ => return None,
        })
    }

    /// MLflow's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Scheduled => "SCHEDULED",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }
}

/// What begins a run.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// The id it had where it comes from; a fresh one when absent.
    pub id: Option<String>,
    /// The experiment.
    pub experiment_id: String,
    /// For people; made up when absent.
    pub name: Option<String>,
    /// Who the client says it is; the principal when absent.
    pub user: Option<String>,
    /// When it began, in milliseconds since 1970; now when absent.
    pub start_ms: Option<i64>,
    /// First tags.
    pub tags: Vec<Text>,
}

/// What changes about a run; what is absent stays.
#[derive(Debug, Clone, Default)]
pub struct RunUpdate {
    /// Where it stands.
    pub status: Option<RunStatus>,
    /// When it ended, in milliseconds since 1970.
    pub end_ms: Option<i64>,
    /// For people.
    pub name: Option<String>,
}

/// What is logged at once.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Points of metrics.
    pub metrics: Vec<MetricPoint>,
    /// Parameters.
    pub params: Vec<Text>,
    /// Tags.
    pub tags: Vec<Text>,
}

/// A run with everything that was recorded, metrics with their latest point.
#[derive(Debug, Clone, PartialEq)]
pub struct RunView {
    /// Its own record; the lifecycle is what counts.
    pub run: TrackedRun,
    /// Latest points by name.
    pub metrics: Vec<(String, Point)>,
    /// Parameters.
    pub params: Vec<Text>,
    /// Tags.
    pub tags: Vec<Text>,
    /// Data sets that went in.
    pub datasets: Vec<DatasetInput>,
    /// Logged models that went in.
    pub model_inputs: Vec<ModelInput>,
    /// Logged models that came out.
    pub model_outputs: Vec<ModelOutput>,
}

impl RunView {
    /// Of parts with nothing in a journal, as [`item::heads`] reads them.
    pub(crate) fn new(run: TrackedRun, items: impl IntoIterator<Item = Part<MetricHead>>) -> Self {
        let mut view = Self {
            run,
            metrics: Vec::new(),
            params: Vec::new(),
            tags: Vec::new(),
            datasets: Vec::new(),
            model_inputs: Vec::new(),
            model_outputs: Vec::new(),
        };
        for part in items {
            match part {
                Part::Param(text) => view.params.push(text),
                Part::Tag(text) => view.tags.push(text),
                Part::Metric(metric) => view.metrics.push((metric.name, metric.latest)),
                Part::Dataset(input) => view.datasets.push(input),
                Part::ModelInput(input) => view.model_inputs.push(input),
                Part::ModelOutput(output) => view.model_outputs.push(output),
                Part::Journal(_) => {}
            }
        }
        view
    }
}

impl Platform {
    /// Begins a run.
    ///
    /// # Errors
    /// No such experiment, or one that is deleted; tags over their bounds; an id that is taken, or is none.
    pub async fn tracking_run_create(&self, permit: &Permit<RunWrite>, request: RunRequest) -> Result<RunView> {
        let (id, chosen) = match request.id {
            Some(id) => (kept_id("run_id", "", id)?, true),
            None => (random_id()?, false),
        };
        let experiment_id = request.experiment_id.as_str();
        permit.within(ResourceKind::Experiment, experiment_id)?;
        let tags = tags_checked(request.tags)?;
        let tagged = tags.iter().find(|tag| tag.key == NAME_TAG).map(|tag| tag.value.clone());
        let name = match (request.name.filter(|name| !name.is_empty()), tagged) {
            (Some(name), Some(tag)) if name != tag => {
                return Err(Error::invalid(format!(
                    "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values (run_name={}, mlflow.runName={}).",
                    quoted(&name),
                    quoted(&tag)
                )));
            }
            (Some(name), _) | (None, Some(name)) => truncated(name, TAG_CHARS_MAX),
            (None, None) => made_up_name(&id),
        };
        permit.detail("run", &id);
        permit.detail("experiment", experiment_id);
        let _touched = self.tracking().touch(permit, &id);
        let (experiment_id, user, start_ms) = (request.experiment_id, request.user, request.start_ms);
        let mut parts: Vec<_> = tags.into_iter().filter(|tag| tag.key != NAME_TAG).collect();
        parts.push(Text { key: NAME_TAG.to_owned(), value: name.clone() });
        let work = permit.write(move |tx| {
            Box::pin(async move {
                let experiment = experiment::require(tx, &experiment_id).await?;
                experiment.active()?;
                if chosen {
                    id_free(tx, &experiment_id, &id).await?;
                }
                let run = TrackedRun {
                    artifact_uri: format!("{}/{id}/artifacts", experiment.artifact_location.trim_end_matches('/')),
                    experiment_id: experiment.id,
                    name,
                    user: truncated(user.filter(|user| !user.is_empty()).unwrap_or_else(|| tx.principal().to_owned()), USER_CHARS_MAX),
                    status: RunStatus::Running,
                    start_ms: start_ms.unwrap_or_else(|| Timestamp::now().millis()),
                    end_ms: None,
                    lifecycle: Lifecycle::now(false, &[experiment.lifecycle]),
                    journal: None,
                    id,
                };
                let items: Vec<_> = parts.iter().map(|tag| RunItem::new(&run.id, Part::Tag(tag.clone()))).collect();
                tx.insert(&run).await?;
                let mut balance = Balance { added: RUN_BYTES, removed: 0 };
                balance.put(tx, &items, []).await?;
                balance.settle(tx).await?;
                Ok(RunView::new(run, parts.into_iter().map(Part::Tag)))
            })
        });
        work.await
    }

    /// The run that the permit is about, with everything that was recorded.
    ///
    /// # Errors
    /// Not found.
    pub async fn tracking_run_get(&self, permit: &Permit<RunRead>) -> Result<RunView> {
        let mut rows = permit.rows().snapshot().await?;
        let run = readable(permit, &mut rows, permit.resource()).await?;
        let items = item::heads(&mut rows, &run.id).await?;
        Ok(RunView::new(run, items))
    }

    /// Changes name, status or end of a run.
    ///
    /// # Errors
    /// Not found; deleted.
    pub async fn tracking_run_update(&self, permit: &Permit<RunWrite>, update: RunUpdate) -> Result<TrackedRun> {
        let id = permit.resource().to_owned();
        let _touched = self.tracking().touch(permit, &id);
        let work = permit.write(move |tx| {
            Box::pin(async move {
                let mut run = open(tx, &id).await?;
                run.status = update.status.unwrap_or(run.status);
                run.end_ms = update.end_ms.or(run.end_ms);
                if let Some(name) = update.name.filter(|name| !name.is_empty()) {
                    run.name = truncated(name, TAG_CHARS_MAX);
                    tags_put(tx, &run.id, vec![Text { key: NAME_TAG.to_owned(), value: run.name.clone() }]).await?;
                }
                tx.put(&run).await?;
                Ok(run)
            })
        });
        work.await
    }

    /// Deletes a run; it can be restored until the tenant's retention time has passed.
    ///
    /// # Errors
    /// Not found.
    pub async fn tracking_run_delete(&self, permit: &Permit<RunDelete>) -> Result<()> {
        self.run_lifecycle(permit, true).await
    }

    /// Restores a deleted run.
    ///
    /// # Errors
    /// Not found.
    pub async fn tracking_run_restore(&self, permit: &Permit<RunDelete>) -> Result<()> {
        self.run_lifecycle(permit, false).await
    }

    async fn run_lifecycle(&self, permit: &Permit<RunDelete>, deleted: bool) -> Result<()> {
        let _touched = self.tracking().touch(permit, permit.resource());
        let mut tx = permit.tx().await?;
        let (mut run, experiment) = found(&mut tx, permit.resource()).await?;
        run.lifecycle = Lifecycle::now(deleted, &[run.lifecycle, experiment.lifecycle]);
        tx.put(&run).await?;
        if deleted {
            let what = Deleted::Run { id: run.id, experiment: run.experiment_id };
            Trash { at: run.lifecycle.at, what }.put(permit, &mut tx).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Logs metrics, parameters and tags: all of them or none.
    ///
    /// # Errors
    /// Not found; deleted; a parameter that has another value already; names, values or numbers of things over their bounds.
    pub async fn tracking_log(&self, permit: &Permit<RunWrite>, batch: Batch, single: bool) -> Result<()> {
        let Batch { metrics, params, tags } = checked(batch, single)?;
        let id = permit.resource().to_owned();
        let _touched = self.tracking().touch(permit, &id);
        let work = permit.write(move |tx| {
            Box::pin(async move {
                let mut run = open(tx, &id).await?;
                let mut balance = Balance::default();
                params_put(tx, &run.id, params, single, &mut balance).await?;
                journal::put(tx, &mut run, &metrics, &mut balance).await?;
                if let Some(name) = tags.iter().rev().find(|tag| tag.key == NAME_TAG) {
                    run.name.clone_from(&name.value);
                    tx.put(&run).await?;
                }
                model_metrics(tx, &run, metrics, &mut balance).await?;
                balance.settle(tx).await?;
                tags_put(tx, &run.id, tags).await
            })
        });
        work.await
    }

    /// Removes a tag of a run.
    ///
    /// # Errors
    /// Not found, the run or the tag; deleted.
    pub async fn tracking_tag_delete(&self, permit: &Permit<RunWrite>, key: &str) -> Result<()> {
        let _touched = self.tracking().touch(permit, permit.resource());
        let mut tx = permit.tx().await?;
        let run = open(&mut tx, permit.resource()).await?;
        let old = tx.get::<RunItem<Metric>>(&tag_key(&run.id, key)).await?.ok_or(Error::not_found("tag"))?;
        tx.delete::<RunItem<Metric>>(&old.key()).await?;
        Balance { added: 0, removed: old.part.stored_bytes() }.settle(&mut tx).await?;
        Ok(tx.commit().await?)
    }

    /// Records data sets and logged models that a run used. What is recorded already stays as it is.
    ///
    /// # Errors
    /// Not found; deleted; texts or numbers of things over their bounds.
    pub async fn tracking_inputs_log(&self, permit: &Permit<RunWrite>, datasets: Vec<DatasetInput>, models: Vec<ModelInput>) -> Result<()> {
        batch_limit("datasets", INPUTS_PER_BATCH_MAX, datasets.len())?;
        batch_limit("models", INPUTS_PER_BATCH_MAX, models.len())?;
        datasets.iter().try_for_each(dataset_checked)?;
        models.iter().try_for_each(|model| model_id_checked(&model.model_id))?;
        let parts: Vec<_> = datasets.into_iter().map(Part::Dataset).chain(models.into_iter().map(Part::ModelInput)).collect();
        self.parts_add(permit, parts, false).await
    }

    /// Records logged models that a run made.
    ///
    /// # Errors
    /// Not found; deleted; too many.
    pub async fn tracking_outputs_log(&self, permit: &Permit<RunWrite>, models: Vec<ModelOutput>) -> Result<()> {
        batch_limit("models", INPUTS_PER_BATCH_MAX, models.len())?;
        models.iter().try_for_each(|model| model_id_checked(&model.model_id))?;
        self.parts_add(permit, models.into_iter().map(Part::ModelOutput).collect(), true).await
    }

    async fn parts_add(&self, permit: &Permit<RunWrite>, parts: Vec<Part<Metric>>, replace: bool) -> Result<()> {
        let id = permit.resource().to_owned();
        let _touched = self.tracking().touch(permit, &id);
        let mut items: Vec<RunItem<Metric>> = Vec::with_capacity(parts.len());
        let mut keys = Vec::with_capacity(parts.len());
        for part in parts {
            let item = RunItem::new(&id, part);
            let key = item.key();
            // The first of two that are alike stays.
            if !keys.contains(&key) {
                items.push(item);
                keys.push(key);
            }
        }
        let work = permit.write(move |tx| {
            Box::pin(async move {
                open(tx, &id).await?;
                let (mut balance, mut there, mut rest) = (Balance::default(), Vec::with_capacity(keys.len()), keys.as_slice());
                while !rest.is_empty() {
                    let known = tx.get_page::<RunItem<Metric>>(rest).await?.records;
                    rest = rest.get(known.len()..).unwrap_or_default();
                    there.extend(known.iter().map(Option::is_some));
                    if replace {
                        balance.removed += known.iter().flatten().map(|item| item.part.stored_bytes()).sum::<u64>();
                    }
                }
                if !replace {
                    let mut there = there.into_iter();
                    items.retain(|_| !there.next().unwrap_or(false));
                }
                balance.put(tx, &items, []).await?;
                balance.settle(tx).await
            })
        });
        work.await
    }

    /// Notes a model of MLflow before 3 in the run's tag, where its clients look for it.
    ///
    /// # Errors
    /// Not found; deleted; what is no JSON object; more than a tag may hold.
    pub async fn tracking_model_log(&self, permit: &Permit<RunWrite>, model_json: &str) -> Result<()> {
        let wrong = || {
            Error::invalid(
                "Malformed model info. \n the given 'model_json' is not a JSON object with `artifact_path`, `flavors`, `utc_time_created` and `run_id`",
            )
        };
        let mut model: serde_json::Map<String, serde_json::Value> = serde_json::from_str(model_json).map_err(|_| wrong())?;
        if ["artifact_path", "flavors", "utc_time_created", "run_id"].iter().any(|field| !model.contains_key(*field)) {
            return Err(wrong());
        }
        // A signature may be longer than a tag.
        model.retain(|field, _| {
            matches!(field.as_str(), "artifact_path" | "flavors" | "utc_time_created" | "run_id" | "model_uuid" | "model_id")
        });
        let _touched = self.tracking().touch(permit, permit.resource());
        let mut tx = permit.tx().await?;
        let run = open(&mut tx, permit.resource()).await?;
        let mut models = match tx.get::<RunItem<Metric>>(&tag_key(&run.id, MODELS_TAG)).await? {
            Some(RunItem { part: Part::Tag(tag), .. }) => serde_json::from_str::<Vec<serde_json::Value>>(&tag.value).unwrap_or_default(),
            _ => Vec::new(),
        };
        models.push(model.into());
        let value = serde_json::Value::from(models).to_string();
        length("value", TAG_CHARS_MAX, &value)?;
        tags_put(&mut tx, &run.id, vec![Text { key: MODELS_TAG.to_owned(), value }]).await?;
        Ok(tx.commit().await?)
    }

    /// How many records runs, their parts and their blocks have. For tests that see them go.
    #[doc(hidden)]
    pub async fn tracking_records(&self, permit: &Permit<RunRead>) -> Result<(u64, u64, u64)> {
        let rows = permit.rows();
        Ok((rows.count::<TrackedRun>().await?, rows.count::<RunItem<Metric>>().await?, rows.count::<metric::MetricBlock>().await?))
    }
}

/// A run that the permit may read, with the lifecycle that counts.
pub(crate) async fn readable(permit: &Permit<RunRead>, rows: &mut Snapshot<'_>, id: &str) -> Result<TrackedRun> {
    id_checked(id)?;
    let mut run = rows.get::<TrackedRun>(id).await?.ok_or(Error::not_found("run"))?;
    permit.within(ResourceKind::Experiment, &run.experiment_id)?;
    let experiment = experiment::one(rows.get(&run.experiment_id).await?, &run.experiment_id)?;
    run.lifecycle = run.lifecycle.within(experiment.lifecycle);
    Ok(run)
}

/// A run that the permit may write, and its experiment.
async fn found(tx: &mut Tx<'_>, id: &str) -> Result<(TrackedRun, Experiment)> {
    id_checked(id)?;
    let run = tx.get::<TrackedRun>(id).await?.ok_or(Error::not_found("run"))?;
    tx.within(ResourceKind::Experiment, &run.experiment_id)?;
    let experiment = experiment::require(tx, &run.experiment_id).await?;
    Ok((run, experiment))
}

/// The same, unless it is deleted.
async fn open(tx: &mut Tx<'_>, id: &str) -> Result<TrackedRun> {
    let (run, experiment) = found(tx, id).await?;
    if run.lifecycle.within(experiment.lifecycle).deleted {
        return Err(Error::invalid(format!("The run {} must be in the 'active' state. Current state is deleted.", run.id)));
    }
    Ok(run)
}

/// Puts tags, and counts what they add to those that were there.
async fn tags_put(tx: &mut Tx<'_>, run: &str, tags: Vec<Text>) -> Result<()> {
    let mut items: Vec<RunItem<Metric>> = Vec::with_capacity(tags.len());
    for tag in tags {
        match items.iter_mut().find(|item| matches!(&item.part, Part::Tag(known) if known.key == tag.key)) {
            Some(known) => known.part = Part::Tag(tag),
            None => items.push(RunItem::new(run, Part::Tag(tag))),
        }
    }
    if items.is_empty() {
        return Ok(());
    }
    let keys: Vec<_> = items.iter().map(Record::key).collect();
    let replaced = tx.get_all::<RunItem<Metric>>(&keys).await?;
    let mut balance = Balance::default();
    balance.put(tx, &items, replaced.iter().flatten()).await?;
    balance.settle(tx).await
}

/// Puts parameters that are not there yet; those that are must say the same.
async fn params_put(tx: &mut Tx<'_>, run: &str, params: Vec<Text>, single: bool, balance: &mut Balance) -> Result<()> {
    if params.is_empty() {
        return Ok(());
    }
    let keys: Vec<_> = params.iter().map(|param| param_key(run, &param.key)).collect();
    let known = tx.get_all::<RunItem<Metric>>(&keys).await?;
    let (mut items, mut changed) = (Vec::new(), Vec::new());
    for (param, known) in params.into_iter().zip(known) {
        match known {
            Some(RunItem { part: Part::Param(old), .. }) if old.value == param.value => {}
            Some(RunItem { part: Part::Param(old), .. }) => changed.push((param, old.value)),
            _ => items.push(RunItem::new(run, Part::Param(param))),
        }
    }
    match changed.as_slice() {
        [] => balance.put(tx, &items, []).await,
        [(param, old)] if single => Err(Error::invalid(format!(
            "Changing param values is not allowed. Param with key='{}' was already logged with value='{}' for run ID='{run}'. Attempted logging new value '{}'.",
            param.key,
            truncated(old.clone(), 200),
            truncated(param.value.clone(), 200)
        ))),
        changed => {
            let all: Vec<_> = changed
                .iter()
                .map(|(param, old)| {
                    format!(
                        "{{'key': '{}', 'old_value': '{}', 'new_value': '{}'}}",
                        param.key,
                        truncated(old.clone(), 200),
                        truncated(param.value.clone(), 200)
                    )
                })
                .collect();
            Err(Error::invalid(format!(
                "Changing param values is not allowed. Params were already logged='[{}]' for run ID='{run}'.",
                all.join(", ")
            )))
        }
    }
}

/// Points that say something about a logged model are kept for it too; those that are there already count once.
async fn model_metrics(tx: &mut Tx<'_>, run: &TrackedRun, metrics: Vec<MetricPoint>, balance: &mut Balance) -> Result<()> {
    let mut records: BTreeMap<String, ModelMetric> = BTreeMap::new();
    for MetricPoint { key, point, model } in metrics {
        if let Some(link) = model {
            let metric = ModelMetric { key, point, link, run_id: run.id.clone(), experiment_id: run.experiment_id.clone() };
            records.insert(metric.key(), metric);
        }
    }
    if records.is_empty() {
        return Ok(());
    }
    let keys: Vec<_> = records.keys().cloned().collect();
    for known in tx.get_all::<ModelMetric>(&keys).await?.into_iter().flatten() {
        records.remove(&known.key());
    }
    let fresh: Vec<_> = records.into_values().collect();
    balance.added += fresh.iter().map(ModelMetric::stored_bytes).sum::<u64>();
    Ok(tx.put_all(&fresh).await?)
}

/// Within MLflow's bounds.
fn checked(batch: Batch, single: bool) -> Result<Batch> {
    let Batch { metrics, params, tags } = batch;
    batch_limit("metrics", METRICS_PER_BATCH_MAX, metrics.len())?;
    batch_limit("params", TEXTS_PER_BATCH_MAX, params.len())?;
    batch_limit("tags", TEXTS_PER_BATCH_MAX, tags.len())?;
    batch_limit("metrics, params, and tags", ITEMS_PER_BATCH_MAX, metrics.len() + params.len() + tags.len())?;
    let path = |what: &str, at: usize| if single { String::new() } else { format!("{what}[{at}]") };
    for (at, point) in metrics.iter().enumerate() {
        metric::checked(point, &path("metrics", at))?;
        if let Some(link) = &point.model {
            model_id_checked(&link.model_id)?;
            length("dataset_name", DATASET_NAME_CHARS_MAX, link.dataset_name.as_deref().unwrap_or_default())?;
            length("dataset_digest", DATASET_DIGEST_CHARS_MAX, link.dataset_digest.as_deref().unwrap_or_default())?;
        }
    }
    let mut known: Vec<&str> = params.iter().map(|param| param.key.as_str()).collect();
    known.sort_unstable();
    if let Some(twice) = known.windows(2).find_map(|pair| (pair.first() == pair.last()).then(|| pair.first()).flatten()) {
        return Err(Error::invalid(format!(
            "Duplicate parameter keys have been submitted: [{}]. Please ensure the request contains only one param value per param key.",
            quoted(twice)
        )));
    }
    let params = params.into_iter().enumerate().map(|(at, param)| {
        let path = path("params", at);
        entity_name(&if path.is_empty() { "key".to_owned() } else { format!("{path}.key") }, &param.key)?;
        length("Param key", KEY_CHARS_MAX, &param.key)?;
        Ok(Text { value: truncated(param.value, PARAM_CHARS_MAX), ..param })
    });
    Ok(Batch { metrics, params: params.collect::<Result<_>>()?, tags: tags_checked(tags)? })
}

fn tags_checked(tags: Vec<Text>) -> Result<Vec<Text>> {
    batch_limit("tags", TEXTS_PER_BATCH_MAX, tags.len())?;
    let tags = tags.into_iter().enumerate().map(|(at, tag)| {
        entity_name(&format!("tags[{at}].key"), &tag.key)?;
        length(&format!("tags[{at}].key"), KEY_CHARS_MAX, &tag.key)?;
        Ok(Text { value: truncated(tag.value, TAG_CHARS_MAX), ..tag })
    });
    tags.collect()
}

fn batch_limit(what: &str, most: usize, given: usize) -> Result<()> {
    if given > most {
        return Err(Error::invalid(format!(
            "A batch logging request can contain at most {most} {what}. Got {given} {what}. Please split up {what} across multiple requests and try again."
        )));
    }
    Ok(())
}

fn dataset_checked(input: &DatasetInput) -> Result<()> {
    let dataset = &input.dataset;
    length("name", DATASET_NAME_CHARS_MAX, &dataset.name)?;
    length("digest", DATASET_DIGEST_CHARS_MAX, &dataset.digest)?;
    length("source", DATASET_SOURCE_CHARS_MAX, &dataset.source)?;
    length("source_type", DATASET_NAME_CHARS_MAX, &dataset.source_type)?;
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    if text(&dataset.schema) + text(&dataset.profile) > DATASET_TEXT_BYTES_MAX {
        return Err(Error::invalid(format!("'schema' and 'profile' exceed the maximum length of {DATASET_TEXT_BYTES_MAX} bytes together")));
    }
    if dataset.name.is_empty() || dataset.digest.is_empty() {
        return Err(Error::invalid("Missing value for required parameter 'dataset': a data set has a name and a digest"));
    }
    batch_limit("tags", TEXTS_PER_BATCH_MAX, input.tags.len())?;
    input.tags.iter().try_for_each(|tag| {
        length("key", INPUT_TAG_KEY_CHARS_MAX, &tag.key)?;
        length("value", INPUT_TAG_VALUE_CHARS_MAX, &tag.value)
    })
}

fn model_id_checked(id: &str) -> Result<()> {
    if id.is_empty() || id.len() > MODEL_ID_BYTES_MAX || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    {
        return Err(Error::invalid(format!("Invalid value {} for parameter 'model_id' supplied.", quoted(id))));
    }
    Ok(())
}

fn id_checked(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::invalid(
            "Missing value for required parameter 'run_id'. See the API docs for more information about request parameters.",
        ));
    }
    let good = id.len() <= RUN_ID_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if good { Ok(()) } else { Err(Error::not_found("run")) }
}

/// That nobody has the id, and nothing is left of a run that had it: what is swept goes in steps.
async fn id_free(tx: &mut Tx<'_>, experiment: &str, id: &str) -> Result<()> {
    let prefix = format!("{id}/");
    let taken = tx.get::<TrackedRun>(id).await?.is_some()
        || !tx.list::<RunItem<MetricHead>>(None, 1, Some(&prefix)).await?.records.is_empty()
        || !tx.list::<metric::MetricBlock>(None, 1, Some(&prefix)).await?.records.is_empty()
        || super::artifact::any(tx, &super::artifact::run_root(experiment, id)).await?;
    match taken {
        true => Err(Error::conflict(format!("Run(id={id}) already exists."))),
        false => Ok(()),
    }
}

/// 32 hex digits by chance.
pub(crate) fn random_id() -> Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(tenancy::Error::internal)?;
    Ok(hex(&bytes))
}

/// As MLflow does: an adjective, an animal and a number, which the id decides.
fn made_up_name(id: &str) -> String {
    const FIRST: [&str; 16] = [
        "amber", "brisk", "calm", "deft", "eager", "fond", "glad", "hardy", "ivory", "jolly", "keen", "lucid", "merry", "noble", "proud",
        "quiet",
    ];
    const SECOND: [&str; 16] =
        ["auk", "bee", "crane", "dove", "elk", "finch", "goat", "hare", "ibis", "jay", "kite", "lark", "mole", "newt", "otter", "pike"];
    let number = id.get(..8).and_then(|digits| usize::from_str_radix(digits, 16).ok()).unwrap_or_default();
    let word = |words: &[&'static str; 16], at: usize| words.get(at % 16).copied().unwrap_or_default();
    format!("{}-{}-{}", word(&FIRST, number), word(&SECOND, number / 16), number / 256 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: &str, value: &str) -> Text {
        Text { key: key.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn batches_are_bounded_in_mlflows_words() {
        let refused = |batch: Batch| checked(batch, false).unwrap_err().to_string();
        let params = (0..=100).map(|at| text(&at.to_string(), "")).collect();
        assert!(
            refused(Batch { params, ..Batch::default() })
                .starts_with("A batch logging request can contain at most 100 params. Got 101 params.")
        );
        let twice = vec![text("a", "1"), text("b", "1"), text("a", "1")];
        assert!(refused(Batch { params: twice, ..Batch::default() }).starts_with("Duplicate parameter keys have been submitted: [\"a\"]"));
        let tags = vec![text("ok", ""), text("a//b", "")];
        assert!(refused(Batch { tags, ..Batch::default() }).starts_with("Invalid value \"a//b\" for parameter 'tags[1].key' supplied"));
        let long = vec![text("k", &"ä".repeat(7000))];
        let cut = checked(Batch { params: long.clone(), tags: long, ..Batch::default() }, false).unwrap();
        assert_eq!((cut.params[0].value.chars().count(), cut.tags[0].value.chars().count()), (6000, 7000));
        let at = |key: &str, timestamp| MetricPoint { key: key.to_owned(), point: Point { value: 1.0, timestamp, step: 0 }, model: None };
        assert!(
            refused(Batch { metrics: vec![at("m", -1)], ..Batch::default() }).contains("for parameter 'metrics[0].timestamp' supplied")
        );
        assert!(
            refused(Batch { metrics: vec![at(&"m".repeat(251), 1)], ..Batch::default() }).contains("exceeds the maximum length of 250")
        );
    }

    #[test]
    fn ids_and_names_are_made_up() {
        let id = random_id().unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) && id != random_id().unwrap());
        assert_eq!(made_up_name("00000000"), "amber-auk-0");
        assert_eq!(made_up_name("ffffffff").split('-').count(), 3);
    }

    #[test]
    fn a_run_is_found_by_what_its_parts_say() {
        let item = RunItem::new("r", Part::Param(text("a", "1")));
        let json = serde_json::to_string(&item).unwrap();
        assert_eq!(json, r#"{"r":"r","v":{"p":{"k":"a","v":"1"}}}"#);
        let metric = RunItem::new("r", Part::Metric(Metric::new("m".to_owned(), Point { value: f64::NAN, timestamp: 1, step: 2 })));
        let json = serde_json::to_string(&metric).unwrap();
        let head: RunItem<MetricHead> = serde_json::from_str(&json).unwrap();
        assert_eq!(head.key(), metric.key());
        assert!(matches!(head.part, Part::Metric(head) if head.latest.value.is_nan()));
    }
}
