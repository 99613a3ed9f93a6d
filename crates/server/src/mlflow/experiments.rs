//! Experiments in the forms of MLflow's REST API, and what a tenant sets for all of them.

use http::Method;
use platform::tenancy::Permit;
use platform::tenancy::act::{ExperimentDelete, ExperimentRead, ExperimentWrite, PermissionWrite};
use platform::{Experiment, ExperimentRequest, ExperimentSearch};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::tracking::{Pair, TagAsked, Word, limit, required, view};
use super::wire::{Int, Texts};
use crate::api::{Api, Ask, Reply};
use crate::error::Result;
use crate::openapi::Doc;

pub(super) fn register(api: &mut Api) {
    settings(api);
    let (get, post, id) = (Method::GET, Method::POST, "experiment_id");
    let doc = Doc::new;
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/experiments/create",
        doc("mlflow_experiment_create", "Make an experiment"),
        "",
        experiment_create,
    );
    api.mlflow_route(get.clone(), "/api/2.0/mlflow/experiments/get", doc("mlflow_experiment_get", "One experiment"), id, experiment_get);
    api.mlflow_route(
        get.clone(),
        "/api/2.0/mlflow/experiments/get-by-name",
        doc("mlflow_experiment_get_by_name", "One experiment by its name"),
        "",
        experiment_by_name,
    );
    let search = "/api/2.0/mlflow/experiments/search";
    api.mlflow_route(post.clone(), search, doc("mlflow_experiment_search", "Experiments that pass a filter"), "", experiment_search);
    api.mlflow_route(get, search, doc("mlflow_experiment_search_get", "Experiments that pass a filter"), "", experiment_search);
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/experiments/update",
        doc("mlflow_experiment_update", "Rename an experiment"),
        id,
        experiment_update,
    );
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/experiments/delete",
        doc("mlflow_experiment_delete", "Delete an experiment"),
        id,
        experiment_delete,
    );
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/experiments/restore",
        doc("mlflow_experiment_restore", "Restore a deleted experiment"),
        id,
        experiment_restore,
    );
    api.mlflow_route(
        post.clone(),
        "/api/2.0/mlflow/experiments/set-experiment-tag",
        doc("mlflow_experiment_tag_set", "Tag an experiment"),
        id,
        experiment_tag_set,
    );
    api.mlflow_route(
        post,
        "/api/2.0/mlflow/experiments/delete-experiment-tag",
        doc("mlflow_experiment_tag_delete", "Take a tag off an experiment"),
        id,
        experiment_tag_delete,
    );
}

/// Of all experiments of a tenant.
fn settings(api: &mut Api) {
    let doc = Doc::new;
    api.tenant_route(
        Method::GET,
        "/v1/tracking",
        doc("tracking_get", "For how long deleted experiments and runs can be restored").answers::<TrackingSettings>(),
        settings_get,
    );
    api.tenant_route(
        Method::PUT,
        "/v1/tracking",
        doc("tracking_put", "Set for how long deleted experiments and runs can be restored")
            .takes::<TrackingSettings>()
            .answers::<TrackingSettings>(),
        settings_put,
    );
}

#[derive(Serialize)]
struct ExperimentAnswer {
    experiment_id: String,
    name: String,
    artifact_location: String,
    lifecycle_stage: &'static str,
    last_update_time: i64,
    creation_time: i64,
    tags: Vec<Pair>,
    workspace: String,
}

impl ExperimentAnswer {
    fn new(experiment: Experiment, workspace: &str) -> Self {
        Self {
            lifecycle_stage: experiment.lifecycle.stage(),
            experiment_id: experiment.id,
            name: experiment.name,
            artifact_location: experiment.artifact_location,
            last_update_time: experiment.updated_ms,
            creation_time: experiment.created_ms,
            tags: experiment.tags.into_iter().map(|(key, value)| Pair { key, value }).collect(),
            workspace: workspace.to_owned(),
        }
    }
}

