//! The JSON form of the Open Inference Protocol v2: a request's body to tensors, the engine's outputs to an answer's body.
//!
//! ```text
//! {"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [5.1, 3.5]}], "outputs": [{"name": "label"}]}
//! {"model_name": "iris", "model_version": "3", "id": "7", "outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [0]}]}
//! ```
//!
//! The text is walked once. Fields may come in any order; an unknown, missing or repeated one is refused, and so is any
//! tensor that is not what the model declares: the message names the tensor and what was expected. Elements may be
//! flat or nested as the shape says, always row-major. `shape` is multiplied with checked arithmetic and compared with
//! the bytes that are left before anything is reserved. Values of `parameters` are ignored except those that ask for
//! the binary form, which this reader does not speak.
//!
//! Two decisions where the protocol is silent. JSON has no NaN and no infinity: neither is accepted, and an output that
//! holds one fails with the element's place instead of an invented `null`. A sequence of maps (scikit-learn's ZipMap) is
//! answered as an `FP32` tensor of rows and classes, with the keys in the output's parameter `labels`, a JSON text.

use ort::session::{Session, SessionOutputs};
use ort::value::{TensorElementType, ValueRef, ValueType};
use serde_json::json;
use wire::{Fail, FailCode, TensorInfo};

use crate::json::{Reader, invalid};
use crate::tensor::{Datatype, RANK_MAX, Table, Tensor, elements, too_long};

/// Most inputs, and most outputs, of a model.
pub const PORTS_MAX: usize = 1024;
/// Longest request id in bytes, quotes and escapes included.
pub const ID_BYTES_MAX: usize = 1024;

/// What a model takes and gives.
#[derive(Debug)]
pub struct Signature {
    /// In the model's order.
    pub inputs: Vec<Port>,
    /// In the model's order.
    pub outputs: Vec<Port>,
    /// Start of every answer: model name and version.
    head: Vec<u8>,
}

/// One input or output.
#[derive(Debug)]
pub struct Port {
    /// Name in the graph.
    pub name: String,
    /// Type of its elements.
    pub datatype: Datatype,
    /// Dimensions, -1 where open; empty when the model declares none.
    pub shape: Vec<i64>,
    /// `Some(type of the keys)` for a sequence of maps.
    pub maps: Option<TensorElementType>,
    /// Start of its entry in an answer.
    head: Vec<u8>,
}

impl Signature {
    /// Of a loaded model.
    ///
    /// # Errors
    /// [`FailCode::ModelRefused`] when a type has no counterpart in the protocol.
    pub fn new(session: &Session, name: &str, version: &str) -> Result<Self, Fail> {
        let port = |what: &str, name: &str, dtype: &ValueType| {
            Port::new(name, dtype, what == "output").map_err(|why| refused(format!("{what} `{name}` {why}")))
        };
        let inputs = session.inputs().iter().map(|o| port("input", o.name(), o.dtype())).collect::<Result<Vec<_>, _>>()?;
        let outputs = session.outputs().iter().map(|o| port("output", o.name(), o.dtype())).collect::<Result<Vec<_>, _>>()?;
        if inputs.len() > PORTS_MAX || outputs.len() > PORTS_MAX {
            return Err(refused(format!("a model may have at most {PORTS_MAX} inputs and {PORTS_MAX} outputs")));
        }
        let mut head = json!({"model_name": name, "model_version": version}).to_string().into_bytes();
        head.pop();
        Ok(Self { inputs, outputs, head })
    }

    /// A buffer for each input.
    #[must_use]
    pub fn buffers(&self) -> Vec<Tensor> {
        self.inputs.iter().map(|port| Tensor::new(port.datatype)).collect()
    }
}

impl Port {
    fn new(name: &str, dtype: &ValueType, output: bool) -> Result<Self, String> {
        let (datatype, shape, maps) = match dtype {
            ValueType::Tensor { ty, shape, .. } => {
                let datatype = Datatype::of(*ty)
                    .ok_or_else(|| format!("is a tensor of {ty}, which the protocol's JSON form cannot carry: cast it in the model"))?;
                (datatype, shape.iter().map(|d| (*d).max(-1)).collect(), None)
            }
            ValueType::Sequence(inner) if output => match **inner {
                ValueType::Map { key: key @ (TensorElementType::Int64 | TensorElementType::String), value: TensorElementType::Float32 } => {
                    (Datatype::Fp32, vec![-1, -1], Some(key))
                }
                _ => return Err(format!("is a {dtype}: only tensors and the maps of ZipMap can be answered")),
            },
            _ => return Err(format!("is a {dtype}: only tensors are supported")),
        };
        let mut head = json!({"name": name, "datatype": datatype.name()}).to_string().into_bytes();
        head.pop();
        Ok(Self { name: name.to_owned(), datatype, shape, maps, head })
    }

