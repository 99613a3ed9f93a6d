//! Deployments, and the Open Inference Protocol on top of them. A prediction's body is never parsed here.

use http::HeaderName;
use platform::tenancy::Permit;
use platform::tenancy::act::{DeploymentRead, DeploymentWrite, Predict};
use platform::{Deployment, DeploymentRequest, OipMetadata};
use serde::Serialize;
use utoipa::ToSchema;

use super::{DELETE, GET, POST, PUT};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::manner::manner;
use crate::openapi::Doc;

/// Marks a body with binary tensors after its JSON header.
const BINARY_HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(super) fn register(api: &mut Api) {
    api.tenant_route(GET, "/v1/deployments", Doc::new("deployment_list", "Deployments by name").pages::<Deployment>(), list);
    api.tenant_route(GET, "/v1/deployments/{name}", Doc::new("deployment_get", "One deployment").answers::<Deployment>(), get);
    api.tenant_route(
        PUT,
        "/v1/deployments/{name}",
        Doc::new("deployment_put", "Deploy a version or an alias of a model").takes::<DeploymentRequest>().answers::<Deployment>(),
        put,
    );
    api.tenant_route(DELETE, "/v1/deployments/{name}", Doc::new("deployment_delete", "Remove a deployment").status(204), delete);
    let metadata_doc = |operation| Doc::new(operation, "Model metadata (Open Inference Protocol)").answers::<OipMetadata>();
    api.tenant_route(GET, "/v2/models/{name}", metadata_doc("inference_metadata"), metadata);
    api.tenant_route(GET, "/v2/models/{name}/versions/{version}", metadata_doc("inference_version_metadata"), metadata);
    let ready_doc = |operation| Doc::new(operation, "Whether the model answers (Open Inference Protocol)").answers::<ModelReady<'_>>();
    api.tenant_route(GET, "/v2/models/{name}/ready", ready_doc("inference_model_ready"), ready);
    api.tenant_route(GET, "/v2/models/{name}/versions/{version}/ready", ready_doc("inference_version_ready"), ready);
    let infer_doc = |operation| {
        Doc::new(operation, "Predict (Open Inference Protocol)")
            .takes_raw("application/json", "inference request")
            .answers_raw("application/json", "inference response")
    };
    api.tenant_route(POST, "/v2/models/{name}/infer", infer_doc("predict"), infer);
    api.tenant_route(POST, "/v2/models/{name}/versions/{version}/infer", infer_doc("predict_version"), infer);
}

async fn list(permit: &Permit<DeploymentRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.deployment_list(permit, &ask.page()?).await?)
}

async fn get(permit: &Permit<DeploymentRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.deployment_get(permit).await?)
}

async fn put(permit: &Permit<DeploymentWrite>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    let request: DeploymentRequest = ask.json().await?;
    Reply::json(&service.platform.deployment_put(permit, request).await?)
}

async fn delete(permit: &Permit<DeploymentWrite>, ask: Ask) -> Result<Reply> {
    let service = ask.service.clone();
    ask.no_body().await?;
    service.platform.deployment_delete(permit).await?;
    Ok(Reply::empty())
}

fn version(ask: &Ask) -> Option<&str> {
    Some(ask.parameter("version")).filter(|version| !version.is_empty())
}

async fn metadata(permit: &Permit<DeploymentRead>, ask: Ask) -> Result<Reply> {
    Reply::json(&ask.service.platform.deployment_metadata(permit, version(&ask)).await?)
}

/// Readiness of one model.
#[derive(Serialize, ToSchema)]
struct ModelReady<'a> {
    name: &'a str,
    ready: bool,
}

async fn ready(permit: &Permit<DeploymentRead>, ask: Ask) -> Result<Reply> {
    ask.service.platform.deployment_ready(permit, version(&ask)).await?;
    Reply::json(&ModelReady { name: permit.resource(), ready: true })
}

async fn infer(permit: &Permit<Predict>, ask: Ask) -> Result<Reply> {
    if ask.headers.contains_key(BINARY_HEADER_LENGTH) {
        return Err(Fail::new("media_type_unsupported", "send tensors as JSON; the binary extension is not supported"));
    }
    let (service, version, manner) = (ask.service.clone(), version(&ask).map(str::to_owned), manner(&ask)?);
    let body = ask.body.bytes(service.limits.predict_bytes_max).await?;
    let answer = service.platform.predict(permit, version.as_deref(), body, manner).await?;
    Ok(Reply::bytes("application/json", answer))
}
