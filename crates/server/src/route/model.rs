//! Registered models, their versions, aliases and tags, in MLflow's words.

use futures_util::StreamExt;
use http::Method;
use platform::tenancy::Permit;
use platform::tenancy::act::{ModelDelete, ModelRead, ModelWrite};
use platform::{AliasChange, AliasRequest, Model, ModelRequest, ModelVersion, TagRequest};

use super::{DELETE, GET, PUT};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
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
    Reply::json(&service.platform.model_put(permit, request).await?)
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
    let version = service.platform.model_version_upload(permit, stream).await?;
    let location = format!("/v1/models/{}/versions/{}", version.model, version.version);
    Ok(Reply::json(&version)?.created(&location))
}

async fn version(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    let version = ask.number("version", "model version")?;
    Reply::json(&ask.service.platform.model_version_get(permit, version).await?)
}

async fn content(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    let version = ask.number("version", "model version")?;
    let (version, stream) = ask.service.platform.model_version_download(permit, version).await?;
    Ok(Reply::stream("application/octet-stream", Some(version.bytes), stream.map(|piece| piece.map_err(Fail::internal)).boxed())
        .header(http::header::ETAG, &format!("\"{}\"", version.sha256)))
}

async fn alias_history(permit: &Permit<ModelRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.alias_history(permit, &ask.page()?).await?)
}

async fn alias_set(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, alias) = (ask.service.clone(), ask.parameter("alias").to_owned());
    let request: AliasRequest = ask.json().await?;
    Reply::json(&service.platform.alias_set(permit, &alias, &request).await?)
}

async fn alias_delete(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, alias) = (ask.service.clone(), ask.parameter("alias").to_owned());
    ask.no_body().await?;
    Reply::json(&service.platform.alias_delete(permit, &alias).await?)
}

/// The version that the path names, on addresses that have one.
fn tagged(ask: &Ask) -> Result<Option<u64>> {
    if ask.parameter("version").is_empty() { Ok(None) } else { ask.number("version", "model version").map(Some) }
}

async fn tag_set(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, version, key) = (ask.service.clone(), tagged(&ask)?, ask.parameter("key").to_owned());
    let request: TagRequest = ask.json().await?;
    service.platform.tag_set(permit, version, &key, &request).await?;
    Ok(Reply::empty())
}

async fn tag_delete(permit: &Permit<ModelWrite>, ask: Ask) -> Result<Reply> {
    let (service, version, key) = (ask.service.clone(), tagged(&ask)?, ask.parameter("key").to_owned());
    ask.no_body().await?;
    service.platform.tag_delete(permit, version, &key).await?;
    Ok(Reply::empty())
}