    /// For people and the registry.
    #[must_use]
    pub fn info(&self) -> TensorInfo {
        TensorInfo { name: self.name.clone(), datatype: self.datatype.name().to_owned(), shape: self.shape.clone() }
    }

    /// Whether `shape` is one of those the model declares. Where it declares none, the engine decides.
    pub fn accepts(&self, shape: &[i64]) -> bool {
        self.shape.is_empty()
            || (self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(|(declared, given)| *declared < 0 || declared == given))
    }
}

/// What a request asks for besides its tensors.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    /// `id` with its quotes, as sent.
    pub id: Option<&'a str>,
    /// Indices of the wanted outputs; `None` for all.
    pub outputs: Option<Vec<usize>>,
}

/// Reads a request's body; the tensors go into `buffers`, which are in the model's order.
///
/// # Errors
/// [`FailCode::Invalid`] in the user's words; [`FailCode::Unsupported`] for the binary form.
pub fn parse<'a>(body: &'a [u8], signature: &Signature, buffers: &mut [Tensor]) -> Result<Asked<'a>, Fail> {
    let mut asked = Asked::default();
    let mut reader = Reader::new(body)?;
    // One bit an input; `Vec` only beyond 64, which is rare.
    let mut given = vec![false; signature.inputs.len()];
    let (mut inputs, mut parameters_seen) = (false, false);
    reader.object("an object with `inputs`", |reader, field| match field {
        "id" if asked.id.is_none() => {
            let start = reader.offset();
            reader.string("a string")?;
            let id = reader.at(start).raw_string("a string")?;
            if id.len() > ID_BYTES_MAX {
                return Err(invalid(format!("`id` is longer than {ID_BYTES_MAX} bytes")));
            }
            asked.id = Some(id);
            Ok(())
        }
        "inputs" if !inputs => {
            inputs = true;
            reader.array("an array of inputs", |reader| input(reader, body.len(), signature, &mut given, buffers))
        }
        "outputs" if asked.outputs.is_none() => {
            let mut wanted = Vec::new();
            reader.array("an array of outputs", |reader| output(reader, signature, &mut wanted))?;
            asked.outputs = Some(wanted);
            Ok(())
        }
        "parameters" if !parameters_seen => {
            parameters_seen = true;
            parameters(reader, "the request")
        }
        other => Err(unexpected(other, "the request", "`id`, `parameters`, `inputs` and `outputs`")),
    })?;
    reader.end()?;
    if let Some((port, _)) = signature.inputs.iter().zip(&given).find(|(_, given)| !**given) {
        return Err(invalid(format!("input `{}` is missing: expected {} of shape {:?}", port.name, port.datatype.name(), port.shape)));
    }
    // An empty list is what some clients send for "all".
    asked.outputs = asked.outputs.filter(|wanted| !wanted.is_empty());
    Ok(asked)
}

/// One entry of `inputs`.
fn input(
    reader: &mut Reader<'_>,
    body_bytes: usize,
    signature: &Signature,
    given: &mut [bool],
    buffers: &mut [Tensor],
) -> Result<(), Fail> {
    let mut name = None;
    let mut datatype = None;
    let mut shape: Option<Shape> = None;
    let mut data_at = None;
    let mut data_read = false;
    let mut parameters_seen = false;
    reader.object("an input with `name`, `shape`, `datatype` and `data`", |reader, field| match field {
        "name" if name.is_none() => {
            name = Some(reader.string("a string")?);
            Ok(())
        }
        "shape" if shape.is_none() => {
            shape = Some(Shape::read(reader, name.as_deref().unwrap_or_default())?);
            Ok(())
        }
        "datatype" if datatype.is_none() => {
            datatype = Some(reader.string("a string")?);
            Ok(())
        }
        "data" if data_at.is_none() => {
            data_at = Some(reader.offset());
            if let (Some(name), Some(datatype), Some(shape)) = (&name, &datatype, &shape) {
                data_read = true;
                tensor(reader, body_bytes, (name, datatype, shape.get()), signature, given, buffers)
            } else {
                reader.skip().map(|_| ())
            }
        }
        "parameters" if !parameters_seen => {
            parameters_seen = true;
            parameters(reader, "an input")
        }
        other => Err(unexpected(other, "an input", "`name`, `shape`, `datatype`, `parameters` and `data`")),
    })?;
    let lacks = |field: &str, name: &str| invalid(format!("input `{name}` has no `{field}`"));
    let name = name.ok_or_else(|| invalid("an input has no `name`"))?;
    let datatype = datatype.ok_or_else(|| lacks("datatype", &name))?;
    let shape = shape.ok_or_else(|| lacks("shape", &name))?;
    let at = data_at.ok_or_else(|| lacks("data", &name))?;
    if data_read { Ok(()) } else { tensor(&mut reader.at(at), body_bytes, (&name, &datatype, shape.get()), signature, given, buffers) }
}

