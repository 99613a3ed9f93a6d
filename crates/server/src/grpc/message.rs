//! The small messages of `inference.GRPCInferenceService` that the service itself writes, field by field; answers to predictions are
//! made in cells. Numbers are those of KServe's `grpc_predict_v2.proto` and, for the extensions, of Triton's `grpc_service.proto` and
//! `model_config.proto`.

use platform::wire::protobuf::{Fields, Value, Writer};
use platform::{Counted, Counts, Deployment, OipMetadata, Tensor};

use crate::error::{Fail, Result};
use crate::route::inference::{BACKEND, config_dims, reason, state};

/// `ServerLiveResponse`, `ServerReadyResponse`, `ModelReadyResponse`.
pub(super) fn yes_or_no(yes: bool) -> Vec<u8> {
    let mut message = Writer::default();
    message.number(1, u64::from(yes));
    message.into_bytes()
}

/// `ServerMetadataResponse`.
pub(super) fn server_metadata(name: &str, version: &str, extensions: &[&str]) -> Vec<u8> {
    let mut message = Writer::default();
    message.text(1, name);
    message.text(2, version);
    extensions.iter().for_each(|extension| message.item(3, extension.as_bytes()));
    message.into_bytes()
}

/// `ModelMetadataResponse`.
pub(super) fn model_metadata(metadata: &OipMetadata) -> Vec<u8> {
    let tensor = |tensor: &Tensor| {
        let mut message = Writer::default();
        message.text(1, &tensor.name);
        message.text(2, &tensor.datatype);
        message.packed(3, &tensor.shape);
        message.into_bytes()
    };
    let mut message = Writer::default();
    message.text(1, &metadata.name);
    metadata.versions.iter().for_each(|version| message.item(2, version.as_bytes()));
    message.text(3, &metadata.platform);
    metadata.inputs.iter().for_each(|input| message.item(4, &tensor(input)));
    metadata.outputs.iter().for_each(|output| message.item(5, &tensor(output)));
    message.into_bytes()
}

/// `ModelConfigResponse`.
pub(super) fn model_config(metadata: &OipMetadata) -> Vec<u8> {
    let batching = metadata.batching;
    let tensor = |tensor: &Tensor, number: u32| {
        let (dims, reshaped) = config_dims(&tensor.shape, batching.is_some());
        let mut message = Writer::default();
        message.text(1, &tensor.name);
        message.number(2, data_type(&tensor.datatype));
        message.packed(number, &dims);
        if reshaped {
            message.item(5, &[]);
        }
        message.into_bytes()
    };
    let mut config = Writer::default();
    config.text(1, &metadata.name);
    config.text(2, &metadata.platform);
    let versions: Vec<i64> = metadata.versions.iter().filter_map(|version| version.parse().ok()).collect();
    let mut specific = Writer::default();
    specific.packed(1, &versions);
    let mut policy = Writer::default();
    policy.item(3, specific.as_bytes());
    config.item(3, policy.as_bytes());
    config.number(4, batching.map_or(0, |batching| batching.max_size.into()));
    metadata.inputs.iter().for_each(|input| config.item(5, &tensor(input, 4)));
    metadata.outputs.iter().for_each(|output| config.item(6, &tensor(output, 3)));
    if let Some(batching) = batching {
        let mut joining = Writer::default();
        joining.packed(1, &[batching.max_size.into()]);
        joining.number(2, batching.window_us.into());
        config.item(11, joining.as_bytes());
    }
    config.text(17, BACKEND);
    let mut message = Writer::default();
    message.item(1, config.as_bytes());
    message.into_bytes()
}

/// Of the enumeration `DataType`.
fn data_type(name: &str) -> u64 {
    const NAMES: [&str; 15] =
        ["", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16"];
    NAMES.iter().position(|known| *known == name).unwrap_or(0) as u64
}

/// `ModelStatisticsResponse`.
pub(super) fn statistics(all: &[(Deployment, Counts)]) -> Vec<u8> {
    let duration = |counted: &Counted| {
        let mut message = Writer::default();
        message.number(1, counted.count);
        message.number(2, counted.nanos);
        message.into_bytes()
    };
    let mut message = Writer::default();
    for (deployment, counts) in all {
        let mut inference = Writer::default();
        inference.item(1, &duration(&counts.succeeded));
        inference.item(2, &duration(&counts.failed));
        (3..=8).for_each(|number| inference.item(number, &[]));
        let mut one = Writer::default();
        one.text(1, deployment.name.as_str());
        one.text(2, &deployment.serving_version.map_or(String::new(), |number| number.to_string()));
        one.number(3, counts.last_millis);
        one.number(4, counts.inferences);
        one.number(5, counts.executions);
        one.item(6, inference.as_bytes());
        for (rows, runs) in &counts.batches {
            let uncounted = Counted { count: runs.count, nanos: 0 };
            let mut batch = Writer::default();
            batch.number(1, (*rows).into());
            [&uncounted, runs, &uncounted].into_iter().zip(2..).for_each(|(counted, number)| batch.item(number, &duration(counted)));
            one.item(7, batch.as_bytes());
        }
        message.item(1, one.as_bytes());
    }
    message.into_bytes()
}

/// `RepositoryIndexResponse`.
pub(super) fn repository_index(deployments: &[Deployment]) -> Vec<u8> {
    let mut message = Writer::default();
    for deployment in deployments {
        let mut one = Writer::default();
        one.text(1, deployment.name.as_str());
        one.text(2, &deployment.serving_version.map_or(String::new(), |number| number.to_string()));
        one.text(3, state(deployment));
        one.text(4, reason(deployment));
        message.item(1, one.as_bytes());
    }
    message.into_bytes()
}

/// Whether a `RepositoryIndexRequest` asks only for what is ready.
pub(super) fn index_ready_only(message: &[u8]) -> Result<bool> {
    let (mut ready, mut fields) = (false, Fields::new(message));
    while let Some((number, value)) = fields.next().map_err(|error| Fail::new("invalid", error.to_string()))? {
        if let (2, Value::Varint(value)) = (number, value) {
            ready = value != 0;
        }
    }
    Ok(ready)
}

/// What comes before a `ModelInferResponse` of so many bytes in a `ModelStreamInferResponse`.
pub(crate) fn stream_head(bytes: usize) -> Vec<u8> {
    let mut message = Writer::default();
    message.begin(2, bytes);
    message.into_bytes()
}

/// A `ModelStreamInferResponse` for a message that failed; with its id, by which the client knows it again.
pub(crate) fn stream_error(why: &str, id: Option<&str>) -> Vec<u8> {
    let mut message = Writer::default();
    message.text(1, why);
    let mut response = Writer::default();
    response.text(3, id.unwrap_or_default());
    if !response.as_bytes().is_empty() {
        message.item(2, response.as_bytes());
    }
    message.into_bytes()
}
