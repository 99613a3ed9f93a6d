//! Registered models, their versions, aliases and tags, in MLflow's words.

use futures_util::StreamExt;
use http::Method;
use platform::tenancy::Permit;
use platform::tenancy::act::{ModelDelete, ModelGate, ModelRead, ModelWrite};
use platform::{AliasChange, AliasRequest, Approval, Gate, GateRequest, HistoryEntry, Model, ModelRequest, ModelVersion, TagRequest};

use super::{DELETE, GET, PUT};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::mlflow::webhooks;
use crate::openapi::Doc;

pub(super) fn register(api: &mut Api) {
    api.tenant_route(GET, "/v1/models", Doc::new("model_list", "Registered models by name").pages::<Model>(), list);
    api.tenant_route(GET, "/v1/models/{name}", Doc::new("model_get", "One registered model").answers::<Model>(), get);
    api.tenant_route(
        PUT,
        "/v1/models/{name}",
        Doc::new("model_put", "Register a model, or change its description and tags").takes::<ModelRequest>().answers::<Model>(),
        put,
    );
    api.tenant_route(DELETE, "/v1/models/{name}", Doc::new("model_delete", "Delete a model with all versions").status(204), delete);
    api.tenant_route(
        GET,
        "/v1/models/{name}/versions",
        Doc::new("model_version_list", "Versions of a model").pages::<ModelVersion>(),
        versions,
    );
    api.tenant_route(
        Method::POST,
        "/v1/models/{name}/versions",
        Doc::new("model_version_upload", "Upload an ONNX file as a new version; it is admitted in a sandbox")
            .takes_stream("application/octet-stream", "ONNX")
            .answers::<ModelVersion>()
            .status(201),
        upload,
    );
    api.tenant_route(
        GET,
        "/v1/models/{name}/versions/{version}",
        Doc::new("model_version_get", "One version with signature and lineage").answers::<ModelVersion>(),
        version,
    );
    api.tenant_route(
        GET,
        "/v1/models/{name}/versions/{version}/content",
        Doc::new("model_version_download", "The ONNX file").answers_stream("application/octet-stream", "ONNX"),
        content,
    );
    register_names(api);
    register_gate(api);
}

fn register_gate(api: &mut Api) {
    const GATE: &str = "/v1/models/{name}/gate";
    const APPROVAL: &str = "/v1/models/{name}/versions/{version}/approval";
    api.tenant_route(
        GET,
        "/v1/models/{name}/history",
        Doc::new("model_history", "Every change of the model's aliases and stages, oldest first").pages::<HistoryEntry>(),
        history,
    );
    api.tenant_route(GET, GATE, Doc::new("model_gate_get", "What a version must pass before an alias or stage").answers::<Gate>(), gate);
    let set = Doc::new("model_gate_set", "Set what a version must pass before an alias or stage").takes::<GateRequest>().answers::<Gate>();
    api.tenant_route(PUT, GATE, set, gate_set);
    api.tenant_route(DELETE, GATE, Doc::new("model_gate_delete", "Remove the gate of a model").status(204), gate_delete);
    api.tenant_route(GET, APPROVAL, Doc::new("model_version_approvals", "Who stands for a version").answers::<Vec<Approval>>(), approvals);
    let approve_doc = Doc::new("model_version_approve", "Stand for a version that somebody else made").answers::<Approval>();
    api.tenant_route(PUT, APPROVAL, approve_doc, approve);
    api.tenant_route(
        DELETE,
        APPROVAL,
        Doc::new("model_version_disapprove", "Stand for a version no longer").status(204),
        approval_withdraw,
    );
}

fn register_names(api: &mut Api) {
    api.tenant_route(
        GET,
        "/v1/models/{name}/aliases",
        Doc::new("alias_history", "Every change of the model's aliases, oldest first").pages::<AliasChange>(),
        alias_history,
    );
    api.tenant_route(
        PUT,
        "/v1/models/{name}/aliases/{alias}",
        Doc::new("alias_set", "Point an alias at a version").takes::<AliasRequest>().answers::<Model>(),
        alias_set,
    );
    api.tenant_route(
        DELETE,
        "/v1/models/{name}/aliases/{alias}",
        Doc::new("alias_delete", "Remove an alias").answers::<Model>(),
        alias_delete,
    );
    api.tenant_route(
        PUT,
        "/v1/models/{name}/tags/{key}",
        Doc::new("model_tag_set", "Set a tag of a model").takes::<TagRequest>().status(204),
        tag_set,
    );
    api.tenant_route(
        DELETE,
        "/v1/models/{name}/tags/{key}",
        Doc::new("model_tag_delete", "Remove a tag of a model").status(204),
        tag_delete,
    );
    api.tenant_route(
        PUT,
        "/v1/models/{name}/versions/{version}/tags/{key}",
        Doc::new("model_version_tag_set", "Set a tag of a version").takes::<TagRequest>().status(204),
        tag_set,
    );
    api.tenant_route(
        DELETE,
        "/v1/models/{name}/versions/{version}/tags/{key}",
        Doc::new("model_version_tag_delete", "Remove a tag of a version").status(204),
        tag_delete,
    );
}

