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
//! the bytes that are left before anything is reserved.
//!
//! Tensors may come, and be asked for, in binary form: their bytes lie behind the JSON in the order of the tensors, and
//! `parameters.binary_data_size` stands in place of `data`. Other `parameters` are ignored but for `classification`, which asks for the best
//! `k` classes of each row, and the places in shared memory, which no sandbox has.
//!
//! Two decisions where the protocol is silent. JSON has no NaN and no infinity: neither is accepted, and an output that
//! holds one fails with the element's place instead of an invented `null`. A sequence of maps (scikit-learn's ZipMap) is
//! answered as an `FP32` tensor of rows and classes, with the keys in the output's parameter `labels`, a JSON text.

use bytes::Bytes;
use ort::session::Session;
use ort::value::{TensorElementType, ValueType};
use serde_json::json;
use wire::protobuf::Writer;
use wire::{BODY_BYTES_MAX, Fail, FailCode, TensorInfo};

use crate::json::{Reader, invalid};
use crate::output::{Part, TableRows};
use crate::tensor::{Datatype, Element, RANK_MAX, Tensor, elements, too_long};

/// Most inputs, and most outputs, of a model.
pub const PORTS_MAX: usize = 1024;
/// Longest request id in bytes, quotes and escapes included.
pub const ID_BYTES_MAX: usize = 1024;
/// Parameters that name a place in shared memory begin so.
pub const SHARED_MEMORY: &str = "shared_memory_";

/// What a model takes and gives.
#[derive(Debug)]
pub struct Signature {
    /// In the model's order.
    pub inputs: Vec<Port>,
    /// In the model's order.
    pub outputs: Vec<Port>,
    /// Start of every answer: model name and version.
    pub head: Vec<u8>,
    /// The same as protocol buffers.
    pub grpc_head: Vec<u8>,
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
    pub head: Vec<u8>,
    /// The same as protocol buffers.
    pub grpc_head: Vec<u8>,
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
        Ok(Self { inputs, outputs, head, grpc_head: two_texts(name, version) })
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
                    .ok_or_else(|| format!("is a tensor of {ty}, which the protocol cannot carry: cast it in the model"))?;
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
        let head = entry_head(name, datatype);
        Ok(Self { name: name.to_owned(), datatype, shape, maps, head, grpc_head: two_texts(name, datatype.name()) })
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

/// Start of an output's entry in an answer.
fn entry_head(name: &str, datatype: Datatype) -> Vec<u8> {
    let mut head = json!({"name": name, "datatype": datatype.name()}).to_string().into_bytes();
    head.pop();
    head
}

/// A message with two texts as its first fields.
pub fn two_texts(first: &str, second: &str) -> Vec<u8> {
    let mut message = Writer::default();
    message.text(1, first);
    message.text(2, second);
    message.into_bytes()
}

/// What a request asks for besides its tensors.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    /// `id` as sent; in JSON with its quotes.
    pub id: Option<&'a str>,
    /// The wanted outputs; `None` for all.
    pub outputs: Option<Vec<Wanted>>,
    /// Whether outputs come in binary form that say nothing of their own.
    pub binary: bool,
}

/// A wanted output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub index: usize,
    /// In binary form, or not; `None` as the request says.
    pub binary: Option<bool>,
    /// Only the best so many classes of each row, when not 0.
    pub classes: usize,
}

impl Asked<'_> {
    /// The outputs of the answer, in its order.
    pub fn wanted(&self, signature: &Signature) -> Vec<Wanted> {
        let all = || (0..signature.outputs.len()).map(|index| Wanted { index, ..Wanted::default() }).collect();
        self.outputs.clone().unwrap_or_else(all)
    }
}

/// Which inputs were given, and where they go.
#[derive(Debug)]
pub struct Inputs<'m> {
    signature: &'m Signature,
    given: Vec<bool>,
    /// Bytes of the whole body: no tensor has more elements.
    body_bytes: usize,
}

impl<'m> Inputs<'m> {
    /// None yet.
    #[must_use]
    pub fn new(signature: &'m Signature, body_bytes: usize) -> Self {
        Self { signature, given: vec![false; signature.inputs.len()], body_bytes }
    }

