//! The model registry, in the forms of MLflow's REST API. It is the registry of `/v1/models`: what one sets the other shows.

use std::collections::BTreeMap;

use http::Method;
use platform::tenancy::Permit;
use platform::tenancy::act::{ModelDelete, ModelRead, ModelWrite};
use platform::{AliasRequest, Model, ModelRequest, ModelSearch, ModelVersion, ModelVersionSource, Stage, StageRequest, TagRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::logged_models::{Pair, listed, pairs};
use super::webhooks;
use super::wire::{Int, Texts};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;
use crate::service::Service;

/// Models in one answer when nothing is asked for, and at most.
const MODELS_DEFAULT: i64 = 100;
const MODELS_MAX: i64 = 1000;
/// Versions in one answer when nothing is asked for, and at most.
const VERSIONS_DEFAULT: i64 = 10_000;
const VERSIONS_MAX: i64 = 200_000;

pub(super) fn register(api: &mut Api) {
    models(api);
    versions(api);
    aliases(api);
}

fn models(api: &mut Api) {
    let doc = Doc::new;
    api.mlflow_route(
        Method::POST,
        "/api/2.0/mlflow/registered-models/create",
        doc("mlflow_model_create", "Register a model"),
        "name",
        model_create,
    );
    api.mlflow_route(
        Method::POST,
        "/api/2.0/mlflow/registered-models/rename",
        doc("mlflow_model_rename", "Give a registered model another name"),
        "name",
        model_rename,
    );
    api.mlflow_route(
        Method::PATCH,
        "/api/2.0/mlflow/registered-models/update",
        doc("mlflow_model_update", "Describe a registered model"),
        "name",
        model_update,
    );
    api.mlflow_route(
        Method::DELETE,
        "/api/2.0/mlflow/registered-models/delete",
        doc("mlflow_model_delete", "Delete a registered model with all versions"),
        "name",
        model_delete,
    );
    api.mlflow_route(
        Method::GET,
        "/api/2.0/mlflow/registered-models/get",
        doc("mlflow_model_get", "One registered model").query("name", "string", "registered model"),
        "name",
        model_get,
    );
    api.mlflow_route(
        Method::GET,
        "/api/2.0/mlflow/registered-models/search",
        doc("mlflow_model_search", "Search registered models"),
        "",
        model_search,
    );
    let latest = "Newest version of each stage";
    const LATEST: &str = "/api/2.0/mlflow/registered-models/get-latest-versions";
    api.mlflow_route(Method::POST, LATEST, doc("mlflow_model_latest", latest), "name", model_latest);
    api.mlflow_route(Method::GET, LATEST, doc("mlflow_model_latest_get", latest), "name", model_latest);
    api.mlflow_route(
        Method::POST,
        "/api/2.0/mlflow/registered-models/set-tag",
        doc("mlflow_model_tag_set", "Set a tag of a registered model"),
        "name",
        tag_set,
    );
    api.mlflow_route(
        Method::DELETE,
        "/api/2.0/mlflow/registered-models/delete-tag",
        doc("mlflow_model_tag_delete", "Remove a tag of a registered model"),
        "name",
        tag_delete,
    );
}

fn versions(api: &mut Api) {
    let doc = Doc::new;
    api.mlflow_route(
        Method::POST,
        "/api/2.0/mlflow/model-versions/create",
        doc("mlflow_version_create", "Make a version out of what was logged"),
        "name",
        version_create,
    );
    api.mlflow_route(
        Method::PATCH,
        "/api/2.0/mlflow/model-versions/update",
        doc("mlflow_version_update", "Describe a version"),
        "name",
        version_update,
    );
    api.mlflow_route(
        Method::POST,
        "/api/2.0/mlflow/model-versions/transition-stage",
        doc("mlflow_version_stage", "Move a version to another stage"),
        "name",
        version_stage,
    );
    api.mlflow_route(
        Method::DELETE,
        "/api/2.0/mlflow/model-versions/delete",
        doc("mlflow_version_delete", "Delete a version"),
        "name",
        version_delete,
    );
    api.mlflow_route(
        Method::GET,
        "/api/2.0/mlflow/model-versions/get",
        doc("mlflow_version_get", "One version of a registered model"),
        "name",
        version_get,
    );
    api.mlflow_route(
        Method::GET,
        "/api/2.0/mlflow/model-versions/search",
        doc("mlflow_version_search", "Search versions of registered models"),
        "",
        version_search,
    );
    api.mlflow_route(
        Method::GET,
        "/api/2.0/mlflow/model-versions/get-download-uri",
        doc("mlflow_version_uri", "Where the files of a version are"),
        "name",
        version_uri,
    );
    api.mlflow_route(
        Method::POST,
        "/api/2.0/mlflow/model-versions/set-tag",
        doc("mlflow_version_tag_set", "Set a tag of a version"),
        "name",
        version_tag_set,
    );
    api.mlflow_route(
        Method::DELETE,
        "/api/2.0/mlflow/model-versions/delete-tag",
        doc("mlflow_version_tag_delete", "Remove a tag of a version"),
        "name",
        version_tag_delete,
    );
}

fn aliases(api: &mut Api) {
    const ALIAS: &str = "/api/2.0/mlflow/registered-models/alias";
    let doc = Doc::new;
    api.mlflow_route(Method::POST, ALIAS, doc("mlflow_alias_set", "Point an alias at a version"), "name", alias_set);
    api.mlflow_route(Method::DELETE, ALIAS, doc("mlflow_alias_delete", "Remove an alias"), "name", alias_delete);
    api.mlflow_route(Method::GET, ALIAS, doc("mlflow_alias_get", "The version an alias points at"), "name", alias_get);
}

fn missing(field: &str) -> Fail {
    Fail::new(
        "invalid",
        format!("Missing value for required parameter '{field}'. See the API docs for more information about request parameters."),
    )
}

fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| missing(field))
}

