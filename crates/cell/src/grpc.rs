//! The gRPC form of the Open Inference Protocol v2: a `ModelInferRequest` to tensors, the engine's outputs to a `ModelInferResponse`.
//!
//! ```text
//! ModelInferRequest   1 model_name  2 model_version  3 id  4 parameters  5 inputs  6 outputs  7 raw_input_contents
//! InferInputTensor    1 name  2 datatype  3 shape  4 parameters  5 contents
//! ModelInferResponse  1 model_name  2 model_version  3 id  5 outputs  6 raw_output_contents
//! ```
//!
//! The message is walked field by field and nothing of it is built but the shapes: tensors go from where they lie into the engine's
//! buffers. Inputs come either all in `raw_input_contents` or all in typed `contents`; outputs always leave in `raw_output_contents`.
//! Fields that are not known are skipped, as the format wants it. The service has read name, version and id, and only from the start of
//! the message: here they may stand nowhere else, so that nobody can be asked for one model and be given another.
//!
//! What is deliberately missing: `parameters` of the request, which an ONNX model has no use for.

use bytes::Bytes;
use wire::Fail;
use wire::protobuf::{Fields, Malformed, Value, Writer};

use crate::json::invalid;
use crate::oip::{
    Asked, ID_BYTES_MAX, Inputs, PORTS_MAX, Raw, SHARED_MEMORY, Signature, Told, Wanted, buffer, of_input, of_output, shared_memory,
    two_texts, want,
};
use crate::output::Part;
use crate::tensor::{RANK_MAX, Tensor, malformed};

/// Reads a request; the tensors go into `buffers`, which are in the model's order.
///
/// # Errors
/// [`wire::FailCode::Invalid`] in the user's words; [`wire::FailCode::Unsupported`] for shared memory.
pub fn parse<'a>(body: &'a Bytes, signature: &Signature, buffers: &mut [Tensor]) -> Result<Asked<'a>, Fail> {
    let mut asked = Asked { binary: true, ..Asked::default() };
    let (mut inputs, mut outputs, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    let (mut fields, mut last) = (Fields::new(body), 0);
    while let Some((number, value)) = fields.next().map_err(malformed)? {
        match (number, value) {
            (1 | 2, Value::Bytes(_)) if number > last => {}
            (3, value) if number > last => asked.id = Some(id(value)?),
            (1..=3, _) => return Err(invalid("`model_name`, `model_version` and `id` are the first fields of a request, each once")),
            (5, Value::Bytes(input)) => push(&mut inputs, input, "inputs")?,
            (6, Value::Bytes(output)) => push(&mut outputs, output, "outputs")?,
            (7, Value::Bytes(tensor)) => push(&mut raw, tensor, "raw_input_contents")?,
            (5..=7, _) => return Err(invalid(format!("field {number} of the request is of another kind"))),
            _ => {}
        }
        last = number;
    }
    if !raw.is_empty() && raw.len() != inputs.len() {
        return Err(invalid(format!("{} `raw_input_contents` for {} inputs", raw.len(), inputs.len())));
    }
    let mut given = Inputs::new(signature, body.len());
    for (at, input) in inputs.into_iter().enumerate() {
        let input = Input::read(input)?;
        let (place, count) = given.claim(input.name, input.datatype, &input.shape)?;
        let buffer = buffer(buffers, place)?;
        let read = match (raw.get(at), input.contents) {
            (Some(raw), None) => buffer.read_raw(body.slice_ref(raw), &input.shape, count),
            (None, contents) => buffer.read_contents(contents.unwrap_or_default(), &input.shape, count),
            (Some(_), Some(_)) => Err(invalid("`contents` and `raw_input_contents` are both there: give one")),
        };
        read.map_err(|fail| of_input(input.name, fail))?;
    }
    given.complete()?;
    let mut wanted = Vec::new();
    for output in outputs {
        read_output(output, signature, &mut wanted)?;
    }
    asked.outputs = Some(wanted).filter(|wanted| !wanted.is_empty());
    Ok(asked)
}

fn push<'a>(list: &mut Vec<&'a [u8]>, one: &'a [u8], what: &str) -> Result<(), Fail> {
    if list.len() == PORTS_MAX {
        return Err(invalid(format!("more than {PORTS_MAX} `{what}`")));
    }
    list.push(one);
    Ok(())
}

fn id(value: Value<'_>) -> Result<&str, Fail> {
    let id = text(value, "id")?;
    if id.len() > ID_BYTES_MAX { Err(invalid(format!("`id` is longer than {ID_BYTES_MAX} bytes"))) } else { Ok(id) }
}

fn text<'a>(value: Value<'a>, what: &str) -> Result<&'a str, Fail> {
    let Value::Bytes(bytes) = value else { return Err(invalid(format!("`{what}` is no text"))) };
    std::str::from_utf8(bytes).map_err(|_| invalid(format!("`{what}` is not UTF-8")))
}

/// An `InferInputTensor`.
#[derive(Default)]
struct Input<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: Vec<i64>,
    contents: Option<&'a [u8]>,
}

