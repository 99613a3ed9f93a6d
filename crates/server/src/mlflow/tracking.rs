//! Runs, metrics, and the search over them, in the forms of MLflow's REST API.
//!
//! Handlers are thin: they read the request, call the platform, and write MLflow's JSON. 64-bit integers leave as numbers; a metric that is
//! no number leaves as the word that protobuf has for it.

use http::Method;
use platform::tenancy::Permit;
use platform::tenancy::act::{RunDelete, RunRead, RunWrite, TenantRead};
use platform::{
    Batch, DatasetInfo, DatasetInput, DatasetSummary, HISTORY_POINTS_MAX, MetricPoint, ModelInput, ModelLink, ModelOutput, Point, Real,
    RunRequest, RunSearch, RunStatus, RunUpdate, RunView, Text, TrackedRun, ViewType,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::wire::{Int, Texts};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

/// Most points of one run in a chart.
const CHART_POINTS_MAX: u32 = 2500;
/// Most points of an answer with the histories of several runs.
const BULK_POINTS_MAX: u32 = 25_000;

pub(super) fn register(api: &mut Api) {
    runs(api);
    metrics(api);
    const GET: Method = Method::GET;
    api.mlflow_route(GET, "/api/3.0/mlflow/workspaces", Doc::new("mlflow_workspaces_list", "The caller's own workspace"), "", workspaces);
    api.mlflow_route(
        GET,
        "/api/2.0/mlflow/workspaces",
        Doc::new("mlflow_workspaces_list_v2", "The caller's own workspace"),
        "",
        workspaces,
    );
    let one = "/api/3.0/mlflow/workspaces/{workspace_name}";
    api.mlflow_route(GET, one, Doc::new("mlflow_workspace_get", "The caller's own workspace by name"), "", workspace);
    let one = "/api/2.0/mlflow/workspaces/{workspace_name}";
    api.mlflow_route(GET, one, Doc::new("mlflow_workspace_get_v2", "The caller's own workspace by name"), "", workspace);
}

fn runs(api: &mut Api) {
    let (post, id) = (Method::POST, "run_id");
    let doc = Doc::new;
    api.mlflow_route(post.clone(), "/api/2.0/mlflow/runs/create", doc("mlflow_run_create", "Begin a run"), "", run_create);
    api.mlflow_route(Method::GET, "/api/2.0/mlflow/runs/get", doc("mlflow_run_get", "One run with everything in it"), id, run_get);
    api.mlflow_route(post.clone(), "/api/2.0/mlflow/runs/search", doc("mlflow_run_search", "Runs that pass a filter"), "", run_search);
    let datasets = "/api/2.0/mlflow/experiments/search-datasets";
    api.mlflow_route(post.clone(), datasets, doc("mlflow_dataset_search", "Data sets that runs used"), "", dataset_search);
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/runs/update",
        doc("mlflow_run_update", "Change name, status or end of a run"),
        id,
        run_update,
    );
    api.mlflow_route(post.clone(), "/api/2.0/mlflow/runs/delete", doc("mlflow_run_delete", "Delete a run"), id, run_delete);
    api.mlflow_route(post.clone(), "/api/2.0/mlflow/runs/restore", doc("mlflow_run_restore", "Restore a deleted run"), id, run_restore);
    api.mlflow_route(post.clone(), "/api/2.0/mlflow/runs/log-metric", doc("mlflow_log_metric", "Log a point of a metric"), id, log_metric);
    api.mlflow_route(post.clone(), "/api/2.0/mlflow/runs/log-parameter", doc("mlflow_log_parameter", "Log a parameter"), id, log_parameter);
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/runs/log-batch",
        doc("mlflow_log_batch", "Log metrics, parameters and tags, all or none"),
        id,
        log_batch,
    );
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/runs/log-model",
        doc("mlflow_log_model", "Note a logged model in the run's tags"),
        id,
        log_model,
    );
    api.mlflow_route(post.clone(), "/api/2.0/mlflow/runs/log-inputs", doc("mlflow_log_inputs", "Record what a run used"), id, log_inputs);
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/runs/outputs",
        doc("mlflow_log_outputs", "Record models that a run made"),
        id,
        log_outputs,
    );
    api.mlflow_route(post.clone(), "/api/2.0/mlflow/runs/set-tag", doc("mlflow_set_tag", "Tag a run"), id, set_tag);
    api.mlflow_route(post, "/api/2.0/mlflow/runs/delete-tag", doc("mlflow_delete_tag", "Take a tag off a run"), id, delete_tag);
}

