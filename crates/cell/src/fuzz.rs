//! Requests made up and damaged, in both forms of the protocol: what these readers take, and what they take it for, is what a reader
//! that builds the whole document says. No engine is needed for that.

#[path = "../../wire/tests/fuzz/mod.rs"]
pub mod made_up;

mod json;
mod protobuf;

use crate::oip::{Port, Signature};
use crate::tensor::Datatype;

/// Inputs of a model that takes one of each kind.
const INPUTS: [(&str, Datatype, &[i64]); 9] = [
    ("x", Datatype::Fp32, &[-1, 2]),
    ("wide", Datatype::Fp64, &[]),
    ("half", Datatype::Fp16, &[-1]),
    ("count", Datatype::Int64, &[-1]),
    ("small", Datatype::Int8, &[-1]),
    ("byte", Datatype::Uint8, &[-1]),
    ("large", Datatype::Uint64, &[-1]),
    ("flag", Datatype::Bool, &[2]),
    ("word", Datatype::Bytes, &[-1]),
];
const OUTPUTS: [&str; 2] = ["label", "scores"];

/// A model that takes the inputs at these places.
fn signature(places: &[usize]) -> Signature {
    let port = |name: &str, datatype, shape: &[i64]| Port {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
        maps: None,
        head: vec![],
        grpc_head: vec![],
    };
    Signature {
        inputs: places.iter().map(|at| INPUTS[*at]).map(|(name, datatype, shape)| port(name, datatype, shape)).collect(),
        outputs: OUTPUTS.iter().map(|name| port(name, Datatype::Fp32, &[-1])).collect(),
        head: vec![],
        grpc_head: vec![],
    }
}

/// What a buffer holds, as it shows itself: `shape`, then the numbers in their shortest form that tells them apart.
fn shown(shape: &[i64], datatype: Datatype, elements: &str) -> String {
    format!("Tensor {{ shape: {shape:?}, data: {datatype:?}({elements}), raw: None }}")
}