    /// Gives one: its place and number of elements.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] when the model has no such input, of this type and shape, that was not given yet.
    pub fn claim(&mut self, name: &str, datatype: &str, shape: &[i64]) -> Result<(usize, usize), Fail> {
        let ports = &self.signature.inputs;
        let place = ports.iter().position(|port| port.name == name);
        let (Some(place), Some(port), Some(given)) = (place, place.and_then(|i| ports.get(i)), place.and_then(|i| self.given.get_mut(i)))
        else {
            return Err(invalid(format!("the model has no input `{name}`: it has {}", names(ports))));
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
        if count > self.body_bytes {
            let body_bytes = self.body_bytes;
            return Err(invalid(format!(
                "input `{name}`: shape {shape:?} asks for {count} elements, the whole body has {body_bytes} bytes"
            )));
        }
        Ok((place, count))
    }

    /// That all were given.
    ///
    /// # Errors
    /// [`FailCode::Invalid`] naming the first that was not.
    pub fn complete(&self) -> Result<(), Fail> {
        match self.signature.inputs.iter().zip(&self.given).find(|(_, given)| !**given) {
            None => Ok(()),
            Some((port, _)) => {
                Err(invalid(format!("input `{}` is missing: expected {} of shape {:?}", port.name, port.datatype.name(), port.shape)))
            }
        }
    }
}

/// The same failure with the input it is about.
pub fn of_input(name: &str, fail: Fail) -> Fail {
    Fail { message: format!("input `{name}`: {}", fail.message), ..fail }
}

/// Tensors behind the JSON, taken one after the other.
struct Binary<'a> {
    body: &'a Bytes,
    rest: &'a [u8],
}

impl Binary<'_> {
    fn take(&mut self, bytes: usize) -> Result<Bytes, Fail> {
        let Some((taken, rest)) = self.rest.split_at_checked(bytes) else {
            return Err(invalid(format!("`binary_data_size` is {bytes}, of the binary data {} bytes are left", self.rest.len())));
        };
        self.rest = rest;
        Ok(self.body.slice_ref(taken))
    }
}

/// Reads a request's body; the tensors go into `buffers`, which are in the model's order. `json_bytes`: how much of it is JSON, when not all.
///
/// # Errors
/// [`FailCode::Invalid`] in the user's words; [`FailCode::Unsupported`] for shared memory.
pub fn parse<'a>(body: &'a Bytes, json_bytes: Option<u32>, signature: &Signature, buffers: &mut [Tensor]) -> Result<Asked<'a>, Fail> {
    let json_bytes = json_bytes.map_or(body.len(), |bytes| bytes as usize);
    let (json, rest) = body.split_at_checked(json_bytes).ok_or_else(|| invalid("the JSON is longer than the body"))?;
    let mut binary = Binary { body, rest };
    let mut asked = Asked::default();
    let mut reader = Reader::new(json)?;
    let mut given = Inputs::new(signature, body.len());
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
            reader.array("an array of inputs", |reader| input(reader, &mut binary, &mut given, buffers))
        }
        "outputs" if asked.outputs.is_none() => {
            let mut wanted = Vec::new();
            reader.array("an array of outputs", |reader| output(reader, signature, &mut wanted))?;
            asked.outputs = Some(wanted);
            Ok(())
        }
        "parameters" if !parameters_seen => {
            parameters_seen = true;
            asked.binary = parameters(reader)?.binary_output;
            Ok(())
        }
        // KServe's client repeats what the address says; what it says here changes nothing.
        "model_name" | "model_version" => reader.skip().map(drop),
        other => Err(unexpected(other, "the request", "`id`, `parameters`, `inputs` and `outputs`")),
    })?;
    reader.end()?;
    given.complete()?;
    if !binary.rest.is_empty() {
        return Err(invalid(format!("{} bytes of binary data belong to no input", binary.rest.len())));
    }
    // An empty list is what some clients send for "all".
    asked.outputs = asked.outputs.filter(|wanted| !wanted.is_empty());
    Ok(asked)
}

