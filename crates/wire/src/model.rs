//! What is said about models.

use serde::{Deserialize, Serialize};

/// Load or admit the ONNX model in the attached memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Name that answers carry (`model_name` of the Open Inference Protocol).
    pub name: String,
    /// Version that answers carry.
    pub version: String,
    /// Length of the attached memory file in bytes: a locked-down cell cannot ask for it.
    pub bytes: u64,
    /// Most nodes in the graph, subgraphs counted.
    pub nodes_max: u32,
    /// How requests that wait together are joined; absent when each is run for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
}

/// Requests for one model that wait together are answered by one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// Most rows of one run.
    pub max_size: u32,
    /// Longest wait for others, in microseconds, where others are likely to come. 0: what waits already is taken and nothing waited for.
    pub window_us: u32,
}

/// One input or output of a model, in the terms of the Open Inference Protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInfo {
    /// Name in the graph.
    pub name: String,
    /// `FP32`, `INT64`, `BYTES`, …
    pub datatype: String,
    /// Dimensions; -1 where the model leaves one open.
    pub shape: Vec<i64>,
}

/// What a cell learned of a model by loading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Inputs in graph order.
    pub inputs: Vec<TensorInfo>,
    /// Outputs in graph order.
    pub outputs: Vec<TensorInfo>,
    /// Operator sets as `domain:version`.
    pub opsets: Vec<String>,
    /// Nodes, subgraphs counted.
    pub nodes: u32,
    /// Who wrote the file, as it says.
    pub producer: String,
    /// Resident bytes that loading added: what the memory budget counts.
    pub resident_bytes: u64,
    /// Whether a smoke run on zeros of the declared shape was done; `false` when an open dimension or a type forbids it.
    pub smoke_run: bool,
}
