//! The Open Inference Protocol v2 over REST, with the extensions that Triton's clients know: tensors in binary form, statistics, model
//! configuration, repository index. What is asked of a model is never parsed here: that is done in the tenant's cell.

use http::HeaderName;
use http::header::HeaderMap;
use platform::tenancy::Permit;
use platform::tenancy::act::{DeploymentRead, Predict};
use platform::{Counted, Counts, Deployment, OipMetadata, Protocol, Question, Tensor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{GET, POST};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::grpc;
use crate::manner::manner;
use crate::openapi::Doc;

/// How much of a body is JSON, where tensors in binary form follow it.
pub(crate) const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// What the server calls itself.
pub(crate) const SERVER_NAME: &str = "insula";
/// Extensions of the protocol, by the names that clients know.
pub(crate) const SERVER_EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "classification", "model_configuration", "model_repository(index)", "statistics"];
/// What runs models, in the words of a model configuration.
pub(crate) const BACKEND: &str = "onnxruntime";

pub(crate) const NO_LOADING: &str =
    "models are loaded when they are asked for, and unloaded when nobody does: use deployments to say what answers";
pub(crate) const NO_SHARED_MEMORY: &str = "shared memory is not supported: send tensors in the request";
pub(crate) const NO_SETTINGS: &str = "settings of the service are not changed over this protocol";

pub(super) fn register(api: &mut Api) {
    let metadata_doc = |operation| Doc::new(operation, "Model metadata (Open Inference Protocol)").answers::<OipMetadata>();
    api.tenant_route(GET, "/v2/models/{name}", metadata_doc("inference_metadata"), metadata);
    api.tenant_route(GET, "/v2/models/{name}/versions/{version}", metadata_doc("inference_version_metadata"), metadata);
    let ready_doc = |operation| Doc::new(operation, "Whether the model answers (Open Inference Protocol)").answers::<ModelReady<'_>>();
    api.tenant_route(GET, "/v2/models/{name}/ready", ready_doc("inference_model_ready"), ready);
    api.tenant_route(GET, "/v2/models/{name}/versions/{version}/ready", ready_doc("inference_version_ready"), ready);
    let infer_doc = |operation| {
        Doc::new(operation, "Predict (Open Inference Protocol)")
            .takes_raw("application/json", "inference request; tensors in binary form behind it with `Inference-Header-Content-Length`")
            .answers_raw("application/json", "inference response; tensors in binary form behind it where they were asked for")
    };
    api.tenant_route(POST, "/v2/models/{name}/infer", infer_doc("predict"), infer);
    api.tenant_route(POST, "/v2/models/{name}/versions/{version}/infer", infer_doc("predict_version"), infer);
    let statistics_doc = |operation| Doc::new(operation, "What became of predictions on this node").answers::<Statistics>();
    api.tenant_route(GET, "/v2/models/stats", statistics_doc("inference_statistics"), statistics);
    api.tenant_route(GET, "/v2/models/{name}/stats", statistics_doc("inference_model_statistics"), statistics);
    api.tenant_route(GET, "/v2/models/{name}/versions/{version}/stats", statistics_doc("inference_version_statistics"), statistics);
    let config_doc = |operation| Doc::new(operation, "Model configuration, as Triton's clients read it").answers::<ModelConfig>();
    api.tenant_route(GET, "/v2/models/{name}/config", config_doc("inference_config"), config);
    api.tenant_route(GET, "/v2/models/{name}/versions/{version}/config", config_doc("inference_version_config"), config);
    api.tenant_route(
        POST,
        "/v2/repository/index",
        Doc::new("inference_repository_index", "Deployments and whether they answer")
            .takes::<IndexRequest>()
            .answers_raw("application/json", "a list of `name`, `version`, `state` and `reason`"),
        repository_index,
    );
}