fn metrics(api: &mut Api) {
    let (get, doc) = (Method::GET, Doc::new);
    api.mlflow_route(
        get.clone(),
        "/api/2.0/mlflow/metrics/get-history",
        doc("mlflow_metric_history", "All points of a metric"),
        "run_id",
        history,
    );
    api.mlflow_route(
        get.clone(),
        "/api/2.0/mlflow/metrics/get-history-bulk",
        doc("mlflow_metric_history_bulk", "Points of a metric of several runs"),
        "",
        history_bulk,
    );
    api.mlflow_route(
        get,
        "/api/2.0/mlflow/metrics/get-history-bulk-interval",
        doc("mlflow_metric_history_bulk_interval", "Some points of a metric of several runs, for a chart"),
        "",
        history_interval,
    );
}

/// MLflow's words for a field that is not there.
pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| {
        let message =
            format!("Missing value for required parameter '{field}'. See the API docs for more information about request parameters.");
        Fail::new("invalid", message)
    })
}

pub(super) fn view(word: Option<Word>) -> Result<ViewType> {
    word.map_or(Ok(ViewType::default()), |Word(word)| {
        ViewType::parse(&word)
            .ok_or_else(|| Fail::new("invalid", format!("Invalid value `{word}` for a view type: ACTIVE_ONLY, DELETED_ONLY or ALL")))
    })
}

/// Most items of a page; what is no page is refused further in.
pub(super) fn limit(given: Option<Int>) -> Option<u32> {
    given.map(|Int(limit)| u32::try_from(limit).unwrap_or(if limit < 0 { 0 } else { u32::MAX }))
}