async fn list(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.model_list(permit, &ask.page()?).await?)
}

async fn get(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.model_get(permit).await?)
}

async fn put(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    let request: ModelRequest = ask.json().await?;
    let (model, is_new) = service.platform.model_put(permit, request).await?;
    if is_new {
        webhooks::model_made(permit, &service, &model).await;
    }
    Reply::json(&model)
}

async fn delete(permit: &Permit<ModelDelete>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    service.platform.model_delete(permit).await?;
    Ok(Reply::empty())
}

async fn versions(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.model_versions(permit, &ask.page()?).await?)
}

async fn upload(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    let stream = ask.body.stream(service.model_bytes_max);
    let made = service.platform.model_version_upload(permit, stream).await?;
    webhooks::uploaded(permit, service.teller(), &made).await;
    let version = &made.version;
    let location = format!("/v1/models/{}/versions/{}", version.model, version.version);
    Ok(Reply::json(version)?.created(&location))
}

async fn version(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    let version = ask.number("version", "model version")?;
    Reply::json(&ask.service.platform.model_version_get(permit, version).await?)
}

async fn content(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    let version = ask.number("version", "model version")?;
    let (onnx, stream) = ask.service.platform.model_version_download(permit, version).await?;
    Ok(Reply::stream("application/octet-stream", Some(onnx.bytes), stream.map(|piece| piece.map_err(Fail::internal)).boxed())
        .header(http::header::ETAG, &format!("\"{}\"", onnx.sha256)))
}

async fn alias_history(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.alias_history(permit, &ask.page()?).await?)
}

async fn alias_set(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, alias) = (ask.service.clone(), ask.parameter("alias").to_owned());
    let request: AliasRequest = ask.json().await?;
    let model = service.platform.alias_set(permit, &alias, &request).await?;
    webhooks::alias_changed(permit, &service, &alias, Some(request.version)).await;
    Reply::json(&model)
}

async fn alias_delete(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, alias) = (ask.service.clone(), ask.parameter("alias").to_owned());
    ask.no_body().await?;
    let model = service.platform.alias_delete(permit, &alias).await?;
    webhooks::alias_changed(permit, &service, &alias, None).await;
    Reply::json(&model)
}

/// The version that the path names, on addresses that have one.
fn tagged(ask: &Ask) -> Result<Option<u64>> {
    if ask.parameter("version").is_empty() { Ok(None) } else { ask.number("version", "model version").map(Some) }
}

async fn tag_set(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, version, key) = (ask.service.clone(), tagged(&ask)?, ask.parameter("key").to_owned());
    let request: TagRequest = ask.json().await?;
    service.platform.tag_set(permit, version, &key, &request).await?;
    webhooks::tag_changed(permit, &service, version, &key, Some(&request.value)).await;
    Ok(Reply::empty())
}

async fn tag_delete(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, version, key) = (ask.service.clone(), tagged(&ask)?, ask.parameter("key").to_owned());
    ask.no_body().await?;
    service.platform.tag_delete(permit, version, &key).await?;
    webhooks::tag_changed(permit, &service, version, &key, None).await;
    Ok(Reply::empty())
}

async fn history(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.model_history(permit, &ask.page()?).await?)
}

async fn gate(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.gate_get(permit).await?)
}

async fn gate_set(permit: &Permit<ModelGate>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    let request: GateRequest = ask.json().await?;
    Reply::json(&service.platform.gate_set(permit, request).await?)
}

async fn gate_delete(permit: &Permit<ModelGate>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    service.platform.gate_delete(permit).await?;
    Ok(Reply::empty())
}

async fn approvals(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.approvals(permit, ask.number("version", "model version")?).await?)
}

async fn approve(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, version) = (ask.service.clone(), ask.number("version", "model version")?);
    ask.no_body().await?;
    Reply::json(&service.platform.approve(permit, version).await?)
}

async fn approval_withdraw(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, version) = (ask.service.clone(), ask.number("version", "model version")?);
    ask.no_body().await?;
    service.platform.approval_withdraw(permit, version).await?;
    Ok(Reply::empty())
}
