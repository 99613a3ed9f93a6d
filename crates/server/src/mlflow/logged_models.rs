//! Logged models, in the forms of MLflow's REST API.

use http::Method;
use platform::tenancy::Permit;
use platform::tenancy::act::{LoggedModelDelete, LoggedModelRead, LoggedModelWrite};
use platform::{DatasetWanted, LoggedModel, LoggedModelOrder, LoggedModelRequest, LoggedModelSearch, LoggedModelStatus};
use serde::Deserialize;
use serde_json::{Value, json};

use super::artifacts::FileInfo;
use super::wire::Int;
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

pub(super) fn register(api: &mut Api) {
    const ALL: &str = "/api/2.0/mlflow/logged-models";
    const ONE: &str = "/api/2.0/mlflow/logged-models/{model_id}";
    const TAGS: &str = "/api/2.0/mlflow/logged-models/{model_id}/tags";
    const TAG: &str = "/api/2.0/mlflow/logged-models/{model_id}/tags/{tag_key...}";
    let (doc, id) = (Doc::new, "model_id");
    api.mlflow_route(Method::POST, ALL, doc("mlflow_logged_model_create", "Begin to log a model"), "", create);
    api.mlflow_route(
        Method::POST,
        "/api/2.0/mlflow/logged-models/search",
        doc("mlflow_logged_model_search", "Search logged models"),
        "",
        search,
    );
    api.mlflow_route(Method::GET, ONE, doc("mlflow_logged_model_get", "One logged model"), id, get);
    api.mlflow_route(Method::PATCH, ONE, doc("mlflow_logged_model_finalize", "The model is logged, or it failed"), id, finalize);
    api.mlflow_route(Method::DELETE, ONE, doc("mlflow_logged_model_delete", "Delete a logged model"), id, delete);
    api.mlflow_route(Method::PATCH, TAGS, doc("mlflow_logged_model_tags_set", "Set tags of a logged model"), id, tags_set);
    api.mlflow_route(Method::DELETE, TAG, doc("mlflow_logged_model_tag_delete", "Remove a tag of a logged model"), id, tag_delete);
    api.mlflow_route(
        Method::POST,
        "/api/2.0/mlflow/logged-models/{model_id}/params",
        doc("mlflow_logged_model_params", "Add parameters to a logged model"),
        id,
        params_add,
    );
    api.mlflow_route(
        Method::GET,
        "/api/2.0/mlflow/logged-models/{model_id}/artifacts/directories",
        doc("mlflow_logged_model_artifacts", "What is in a folder of a logged model's artifacts").query(
            "artifact_directory_path",
            "string",
            "folder",
        ),
        id,
        artifacts,
    );
}

/// A key with its value.
#[derive(Deserialize)]
pub(super) struct Pair {
    key: String,
    #[serde(default)]
    value: String,
}

pub(super) fn pairs(pairs: Vec<Pair>) -> Vec<(String, String)> {
    pairs.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

/// Key and value texts as MLflow lists them.
pub(super) fn listed<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Vec<Value> {
    pairs.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

/// A logged model in MLflow's form.
fn shown(model: &LoggedModel) -> Value {
    let mut info = json!({
        "model_id": model.id,
        "experiment_id": model.experiment_id,
        "name": model.name,
        "creation_timestamp_ms": model.created_ms,
        "last_updated_timestamp_ms": model.updated_ms,
        "artifact_uri": model.artifact_uri(),
        "status": format!("LOGGED_MODEL_{}", if model.status == LoggedModelStatus::Failed { "UPLOAD_FAILED" } else { model.status.name() }),
        "tags": listed(&model.tags),
    });
    if let Some(info) = info.as_object_mut() {
        let texts = [("model_type", &model.model_type), ("source_run_id", &model.source_run_id)];
        info.extend(texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), Value::from(text.clone()?)))));
    }
    let metrics: Vec<Value> = model
        .metrics
        .iter()
        .map(|metric| {
            let mut shown = json!({
                "key": metric.name, "value": metric.value, "timestamp": metric.timestamp_ms, "step": metric.step,
                "model_id": model.id, "run_id": metric.run_id,
            });
            if let Some(shown) = shown.as_object_mut() {
                let texts = [("dataset_name", &metric.dataset_name), ("dataset_digest", &metric.dataset_digest)];
                shown.extend(texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), Value::from(text.clone()?)))));
            }
            shown
        })
        .collect();
    json!({"info": info, "data": {"params": listed(&model.params), "metrics": metrics}})
}

fn answer(model: &LoggedModel) -> Result<Reply> {
    Reply::json(&json!({"model": shown(model)}))
}

