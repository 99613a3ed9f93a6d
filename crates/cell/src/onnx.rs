//! The ONNX file format: the messages of the public `onnx.proto`, by hand.
//!
//! Written out instead of generated, because the build then needs no compiler for protocol buffers and the whole of what a
//! model can hold is on one page. Admission reads every field that can carry a node, a weight or a path; training writes the few
//! that a tree ensemble needs. Tensor contents are [`Bytes`], so that decoding from one buffer copies no weight.
//!
//! Field numbers are those of ONNX 1.19 (`onnx/onnx.proto`, Apache-2.0). Scalars are read as in proto3: an absent field is zero
//! or empty. The decoder follows nested messages at most 100 deep.
//!
//! What is deliberately missing: meaning. Whether a model is acceptable is for `admit`, what it computes is for the engine.

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

/// `ir_version` that training writes: the first with opset 17.
pub const IR_VERSION: i64 = 8;
/// Opset of the default domain that training writes.
pub const OPSET: i64 = 17;
/// Opset of `ai.onnx.ml` that training writes.
pub const OPSET_ML: i64 = 3;
/// The domain of the classical operators.
pub const DOMAIN_ML: &str = "ai.onnx.ml";

/// A whole file.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    /// Version of the format.
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    /// Who wrote it.
    #[prost(string, tag = "2")]
    pub producer_name: String,
    /// Version of who wrote it.
    #[prost(string, tag = "3")]
    pub producer_version: String,
    /// Reverse-DNS name space of the model.
    #[prost(string, tag = "4")]
    pub domain: String,
    /// Version of the model.
    #[prost(int64, tag = "5")]
    pub model_version: i64,
    /// For people.
    #[prost(string, tag = "6")]
    pub doc_string: String,
    /// What is computed.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Operator sets used.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Anything by name.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// Graphs for training.
    #[prost(message, repeated, tag = "20")]
    pub training_info: Vec<TrainingInfoProto>,
    /// Functions of the model itself; nodes of their own.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
}

/// Nodes, weights, inputs and outputs.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    /// In topological order.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Weights.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Sparse weights.
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensorProto>,
    /// For people.
    #[prost(string, tag = "10")]
    pub doc_string: String,
    /// Inputs; in old files the initializers are among them.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// Outputs.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    /// Types of inner values.
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfoProto>,
    /// Anything by name.
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// One operator.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    /// Names of values; empty for an optional one left out.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of values.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Operator.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Attributes, graphs among them.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// For people.
    #[prost(string, tag = "6")]
    pub doc_string: String,
    /// Domain of the operator; empty is `ai.onnx`.
    #[prost(string, tag = "7")]
    pub domain: String,
    /// Which overload of a function.
    #[prost(string, tag = "8")]
    pub overload: String,
    /// Anything by name.
    #[prost(message, repeated, tag = "9")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// One attribute of a node.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Attribute of the enclosing function that it stands for.
    #[prost(string, tag = "21")]
    pub ref_attr_name: String,
    /// For people.
    #[prost(string, tag = "13")]
    pub doc_string: String,
    /// Which of the fields below counts.
    #[prost(enumeration = "AttributeType", tag = "20")]
    pub r#type: i32,
    /// A number.
    #[prost(float, tag = "2")]
    pub f: f32,
    /// A whole number.
    #[prost(int64, tag = "3")]
    pub i: i64,
    /// Text.
    #[prost(bytes = "bytes", tag = "4")]
    pub s: Bytes,
    /// A tensor.
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    /// A subgraph.
    #[prost(message, optional, tag = "6")]
    pub g: Option<GraphProto>,
    /// A sparse tensor.
    #[prost(message, optional, tag = "22")]
    pub sparse_tensor: Option<SparseTensorProto>,
    /// A type.
    #[prost(message, optional, tag = "14")]
    pub tp: Option<TypeProto>,
    /// Numbers.
    #[prost(float, repeated, tag = "7")]
    pub floats: Vec<f32>,
    /// Whole numbers.
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    /// Texts.
    #[prost(bytes = "bytes", repeated, tag = "9")]
    pub strings: Vec<Bytes>,
    /// Tensors.
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<TensorProto>,
    /// Subgraphs.
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
    /// Sparse tensors.
    #[prost(message, repeated, tag = "23")]
    pub sparse_tensors: Vec<SparseTensorProto>,
    /// Types.
    #[prost(message, repeated, tag = "15")]
    pub type_protos: Vec<TypeProto>,
}

/// Kinds of attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum AttributeType {
    Undefined = 0,
    Float = 1,
    Int = 2,
    String = 3,
    Tensor = 4,
    Graph = 5,
    Floats = 6,
    Ints = 7,
    Strings = 8,
    Tensors = 9,
    Graphs = 10,
    SparseTensor = 11,
    SparseTensors = 12,
    TypeProto = 13,
    TypeProtos = 14,
}

