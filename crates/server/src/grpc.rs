//! The Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`, on the port of everything else.
//!
//! Framing and trailers are done here on hyper, not by a framework: an address without an act could exist in a router of somebody
//! else's, and a generated service would parse tensors in the process that all tenants share. Of a request the service reads the name of
//! the model, its version and its id ([`heading`]); the message goes to the tenant's cell as it came, and the cell's answer to the client.
//!
//! | module | what |
//! |---|---|
//! | `heading` | the first fields of a message |
//! | `framing` | the five bytes before a message, deadlines, replies |
//! | `message` | the small answers that the service writes itself |
//! | `status` | errors as gRPC knows them |
//!
//! What is deliberately missing: compression, reflection, `grpc.health.v1`, and every method that would change what is loaded or share memory.

pub(crate) mod framing;
pub(crate) mod heading;
pub(crate) mod message;
pub(crate) mod status;

use bytes::Bytes;
use platform::tenancy::Permit;
use platform::tenancy::act::{DeploymentRead, Predict};
use platform::{Protocol, Question};

use crate::api::grpc::Call;
use crate::api::{Api, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;
use crate::route::inference::{SERVER_EXTENSIONS, SERVER_NAME, is_ready};

/// Where the methods are.
pub(crate) const SERVICE: &str = "inference.GRPCInferenceService";
/// Media type of requests and answers.
pub(crate) const CONTENT_TYPE_GRPC: &str = "application/grpc";

macro_rules! method {
    ($name:literal) => {
        concat!("/inference.GRPCInferenceService/", $name)
    };
}

/// Public methods.
pub(crate) const SERVER_LIVE: &str = method!("ServerLive");
pub(crate) const SERVER_READY: &str = method!("ServerReady");
pub(crate) const SERVER_METADATA: &str = method!("ServerMetadata");

pub(crate) fn register(api: &mut Api) {
    api.grpc_route(method!("ModelReady"), Doc::new("grpc_model_ready", "Whether the model answers"), true, model_ready);
    api.grpc_route(method!("ModelMetadata"), Doc::new("grpc_model_metadata", "Model metadata"), true, model_metadata);
    api.grpc_route(method!("ModelInfer"), Doc::new("grpc_model_infer", "Predict"), true, model_infer);
    api.grpc_stream_route(method!("ModelStreamInfer"), Doc::new("grpc_model_stream_infer", "Predict, message by message"), model_infer);
    api.grpc_route(method!("ModelConfig"), Doc::new("grpc_model_config", "Model configuration"), true, model_config);
    api.grpc_route(method!("ModelStatistics"), Doc::new("grpc_model_statistics", "What became of predictions"), true, model_statistics);
    api.grpc_route(method!("RepositoryIndex"), Doc::new("grpc_repository_index", "Deployments and their state"), false, repository_index);
}

async fn model_infer(permit: &Permit<Predict>, call: Call) -> Result<Bytes> {
    let question = Question { protocol: Protocol::InferenceGrpc, body: call.message, manner: call.manner };
    Ok(call.service.platform.predict(permit, call.heading.version.as_deref(), question).await?.body)
}

async fn model_ready(permit: &Permit<DeploymentRead>, call: Call) -> Result<Bytes> {
    // Absent is an answer here: this is what is asked.
    let ready = match call.service.platform.deployment_ready(permit, call.heading.version.as_deref()).await {
        Ok(()) => true,
        Err(platform::Error::Kernel(platform::tenancy::Error::NotFound(_))) => false,
        Err(error) => return Err(error.into()),
    };
    Ok(message::yes_or_no(ready).into())
}

async fn model_metadata(permit: &Permit<DeploymentRead>, call: Call) -> Result<Bytes> {
    let metadata = call.service.platform.deployment_metadata(permit, call.heading.version.as_deref()).await?;
    Ok(message::model_metadata(&metadata).into())
}

async fn model_config(permit: &Permit<DeploymentRead>, call: Call) -> Result<Bytes> {
    let metadata = call.service.platform.deployment_metadata(permit, call.heading.version.as_deref()).await?;
    Ok(message::model_config(&metadata).into())
}

async fn model_statistics(permit: &Permit<DeploymentRead>, call: Call) -> Result<Bytes> {
    let all = call.service.platform.deployment_statistics(permit, call.heading.version.as_deref()).await?;
    Ok(message::statistics(&all).into())
}

async fn repository_index(permit: &Permit<DeploymentRead>, call: Call) -> Result<Bytes> {
    let ready_only = message::index_ready_only(call.message.bytes())?;
    let mut all = call.service.platform.deployment_all(permit).await?;
    all.retain(|deployment| !ready_only || is_ready(deployment));
    Ok(message::repository_index(&all).into())
}

/// Answers of the public methods; what they are asked with is empty and not read.
pub(crate) fn server_live() -> Reply {
    framing::reply(message::yes_or_no(true).into())
}

/// As [`server_live`].
pub(crate) fn server_ready(ready: bool) -> Reply {
    framing::reply(message::yes_or_no(ready).into())
}

/// As [`server_live`].
pub(crate) fn server_metadata() -> Reply {
    framing::reply(message::server_metadata(SERVER_NAME, env!("CARGO_PKG_VERSION"), &SERVER_EXTENSIONS).into())
}

/// Whether a path is one of a gRPC method.
pub(crate) fn is_method(path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE)).is_some_and(|rest| rest.starts_with('/'))
}

/// Why a method of the protocol is not here.
pub(crate) fn unsupported(method: &str) -> Option<Fail> {
    let why = match method {
        "RepositoryModelLoad" | "RepositoryModelUnload" => crate::route::inference::NO_LOADING,
        "SystemSharedMemoryStatus"
        | "SystemSharedMemoryRegister"
        | "SystemSharedMemoryUnregister"
        | "CudaSharedMemoryStatus"
        | "CudaSharedMemoryRegister"
        | "CudaSharedMemoryUnregister" => crate::route::inference::NO_SHARED_MEMORY,
        "TraceSetting" | "LogSettings" => crate::route::inference::NO_SETTINGS,
        _ => return None,
    };
    Some(Fail::new("not_implemented", why))
}