/// A word of an enumeration; protobuf lets clients give its number.
pub(super) struct Word(pub(super) String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Value::deserialize(from)? {
            Value::String(word) => Ok(Self(word)),
            Value::Number(number) => Ok(Self(number.to_string())),
            _ => Err(serde::de::Error::custom("a word of an enumeration is a text")),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct TagAsked {
    pub(super) key: Option<String>,
    pub(super) value: Option<String>,
}

/// `{"key": …, "value": …}`.
#[derive(Serialize, Deserialize)]
pub(super) struct Pair {
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: String,
}

impl From<Pair> for Text {
    fn from(Pair { key, value }: Pair) -> Self {
        Self { key, value }
    }
}

impl From<Text> for Pair {
    fn from(Text { key, value }: Text) -> Self {
        Self { key, value }
    }
}

// Runs

#[derive(Serialize)]
struct RunAnswer {
    info: RunInfoAnswer,
    data: RunDataAnswer,
    inputs: RunInputsAnswer,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<RunOutputsAnswer>,
}

#[derive(Serialize)]
struct RunInfoAnswer {
    run_id: String,
    run_uuid: String,
    run_name: String,
    experiment_id: String,
    user_id: String,
    status: &'static str,
    start_time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<i64>,
    artifact_uri: String,
    lifecycle_stage: &'static str,
}

#[derive(Serialize)]
struct RunDataAnswer {
    metrics: Vec<MetricAnswer>,
    params: Vec<Pair>,
    tags: Vec<Pair>,
}

#[derive(Serialize)]
struct RunInputsAnswer {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dataset_inputs: Vec<DatasetForm>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_inputs: Vec<ModelForm>,
}

#[derive(Serialize)]
struct RunOutputsAnswer {
    model_outputs: Vec<ModelForm>,
}

#[derive(Serialize)]
struct MetricAnswer {
    key: String,
    value: Real,
    timestamp: i64,
    step: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<String>,
}

#[derive(Serialize)]
struct MetricsAnswer {
    metrics: Vec<MetricAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct DatasetForm {
    #[serde(default)]
    tags: Vec<Pair>,
    dataset: Option<DatasetInfoForm>,
}

#[derive(Serialize, Deserialize)]
struct DatasetInfoForm {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    source_type: String,
    #[serde(default)]
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct ModelForm {
    #[serde(default)]
    model_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<Int>,
}

impl From<TrackedRun> for RunInfoAnswer {
    fn from(run: TrackedRun) -> Self {
        Self {
            run_uuid: run.id.clone(),
            run_id: run.id,
            run_name: run.name,
            experiment_id: run.experiment_id,
            user_id: run.user,
            status: run.status.word(),
            start_time: run.start_ms,
            end_time: run.end_ms,
            artifact_uri: run.artifact_uri,
            lifecycle_stage: run.lifecycle.stage(),
        }
    }
}

impl MetricAnswer {
    fn new(key: String, point: Point, run_id: Option<String>) -> Self {
        Self { key, value: Real(point.value), timestamp: point.timestamp, step: point.step, run_id }
    }
}

impl From<DatasetInput> for DatasetForm {
    fn from(input: DatasetInput) -> Self {
        let DatasetInfo { name, digest, source_type, source, schema, profile } = input.dataset;
        let dataset = Some(DatasetInfoForm { name, digest, source_type, source, schema, profile });
        Self { tags: input.tags.into_iter().map(Pair::from).collect(), dataset }
    }
}

impl DatasetForm {
    fn given(self) -> Result<DatasetInput> {
        let DatasetInfoForm { name, digest, source_type, source, schema, profile } = required("dataset", self.dataset)?;
        let dataset = DatasetInfo { name, digest, source_type, source, schema, profile };
        Ok(DatasetInput { dataset, tags: self.tags.into_iter().map(Text::from).collect(), cut: false })
    }
}

impl From<RunView> for RunAnswer {
    fn from(view: RunView) -> Self {
        let model_outputs: Vec<_> =
            view.model_outputs.into_iter().map(|ModelOutput { model_id, step }| ModelForm { model_id, step: Some(Int(step)) }).collect();
        Self {
            info: view.run.into(),
            data: RunDataAnswer {
                metrics: view.metrics.into_iter().map(|(key, point)| MetricAnswer::new(key, point, None)).collect(),
                params: view.params.into_iter().map(Pair::from).collect(),
                tags: view.tags.into_iter().map(Pair::from).collect(),
            },
            inputs: RunInputsAnswer {
                dataset_inputs: view.datasets.into_iter().map(DatasetForm::from).collect(),
                model_inputs: view.model_inputs.into_iter().map(|ModelInput { model_id }| ModelForm { model_id, step: None }).collect(),
            },
            outputs: (!model_outputs.is_empty()).then_some(RunOutputsAnswer { model_outputs }),
        }
    }
}

#[derive(Serialize)]
struct OneRun {
    run: RunAnswer,
}

async fn run_create(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        /// Ours: MLflow's clients never send it.
        run_id: Option<String>,
        experiment_id: Option<String>,
        user_id: Option<String>,
        run_name: Option<String>,
        start_time: Option<Int>,
        tags: Option<Vec<Pair>>,
    }
    let asked: Asked = ask.fields()?;
    let request = RunRequest {
        id: asked.run_id.filter(|id| !id.is_empty()),
        experiment_id: asked.experiment_id.unwrap_or_default(),
        name: asked.run_name,
        user: asked.user_id,
        start_ms: asked.start_time.map(|Int(start)| start),
        tags: asked.tags.unwrap_or_default().into_iter().map(Text::from).collect(),
    };
    let view = ask.service.platform.tracking_run_create(permit, request).await?;
    Reply::json(&OneRun { run: view.into() })
}

async fn run_get(permit: &Permit<RunRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&OneRun { run: ask.service.platform.tracking_run_get(permit).await?.into() })
}

async fn run_search(permit: &Permit<RunRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        experiment_ids: Option<Vec<String>>,
        filter: Option<String>,
        run_view_type: Option<Word>,
        max_results: Option<Int>,
        order_by: Option<Vec<String>>,
        page_token: Option<String>,
    }
    #[derive(Serialize)]
    struct Found {
        runs: Vec<RunAnswer>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next_page_token: Option<String>,
    }
    let asked: Asked = ask.fields()?;
    let search = RunSearch {
        experiment_ids: asked.experiment_ids.unwrap_or_default(),
        filter: asked.filter.unwrap_or_default(),
        order_by: asked.order_by.unwrap_or_default(),
        view: view(asked.run_view_type)?,
        limit: limit(asked.max_results),
        page_token: asked.page_token,
    };
    let (runs, next_page_token) = ask.service.platform.tracking_search(permit, &search).await?;
    Reply::json(&Found { runs: runs.into_iter().map(RunAnswer::from).collect(), next_page_token })
}

async fn run_update(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        status: Option<Word>,
        end_time: Option<Int>,
        run_name: Option<String>,
    }
    let asked: Asked = ask.fields()?;
    let status =
        asked.status.map(|Word(word)| RunStatus::parse(&word).ok_or_else(|| Fail::new("invalid", format!("Invalid run status `{word}`"))));
    let update = RunUpdate { status: status.transpose()?, end_ms: asked.end_time.map(|Int(end)| end), name: asked.run_name };
    let run = ask.service.platform.tracking_run_update(permit, update).await?;
    Reply::json(&json!({"run_info": RunInfoAnswer::from(run)}))
}

