//! What a model file must be before the engine sees it.
//!
//! The check walks over the file's protocol buffers without building anything, so that a hostile file costs one pass and no
//! memory: weights are skipped, nodes are counted through subgraphs and through calls of the model's own functions, as often as
//! they are called (a function that calls another twice, thirty levels deep, is counted as the engine would expand it).
//!
//! Refused are: files that are not ONNX (told by content, with how to export), external data anywhere, operators
//! of foreign domains, more nodes than the budget, and what the engine itself does not accept. Domains that pass are the two
//! standard ones and `com.microsoft`, because the common quantisers and exporters write its operators and the engine
//! brings them; a model cannot bring code. Where a field is repeated, every occurrence counts: what any parser might read is judged.
//!
//! What is deliberately missing: judging what a model computes.

use std::collections::BTreeMap;

use prost::Message;
use wire::{Fail, FailCode, Load, ModelInfo};

use crate::engine::{Engine, Model};
use crate::onnx::{
    DataType, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TensorType, TypeProto,
    TypeValue, ValueInfoProto,
};

/// Deepest nesting of subgraphs and of calls between functions.
pub const DEPTH_MAX: u32 = 32;
/// Most functions and operator sets that a model may bring.
pub const FUNCTIONS_MAX: usize = 4096;
/// Longest producer name that is kept, in bytes.
const PRODUCER_BYTES_MAX: usize = 200;
/// Domains whose operators the engine brings.
const DOMAINS: [&str; 3] = ["", "ai.onnx.ml", "com.microsoft"];

/// A model of one node, `y = Identity(x)` over one `FP32`.
#[must_use]
pub fn tiny_model() -> Vec<u8> {
    let value = |name: &str| ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(TypeValue::TensorType(TensorType {
                elem_type: DataType::Float.into(),
                shape: Some(TensorShapeProto { dim: vec![Dimension { value: Some(DimensionValue::DimValue(1)), ..Default::default() }] }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    };
    let node = NodeProto { input: vec!["x".into()], output: vec!["y".into()], op_type: "Identity".into(), ..Default::default() };
    let graph =
        GraphProto { node: vec![node], name: "tiny".into(), input: vec![value("x")], output: vec![value("y")], ..Default::default() };
    let opset = OperatorSetIdProto { domain: String::new(), version: 13 };
    ModelProto { ir_version: 7, graph: Some(graph), opset_import: vec![opset], ..Default::default() }.encode_to_vec()
}

/// Checks an upload as a whole: file, session, a run on zeros.
///
/// # Errors
/// [`FailCode::ModelRefused`] or [`FailCode::TooLarge`] in the user's words.
pub fn admit(engine: &Engine, bytes: &[u8], load: &Load) -> Result<ModelInfo, Fail> {
    let (mut model, mut info) = Model::load(engine, bytes, load)?;
    info.smoke_run = model.smoke();
    Ok(info)
}

/// What the file itself says.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    /// Nodes as the engine would see them, all functions expanded.
    pub nodes: u32,
    /// `domain:version`.
    pub opsets: Vec<String>,
    /// Who wrote it.
    pub producer: String,
}

/// Checks the file alone, without the engine.
///
/// # Errors
/// [`FailCode::ModelRefused`], or [`FailCode::TooLarge`] over the node budget.
pub fn check(bytes: &[u8], nodes_max: u32) -> Result<Facts, Fail> {
    if let Some(what) = other_format(bytes) {
        return Err(refused(what));
    }
    let mut walk = Walk { functions: Vec::new(), by_name: BTreeMap::new(), nodes_max };
    let (mut graph, mut ir_version, mut producer, mut opsets) = (Vec::new(), false, String::new(), Vec::new());
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(_)) => ir_version = true,
            (2, Value::Bytes(name)) => producer = text(name)?.chars().filter(|c| !c.is_control()).collect(),
            (7, Value::Bytes(body)) => graph.push(body),
            (8, Value::Bytes(body)) => opsets.push(opset(body)?),
            (20, Value::Bytes(_)) => return Err(refused("the model carries training graphs: export it for inference")),
            (25, Value::Bytes(body)) => walk.define(body)?,
            (1 | 2 | 7 | 8 | 25, _) => return Err(malformed()),
            _ => {}
        }
        if opsets.len() > FUNCTIONS_MAX {
            return Err(refused(format!("the model names more than {FUNCTIONS_MAX} operator sets")));
        }
    }
    if !ir_version || graph.is_empty() || opsets.is_empty() {
        return Err(refused("the file is not an ONNX model: it lacks a format version, a graph or an operator set"));
    }
    let mut nodes = 0;
    for body in graph {
        walk.graph(body, &mut nodes, DEPTH_MAX)?;
    }
    walk.functions()?;
    producer.truncate(producer.floor_char_boundary(PRODUCER_BYTES_MAX));
    let opsets =
        opsets.iter().map(|(domain, version)| format!("{}:{version}", if domain.is_empty() { "ai.onnx" } else { domain })).collect();
    Ok(Facts { nodes: u32::try_from(nodes).unwrap_or(u32::MAX), opsets, producer })
}