async fn experiment_create(permit: &Permit<ExperimentWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        name: Option<String>,
        artifact_location: Option<String>,
        tags: Option<Vec<Pair>>,
    }
    let asked: Asked = ask.fields()?;
    let request = ExperimentRequest {
        name: required("name", asked.name)?,
        artifact_location: asked.artifact_location.filter(|location| !location.is_empty()),
        tags: asked.tags.unwrap_or_default().into_iter().map(|Pair { key, value }| (key, value)).collect(),
    };
    let id = ask.service.platform.experiment_create(permit, request).await?;
    Reply::json(&json!({"experiment_id": id}))
}

async fn experiment_get(permit: &Permit<ExperimentRead>, ask: Ask) -> Result<Reply> {
    let experiment = ask.service.platform.experiment_get(permit).await?;
    Reply::json(&json!({"experiment": ExperimentAnswer::new(experiment, permit.tenant_name().as_str())}))
}

async fn experiment_by_name(permit: &Permit<ExperimentRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        experiment_name: Option<String>,
    }
    let name = required("experiment_name", ask.fields::<Asked>()?.experiment_name)?;
    let experiment = ask.service.platform.experiment_by_name(permit, &name).await?;
    Reply::json(&json!({"experiment": ExperimentAnswer::new(experiment, permit.tenant_name().as_str())}))
}

async fn experiment_search(permit: &Permit<ExperimentRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        max_results: Option<Int>,
        page_token: Option<String>,
        filter: Option<String>,
        order_by: Option<Texts>,
        view_type: Option<Word>,
    }
    #[derive(Serialize)]
    struct Found {
        experiments: Vec<ExperimentAnswer>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next_page_token: Option<String>,
    }
    let asked: Asked = ask.fields()?;
    let search = ExperimentSearch {
        filter: asked.filter.unwrap_or_default(),
        order_by: asked.order_by.unwrap_or_default().0,
        view: view(asked.view_type)?,
        limit: limit(asked.max_results),
        page_token: asked.page_token,
    };
    let (found, next_page_token) = ask.service.platform.experiment_search(permit, &search).await?;
    let workspace = permit.tenant_name().as_str();
    let experiments = found.into_iter().map(|experiment| ExperimentAnswer::new(experiment, workspace)).collect();
    Reply::json(&Found { experiments, next_page_token })
}

async fn experiment_update(permit: &Permit<ExperimentWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Asked {
        new_name: Option<String>,
    }
    let name = required("new_name", ask.fields::<Asked>()?.new_name)?;
    ask.service.platform.experiment_rename(permit, &name).await?;
    Reply::json(&json!({}))
}

async fn experiment_delete(permit: &Permit<ExperimentDelete>, ask: Ask) -> Result<Reply> {
    ask.service.platform.experiment_delete(permit).await?;
    Reply::json(&json!({}))
}

async fn experiment_restore(permit: &Permit<ExperimentDelete>, ask: Ask) -> Result<Reply> {
    ask.service.platform.experiment_restore(permit).await?;
    Reply::json(&json!({}))
}

async fn experiment_tag_set(permit: &Permit<ExperimentWrite>, mut ask: Ask) -> Result<Reply> {
    let TagAsked { key, value } = ask.fields()?;
    ask.service.platform.experiment_tag_set(permit, required("key", key)?, value.unwrap_or_default()).await?;
    Reply::json(&json!({}))
}

async fn experiment_tag_delete(permit: &Permit<ExperimentWrite>, mut ask: Ask) -> Result<Reply> {
    let TagAsked { key, .. } = ask.fields()?;
    ask.service.platform.experiment_tag_delete(permit, &required("key", key)?).await?;
    Reply::json(&json!({}))
}

/// What a tenant sets for its experiments and runs.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrackingSettings {
    /// Days for which deleted experiments and runs can be restored; 30 unless set.
    retention_days: u32,
}

async fn settings_get(permit: &Permit<ExperimentRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&TrackingSettings { retention_days: ask.service.platform.tracking_retention(permit).await? })
}

async fn settings_put(permit: &Permit<PermissionWrite>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    let settings: TrackingSettings = ask.json().await?;
    service.platform.tracking_retention_set(permit, settings.retention_days).await?;
    Reply::json(&settings)
}