/// One entry of `inputs`.
fn input(reader: &mut Reader<'_>, binary: &mut Binary<'_>, given: &mut Inputs<'_>, buffers: &mut [Tensor]) -> Result<(), Fail> {
    let mut name = None;
    let mut datatype = None;
    let mut shape: Option<Shape> = None;
    let mut data_at = None;
    let mut data_read = false;
    let mut own: Option<Parameters> = None;
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
                tensor(reader, (name, datatype, shape.get()), given, buffers)
            } else {
                reader.skip().map(|_| ())
            }
        }
        "parameters" if own.is_none() => {
            own = Some(parameters(reader)?);
            Ok(())
        }
        other => Err(unexpected(other, "an input", "`name`, `shape`, `datatype`, `parameters` and `data`")),
    })?;
    let lacks = |field: &str, name: &str| invalid(format!("input `{name}` has no `{field}`"));
    let name = name.ok_or_else(|| invalid("an input has no `name`"))?;
    let datatype = datatype.ok_or_else(|| lacks("datatype", &name))?;
    let shape = shape.ok_or_else(|| lacks("shape", &name))?;
    let size = own.and_then(|own| own.binary_size);
    match (data_at, size) {
        (Some(_), Some(_)) => Err(invalid(format!("input `{name}` has both `data` and `binary_data_size`"))),
        (Some(_), None) if data_read => Ok(()),
        (Some(at), None) => tensor(&mut reader.at(at), (&name, &datatype, shape.get()), given, buffers),
        (None, Some(bytes)) => {
            let (place, count) = given.claim(&name, &datatype, shape.get())?;
            let taken = binary.take(bytes).and_then(|raw| buffer(buffers, place)?.read_raw(raw, shape.get(), count));
            taken.map_err(|fail| of_input(&name, fail))
        }
        (None, None) => Err(lacks("data", &name)),
    }
}

/// The elements of one input, once its name, datatype and shape are known.
fn tensor(
    reader: &mut Reader<'_>,
    (name, datatype, shape): (&str, &str, &[i64]),
    given: &mut Inputs<'_>,
    buffers: &mut [Tensor],
) -> Result<(), Fail> {
    let (place, count) = given.claim(name, datatype, shape)?;
    buffer(buffers, place)?.read(reader, shape, count).map_err(|fail| of_input(name, fail))
}

