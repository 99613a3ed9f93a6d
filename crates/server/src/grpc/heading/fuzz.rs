//! The partial reader beside a whole one: messages as clients write them, damaged by somebody who knows how they are built.

#[path = "../../../../wire/tests/fuzz/mod.rs"]
mod made_up;

use std::collections::HashMap;

use made_up::{damage, damaged, fuzz};
use platform::wire::protobuf::{Fields, Value};
use proptest::prelude::*;
use prost::Message;

use super::{BYTES_MAX, FIELD_BYTES_MAX, Heading};

/// `ModelInferRequest` as another implementation knows it, whole.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(map = "string, message", tag = "4")]
    parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<Input>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw_input_contents: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(int64, tag = "2")]
    int64_param: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Input {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
}

fn request() -> impl Strategy<Value = Request> {
    let text = prop_oneof![6 => "[a-z]{0,12}", 1 => "\\PC{0,300}", 1 => ".{0,20}"];
    let tensor = prop::collection::vec(any::<u8>(), 0..40);
    (text, "[0-9]{0,5}", "[a-z0-9-]{0,40}", any::<bool>(), prop::collection::vec(tensor, 0..3)).prop_map(
        |(name, version, id, tuned, raw)| {
            let input = Input { name: "x".to_owned(), datatype: "FP32".to_owned(), shape: vec![-1, 4] };
            Request {
                model_name: name,
                model_version: version,
                id,
                parameters: tuned.then(|| ("priority".to_owned(), Parameter { int64_param: 3 })).into_iter().collect(),
                inputs: vec![input; raw.len()],
                raw_input_contents: raw,
            }
        },
    )
}

/// What the cell demands before it answers: the three fields first, in their order, each once.
fn is_in_order(bytes: &[u8]) -> bool {
    let (mut fields, mut last) = (Fields::new(bytes), 0);
    loop {
        match fields.next() {
            Ok(Some((number, value))) if number > 3 || (number > last && matches!(value, Value::Bytes(_))) => last = number,
            Ok(None) => return true,
            Ok(Some(_)) | Err(_) => return false,
        }
    }
}

/// Where the key of the first other field ends.
fn end_of_heading(bytes: &[u8]) -> Option<usize> {
    let other = |bytes: &[u8]| {
        let mut fields = Fields::new(bytes);
        while let Ok(Some(key)) = fields.key() {
            if key.number > 3 {
                return true;
            }
            if fields.value(key).is_err() {
                break;
            }
        }
        false
    };
    (0..=bytes.len()).find(|end| other(&bytes[..*end]))
}

fn heading(request: &Request) -> Heading {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    Heading { name: request.model_name.clone(), version: some(&request.model_version), id: some(&request.id) }
}

/// Texts that the reader takes: neither too long nor with control characters.
fn is_clean(heading: &Heading) -> bool {
    let texts = [Some(&heading.name), heading.version.as_ref(), heading.id.as_ref()];
    let each = texts.into_iter().zip(FIELD_BYTES_MAX).filter_map(|(text, bytes_max)| Some((text?, bytes_max)));
    each.into_iter().all(|(text, bytes_max)| text.len() <= bytes_max && !text.chars().any(char::is_control))
}

/// An id that is there and empty is none, to whoever reads the whole.
fn without_empty(heading: Heading) -> Heading {
    Heading { id: heading.id.filter(|id| !id.is_empty()), ..heading }
}

#[test]
fn what_is_read_is_what_a_whole_reader_reads() {
    let whole = std::cell::Cell::new([0u32; 2]);
    let done = fuzz(10_000, (request(), damage()), |(request, damage)| {
        let bytes = damaged(&request.encode_to_vec(), &damage);
        let read = Heading::read(&bytes).map(without_empty);
        let [mut agreed, mut refused] = whole.get();
        match (read, Request::decode(&bytes[..])) {
            // Where the cell would answer, both must mean the same.
            (Ok(read), Ok(other)) if is_in_order(&bytes) => {
                prop_assert_eq!(read, heading(&other));
                agreed += 1;
            }
            (Err(fail), Ok(other)) => {
                prop_assert!(!is_in_order(&bytes) || !is_clean(&heading(&other)), "refused without a reason: {:?}", fail);
                refused += 1;
            }
            _ => {}
        }
        whole.set([agreed, refused]);
        Ok(())
    });
    let [agreed, refused] = whole.get();
    assert!(agreed > done / 8 && refused > done / 50, "the cases say something: {agreed} agreed, {refused} refused");
}

#[test]
fn nothing_behind_the_first_fields_is_read() {
    fuzz(10_000, (request(), damage(), prop::collection::vec(any::<u8>(), 0..64)), |(request, damage, rest)| {
        let bytes = damaged(&request.encode_to_vec(), &damage);
        let read = |bytes: &[u8]| Heading::read(bytes).map_err(|fail| fail.code());
        // A cut at what is looked at changes nothing.
        prop_assert_eq!(read(&bytes), read(&bytes[..bytes.len().min(BYTES_MAX)]));
        // The first field of another number ends the reading: its value, and all that follows, can be anything.
        if let Some(end) = end_of_heading(&bytes).filter(|end| *end < BYTES_MAX) {
            prop_assert_eq!(read(&[&bytes[..end], &rest].concat()), read(&bytes));
        }
        Ok(())
    });
}