/// A tensor with its contents, or with the place where they are.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    /// Shape.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// A [`DataType`].
    #[prost(enumeration = "DataType", tag = "2")]
    pub data_type: i32,
    /// FP32 contents.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    /// Contents of the small types.
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    /// Texts.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub string_data: Vec<Bytes>,
    /// INT64 contents.
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    /// Name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// For people.
    #[prost(string, tag = "12")]
    pub doc_string: String,
    /// Contents as little-endian bytes.
    #[prost(bytes = "bytes", tag = "9")]
    pub raw_data: Bytes,
    /// FP64 contents.
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    /// UINT64 contents.
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    /// Place of the contents in another file: `location`, `offset`, `length`.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// Where the contents are.
    #[prost(enumeration = "DataLocation", tag = "14")]
    pub data_location: i32,
    /// Anything by name.
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Where the contents of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum DataLocation {
    /// In the tensor itself.
    Default = 0,
    /// In another file.
    External = 1,
}

/// Types of tensor elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum DataType {
    Undefined = 0,
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8e4m3fn = 17,
    Float8e4m3fnuz = 18,
    Float8e5m2 = 19,
    Float8e5m2fnuz = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4e2m1 = 23,
}

/// A sparse tensor.
#[derive(Clone, PartialEq, Message)]
pub struct SparseTensorProto {
    /// The values that are not zero; its name is the name of the whole.
    #[prost(message, optional, tag = "1")]
    pub values: Option<TensorProto>,
    /// Where they are.
    #[prost(message, optional, tag = "2")]
    pub indices: Option<TensorProto>,
    /// Shape.
    #[prost(int64, repeated, tag = "3")]
    pub dims: Vec<i64>,
}

/// Name and type of a value.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    /// For people.
    #[prost(string, tag = "3")]
    pub doc_string: String,
    /// Anything by name.
    #[prost(message, repeated, tag = "4")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Type of a value.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    /// What it is.
    #[prost(oneof = "TypeValue", tags = "1, 4, 5, 7, 8, 9")]
    pub value: Option<TypeValue>,
    /// What it means, in a fixed vocabulary.
    #[prost(string, tag = "6")]
    pub denotation: String,
}

/// Kinds of type.
#[derive(Clone, PartialEq, Oneof)]
#[expect(clippy::enum_variant_names, reason = "the names of the format")]
pub enum TypeValue {
    /// A tensor.
    #[prost(message, tag = "1")]
    TensorType(TensorType),
    /// A sequence.
    #[prost(message, tag = "4")]
    SequenceType(Box<ElementType>),
    /// A map.
    #[prost(message, tag = "5")]
    MapType(Box<MapType>),
    /// An opaque type.
    #[prost(message, tag = "7")]
    OpaqueType(OpaqueType),
    /// A sparse tensor.
    #[prost(message, tag = "8")]
    SparseTensorType(TensorType),
    /// Something or nothing.
    #[prost(message, tag = "9")]
    OptionalType(Box<ElementType>),
}

/// Element type and shape.
#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    /// A [`DataType`].
    #[prost(enumeration = "DataType", tag = "1")]
    pub elem_type: i32,
    /// Shape; none when even the rank is open.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// Type of the elements of a sequence or an optional value.
#[derive(Clone, PartialEq, Message)]
pub struct ElementType {
    /// The type.
    #[prost(message, optional, boxed, tag = "1")]
    pub elem_type: Option<Box<TypeProto>>,
}

/// Type of a map.
#[derive(Clone, PartialEq, Message)]
pub struct MapType {
    /// A [`DataType`]: a whole number or text.
    #[prost(enumeration = "DataType", tag = "1")]
    pub key_type: i32,
    /// The type of the values.
    #[prost(message, optional, boxed, tag = "2")]
    pub value_type: Option<Box<TypeProto>>,
}

/// A type only its domain knows.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct OpaqueType {
    /// Domain.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// Shape.
#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    /// Dimensions.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// One dimension; open when it has no value.
#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    /// Value.
    #[prost(oneof = "DimensionValue", tags = "1, 2")]
    pub value: Option<DimensionValue>,
    /// What it means.
    #[prost(string, tag = "3")]
    pub denotation: String,
}

/// A number, or a name for an open dimension.
#[derive(Clone, PartialEq, Eq, Hash, Oneof)]
pub enum DimensionValue {
    /// Number of elements.
    #[prost(int64, tag = "1")]
    DimValue(i64),
    /// Name.
    #[prost(string, tag = "2")]
    DimParam(String),
}

/// An operator set.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct OperatorSetIdProto {
    /// Domain; empty is `ai.onnx`.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Version.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A name and a text.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct StringStringEntryProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Text.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A function of the model itself.