impl<'a> Input<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Fail> {
        let (mut input, mut fields) = (Self::default(), Fields::new(bytes));
        while let Some((number, value)) = fields.next().map_err(malformed)? {
            match (number, value) {
                (1, value) => input.name = text(value, "name")?,
                (2, value) => input.datatype = text(value, "datatype")?,
                (3, value) => input.dimensions(value)?,
                (4, value) if parameter(value)?.0.starts_with(SHARED_MEMORY) => return Err(shared_memory()),
                (5, Value::Bytes(contents)) if input.contents.is_none() => input.contents = Some(contents),
                (5, _) => return Err(invalid(format!("input `{}`: `contents` is there twice, or no message", input.name))),
                _ => {}
            }
        }
        Ok(input)
    }

    /// One or several dimensions: they may be packed.
    fn dimensions(&mut self, value: Value<'_>) -> Result<(), Fail> {
        match value {
            Value::Varint(dimension) => self.dimension(dimension),
            Value::Bytes(packed) => {
                let mut packed = Fields::new(packed);
                while !packed.is_at_end() {
                    self.dimension(packed.varint().map_err(malformed)?)?;
                }
                Ok(())
            }
            _ => Err(invalid(format!("input `{}`: `shape` is no list of numbers", self.name))),
        }
    }

    fn dimension(&mut self, dimension: u64) -> Result<(), Fail> {
        if self.shape.len() == RANK_MAX {
            return Err(invalid(format!("input `{}`: more than {RANK_MAX} dimensions", self.name)));
        }
        self.shape.push(dimension.cast_signed());
        Ok(())
    }
}

/// An entry of a map of parameters: its key, and its number if it has one.
fn parameter(entry: Value<'_>) -> Result<(&str, Option<u64>), Fail> {
    let Value::Bytes(entry) = entry else { return Err(invalid("a parameter is no message")) };
    let read = || -> Result<_, Malformed> {
        let (mut key, mut number, mut fields) = (None, None, Fields::new(entry));
        while let Some((field, value)) = fields.next()? {
            match (field, value) {
                (1, value) => key = Some(value),
                (2, Value::Bytes(value)) => {
                    let mut of = Fields::new(value);
                    while let Some((_, value)) = of.next()? {
                        number = if let Value::Varint(value) = value { Some(value) } else { None };
                    }
                }
                _ => {}
            }
        }
        Ok((key, number))
    };
    let (key, number) = read().map_err(malformed)?;
    Ok((key.map_or(Ok(""), |key| text(key, "name of a parameter"))?, number))
}

/// An `InferRequestedOutputTensor`.
fn read_output(bytes: &[u8], signature: &Signature, wanted: &mut Vec<Wanted>) -> Result<(), Fail> {
    let (mut name, mut how, mut fields) = ("", Wanted::default(), Fields::new(bytes));
    while let Some((number, value)) = fields.next().map_err(malformed)? {
        match number {
            1 => name = text(value, "name")?,
            2 => match parameter(value)? {
                ("classification", classes) => {
                    let classes = classes.and_then(|classes| u32::try_from(classes).ok());
                    how.classes = classes.ok_or_else(|| invalid(format!("output `{name}`: `classification` is no count")))? as usize;
                }
                (key, _) if key.starts_with(SHARED_MEMORY) => return Err(shared_memory()),
                _ => {}
            },
            _ => {}
        }
    }
    want(signature, name, how, wanted)
}

/// Writes the answer.
///
/// # Errors
/// [`wire::FailCode::ModelFailed`] when an output cannot be carried, [`wire::FailCode::TooLarge`] when the answer gets too long.
pub fn write(signature: &Signature, asked: &Asked<'_>, outputs: &[Part<'_, '_>], out: &mut Vec<u8>) -> Result<(), Fail> {
    out.clear();
    out.extend_from_slice(&signature.grpc_head);
    let mut answer = Writer::after(std::mem::take(out));
    answer.text(3, asked.id.unwrap_or_default());
    let mut tensors: Vec<Raw<'_, '_>> = Vec::new();
    for wanted in asked.wanted(signature) {
        let (Some(port), Some(value)) = (signature.outputs.get(wanted.index), outputs.get(wanted.index)) else { continue };
        let told = Told::of(port, *value, wanted.classes).map_err(|fail| of_output(port, fail))?;
        let head = if told.classes { two_texts(&port.name, "BYTES") } else { port.grpc_head.clone() };
        let mut entry = Writer::after(head);
        entry.packed(3, &told.shape);
        if let Some(labels) = &told.labels {
            entry.item(4, &text_parameter("labels", labels));
        }
        answer.item(5, entry.as_bytes());
        tensors.push(told.raw().map_err(|fail| of_output(port, fail))?);
    }
    for tensor in tensors {
        answer.begin(6, tensor.bytes());
        tensor.append(answer.bytes_mut())?;
    }
    *out = answer.into_bytes();
    Ok(())
}

/// An entry of a map of parameters with a text.
fn text_parameter(key: &str, value: &str) -> Vec<u8> {
    let mut parameter = Writer::default();
    parameter.item(3, value.as_bytes());
    let mut entry = Writer::default();
    entry.text(1, key);
    entry.item(2, parameter.as_bytes());
    entry.into_bytes()
}