/// A version's number, given as text or number.
fn number(version: Option<Int>) -> Result<u64> {
    u64::try_from(required(version, "version")?.0)
        .map_err(|_| Fail::new("invalid", "Parameter 'version' must be an integer, got a negative one"))
}

/// Texts that are absent are left out, as protobuf does.
fn with_texts(mut value: Value, texts: &[(&str, Option<&str>)]) -> Value {
    if let Some(value) = value.as_object_mut() {
        let texts = texts.iter().filter_map(|(key, text)| Some(((*key).to_owned(), Value::from(text.filter(|text| !text.is_empty())?))));
        value.extend(texts);
    }
    value
}

fn model_shown(model: &Model, latest: &[ModelVersion]) -> Value {
    let shown = json!({
        "name": model.name,
        "creation_timestamp": model.created_at.micros() / 1000,
        "last_updated_timestamp": model.updated_at.micros() / 1000,
        "latest_versions": latest.iter().map(version_shown).collect::<Vec<_>>(),
        "tags": listed(&model.tags),
        "aliases": model.aliases.iter().map(|(alias, version)| json!({"alias": alias, "version": version.to_string()})).collect::<Vec<_>>(),
    });
    with_texts(shown, &[("description", Some(&model.description))])
}

fn version_shown(version: &ModelVersion) -> Value {
    let updated = version.updated_at.unwrap_or(version.created_at);
    let shown = json!({
        "name": version.model,
        "version": version.version.to_string(),
        "creation_timestamp": version.created_at.micros() / 1000,
        "last_updated_timestamp": updated.micros() / 1000,
        "user_id": version.created_by,
        "current_stage": version.stage.name(),
        "source": source_shown(version),
        "status": "READY",
        "tags": listed(&version.tags),
        "aliases": version.aliases,
    });
    let logged = version.logged.as_ref();
    let texts = [
        ("description", Some(version.description.as_str())),
        ("run_id", version.run_id.as_deref()),
        ("run_link", logged.and_then(|logged| logged.run_link.as_deref())),
        ("model_id", logged.and_then(|logged| logged.model_id.as_deref())),
        ("status_message", version.not_deployable.as_deref()),
    ];
    with_texts(shown, &texts)
}

fn source_shown(version: &ModelVersion) -> String {
    version.logged.as_ref().map_or_else(|| own_uri(version), |logged| logged.source.clone())
}

/// A version that was not logged with MLflow has no artifacts: it is known by its own name.
fn own_uri(version: &ModelVersion) -> String {
    format!("models:/{}/{}", version.model, version.version)
}

fn version_answer(version: &ModelVersion) -> Result<Reply> {
    Reply::json(&json!({"model_version": version_shown(version)}))
}

fn done() -> Result<Reply> {
    Reply::json(&json!({}))
}

#[derive(Deserialize)]
struct OfModel {
    #[serde(default)]
    tags: Vec<Pair>,
    description: Option<String>,
    new_name: Option<String>,
    stages: Option<Texts>,
}