#[derive(Clone, PartialEq, Message)]
pub struct FunctionProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Names of inputs.
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    /// Names of outputs.
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    /// Names of attributes without default.
    #[prost(string, repeated, tag = "6")]
    pub attribute: Vec<String>,
    /// Nodes.
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
    /// For people.
    #[prost(string, tag = "8")]
    pub doc_string: String,
    /// Operator sets used.
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Domain.
    #[prost(string, tag = "10")]
    pub domain: String,
    /// Attributes with default.
    #[prost(message, repeated, tag = "11")]
    pub attribute_proto: Vec<AttributeProto>,
    /// Types of inner values.
    #[prost(message, repeated, tag = "12")]
    pub value_info: Vec<ValueInfoProto>,
    /// Which overload.
    #[prost(string, tag = "13")]
    pub overload: String,
    /// Anything by name.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Graphs for training.
#[derive(Clone, PartialEq, Message)]
pub struct TrainingInfoProto {
    /// Run once.
    #[prost(message, optional, tag = "1")]
    pub initialization: Option<GraphProto>,
    /// Run per step.
    #[prost(message, optional, tag = "2")]
    pub algorithm: Option<GraphProto>,
    /// Which outputs set which weights at the start.
    #[prost(message, repeated, tag = "3")]
    pub initialization_binding: Vec<StringStringEntryProto>,
    /// Which outputs set which weights after a step.
    #[prost(message, repeated, tag = "4")]
    pub update_binding: Vec<StringStringEntryProto>,
}

impl NodeProto {
    /// A node with one output.
    #[must_use]
    pub fn new(op_type: &str, domain: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> Self {
        Self {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            name: format!("{op_type}:{output}"),
            op_type: op_type.to_owned(),
            domain: domain.to_owned(),
            attribute,
            ..Self::default()
        }
    }
}

impl AttributeProto {
    fn named(name: &str, r#type: AttributeType) -> Self {
        Self { name: name.to_owned(), r#type: r#type.into(), ..Self::default() }
    }

    /// A number.
    #[must_use]
    pub fn float(name: &str, f: f32) -> Self {
        Self { f, ..Self::named(name, AttributeType::Float) }
    }

    /// A whole number.
    #[must_use]
    pub fn int(name: &str, i: i64) -> Self {
        Self { i, ..Self::named(name, AttributeType::Int) }
    }

    /// Text.
    #[must_use]
    pub fn string(name: &str, s: &str) -> Self {
        Self { s: Bytes::copy_from_slice(s.as_bytes()), ..Self::named(name, AttributeType::String) }
    }

    /// Numbers.
    #[must_use]
    pub fn floats(name: &str, floats: Vec<f32>) -> Self {
        Self { floats, ..Self::named(name, AttributeType::Floats) }
    }

    /// Whole numbers.
    #[must_use]
    pub fn ints(name: &str, ints: Vec<i64>) -> Self {
        Self { ints, ..Self::named(name, AttributeType::Ints) }
    }

    /// Texts.
    #[must_use]
    pub fn strings<T: AsRef<[u8]>>(name: &str, strings: impl IntoIterator<Item = T>) -> Self {
        let strings = strings.into_iter().map(|text| Bytes::copy_from_slice(text.as_ref())).collect();
        Self { strings, ..Self::named(name, AttributeType::Strings) }
    }
}

impl TensorProto {
    /// An FP32 tensor.
    #[must_use]
    pub fn float(name: &str, dims: Vec<i64>, float_data: Vec<f32>) -> Self {
        Self { name: name.to_owned(), dims, data_type: DataType::Float.into(), float_data, ..Self::default() }
    }

    /// An INT64 tensor.
    #[must_use]
    pub fn int64(name: &str, dims: Vec<i64>, int64_data: Vec<i64>) -> Self {
        Self { name: name.to_owned(), dims, data_type: DataType::Int64.into(), int64_data, ..Self::default() }
    }

    /// A tensor of texts.
    #[must_use]
    pub fn string<T: AsRef<[u8]>>(name: &str, dims: Vec<i64>, texts: impl IntoIterator<Item = T>) -> Self {
        let string_data = texts.into_iter().map(|text| Bytes::copy_from_slice(text.as_ref())).collect();
        Self { name: name.to_owned(), dims, data_type: DataType::String.into(), string_data, ..Self::default() }
    }
}

impl ValueInfoProto {
    /// A tensor whose first dimension is open (`rows`) and whose others are `rest`.
    #[must_use]
    pub fn rows(name: &str, elem_type: DataType, rest: &[i64]) -> Self {
        let open = DimensionValue::DimParam("rows".to_owned());
        let dim = std::iter::once(open)
            .chain(rest.iter().copied().map(DimensionValue::DimValue))
            .map(|value| Dimension { value: Some(value), denotation: String::new() })
            .collect();
        let tensor = TensorType { elem_type: elem_type.into(), shape: Some(TensorShapeProto { dim }) };
        Self {
            name: name.to_owned(),
            r#type: Some(TypeProto { value: Some(TypeValue::TensorType(tensor)), denotation: String::new() }),
            ..Self::default()
        }
    }
}