/// Why an address of the protocol is not here.
pub(crate) fn unsupported(segments: &[String]) -> Option<Fail> {
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let why = match segments.as_slice() {
        ["v2", "repository", "models", _, "load" | "unload"] => NO_LOADING,
        ["v2", "systemsharedmemory" | "cudasharedmemory", ..] => NO_SHARED_MEMORY,
        ["v2", "trace", "setting"] | ["v2", "models", _, "trace", "setting"] | ["v2", "logging"] => NO_SETTINGS,
        [grpc::SERVICE, method] => return grpc::unsupported(method),
        _ => return None,
    };
    Some(Fail::new("not_implemented", why))
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
    let json_bytes = json_length(&ask.headers)?;
    let (service, version, manner) = (ask.service.clone(), version(&ask).map(str::to_owned), manner(&ask)?);
    let body = ask.body.whole(service.limits.predict_bytes_max).await?;
    let protocol = match json_bytes {
        None => Protocol::Inference,
        Some(json_bytes) if json_bytes as usize <= body.bytes().len() => Protocol::InferenceBinary { json_bytes },
        Some(json_bytes) => {
            let told = format!("`{JSON_LENGTH}` is {json_bytes}, the body has {} bytes", body.bytes().len());
            return Err(Fail::new("invalid", told));
        }
    };
    let answer = service.platform.predict(permit, version.as_deref(), Question { protocol, body, manner }).await?;
    Ok(match answer.json_bytes {
        None => Reply::bytes("application/json", answer.body),
        Some(json_bytes) => Reply::bytes("application/octet-stream", answer.body).header(JSON_LENGTH, &json_bytes.to_string()),
    })
}

/// How much of the body is JSON, when the request says it.
fn json_length(headers: &HeaderMap) -> Result<Option<u32>> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let length = digits.and_then(|digits| digits.parse().ok());
    length.map(Some).ok_or_else(|| Fail::new("invalid", format!("`{JSON_LENGTH}` is not a length")))
}

/// What became of predictions, as Triton's clients read it.
#[derive(Serialize, ToSchema)]
struct Statistics {
    model_stats: Vec<ModelStatistics>,
}

/// Of one deployment. What is not measured here is 0.
#[derive(Serialize, ToSchema)]
struct ModelStatistics {
    name: String,
    /// The version that answers now; the counts are the deployment's, whichever version answered.
    version: String,
    /// Milliseconds since 1970.
    last_inference: u64,
    inference_count: u64,
    execution_count: u64,
    inference_stats: InferenceStatistics,
    /// Runs by their rows, where requests may be answered together.
    batch_stats: Vec<BatchStatistics>,
}

/// Runs of as many rows.
#[derive(Serialize, ToSchema)]
struct BatchStatistics {
    batch_size: u64,
    compute_input: Durations,
    compute_infer: Durations,
    compute_output: Durations,
}

/// By what became of them.
#[derive(Serialize, ToSchema)]
struct InferenceStatistics {
    success: Durations,
    fail: Durations,
    queue: Durations,
    compute_input: Durations,
    compute_infer: Durations,
    compute_output: Durations,
    cache_hit: Durations,
    cache_miss: Durations,
}

/// So many, and their time together.
#[derive(Serialize, Default, ToSchema)]
struct Durations {
    count: u64,
    /// Nanoseconds.
    ns: u64,
}

impl From<Counted> for Durations {
    fn from(counted: Counted) -> Self {
        Self { count: counted.count, ns: counted.nanos }
    }
}

impl From<(&u32, &Counted)> for BatchStatistics {
    fn from((rows, runs): (&u32, &Counted)) -> Self {
        let uncounted = || Durations { count: runs.count, ns: 0 };
        Self { batch_size: (*rows).into(), compute_input: uncounted(), compute_infer: (*runs).into(), compute_output: uncounted() }
    }
}

impl ModelStatistics {
    fn new(deployment: &Deployment, counts: &Counts) -> Self {
        Self {
            name: deployment.name.to_string(),
            version: serving_version(deployment),
            last_inference: counts.last_millis,
            inference_count: counts.inferences,
            execution_count: counts.executions,
            inference_stats: InferenceStatistics {
                success: counts.succeeded.into(),
                fail: counts.failed.into(),
                queue: Durations::default(),
                compute_input: Durations::default(),
                compute_infer: Durations::default(),
                compute_output: Durations::default(),
                cache_hit: Durations::default(),
                cache_miss: Durations::default(),
            },
            batch_stats: counts.batches.iter().map(BatchStatistics::from).collect(),
        }
    }
}

fn serving_version(deployment: &Deployment) -> String {
    deployment.serving_version.map_or(String::new(), |number| number.to_string())
}

async fn statistics(permit: &Permit<DeploymentRead>, ask: Ask) -> Result<Reply> {
    let all = ask.service.platform.deployment_statistics(permit, version(&ask)).await?;
    Reply::json(&Statistics { model_stats: all.iter().map(|(deployment, counts)| ModelStatistics::new(deployment, counts)).collect() })
}

