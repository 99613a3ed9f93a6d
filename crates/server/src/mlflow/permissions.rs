//! Permissions of single members on single experiments and registered models, as MLflow's clients manage them. They are grants of
//! the policy: what is set here is what every other address asks.

use http::Method;
use platform::tenancy::act::{PermissionRead, PermissionWrite, ResourceKind};
use platform::tenancy::{Grant, Permit};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

/// MLflow's words.
const WORDS: [(&str, Grant); 4] =
    [("NO_PERMISSIONS", Grant::None), ("READ", Grant::Read), ("EDIT", Grant::Edit), ("MANAGE", Grant::Manage)];

pub(crate) fn register(api: &mut Api) {
    const EXPERIMENTS: [&str; 4] = [
        "/api/2.0/mlflow/experiments/permissions/create",
        "/api/2.0/mlflow/experiments/permissions/get",
        "/api/2.0/mlflow/experiments/permissions/update",
        "/api/2.0/mlflow/experiments/permissions/delete",
    ];
    const MODELS: [&str; 4] = [
        "/api/2.0/mlflow/registered-models/permissions/create",
        "/api/2.0/mlflow/registered-models/permissions/get",
        "/api/2.0/mlflow/registered-models/permissions/update",
        "/api/2.0/mlflow/registered-models/permissions/delete",
    ];
    let [create, get, update, delete] = EXPERIMENTS;
    let doc = |operation, summary| Doc::new(operation, summary);
    let user = "username";
    api.mlflow_route(
        Method::POST,
        create,
        doc("mlflow_experiment_permission_create", "Grant a member something on an experiment"),
        user,
        set_new,
    );
    api.mlflow_route(Method::GET, get, doc("mlflow_experiment_permission_get", "What a member was granted on an experiment"), user, shown);
    api.mlflow_route(Method::PATCH, update, doc("mlflow_experiment_permission_update", "Change a grant on an experiment"), user, set_again);
    api.mlflow_route(
        Method::DELETE,
        delete,
        doc("mlflow_experiment_permission_delete", "Take a grant on an experiment back"),
        user,
        withdraw,
    );
    let [create, get, update, delete] = MODELS;
    api.mlflow_route(Method::POST, create, doc("mlflow_model_permission_create", "Grant a member something on a model"), user, set_new);
    api.mlflow_route(Method::GET, get, doc("mlflow_model_permission_get", "What a member was granted on a model"), user, shown);
    api.mlflow_route(Method::PATCH, update, doc("mlflow_model_permission_update", "Change a grant on a model"), user, set_again);
    api.mlflow_route(Method::DELETE, delete, doc("mlflow_model_permission_delete", "Take a grant on a model back"), user, withdraw);
}

/// Of an experiment or of a registered model, by which field is there.
#[derive(Deserialize)]
struct Asked {
    username: String,
    experiment_id: Option<String>,
    name: Option<String>,
    permission: Option<String>,
}

impl Asked {
    fn on(&self) -> Result<(ResourceKind, &str)> {
        match (&self.experiment_id, &self.name) {
            (Some(id), None) if !id.is_empty() => Ok((ResourceKind::Experiment, id)),
            (None, Some(name)) if !name.is_empty() => Ok((ResourceKind::Model, name)),
            _ => Err(Fail::new("invalid", "give `experiment_id`, or the `name` of a registered model")),
        }
    }

    fn permission(&self) -> Result<Grant> {
        let word = self.permission.as_deref().unwrap_or_default();
        let known = WORDS.iter().find(|(known, _)| *known == word).map(|(_, grant)| *grant);
        known.ok_or_else(|| Fail::new("invalid", "Invalid permission: give READ, EDIT, MANAGE or NO_PERMISSIONS"))
    }

    fn answer(&self, grant: Grant) -> Result<Reply> {
        let word = WORDS.iter().find(|(_, known)| *known == grant).map_or("", |(word, _)| word);
        let (what, key, on): (_, _, Value) = match self.on()? {
            (ResourceKind::Experiment, id) => ("experiment_permission", "experiment_id", id.into()),
            (_, name) => ("registered_model_permission", "name", name.into()),
        };
        Reply::json(&json!({ what: { key: on, "user_id": self.username, "permission": word } }))
    }
}

async fn set_new(permit: &Permit<PermissionWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: Asked = ask.fields()?;
    let (kind, name) = asked.on()?;
    let grant = asked.permission()?;
    if permit.granted_to(&asked.username, kind, name)?.is_some() {
        return Err(Fail::new("conflict", "the member has a permission on this already: update it"));
    }
    permit.grant_set(&asked.username, kind, name, Some(grant)).await?;
    asked.answer(grant)
}

async fn set_again(permit: &Permit<PermissionWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: Asked = ask.fields()?;
    let (kind, name) = asked.on()?;
    let grant = asked.permission()?;
    permit.granted_to(&asked.username, kind, name)?.ok_or_else(absent)?;
    permit.grant_set(&asked.username, kind, name, Some(grant)).await?;
    Reply::json(&json!({}))
}

async fn withdraw(permit: &Permit<PermissionWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: Asked = ask.fields()?;
    let (kind, name) = asked.on()?;
    permit.granted_to(&asked.username, kind, name)?.ok_or_else(absent)?;
    permit.grant_set(&asked.username, kind, name, None).await?;
    Reply::json(&json!({}))
}

async fn shown(permit: &Permit<PermissionRead>, mut ask: Ask) -> Result<Reply> {
    let asked: Asked = ask.fields()?;
    let (kind, name) = asked.on()?;
    let grant = permit.granted_to(&asked.username, kind, name)?.ok_or_else(absent)?;
    asked.answer(grant)
}

fn absent() -> Fail {
    Fail::new("not_found", "the member has no permission of its own on this: its role decides")
}