async fn run_delete(permit: &Permit<RunDelete>, ask: Ask) -> Result<Reply> {
    ask.service.platform.tracking_run_delete(permit).await?;
    Reply::json(&json!({}))
}

async fn run_restore(permit: &Permit<RunDelete>, ask: Ask) -> Result<Reply> {
    ask.service.platform.tracking_run_restore(permit).await?;
    Reply::json(&json!({}))
}

// What is logged

#[derive(Deserialize)]
struct MetricForm {
    key: Option<String>,
    value: Option<Real>,
    timestamp: Option<Int>,
    step: Option<Int>,
    model_id: Option<String>,
    dataset_name: Option<String>,
    dataset_digest: Option<String>,
}

impl MetricForm {
    fn given(self) -> Result<MetricPoint> {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let point = Point {
            value: required("value", self.value)?.0,
            timestamp: required("timestamp", self.timestamp)?.0,
            step: self.step.unwrap_or_default().0,
        };
        let (dataset_name, dataset_digest) = (some(self.dataset_name), some(self.dataset_digest));
        let model = some(self.model_id).map(|model_id| ModelLink { model_id, dataset_name, dataset_digest });
        Ok(MetricPoint { key: required("key", self.key)?, point, model })
    }
}

/// Logs a batch and answers with nothing, as MLflow does.
async fn logged(permit: &Permit<RunWrite>, ask: &Ask, batch: Batch, single: bool) -> Result<Reply> {
    ask.service.platform.tracking_log(permit, batch, single).await?;
    Reply::json(&json!({}))
}

async fn log_metric(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    let metric = ask.fields::<MetricForm>()?.given()?;
    logged(permit, &ask, Batch { metrics: vec![metric], ..Batch::default() }, true).await
}

async fn log_parameter(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    let TagAsked { key, value } = ask.fields()?;
    let param = Text { key: required("key", key)?, value: value.unwrap_or_default() };
    logged(permit, &ask, Batch { params: vec![param], ..Batch::default() }, true).await
}

async fn set_tag(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    let TagAsked { key, value } = ask.fields()?;
    let tag = Text { key: required("key", key)?, value: value.unwrap_or_default() };
    logged(permit, &ask, Batch { tags: vec![tag], ..Batch::default() }, true).await
}

async fn log_batch(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        metrics: Option<Vec<MetricForm>>,
        params: Option<Vec<Pair>>,
        tags: Option<Vec<Pair>>,
    }
    let asked: Asked = ask.fields()?;
    let batch = Batch {
        metrics: asked.metrics.unwrap_or_default().into_iter().map(MetricForm::given).collect::<Result<_>>()?,
        params: asked.params.unwrap_or_default().into_iter().map(Text::from).collect(),
        tags: asked.tags.unwrap_or_default().into_iter().map(Text::from).collect(),
    };
    logged(permit, &ask, batch, false).await
}

async fn delete_tag(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    let TagAsked { key, .. } = ask.fields()?;
    ask.service.platform.tracking_tag_delete(permit, &required("key", key)?).await?;
    Reply::json(&json!({}))
}

async fn log_model(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        model_json: Option<String>,
    }
    let model = required("model_json", ask.fields::<Asked>()?.model_json)?;
    ask.service.platform.tracking_model_log(permit, &model).await?;
    Reply::json(&json!({}))
}

async fn log_inputs(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        datasets: Option<Vec<DatasetForm>>,
        models: Option<Vec<ModelForm>>,
    }
    let asked: Asked = ask.fields()?;
    let datasets = asked.datasets.unwrap_or_default().into_iter().map(DatasetForm::given).collect::<Result<_>>()?;
    let models = asked.models.unwrap_or_default().into_iter().map(|ModelForm { model_id, .. }| ModelInput { model_id }).collect();
    ask.service.platform.tracking_inputs_log(permit, datasets, models).await?;
    Reply::json(&json!({}))
}

async fn log_outputs(permit: &Permit<RunWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        models: Option<Vec<ModelForm>>,
    }
    let models = ask.fields::<Asked>()?.models.unwrap_or_default().into_iter();
    let models = models.map(|ModelForm { model_id, step }| ModelOutput { model_id, step: step.unwrap_or_default().0 }).collect();
    ask.service.platform.tracking_outputs_log(permit, models).await?;
    Reply::json(&json!({}))
}