/// A function that the model brings.
struct Function<'a> {
    body: &'a [u8],
    /// Nodes of one call, once counted.
    nodes: Option<u64>,
}

struct Walk<'a> {
    functions: Vec<Function<'a>>,
    /// Domain and name to the place in `functions`.
    by_name: BTreeMap<(&'a str, &'a str), usize>,
    nodes_max: u32,
}

impl<'a> Walk<'a> {
    fn define(&mut self, body: &'a [u8]) -> Result<(), Fail> {
        let (mut name, mut domain) = ("", "");
        for field in Fields(body) {
            match field? {
                (1, Value::Bytes(bytes)) => name = text(bytes)?,
                (10, Value::Bytes(bytes)) => domain = text(bytes)?,
                _ => {}
            }
        }
        if self.by_name.insert((canonical(domain), name), self.functions.len()).is_some() {
            return Err(refused(format!("the model brings two functions `{}`: overloads are not supported", cut(name))));
        }
        if self.functions.len() == FUNCTIONS_MAX {
            return Err(refused(format!("the model brings more than {FUNCTIONS_MAX} functions")));
        }
        self.functions.push(Function { body, nodes: None });
        Ok(())
    }

    fn add(&self, nodes: &mut u64, more: u64) -> Result<(), Fail> {
        *nodes = nodes.saturating_add(more);
        if *nodes > u64::from(self.nodes_max) {
            return Err(Fail::new(FailCode::TooLarge, format!("the model has more than the {} nodes allowed", self.nodes_max)));
        }
        Ok(())
    }