async fn model_create(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfModel = ask.fields()?;
    let tags: BTreeMap<String, String> = pairs(asked.tags).into_iter().collect();
    let request = ModelRequest { description: asked.description, tags: Some(tags) };
    let model = ask.service.platform.model_create(permit, request).await?;
    webhooks::model_made(permit, &ask.service, &model).await;
    Reply::json(&json!({"registered_model": model_shown(&model, &[])}))
}

async fn model_rename(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfModel = ask.fields()?;
    let model = ask.service.platform.model_rename(permit, &required(asked.new_name, "new_name")?).await?;
    Reply::json(&json!({"registered_model": model_shown(&model, &[])}))
}

async fn model_update(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfModel = ask.fields()?;
    let model = ask.service.platform.model_describe(permit, asked.description.unwrap_or_default()).await?;
    Reply::json(&json!({"registered_model": model_shown(&model, &[])}))
}

async fn model_delete(permit: &Permit<ModelDelete>, ask: Ask) -> Result<Reply> {
    ask.service.platform.model_delete(permit).await?;
    done()
}

async fn model_get(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    let model = ask.service.platform.model_get(permit).await?;
    let latest = ask.service.platform.model_latest(permit, &Stage::ALL).await?;
    Reply::json(&json!({"registered_model": model_shown(&model, &latest)}))
}

async fn model_latest(permit: &Permit<ModelRead>, mut ask: Ask) -> Result<Reply> {
    let asked: OfModel = ask.fields()?;
    let stages = match asked.stages.map(|stages| stages.0).filter(|stages| !stages.is_empty()) {
        Some(stages) => stages.iter().map(|stage| Stage::parse(stage)).collect::<Result<Vec<_>, _>>()?,
        None => Stage::ALL.to_vec(),
    };
    let latest = ask.service.platform.model_latest(permit, &stages).await?;
    Reply::json(&json!({"model_versions": latest.iter().map(version_shown).collect::<Vec<_>>()}))
}

#[derive(Deserialize)]
struct Search {
    filter: Option<String>,
    max_results: Option<Int>,
    #[serde(default)]
    order_by: Texts,
    page_token: Option<String>,
}

impl Search {
    fn read(ask: &mut Ask, default: i64, most: i64) -> Result<ModelSearch> {
        let asked: Self = ask.fields()?;
        let limit = asked.max_results.map_or(default, |given| given.0);
        if !(1..=most).contains(&limit) {
            return Err(Fail::new(
                "invalid",
                format!("Invalid value for request parameter max_results. It must be at most {most}, but got value {limit}"),
            ));
        }
        let limit = usize::try_from(limit).map_err(Fail::internal)?;
        Ok(ModelSearch { filter: asked.filter.unwrap_or_default(), order_by: asked.order_by.0, limit, page_token: asked.page_token })
    }
}

fn page(name: &str, items: Vec<Value>, token: Option<String>) -> Result<Reply> {
    Reply::json(&with_texts(json!({name: items}), &[("next_page_token", token.as_deref())]))
}

async fn model_search(permit: &Permit<ModelRead>, mut ask: Ask) -> Result<Reply> {
    let search = Search::read(&mut ask, MODELS_DEFAULT, MODELS_MAX)?;
    let (found, token) = ask.service.platform.model_search(permit, &search).await?;
    page("registered_models", found.iter().map(|(model, latest)| model_shown(model, latest)).collect(), token)
}

async fn version_search(permit: &Permit<ModelRead>, mut ask: Ask) -> Result<Reply> {
    let search = Search::read(&mut ask, VERSIONS_DEFAULT, VERSIONS_MAX)?;
    let (found, token) = ask.service.platform.model_version_search(permit, &search).await?;
    page("model_versions", found.iter().map(version_shown).collect(), token)
}

#[derive(Deserialize)]
struct OfVersion {
    version: Option<Int>,
    source: Option<String>,
    run_id: Option<String>,
    run_link: Option<String>,
    model_id: Option<String>,
    description: Option<String>,
    #[serde(default)]
    tags: Vec<Pair>,
    stage: Option<String>,
    archive_existing_versions: Option<Value>,
    alias: Option<String>,
    key: Option<String>,
    value: Option<String>,
}