async fn dataset_search(permit: &Permit<RunRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        experiment_ids: Option<Texts>,
    }
    #[derive(Serialize)]
    struct Summary {
        experiment_id: String,
        name: String,
        digest: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        context: Option<String>,
    }
    let ids = ask.fields::<Asked>()?.experiment_ids.unwrap_or_default().0;
    let found = ask.service.platform.tracking_datasets(permit, &ids).await?.into_iter();
    let summaries: Vec<_> =
        found.map(|DatasetSummary { experiment_id, name, digest, context }| Summary { experiment_id, name, digest, context }).collect();
    Reply::json(&json!({"dataset_summaries": summaries}))
}

// Histories

async fn history(permit: &Permit<RunRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        metric_key: Option<String>,
        page_token: Option<String>,
        max_results: Option<Int>,
    }
    let asked: Asked = ask.fields()?;
    let key = required("metric_key", asked.metric_key)?;
    let found = ask.service.platform.tracking_history(permit, &key, limit(asked.max_results), asked.page_token.as_deref()).await?;
    let metrics = found.points.into_iter().map(|point| MetricAnswer::new(key.clone(), point, None)).collect();
    Reply::json(&MetricsAnswer { metrics, next_page_token: found.next })
}

#[derive(Deserialize)]
struct HistoriesAsked {
    run_id: Option<Texts>,
    run_ids: Option<Texts>,
    metric_key: Option<String>,
    start_step: Option<Int>,
    end_step: Option<Int>,
    max_results: Option<Int>,
}

/// The points of several runs, each with its run.
fn histories(key: &str, found: Vec<(String, Vec<Point>)>) -> Result<Reply> {
    let with_run = |(run, points): (String, Vec<Point>)| {
        points.into_iter().map(move |point| MetricAnswer::new(key.to_owned(), point, Some(run.clone())))
    };
    Reply::json(&MetricsAnswer { metrics: found.into_iter().flat_map(with_run).collect(), next_page_token: None })
}

async fn history_bulk(permit: &Permit<RunRead>, mut ask: Ask) -> Result<Reply> {
    let asked: HistoriesAsked = ask.fields()?;
    let (key, most) = (required("metric_key", asked.metric_key)?, limit(asked.max_results).unwrap_or(BULK_POINTS_MAX).min(BULK_POINTS_MAX));
    let runs = asked.run_id.or(asked.run_ids).unwrap_or_default().0;
    histories(&key, ask.service.platform.tracking_histories(permit, &runs, &key, most.min(HISTORY_POINTS_MAX)).await?)
}

async fn history_interval(permit: &Permit<RunRead>, mut ask: Ask) -> Result<Reply> {
    let asked: HistoriesAsked = ask.fields()?;
    let key = required("metric_key", asked.metric_key)?;
    let most = limit(asked.max_results).unwrap_or(CHART_POINTS_MAX);
    if !(1..=CHART_POINTS_MAX).contains(&most) {
        return Err(Fail::new("invalid", format!("max_results must be between 1 and {CHART_POINTS_MAX}.")));
    }
    let steps = match (asked.start_step, asked.end_step) {
        (None, None) => None,
        (Some(Int(start)), Some(Int(end))) if start <= end => Some((start, end)),
        (Some(Int(start)), Some(Int(end))) => {
            let message = format!("end_step must be greater than start_step. Found start_step={start} and end_step={end}.");
            return Err(Fail::new("invalid", message));
        }
        _ => return Err(Fail::new("invalid", "If either start step or end step are specified, both must be specified.")),
    };
    let runs = asked.run_ids.or(asked.run_id).unwrap_or_default().0;
    histories(&key, ask.service.platform.tracking_samples(permit, &runs, &key, steps, most).await?)
}

// Workspaces: a tenant is one, and its members see no other.

async fn workspaces(permit: &Permit<TenantRead>, _ask: Ask) -> Result<Reply> {
    Reply::json(&json!({"workspaces": [{"name": permit.tenant_name().as_str()}]}))
}

async fn workspace(permit: &Permit<TenantRead>, ask: Ask) -> Result<Reply> {
    if ask.parameter("workspace_name") != permit.tenant_name().as_str() {
        return Err(platform::tenancy::Error::NotFound("workspace").into());
    }
    Reply::json(&json!({"workspace": {"name": permit.tenant_name().as_str()}}))
}