/// The elements of one input, once its name, datatype and shape are known.
fn tensor(
    reader: &mut Reader<'_>,
    body_bytes: usize,
    (name, datatype, shape): (&str, &str, &[i64]),
    signature: &Signature,
    given: &mut [bool],
    buffers: &mut [Tensor],
) -> Result<(), Fail> {
    let place = signature.inputs.iter().position(|port| port.name == name);
    let (Some(port), Some(given), Some(buffer)) =
        (place.and_then(|i| signature.inputs.get(i)), place.and_then(|i| given.get_mut(i)), place.and_then(|i| buffers.get_mut(i)))
    else {
        return Err(invalid(format!("the model has no input `{name}`: it has {}", names(&signature.inputs))));
    };
    if std::mem::replace(given, true) {
        return Err(invalid(format!("input `{name}` is given twice")));
    }
    if datatype != port.datatype.name() {
        return Err(invalid(format!("input `{name}`: expected datatype {}, got `{datatype}`", port.datatype.name())));
    }
    if !port.accepts(shape) {
        return Err(invalid(format!("input `{name}`: expected shape {:?} (-1 is any), got {shape:?}", port.shape)));
    }
    let count = elements(shape).map_err(|why| invalid(format!("input `{name}`: shape {shape:?}: {why}")))?;
    // Each element takes at least one byte: a shape that promises more is refused before memory is reserved for it.
    if count > body_bytes {
        return Err(invalid(format!("input `{name}`: shape {shape:?} asks for {count} elements, the whole body has {body_bytes} bytes")));
    }
    buffer.read(reader, shape, count).map_err(|fail| Fail { message: format!("input `{name}`: {}", fail.message), ..fail })
}

/// Dimensions on the stack.
struct Shape {
    dimensions: [i64; RANK_MAX],
    rank: usize,
}

impl Shape {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Fail> {
        let mut shape = Self { dimensions: [0; RANK_MAX], rank: 0 };
        reader.array("an array of dimensions", |reader| {
            let number = reader.number()?;
            let dimension = number.integer::<i64>().filter(|d| *d >= 0);
            let dimension = dimension.ok_or_else(|| invalid(format!("input `{name}`: `{}` is not a dimension", number.quote())))?;
            let slot = shape.dimensions.get_mut(shape.rank);
            *slot.ok_or_else(|| invalid(format!("input `{name}`: more than {RANK_MAX} dimensions")))? = dimension;
            shape.rank += 1;
            Ok(())
        })?;
        Ok(shape)
    }

    fn get(&self) -> &[i64] {
        self.dimensions.get(..self.rank).unwrap_or_default()
    }
}

/// One entry of `outputs`.
fn output(reader: &mut Reader<'_>, signature: &Signature, wanted: &mut Vec<usize>) -> Result<(), Fail> {
    let (mut name, mut parameters_seen) = (None, false);
    reader.object("an output with `name`", |reader, field| match field {
        "name" if name.is_none() => {
            name = Some(reader.string("a string")?);
            Ok(())
        }
        "parameters" if !parameters_seen => {
            parameters_seen = true;
            parameters(reader, "an output")
        }
        other => Err(unexpected(other, "an output", "`name` and `parameters`")),
    })?;
    let name = name.ok_or_else(|| invalid("an output has no `name`"))?;
    let Some(index) = signature.outputs.iter().position(|port| port.name == name) else {
        return Err(invalid(format!("the model has no output `{name}`: it has {}", names(&signature.outputs))));
    };
    if wanted.contains(&index) {
        return Err(invalid(format!("output `{name}` is asked for twice")));
    }
    wanted.push(index);
    Ok(())
}

