//! `ModelInferRequest` beside prost.

use bytes::Bytes;
use half::f16;
use proptest::prelude::*;
use prost::Message;
use wire::FailCode;

use super::made_up::{damage, damaged, fuzz};
use super::{INPUTS, OUTPUTS, shown, signature};
use crate::tensor::{Datatype, elements};

/// The message without the fields that nobody here reads. Name and version are the service's to read: here only their place counts.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(bytes = "vec", tag = "1")]
    model_name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    model_version: Vec<u8>,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<Input>,
    #[prost(message, repeated, tag = "6")]
    outputs: Vec<Output>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw_input_contents: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Input {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
struct Output {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Contents {
    #[prost(bool, repeated, tag = "1")]
    bool_contents: Vec<bool>,
    #[prost(int32, repeated, tag = "2")]
    int_contents: Vec<i32>,
    #[prost(int64, repeated, tag = "3")]
    int64_contents: Vec<i64>,
    #[prost(uint32, repeated, tag = "4")]
    uint_contents: Vec<u32>,
    #[prost(uint64, repeated, tag = "5")]
    uint64_contents: Vec<u64>,
    #[prost(float, repeated, tag = "6")]
    fp32_contents: Vec<f32>,
    #[prost(double, repeated, tag = "7")]
    fp64_contents: Vec<f64>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    bytes_contents: Vec<Vec<u8>>,
}

fn strings(all: &[Vec<u8>]) -> Vec<String> {
    all.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
}

/// Elements out of typed contents.
fn typed(datatype: Datatype, contents: &Contents) -> String {
    match datatype {
        Datatype::Bool => format!("{:?}", contents.bool_contents),
        Datatype::Int8 => format!("{:?}", contents.int_contents),
        Datatype::Int64 => format!("{:?}", contents.int64_contents),
        Datatype::Uint8 => format!("{:?}", contents.uint_contents),
        Datatype::Uint64 => format!("{:?}", contents.uint64_contents),
        Datatype::Fp32 => format!("{:?}", contents.fp32_contents),
        Datatype::Fp64 => format!("{:?}", contents.fp64_contents),
        Datatype::Bytes => format!("{:?}", strings(&contents.bytes_contents)),
        other => panic!("{other:?} has no contents"),
    }
}

/// Elements out of their binary form.
fn raw(datatype: Datatype, raw: &[u8]) -> String {
    macro_rules! numbers {
        ($type:ty) => {
            format!(
                "{:?}",
                raw.chunks_exact(size_of::<$type>()).map(|one| <$type>::from_le_bytes(one.try_into().unwrap())).collect::<Vec<_>>()
            )
        };
    }
    match datatype {
        Datatype::Bool => format!("{:?}", raw.iter().map(|byte| *byte != 0).collect::<Vec<_>>()),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int64 => numbers!(i64),
        Datatype::Uint8 => numbers!(u8),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Fp16 => numbers!(f16),
        Datatype::Fp32 => numbers!(f32),
        Datatype::Fp64 => numbers!(f64),
        Datatype::Bytes => {
            let (mut rest, mut all) = (raw, vec![]);
            while let Some((length, behind)) = rest.split_first_chunk::<4>() {
                let (string, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
                all.push(string.to_vec());
                rest = behind;
            }
            format!("{:?}", strings(&all))
        }
        other => panic!("{other:?} is not asked for"),
    }
}

fn contents(datatype: Datatype, seed: u64, count: usize) -> Contents {
    let number = |at: usize| (seed.rotate_left(u32::try_from(at).unwrap() * 7) as i64) >> (at % 60);
    let each = 0..count;
    let mut contents = Contents::default();
    match datatype {
        Datatype::Bool => contents.bool_contents = each.map(|at| number(at) % 2 == 0).collect(),
        Datatype::Int8 => contents.int_contents = each.map(|at| i32::from(number(at) as i8)).collect(),
        Datatype::Int64 => contents.int64_contents = each.map(number).collect(),
        Datatype::Uint8 => contents.uint_contents = each.map(|at| u32::from(number(at) as u8)).collect(),
        Datatype::Uint64 => contents.uint64_contents = each.map(|at| number(at) as u64).collect(),
        Datatype::Fp32 => contents.fp32_contents = each.map(|at| number(at) as f32 / 7.0).collect(),
        Datatype::Fp64 => contents.fp64_contents = each.map(|at| number(at) as f64 / 7.0).collect(),
        Datatype::Bytes => contents.bytes_contents = each.map(|at| format!("é{}", number(at) % 100).into_bytes()).collect(),
        _ => {}
    }
    contents
}

/// The same elements in binary form.
fn bytes(datatype: Datatype, contents: &Contents, count: usize) -> Vec<u8> {
    match datatype {
        Datatype::Bool => contents.bool_contents.iter().map(|flag| u8::from(*flag)).collect(),
        Datatype::Int8 => contents.int_contents.iter().map(|number| *number as u8).collect(),
        Datatype::Int64 => contents.int64_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
        Datatype::Uint8 => contents.uint_contents.iter().map(|number| *number as u8).collect(),
        Datatype::Uint64 => contents.uint64_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
        Datatype::Fp16 => (0..count).flat_map(|at| f16::from_f32(at as f32 * 1.5).to_le_bytes()).collect(),
        Datatype::Fp32 => contents.fp32_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
        Datatype::Fp64 => contents.fp64_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
        _ => contents.bytes_contents.iter().flat_map(|one| [&u32::try_from(one.len()).unwrap().to_le_bytes()[..], one].concat()).collect(),
    }
}

/// A request as a client writes it, for a model with these inputs.
fn request() -> impl Strategy<Value = (Vec<usize>, Request)> {
    let places = prop::sample::subsequence((0..INPUTS.len()).collect::<Vec<_>>(), 1..4).prop_shuffle();
    (places, any::<u64>(), 0usize..4, any::<bool>(), prop::sample::subsequence(OUTPUTS.to_vec(), 0..=2), "[a-z]{0,9}").prop_map(
        |(places, seed, rows, in_binary, wanted, id)| {
            // There is no typed form of a half.
            let in_binary = in_binary || places.iter().any(|at| INPUTS[*at].1 == Datatype::Fp16);
            let (mut inputs, mut tensors) = (vec![], vec![]);
            for (name, datatype, declared) in places.iter().map(|at| INPUTS[*at]) {
                let rows = i64::try_from(rows).unwrap();
                let shape: Vec<i64> = declared.iter().map(|one| if *one < 0 { rows } else { *one }).collect();
                let count = elements(&shape).unwrap();
                let of = contents(datatype, seed, count);
                tensors.push(bytes(datatype, &of, count));
                let contents = (!in_binary).then_some(of);
                inputs.push(Input { name: name.to_owned(), datatype: datatype.name().to_owned(), shape, contents });
            }
            let outputs = wanted.iter().map(|name| Output { name: (*name).to_owned() }).collect();
            let raw_input_contents = if in_binary { tensors } else { vec![] };
            (places, Request { model_name: b"m".to_vec(), model_version: b"1".to_vec(), id, inputs, outputs, raw_input_contents })
        },
    )
}

/// What the buffers must hold after this request: the elements, or their bytes as they lie in the message.
fn expected(places: &[usize], request: &Request) -> Vec<[String; 2]> {
    let of = |at: &usize| {
        let (name, datatype, _) = INPUTS[*at];
        let place = request.inputs.iter().position(|input| input.name == name).expect("an input that was not given was accepted");
        let input = &request.inputs[place];
        assert_eq!(input.datatype, datatype.name());
        let bytes = request.raw_input_contents.get(place);
        let elements = match bytes {
            Some(bytes) => raw(datatype, bytes),
            None => typed(datatype, input.contents.as_ref().unwrap_or(&Contents::default())),
        };
        let as_they_lie = format!("raw: {:?} }}", bytes.map(|bytes| Bytes::copy_from_slice(bytes)));
        [shown(&input.shape, datatype, &elements), shown(&input.shape, datatype, "[]").replace("raw: None }", &as_they_lie)]
    };
    places.iter().map(of).collect()
}

#[test]
fn what_is_taken_is_what_prost_decodes() {
    let seen = std::cell::Cell::new([0u32; 2]);
    let done = fuzz(12_000, (request(), damage()), |((places, request), damage)| {
        let whole = request.encode_to_vec();
        let body = Bytes::from(damaged(&whole, &damage));
        let signature = signature(&places);
        let mut buffers = signature.buffers();
        let [mut taken, mut refused] = seen.get();
        match crate::grpc::parse(&body, &signature, &mut buffers) {
            Ok(asked) => {
                let decoded = Request::decode(&body[..]);
                prop_assert!(decoded.is_ok(), "taken, and prost says: {:?}", decoded);
                let decoded = decoded.unwrap();
                prop_assert_eq!(asked.id.unwrap_or_default(), &decoded.id);
                let wanted: Vec<&str> = asked.outputs.iter().flatten().map(|wanted| OUTPUTS[wanted.index]).collect();
                let names: Vec<&str> = decoded.outputs.iter().map(|output| output.name.as_str()).collect();
                prop_assert_eq!(wanted, names);
                for (buffer, expected) in buffers.iter().zip(expected(&places, &decoded)) {
                    let held = format!("{buffer:?}");
                    prop_assert!(expected.contains(&held), "{} is not {}", held, expected[0]);
                }
                // What the service has read of the message, from its first fields alone.
                let (mut fields, mut first) = (wire::protobuf::Fields::new(&body), [None; 3]);
                while let Ok(Some((number @ 1..=3, wire::protobuf::Value::Bytes(text)))) = fields.next() {
                    first[number as usize - 1].get_or_insert(text);
                }
                let first = first.map(Option::unwrap_or_default);
                let decoded = [&decoded.model_name[..], &decoded.model_version, decoded.id.as_bytes()];
                prop_assert_eq!(first, decoded, "the service has read something else");
                taken += 1;
            }
            Err(fail) => {
                prop_assert!(body[..] != whole[..], "a good request was refused: {}", fail.message);
                prop_assert!(matches!(fail.code, FailCode::Invalid | FailCode::Unsupported), "{:?}", fail);
                refused += 1;
            }
        }
        seen.set([taken, refused]);
        Ok(())
    });
    let [taken, refused] = seen.get();
    assert!(taken > done / 8 && refused > done / 8, "the cases say something: {taken} taken, {refused} refused");
}