    fn graph(&mut self, body: &'a [u8], nodes: &mut u64, depth_left: u32) -> Result<(), Fail> {
        let depth_left = depth_left.checked_sub(1).ok_or_else(too_deep)?;
        for field in Fields(body) {
            match field? {
                (1, Value::Bytes(body)) => self.node(body, nodes, depth_left)?,
                (5, Value::Bytes(body)) => tensor(body)?,
                (15, Value::Bytes(body)) => sparse(body)?,
                (1 | 5 | 15, _) => return Err(malformed()),
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, body: &'a [u8], nodes: &mut u64, depth_left: u32) -> Result<(), Fail> {
        let (mut operator, mut domain) = ("", "");
        for field in Fields(body) {
            match field? {
                (4, Value::Bytes(name)) => operator = text(name)?,
                (7, Value::Bytes(name)) => domain = text(name)?,
                (5, Value::Bytes(body)) => self.attribute(body, nodes, depth_left)?,
                (4 | 5 | 7, _) => return Err(malformed()),
                _ => {}
            }
        }
        let domain = canonical(domain);
        let more = match self.by_name.get(&(domain, operator)) {
            Some(index) => self.count(*index, depth_left)?,
            None if DOMAINS.contains(&domain) => 1,
            None => {
                return Err(refused(format!(
                    "the model uses the operator `{}` of the domain `{}`: only the standard operators and those of `com.microsoft` are available, so export without custom or optimised operators",
                    cut(operator),
                    cut(domain)
                )));
            }
        };
        self.add(nodes, more)
    }

    fn attribute(&mut self, body: &'a [u8], nodes: &mut u64, depth_left: u32) -> Result<(), Fail> {
        for field in Fields(body) {
            match field? {
                (5 | 10, Value::Bytes(body)) => tensor(body)?,
                (6 | 11, Value::Bytes(body)) => self.graph(body, nodes, depth_left)?,
                (22 | 23, Value::Bytes(body)) => sparse(body)?,
                (5 | 6 | 10 | 11 | 22 | 23, _) => return Err(malformed()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Nodes that one call of a function stands for.
    fn count(&mut self, index: usize, depth_left: u32) -> Result<u64, Fail> {
        let depth_left = depth_left.checked_sub(1).ok_or_else(too_deep)?;
        let Some(Function { body, nodes, .. }) = self.functions.get(index) else { return Ok(0) };
        if let Some(nodes) = nodes {
            return Ok(*nodes);
        }
        let (body, mut nodes) = (*body, 0);
        for field in Fields(body) {
            match field? {
                (7, Value::Bytes(body)) => self.node(body, &mut nodes, depth_left)?,
                (11, Value::Bytes(body)) => self.attribute(body, &mut nodes, depth_left)?,
                (7 | 11, _) => return Err(malformed()),
                _ => {}
            }
        }
        if let Some(function) = self.functions.get_mut(index) {
            function.nodes = Some(nodes);
        }
        Ok(nodes)
    }

    /// Also those that nobody calls.
    fn functions(&mut self) -> Result<(), Fail> {
        (0..self.functions.len()).try_for_each(|index| self.count(index, DEPTH_MAX).map(|_| ()))
    }
}

/// A weight: its bytes must be in the file.
fn tensor(body: &[u8]) -> Result<(), Fail> {
    for field in Fields(body) {
        match field? {
            (13, _) | (14, Value::Number(1..)) => {
                return Err(refused(
                    "the model keeps weights in another file (external data): save it as one file, `onnx.save(onnx.load(path), out)` or `save_as_external_data=False`",
                ));
            }
            (14, Value::Bytes(_)) => return Err(malformed()),
            _ => {}
        }
    }
    Ok(())
}

fn sparse(body: &[u8]) -> Result<(), Fail> {
    for field in Fields(body) {
        if let (1 | 2, Value::Bytes(body)) = field? {
            tensor(body)?;
        }
    }
    Ok(())
}

fn opset(body: &[u8]) -> Result<(&str, u64), Fail> {
    let (mut domain, mut version) = ("", 0);
    for field in Fields(body) {
        match field? {
            (1, Value::Bytes(name)) => domain = text(name)?,
            (2, Value::Number(number)) => version = number,
            _ => {}
        }
    }
    Ok((domain, version))
}

/// The standard domain has two spellings.
fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// A name from the file, fit for a message.
fn cut(name: &str) -> String {
    /// Most characters that are quoted.
    const NAME_CHARS_MAX: usize = 100;
    name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect()
}

fn text(bytes: &[u8]) -> Result<&str, Fail> {
    std::str::from_utf8(bytes).map_err(|_| malformed())
}

/// Walks over the fields of one protocol-buffers message.
struct Fields<'a>(&'a [u8]);

/// Of one field. Fixed-width numbers are skipped: no field that matters here has them.
enum Value<'a> {
    Number(u64),
    Fixed,
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        // Some parsers cut a longer key to 32 bits and would see another field than we do.
        let key = u32::try_from(self.varint()?).ok()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let bytes = self.varint()?;
                Value::Bytes(self.take(bytes)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        (key >> 3 != 0).then_some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Fail>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(malformed))
    }
}

#[cold]
fn refused(message: impl Into<String>) -> Fail {
    Fail::new(FailCode::ModelRefused, message)
}

#[cold]
fn malformed() -> Fail {
    refused("the file is not an ONNX model, or it is damaged: its protocol buffers do not parse")
}

#[cold]
fn too_deep() -> Fail {
    Fail::new(FailCode::TooLarge, format!("the model nests subgraphs or functions deeper than {DEPTH_MAX}, or a function calls itself"))
}

/// Known formats that are not ONNX, by their first bytes, with what to do.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    const PICKLE: &str = "the file is a Python pickle, which runs code when it is opened, and is never accepted: export the model as ONNX, for scikit-learn: `skl2onnx.to_onnx(model, X[:1])`";
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let pickle =
        matches!(bytes, [0x80, 2..=5, ..]) || (bytes.starts_with(b"(") && bytes.ends_with(b".")) || bytes.starts_with(b"ccopy_reg");
    let known: [(bool, &str); 13] = [
        (bytes.is_empty(), "the file is empty"),
        (pickle, PICKLE),
        (
            at(0, b"PK\x03\x04"),
            "the file is a zip archive, as PyTorch (.pt), Keras (.keras) and NumPy (.npz) write them: export the model as ONNX, `torch.onnx.export(model, args, \"model.onnx\", external_data=False)` or `tf2onnx`",
        ),
        (at(0, b"\x1f\x8b"), "the file is compressed with gzip: upload the ONNX file itself"),
        (at(0, b"\x28\xb5\x2f\xfd"), "the file is compressed with Zstandard: upload the ONNX file itself"),
        (
            matches!(bytes, [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..]),
            "the file is compressed with zlib, as joblib writes it, and holds a pickle: export the model as ONNX, `skl2onnx.to_onnx(model, X[:1])`",
        ),
        (at(0, b"\x89HDF\r\n\x1a\n"), "the file is HDF5, as Keras writes it: export the model as ONNX with `tf2onnx`"),
        (at(4, b"TFL3"), "the file is a TensorFlow Lite model: convert it with `tf2onnx`"),
        (at(4, b"ORTM"), "the file is in ONNX Runtime's own format: upload the ONNX file that it was made from"),
        (at(0, b"GGUF"), "the file is a GGUF model: only ONNX is accepted"),
        (at(0, b"CBM1"), "the file is a CatBoost model: `model.save_model(\"model.onnx\", format=\"onnx\")`"),
        (
            at(8, b"{\""),
            "the file is in the safetensors format, which holds weights but no graph: export the model as ONNX, `torch.onnx.export`",
        ),
        (
            is_text(bytes),
            "the file is text (JSON, PMML, LightGBM or XGBoost dumps are not accepted): export the model as ONNX, `onnxmltools.convert_lightgbm` or `convert_xgboost`",
        ),
    ];
    known.into_iter().find(|(is, _)| *is).map(|(_, what)| what)
}

/// The first bytes are all printable. A model never looks like that: its second byte is its format version.
fn is_text(bytes: &[u8]) -> bool {
    /// Bytes that are looked at.
    const HEAD_BYTES: usize = 256;
    let head = bytes.get(..HEAD_BYTES.min(bytes.len())).unwrap_or_default();
    let utf8 = std::str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true);
    utf8 && head.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{AttributeProto, FunctionProto, SparseTensorProto, StringStringEntryProto, TensorProto};

    fn node(op_type: &str, domain: &str) -> NodeProto {
        NodeProto { op_type: op_type.into(), domain: domain.into(), ..Default::default() }
    }

    fn model(node: Vec<NodeProto>) -> ModelProto {
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        ModelProto {
            ir_version: 8,
            producer_name: "us".into(),
            graph: Some(GraphProto { node, ..Default::default() }),
            opset_import,
            ..Default::default()
        }
    }

    fn judged(model: &ModelProto) -> Result<Facts, Fail> {
        check(&model.encode_to_vec(), 1000)
    }

    fn words(result: Result<Facts, Fail>) -> String {
        let fail = result.expect_err("refused");
        assert!(matches!(fail.code, FailCode::ModelRefused | FailCode::TooLarge));
        fail.message
    }

    #[test]
    fn other_formats_are_named_and_refused() {
        for (bytes, what) in [
            (&b""[..], "empty"),
            (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00", "pickle"),
            (b"ccopy_reg\n_reconstructor\np0\n", "pickle"),
            (b"(dp0\nS'a'\np1\nI1\ns.", "pickle"),
            (b"PK\x03\x04\x14\x00\x00\x00", "torch.onnx.export"),
            (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "gzip"),
            (b"\x78\x9c\xed\xfd", "joblib"),
            (b"\x28\xb5\x2f\xfd\x00\x00", "Zstandard"),
            (b"\x89HDF\r\n\x1a\n\x00\x00", "HDF5"),
            (b"\x1c\x00\x00\x00TFL3\x00", "TensorFlow Lite"),
            (b"\x08\x00\x00\x00ORTM\x00", "ONNX Runtime's own format"),
            (b"GGUF\x03\x00\x00\x00", "GGUF"),
            (b"CBM1\x00\x00\x00", "CatBoost"),
            (b"\x10\x00\x00\x00\x00\x00\x00\x00{\"a\":1}  ", "safetensors"),
            (b"{\"learner\": {}}", "is text"),
            (b"tree\nversion=v4\n", "is text"),
            (b"<?xml version=\"1.0\"?><PMML/>", "is text"),
            (&[0x0b; 40], "protocol buffers"),
            (&[0xff; 40], "protocol buffers"),
            (&[0x08, 0x08], "lacks"),
        ] {
            let message = words(check(bytes, 10));
            assert!(message.contains(what), "{what}: {message}");
        }
    }

    #[test]
    fn a_good_model_is_described() {
        let facts = check(&tiny_model(), 1).unwrap();
        assert_eq!(facts, Facts { nodes: 1, opsets: vec!["ai.onnx:13".into()], producer: String::new() });
    }

    #[test]
    fn weights_elsewhere_are_refused_wherever_they_hide() {
        let entry = StringStringEntryProto { key: "location".into(), value: "../../etc/passwd".into() };
        let outside = TensorProto { data_location: 1, external_data: vec![entry.clone()], ..Default::default() };
        let only_entries = TensorProto { external_data: vec![entry], ..Default::default() };
        let only_flag = TensorProto { data_location: 1, ..Default::default() };
        for tensor in [outside, only_entries, only_flag] {
            let sparse = SparseTensorProto { indices: Some(tensor.clone()), ..Default::default() };
            let attribute = |attribute: AttributeProto| {
                let mut node = node("Constant", "");
                node.attribute.push(attribute);
                model(vec![node])
            };
            let graph = GraphProto { initializer: vec![tensor.clone()], ..Default::default() };
            let mut in_graph = model(vec![]);
            in_graph.graph = Some(graph.clone());
            let mut in_sparse = model(vec![]);
            in_sparse.graph = Some(GraphProto { sparse_initializer: vec![sparse.clone()], ..Default::default() });
            let mut in_function = model(vec![]);
            in_function.functions.push(FunctionProto {
                name: "F".into(),
                node: attribute(AttributeProto { t: Some(tensor.clone()), ..Default::default() }).graph.unwrap().node,
                ..Default::default()
            });
            for model in [
                in_graph,
                in_sparse,
                in_function,
                attribute(AttributeProto { t: Some(tensor.clone()), ..Default::default() }),
                attribute(AttributeProto { tensors: vec![tensor.clone()], ..Default::default() }),
                attribute(AttributeProto { sparse_tensor: Some(sparse.clone()), ..Default::default() }),
                attribute(AttributeProto { sparse_tensors: vec![sparse.clone()], ..Default::default() }),
                attribute(AttributeProto { g: Some(graph.clone()), ..Default::default() }),
                attribute(AttributeProto { graphs: vec![graph.clone()], ..Default::default() }),
            ] {
                assert!(words(judged(&model)).contains("external data"));
            }
        }
    }

    #[test]
    fn foreign_operators_are_refused_and_own_functions_are_not() {
        assert!(words(judged(&model(vec![node("Evil", "com.example")]))).contains("operator `Evil` of the domain `com.example`"));
        assert_eq!(
            judged(&model(vec![node("MatMulNBits", "com.microsoft"), node("Relu", "ai.onnx"), node("Scaler", "ai.onnx.ml")]))
                .unwrap()
                .nodes,
            3
        );
        let mut own = model(vec![node("Twice", "com.example"), node("Twice", "com.example")]);
        own.functions.push(FunctionProto {
            name: "Twice".into(),
            domain: "com.example".into(),
            node: vec![node("Relu", ""), node("Exp", "")],
            ..Default::default()
        });
        assert_eq!(judged(&own).unwrap().nodes, 4, "functions are counted as often as they are called");
        own.functions.push(own.functions[0].clone());
        assert!(words(judged(&own)).contains("two functions `Twice`"));
    }

    #[test]
    fn nodes_are_counted_through_everything() {
        let leaf = GraphProto { node: vec![node("Relu", ""); 10], ..Default::default() };
        let branches = AttributeProto { g: Some(leaf.clone()), graphs: vec![leaf.clone(), leaf], ..Default::default() };
        let mut outer = node("If", "");
        outer.attribute.push(branches);
        assert_eq!(judged(&model(vec![outer.clone()])).unwrap().nodes, 31);
        assert!(words(check(&model(vec![outer]).encode_to_vec(), 30)).contains("more than the 30 nodes allowed"));
        // Thirty functions, each calling the next twice: a billion nodes in a kilobyte.
        let mut bomb = model(vec![node("F0", "f")]);
        bomb.functions = (0..30)
            .map(|i| FunctionProto {
                name: format!("F{i}"),
                domain: "f".into(),
                node: vec![node(&format!("F{}", i + 1), "f"); 2],
                ..Default::default()
            })
            .collect();
        bomb.functions.push(FunctionProto { name: "F30".into(), domain: "f".into(), node: vec![node("Relu", "")], ..Default::default() });
        assert!(words(judged(&bomb)).contains("more than the 1000 nodes"));
        let mut endless = model(vec![node("F", "f")]);
        endless.functions.push(FunctionProto { name: "F".into(), domain: "f".into(), node: vec![node("F", "f"); 2], ..Default::default() });
        assert!(words(judged(&endless)).contains("a function calls itself"));
        let mut deep = GraphProto { node: vec![node("Relu", "")], ..Default::default() };
        for _ in 0..40 {
            let mut outer = node("If", "");
            outer.attribute.push(AttributeProto { g: Some(deep), ..Default::default() });
            deep = GraphProto { node: vec![outer], ..Default::default() };
        }
        assert!(words(judged(&model(deep.node))).contains("deeper than 32"));
    }

    #[test]
    fn a_field_number_that_some_parsers_cut_is_refused() {
        // Field 13 of a tensor with a bit beyond the 32nd: others would see `external_data`.
        let tensor = [0xea, 0x80, 0x80, 0x80, 0x10, 0x00];
        assert!(super::tensor(&tensor).is_err());
        assert!(super::tensor(&[0x6a, 0x00]).is_err());
        assert!(super::tensor(&[0x0a, 0x00]).is_ok());
    }

    #[test]
    fn every_prefix_and_every_flip_is_judged_without_a_panic() {
        let good = model(vec![node("Relu", ""); 3]).encode_to_vec();
        for at in 0..good.len() {
            let _ = check(&good[..at], 10);
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = check(&bad, 10);
            }
        }
    }
}