/// Any `parameters`: ignored, except that the binary form is refused rather than misread.
fn parameters(reader: &mut Reader<'_>, place: &str) -> Result<(), Fail> {
    reader.object("an object of parameters", |reader, field| {
        let value = reader.skip()?;
        let binary = match field {
            "binary_data_size" => true,
            "binary_data" | "binary_data_output" => value == "true",
            _ => false,
        };
        if binary {
            return Err(Fail::new(
                FailCode::Unsupported,
                format!("{place} asks for the binary form (`{field}`): send and ask for JSON, `binary_data=False` in most clients"),
            ));
        }
        Ok(())
    })
}

#[cold]
fn unexpected(field: &str, place: &str, known: &str) -> Fail {
    if known.contains(&format!("`{field}`")) {
        invalid(format!("`{field}` is given twice in {place}"))
    } else {
        invalid(format!("{place} has an unknown field `{field}`: known are {known}"))
    }
}

#[cold]
pub fn names(ports: &[Port]) -> String {
    /// Most names in one message.
    const NAMED_MAX: usize = 20;
    let mut names: Vec<_> = ports.iter().take(NAMED_MAX).map(|port| format!("`{}`", port.name)).collect();
    if ports.len() > NAMED_MAX {
        names.push(format!("and {} more", ports.len() - NAMED_MAX));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cold]
fn refused(message: String) -> Fail {
    Fail::new(FailCode::ModelRefused, message)
}

/// Writes the answer's body.
///
/// # Errors
/// [`FailCode::ModelFailed`] when an output cannot be carried, [`FailCode::TooLarge`] when the answer gets too long.
pub fn write(signature: &Signature, asked: &Asked<'_>, outputs: &SessionOutputs<'_>, out: &mut Vec<u8>) -> Result<(), Fail> {
    out.clear();
    out.extend_from_slice(&signature.head);
    if let Some(id) = asked.id {
        out.extend_from_slice(b",\"id\":");
        out.extend_from_slice(id.as_bytes());
    }
    out.extend_from_slice(b",\"outputs\":[");
    match &asked.outputs {
        None => {
            for (index, (port, value)) in signature.outputs.iter().zip(outputs.values()).enumerate() {
                write_output(index, port, &value, out)?;
            }
        }
        Some(wanted) => {
            let values: Vec<ValueRef<'_>> = outputs.values().collect();
            for (index, wanted) in wanted.iter().enumerate() {
                if let (Some(port), Some(value)) = (signature.outputs.get(*wanted), values.get(*wanted)) {
                    write_output(index, port, value, out)?;
                }
            }
        }
    }
    out.extend_from_slice(b"]}");
    Ok(())
}

fn write_output(index: usize, port: &Port, value: &ValueRef<'_>, out: &mut Vec<u8>) -> Result<(), Fail> {
    if index > 0 {
        out.push(b',');
    }
    out.extend_from_slice(&port.head);
    let named = |fail: Fail| Fail { message: format!("output `{}`: {}", port.name, fail.message), ..fail };
    if let Some(key) = port.maps {
        let table = Table::of(value, key).map_err(named)?;
        // A JSON text inside a JSON string: parameters of the protocol are scalars.
        let labels = json!(format!("[{}]", table.labels.join(",")));
        let head = format!(",\"parameters\":{{\"labels\":{labels}}},\"shape\":[{},{}],\"data\":", table.rows, table.labels.len());
        out.extend_from_slice(head.as_bytes());
        table.write_all(out).map_err(named)?;
    } else {
        let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
            return Err(named(Fail::new(FailCode::ModelFailed, "the model gave something else than the tensor it declares")));
        };
        if Datatype::of(*ty) != Some(port.datatype) {
            return Err(named(Fail::new(FailCode::ModelFailed, format!("the model declares {} and gave {ty}", port.datatype.name()))));
        }
        out.extend_from_slice(b",\"shape\":");
        serde_json::to_writer(&mut *out, &shape[..]).map_err(|_| too_long())?;
        out.extend_from_slice(b",\"data\":");
        port.datatype.write_all(value, out).map_err(named)?;
    }
    out.push(b'}');
    Ok(())
}