/// The buffer at a place that [`Inputs::claim`] gave.
pub fn buffer(buffers: &mut [Tensor], place: usize) -> Result<&mut Tensor, Fail> {
    buffers.get_mut(place).ok_or_else(|| Fail::new(FailCode::Internal, "an input without a buffer"))
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
fn output(reader: &mut Reader<'_>, signature: &Signature, wanted: &mut Vec<Wanted>) -> Result<(), Fail> {
    let (mut name, mut own) = (None, None);
    reader.object("an output with `name`", |reader, field| match field {
        "name" if name.is_none() => {
            name = Some(reader.string("a string")?);
            Ok(())
        }
        "parameters" if own.is_none() => {
            own = Some(parameters(reader)?);
            Ok(())
        }
        other => Err(unexpected(other, "an output", "`name` and `parameters`")),
    })?;
    let name = name.ok_or_else(|| invalid("an output has no `name`"))?;
    let own = own.unwrap_or_default();
    want(signature, &name, Wanted { index: 0, binary: own.binary, classes: own.classes }, wanted)
}

/// Adds the output of this name to the wanted ones.
///
/// # Errors
/// [`FailCode::Invalid`] when the model has none, or it is there already.
pub fn want(signature: &Signature, name: &str, how: Wanted, wanted: &mut Vec<Wanted>) -> Result<(), Fail> {
    let Some(index) = signature.outputs.iter().position(|port| port.name == name) else {
        return Err(invalid(format!("the model has no output `{name}`: it has {}", names(&signature.outputs))));
    };
    if wanted.iter().any(|other| other.index == index) {
        return Err(invalid(format!("output `{name}` is asked for twice")));
    }
    wanted.push(Wanted { index, ..how });
    Ok(())
}

/// Parameters that mean something here.
#[derive(Default)]
struct Parameters {
    binary_size: Option<usize>,
    binary: Option<bool>,
    binary_output: bool,
    classes: usize,
}

/// Any `parameters`: those that are not known are ignored.
fn parameters(reader: &mut Reader<'_>) -> Result<Parameters, Fail> {
    let mut found = Parameters::default();
    reader.object("an object of parameters", |reader, field| {
        let here = |fail: Fail| invalid(format!("`{field}`: {}", fail.message));
        match field {
            "binary_data_size" => found.binary_size = Some(count(reader, field)?),
            "classification" => found.classes = count(reader, field)?,
            "binary_data" => found.binary = Some(reader.boolean().map_err(here)?),
            "binary_data_output" => found.binary_output = reader.boolean().map_err(here)?,
            field if field.starts_with(SHARED_MEMORY) => return Err(shared_memory()),
            _ => drop(reader.skip()?),
        }
        Ok(())
    })?;
    Ok(found)
}

fn count(reader: &mut Reader<'_>, field: &str) -> Result<usize, Fail> {
    let number = reader.number().map_err(|fail| invalid(format!("`{field}`: {}", fail.message)))?;
    let count = number.integer::<u32>().ok_or_else(|| invalid(format!("`{field}` is `{}`: give a count", number.quote())))?;
    Ok(count as usize)
}

/// A sandbox shares memory with nobody.
#[cold]
pub fn shared_memory() -> Fail {
    Fail::new(FailCode::Unsupported, "shared memory is not supported: send tensors in the request")
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

/// Writes the answer's body; how much of it is JSON, when tensors in binary form follow.
///
/// # Errors
/// [`FailCode::ModelFailed`] when an output cannot be carried, [`FailCode::TooLarge`] when the answer gets too long.
pub fn write(signature: &Signature, asked: &Asked<'_>, outputs: &[Part<'_, '_>], out: &mut Vec<u8>) -> Result<Option<u32>, Fail> {
    out.clear();
    out.extend_from_slice(&signature.head);
    if let Some(id) = asked.id {
        out.extend_from_slice(b",\"id\":");
        out.extend_from_slice(id.as_bytes());
    }
    out.extend_from_slice(b",\"outputs\":[");
    let mut behind: Vec<Raw<'_, '_>> = Vec::new();
    for (at, wanted) in asked.wanted(signature).iter().enumerate() {
        let (Some(port), Some(value)) = (signature.outputs.get(wanted.index), outputs.get(wanted.index)) else { continue };
        if at > 0 {
            out.push(b',');
        }
        let binary = wanted.binary.unwrap_or(asked.binary);
        write_output(port, *value, wanted.classes, out, binary.then_some(&mut behind)).map_err(|fail| of_output(port, fail))?;
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    let json_bytes = u32::try_from(out.len()).map_err(|_| too_long())?;
    for raw in &behind {
        raw.append(out)?;
    }
    Ok((!behind.is_empty()).then_some(json_bytes))
}

/// The same failure with the output it is about.
pub fn of_output(port: &Port, fail: Fail) -> Fail {
    Fail { message: format!("output `{}`: {}", port.name, fail.message), ..fail }
}

/// A tensor of an answer as bytes.
pub enum Raw<'v, 's> {
    /// Of the engine, with their number.
    Value(Datatype, Part<'v, 's>, usize),
    /// Made here.
    Made(Vec<u8>),
}

impl Raw<'_, '_> {
    /// How many they are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Value(_, _, bytes) => *bytes,
            Self::Made(bytes) => bytes.len(),
        }
    }

    /// Appends them.
    ///
    /// # Errors
    /// [`FailCode::TooLarge`] when the answer gets too long.
    pub fn append(&self, out: &mut Vec<u8>) -> Result<(), Fail> {
        // Before memory is taken for them.
        if out.len().saturating_add(self.bytes()) > BODY_BYTES_MAX as usize {
            return Err(too_long());
        }
        match self {
            Self::Value(datatype, value, _) => datatype.write_raw(*value, out),
            Self::Made(bytes) => {
                out.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// An output as the answer tells it.
pub struct Told<'v, 's> {
    /// Its dimensions.
    pub shape: Vec<i64>,
    /// Names of its columns, a JSON text, where they were keys of maps.
    pub labels: Option<String>,
    /// Whether it is `BYTES` now, whatever it was.
    pub classes: bool,
    content: Content<'v, 's>,
}

enum Content<'v, 's> {
    Tensor(Datatype, Part<'v, 's>),
    Table(TableRows<'v>),
    Classes(Vec<String>),
}

impl<'v, 's> Told<'v, 's> {
    /// Of what the model gave for this port. `classes`: only the best so many of each row, when not 0.
    ///
    /// # Errors
    /// [`FailCode::ModelFailed`] when the model does not keep its word, [`FailCode::Invalid`] when its elements are no classes.
    pub fn of(port: &Port, value: Part<'v, 's>, classes: usize) -> Result<Self, Fail> {
        if let Some(key) = port.maps {
            let table = value.table(key)?;
            let shape = vec![dimension(table.rows)?, dimension(table.labels.len())?];
            if classes > 0 {
                let best = table.best(classes)?;
                return Self::classes(shape, classes, best);
            }
            let labels = Some(format!("[{}]", table.labels.join(",")));
            return Ok(Self { shape, labels, classes: false, content: Content::Table(table) });
        }
        let (ty, shape) = value.tensor()?;
        if Datatype::of(ty) != Some(port.datatype) {
            return Err(Fail::new(FailCode::ModelFailed, format!("the model declares {} and gave {ty}", port.datatype.name())));
        }
        if classes > 0 {
            // The first dimension counts rows, unless it is the only one.
            let row = if shape.len() > 1 { shape.get(1..).unwrap_or_default() } else { &shape[..] };
            let width = elements(row).map_err(|why| Fail::new(FailCode::ModelFailed, why))?;
            let best = port.datatype.best(value, width, classes)?;
            let rows = if shape.len() > 1 { shape.first().copied() } else { None };
            let shape = rows.into_iter().chain([dimension(width)?]).collect();
            return Self::classes(shape, classes, best);
        }
        Ok(Self { shape, labels: None, classes: false, content: Content::Tensor(port.datatype, value) })
    }

    fn classes(mut shape: Vec<i64>, most: usize, best: Vec<String>) -> Result<Self, Fail> {
        if let Some(width) = shape.last_mut() {
            *width = (*width).min(dimension(most)?);
        }
        Ok(Self { shape, labels: None, classes: true, content: Content::Classes(best) })
    }

    /// As bytes.
    ///
    /// # Errors
    /// [`FailCode::TooLarge`] when they are too many.
    pub fn raw(self) -> Result<Raw<'v, 's>, Fail> {
        let mut made = Vec::new();
        match self.content {
            Content::Tensor(datatype, value) => match datatype.element_bytes() {
                Some(bytes) => {
                    // Not bounded as inputs are: the answer's length is.
                    let count = self.shape.iter().try_fold(1usize, |all, one| all.checked_mul(usize::try_from(*one).ok()?));
                    let bytes = count.and_then(|count| count.checked_mul(bytes)).ok_or_else(too_long)?;
                    return Ok(Raw::Value(datatype, value, bytes));
                }
                None => datatype.write_raw(value, &mut made)?,
            },
            Content::Table(table) => table.write_raw(&mut made)?,
            Content::Classes(best) => Element::write_raw(&best, &mut made),
        }
        Ok(Raw::Made(made))
    }

    /// As a JSON array.
    fn json(&self, out: &mut Vec<u8>) -> Result<(), Fail> {
        match &self.content {
            Content::Tensor(datatype, value) => datatype.write_all(*value, out),
            Content::Table(table) => table.write_all(out),
            Content::Classes(best) => serde_json::to_writer(out, best).map_err(|_| too_long()),
        }
    }
}

fn dimension(size: usize) -> Result<i64, Fail> {
    i64::try_from(size).map_err(|_| too_long())
}

/// An output's entry but for its end. `behind` takes its tensor, when that is in binary form.
fn write_output<'v, 's>(
    port: &Port,
    value: Part<'v, 's>,
    classes: usize,
    out: &mut Vec<u8>,
    behind: Option<&mut Vec<Raw<'v, 's>>>,
) -> Result<(), Fail> {
    let told = Told::of(port, value, classes)?;
    match told.classes {
        true => out.extend_from_slice(&entry_head(&port.name, Datatype::Bytes)),
        false => out.extend_from_slice(&port.head),
    }
    out.extend_from_slice(b",\"shape\":");
    serde_json::to_writer(&mut *out, &told.shape).map_err(|_| too_long())?;
    // A JSON text inside a JSON string: parameters of the protocol are scalars.
    let labels = told.labels.as_ref().map(|labels| format!("\"labels\":{}", json!(labels)));
    if let Some(behind) = behind {
        let raw = told.raw()?;
        let mut parameters = format!(",\"parameters\":{{\"binary_data_size\":{}", raw.bytes());
        parameters.extend(labels.into_iter().flat_map(|labels| [",".to_owned(), labels]));
        out.extend_from_slice(parameters.as_bytes());
        out.push(b'}');
        behind.push(raw);
        return Ok(());
    }
    if let Some(labels) = labels {
        out.extend_from_slice(format!(",\"parameters\":{{{labels}}}").as_bytes());
    }
    out.extend_from_slice(b",\"data\":");
    told.json(out)
}