/// A model as Triton configures one.
#[derive(Serialize, ToSchema)]
struct ModelConfig {
    name: String,
    platform: String,
    backend: &'static str,
    #[schema(value_type = Object)]
    version_policy: serde_json::Value,
    /// Most rows that requests are joined to. 0 where they are not: the first dimension is the model's own then, and stands in `dims`.
    max_batch_size: u32,
    input: Vec<ConfigTensor>,
    output: Vec<ConfigTensor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dynamic_batching: Option<DynamicBatching>,
}

/// How requests are joined.
#[derive(Serialize, ToSchema)]
struct DynamicBatching {
    preferred_batch_size: [u32; 1],
    max_queue_delay_microseconds: u32,
}

/// An input or output.
#[derive(Serialize, ToSchema)]
struct ConfigTensor {
    name: String,
    /// As in `TYPE_FP32`.
    data_type: String,
    dims: Vec<i64>,
    /// What the model itself takes, where `dims` cannot say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reshape: Option<Reshape>,
}

/// Another shape.
#[derive(Serialize, ToSchema)]
struct Reshape {
    shape: Vec<i64>,
}

/// Dimensions in a configuration: where requests are joined, the first one is understood. None left is said as one of size 1, which the
/// model does not have; the second value tells that.
pub(crate) fn config_dims(shape: &[i64], batched: bool) -> (Vec<i64>, bool) {
    match (batched, shape.get(1..)) {
        (true, Some([]) | None) => (vec![1], true),
        (true, Some(rest)) => (rest.to_vec(), false),
        (false, _) => (shape.to_vec(), false),
    }
}

impl ConfigTensor {
    fn new(tensor: Tensor, batched: bool) -> Self {
        let kind = if tensor.datatype == "BYTES" { "STRING" } else { tensor.datatype.as_str() };
        let (dims, reshaped) = config_dims(&tensor.shape, batched);
        Self { data_type: format!("TYPE_{kind}"), name: tensor.name, dims, reshape: reshaped.then(|| Reshape { shape: Vec::new() }) }
    }
}

async fn config(permit: &Permit<DeploymentRead>, ask: Ask) -> Result<Reply> {
    let OipMetadata { name, versions, platform, inputs, outputs, batching } =
        ask.service.platform.deployment_metadata(permit, version(&ask)).await?;
    let versions: Vec<u64> = versions.iter().filter_map(|version| version.parse().ok()).collect();
    let tensors = |all: Vec<Tensor>| all.into_iter().map(|tensor| ConfigTensor::new(tensor, batching.is_some())).collect();
    Reply::json(&ModelConfig {
        name,
        platform,
        backend: BACKEND,
        version_policy: serde_json::json!({"specific": {"versions": versions}}),
        max_batch_size: batching.map_or(0, |batching| batching.max_size),
        input: tensors(inputs),
        output: tensors(outputs),
        dynamic_batching: batching.map(|batching| DynamicBatching {
            preferred_batch_size: [batching.max_size],
            max_queue_delay_microseconds: batching.window_us,
        }),
    })
}

/// Which models are wanted.
#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
struct IndexRequest {
    /// Only those that answer.
    #[serde(default)]
    ready: bool,
}

/// A model in the index.
#[derive(Serialize)]
struct IndexEntry<'a> {
    name: &'a str,
    version: String,
    state: &'static str,
    reason: &'static str,
}

/// Whether a deployment answers.
pub(crate) fn is_ready(deployment: &Deployment) -> bool {
    deployment.serving_version.is_some()
}

/// Its state in the words of the protocol.
pub(crate) fn state(deployment: &Deployment) -> &'static str {
    if is_ready(deployment) { "READY" } else { "UNAVAILABLE" }
}

/// Why it is not ready.
pub(crate) fn reason(deployment: &Deployment) -> &'static str {
    if is_ready(deployment) { "" } else { "its alias points at no version" }
}

async fn repository_index(permit: &Permit<DeploymentRead>, mut ask: Ask) -> Result<Reply> {
    let body = ask.bytes_taken().await?;
    // Triton's client sends nothing at all for "all".
    let request = if body.is_empty() { Ok(IndexRequest::default()) } else { serde_json::from_slice(&body) };
    let IndexRequest { ready } = request.map_err(|error| Fail::new("json_invalid", error.to_string()))?;
    let all = ask.service.platform.deployment_all(permit).await?;
    let index: Vec<IndexEntry<'_>> = all
        .iter()
        .filter(|deployment| !ready || is_ready(deployment))
        .map(|deployment| IndexEntry {
            name: deployment.name.as_str(),
            version: serving_version(deployment),
            state: state(deployment),
            reason: reason(deployment),
        })
        .collect();
    Reply::json(&index)
}