#[derive(Deserialize)]
struct Create {
    /// Ours: MLflow's clients never send it.
    model_id: Option<String>,
    experiment_id: Option<String>,
    name: Option<String>,
    model_type: Option<String>,
    source_run_id: Option<String>,
    #[serde(default)]
    params: Vec<Pair>,
    #[serde(default)]
    tags: Vec<Pair>,
}

async fn create(permit: &Permit<LoggedModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: Create = ask.fields()?;
    let experiment_id = asked.experiment_id.ok_or_else(|| Fail::new("invalid", "Missing value for required parameter 'experiment_id'."))?;
    let request = LoggedModelRequest {
        id: asked.model_id.filter(|id| !id.is_empty()),
        experiment_id,
        name: asked.name,
        model_type: asked.model_type,
        source_run_id: asked.source_run_id,
        params: pairs(asked.params),
        tags: pairs(asked.tags),
    };
    answer(&ask.service.platform.logged_model_create(permit, request).await?)
}

async fn get(permit: &Permit<LoggedModelRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Get {
        allow_deleted: Option<String>,
    }
    let asked: Get = ask.fields()?;
    let deleted_too = asked.allow_deleted.is_some_and(|text| text.eq_ignore_ascii_case("true"));
    answer(&ask.service.platform.logged_model_get(permit, deleted_too).await?)
}

async fn finalize(permit: &Permit<LoggedModelWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Finalize {
        status: Value,
    }
    let asked: Finalize = ask.fields()?;
    let status = match &asked.status {
        Value::String(text) => LoggedModelStatus::parse(text),
        // As numbered in MLflow's protocol.
        Value::Number(number) => match number.as_u64() {
            Some(1) => Some(LoggedModelStatus::Pending),
            Some(2) => Some(LoggedModelStatus::Ready),
            Some(3) => Some(LoggedModelStatus::Failed),
            _ => None,
        },
        _ => None,
    };
    let status = status.ok_or_else(|| Fail::new("invalid", "Invalid value for parameter 'status' supplied: give LOGGED_MODEL_READY"))?;
    answer(&ask.service.platform.logged_model_finalize(permit, status).await?)
}

async fn delete(permit: &Permit<LoggedModelDelete>, ask: Ask) -> Result<Reply> {
    ask.service.platform.logged_model_delete(permit).await?;
    Reply::json(&json!({}))
}

#[derive(Deserialize)]
struct Pairs {
    #[serde(default)]
    params: Vec<Pair>,
    #[serde(default)]
    tags: Vec<Pair>,
    #[serde(default)]
    tag_key: String,
}

async fn tags_set(permit: &Permit<LoggedModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: Pairs = ask.fields()?;
    answer(&ask.service.platform.logged_model_tags(permit, pairs(asked.tags)).await?)
}

async fn tag_delete(permit: &Permit<LoggedModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: Pairs = ask.fields()?;
    ask.service.platform.logged_model_tag_delete(permit, &asked.tag_key).await?;
    Reply::json(&json!({}))
}

async fn params_add(permit: &Permit<LoggedModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: Pairs = ask.fields()?;
    ask.service.platform.logged_model_params(permit, pairs(asked.params)).await?;
    Reply::json(&json!({}))
}

async fn artifacts(permit: &Permit<LoggedModelRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Folder {
        #[serde(default)]
        artifact_directory_path: String,
    }
    let asked: Folder = ask.fields()?;
    let (model, found) = ask.service.platform.logged_model_artifacts(permit, &asked.artifact_directory_path).await?;
    Reply::json(&json!({"root_uri": model.artifact_uri(), "files": found.into_iter().map(FileInfo::whole).collect::<Vec<_>>()}))
}

#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    experiment_ids: Vec<String>,
    filter: Option<String>,
    #[serde(default)]
    datasets: Vec<DatasetWanted>,
    max_results: Option<Int>,
    #[serde(default)]
    order_by: Vec<LoggedModelOrder>,
    page_token: Option<String>,
}

async fn search(permit: &Permit<LoggedModelRead>, mut ask: Ask) -> Result<Reply> {
    let asked: Search = ask.fields()?;
    let search = LoggedModelSearch {
        experiment_ids: asked.experiment_ids,
        filter: asked.filter.unwrap_or_default(),
        datasets: asked.datasets,
        order_by: asked.order_by,
        limit: asked.max_results.and_then(|most| usize::try_from(most.0).ok()),
        page_token: asked.page_token,
    };
    let (models, token) = ask.service.platform.logged_model_search(permit, &search).await?;
    let mut answer = json!({"models": models.iter().map(shown).collect::<Vec<_>>()});
    if let (Some(answer), Some(token)) = (answer.as_object_mut(), token) {
        answer.insert("next_page_token".to_owned(), token.into());
    }
    Reply::json(&answer)
}