async fn version_create(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let request = ModelVersionSource {
        // Ours: MLflow's clients never send it.
        version: asked.version.map(|given| number(Some(given))).transpose()?,
        source: required(given(asked.source), "source")?,
        run_id: given(asked.run_id),
        run_link: given(asked.run_link),
        model_id: given(asked.model_id),
        description: asked.description.unwrap_or_default(),
        tags: pairs(asked.tags).into_iter().collect(),
    };
    let version = ask.service.platform.model_version_register(permit, request).await?;
    webhooks::version_made(permit, ask.service.teller(), &version, &source_shown(&version)).await;
    version_answer(&version)
}

async fn version_update(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    let description = asked.description.unwrap_or_default();
    version_answer(&ask.service.platform.model_version_describe(permit, number(asked.version)?, description).await?)
}

async fn version_stage(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    let request = StageRequest {
        version: number(asked.version)?,
        stage: Stage::parse(&required(asked.stage, "stage")?)?,
        archive_others: matches!(&asked.archive_existing_versions, Some(Value::Bool(true)))
            || asked.archive_existing_versions.as_ref().and_then(Value::as_str).is_some_and(|text| text.eq_ignore_ascii_case("true")),
    };
    version_answer(&ask.service.platform.stage_set(permit, request).await?)
}

async fn version_delete(permit: &Permit<ModelDelete>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    ask.service.platform.model_version_delete(permit, number(asked.version)?).await?;
    done()
}

async fn version_get(permit: &Permit<ModelRead>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    version_answer(&ask.service.platform.model_version_get(permit, number(asked.version)?).await?)
}

async fn version_uri(permit: &Permit<ModelRead>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    let version = ask.service.platform.model_version_get(permit, number(asked.version)?).await?;
    let uri = version.logged.as_ref().map_or_else(|| own_uri(&version), |logged| logged.artifact_uri.clone());
    Reply::json(&json!({"artifact_uri": uri}))
}

/// As MLflow does: what is not there is removed already.
fn removed(result: platform::Result<()>) -> Result<Reply> {
    match result {
        Err(platform::Error::Kernel(platform::tenancy::Error::NotFound("tag" | "alias"))) => done(),
        result => result.map_err(Into::into).and_then(|()| done()),
    }
}

async fn tag_set(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    put_tag(permit, &ask.service, None, asked).await
}

async fn tag_delete(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    remove_tag(permit, &ask.service, None, asked).await
}

async fn version_tag_set(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    put_tag(permit, &ask.service, Some(number(asked.version)?), asked).await
}

async fn version_tag_delete(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    remove_tag(permit, &ask.service, Some(number(asked.version)?), asked).await
}

async fn put_tag(permit: &Permit<ModelWrite>, service: &Service, version: Option<u64>, asked: OfVersion) -> Result<Reply> {
    let (key, request) = (required(asked.key, "key")?, TagRequest { value: asked.value.unwrap_or_default() });
    service.platform.tag_set(permit, version, &key, &request).await?;
    webhooks::tag_changed(permit, service, version, &key, Some(&request.value)).await;
    done()
}

async fn remove_tag(permit: &Permit<ModelWrite>, service: &Service, version: Option<u64>, asked: OfVersion) -> Result<Reply> {
    let key = required(asked.key, "key")?;
    let result = service.platform.tag_delete(permit, version, &key).await;
    if result.is_ok() {
        webhooks::tag_changed(permit, service, version, &key, None).await;
    }
    removed(result)
}

async fn alias_set(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    let request = AliasRequest { version: number(asked.version)? };
    let alias = required(asked.alias, "alias")?;
    ask.service.platform.alias_set(permit, &alias, &request).await?;
    webhooks::alias_changed(permit, &ask.service, &alias, Some(request.version)).await;
    done()
}

async fn alias_delete(permit: &Permit<ModelWrite>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    let alias = required(asked.alias, "alias")?;
    let result = ask.service.platform.alias_delete(permit, &alias).await.map(drop);
    if result.is_ok() {
        webhooks::alias_changed(permit, &ask.service, &alias, None).await;
    }
    removed(result)
}

async fn alias_get(permit: &Permit<ModelRead>, mut ask: Ask) -> Result<Reply> {
    let asked: OfVersion = ask.fields()?;
    let alias = required(asked.alias, "alias")?;
    match ask.service.platform.model_version_by_alias(permit, &alias).await {
        Err(platform::Error::Kernel(platform::tenancy::Error::NotFound("alias"))) => {
            Err(Fail::new("invalid", format!("Registered model alias {alias} not found.")))
        }
        result => version_answer(&result?),
    }
}
