//! REST requests beside serde_json: the text as a whole document, and the protocol read off it the slow way.

use std::fmt;

use bytes::Bytes;
use half::f16;
use proptest::prelude::*;
use proptest::sample::Index;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use wire::FailCode;

use super::made_up::fuzz;
use super::{INPUTS, OUTPUTS, shown, signature};
use crate::json::DEPTH_MAX;
use crate::oip::ID_BYTES_MAX;
use crate::tensor::{Datatype, RANK_MAX, elements};

/// A document in which nothing was merged: fields may be there twice.
#[derive(Debug, Clone)]
enum Doc {
    Null,
    Flag(bool),
    Number(Number),
    /// Written as it is; never read.
    Verbatim(String),
    Text(String),
    List(Vec<Doc>),
    Object(Vec<(String, Doc)>),
}

impl<'de> Deserialize<'de> for Doc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Doc;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Doc, E> {
                Ok(Doc::Null)
            }
            fn visit_bool<E>(self, flag: bool) -> Result<Doc, E> {
                Ok(Doc::Flag(flag))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Doc, E> {
                Ok(Doc::Number(number.into()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Doc, E> {
                Ok(Doc::Number(number.into()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Doc, E> {
                Ok(Doc::Number(Number::from_f64(number).expect("JSON has no others")))
            }
            fn visit_str<E>(self, text: &str) -> Result<Doc, E> {
                Ok(Doc::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Doc, A::Error> {
                let mut list = vec![];
                while let Some(one) = all.next_element()? {
                    list.push(one);
                }
                Ok(Doc::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Doc, A::Error> {
                let mut fields = vec![];
                while let Some(field) = all.next_entry()? {
                    fields.push(field);
                }
                Ok(Doc::Object(fields))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl Doc {
    fn write(&self, spaces: &mut impl Iterator<Item = u8>, out: &mut String) {
        let blank = [" ", "", "\n", "", "\t ", "", ""];
        let mut put = |out: &mut String, text: &str| {
            out.push_str(blank[usize::from(spaces.next().unwrap_or(1)) % blank.len()]);
            out.push_str(text);
        };
        match self {
            Self::Null => put(out, "null"),
            Self::Flag(flag) => put(out, &flag.to_string()),
            Self::Number(number) => put(out, &number.to_string()),
            Self::Verbatim(text) => put(out, text),
            Self::Text(text) => put(out, &serde_json::to_string(text).unwrap()),
            Self::List(list) => {
                put(out, "[");
                for (at, one) in list.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    one.write(spaces, out);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                put(out, "{");
                for (at, (name, one)) in fields.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    out.push_str(&serde_json::to_string(name).unwrap());
                    out.push(':');
                    one.write(spaces, out);
                }
                out.push('}');
            }
        }
    }

    fn depth(&self) -> u32 {
        1 + match self {
            Self::List(list) => list.iter().map(Self::depth).max().unwrap_or(0),
            Self::Object(fields) => fields.iter().map(|(_, one)| one.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// All values in the document, this one first.
    fn count(&self) -> usize {
        1 + match self {
            Self::List(list) => list.iter().map(Self::count).sum(),
            Self::Object(fields) => fields.iter().map(|(_, one)| one.count()).sum::<usize>(),
            _ => 0,
        }
    }

    fn nth(&mut self, at: &mut usize) -> Option<&mut Self> {
        if *at == 0 {
            return Some(self);
        }
        *at -= 1;
        match self {
            Self::List(list) => list.iter_mut().find_map(|one| one.nth(at)),
            Self::Object(fields) => fields.iter_mut().find_map(|(_, one)| one.nth(at)),
            _ => None,
        }
    }
}

/// Fields of an object whose names are known and there at most once; `None` when it is none, or has others.
fn fields<'d, const N: usize>(doc: &'d Doc, names: [&str; N]) -> Option<[Option<&'d Doc>; N]> {
    let Doc::Object(all) = doc else { return None };
    let mut found = [None; N];
    for (name, value) in all {
        let at = names.iter().position(|known| known == name)?;
        if found[at].replace(value).is_some() {
            return None;
        }
    }
    Some(found)
}

fn whole(number: &Number) -> Option<i128> {
    let negative_zero = number.as_f64().is_some_and(|value| value == 0.0 && value.is_sign_negative());
    match (number.as_u64(), number.as_i64()) {
        (Some(number), _) => Some(number.into()),
        (None, Some(number)) => Some(number.into()),
        // `-0` is a whole number to everybody but the library, which cannot tell it from `-0.0`.
        _ => negative_zero.then_some(0),
    }
}

/// A number of parameters: of type u32.
fn count(doc: &Doc) -> Option<u32> {
    if let Doc::Number(number) = doc { whole(number)?.try_into().ok() } else { None }
}

/// Whether parameters are well-formed; `binary_data_size` of them.
fn parameters(doc: Option<&Doc>) -> Option<Option<u32>> {
    let Some(doc) = doc else { return Some(None) };
    let Doc::Object(all) = doc else { return None };
    let mut size = None;
    for (name, value) in all {
        match name.as_str() {
            "binary_data_size" => size = Some(count(value)?),
            "classification" => drop(count(value)?),
            "binary_data" | "binary_data_output" if !matches!(value, Doc::Flag(_)) => return None,
            "binary_data" | "binary_data_output" => {}
            shared if shared.starts_with("shared_memory_") => return None,
            _ if value.depth() > DEPTH_MAX => return None,
            _ => {}
        }
    }
    Some(size)
}

/// One element as the buffer shows it.
fn element(datatype: Datatype, doc: &Doc) -> Option<String> {
    macro_rules! integer {
        ($type:ty, $number:expr) => {
            <$type>::try_from(whole($number)?).ok().map(|number| number.to_string())
        };
    }
    match (datatype, doc) {
        (Datatype::Bool, Doc::Flag(flag)) => Some(flag.to_string()),
        (Datatype::Bytes, Doc::Text(text)) if !text.contains('\0') => Some(format!("{text:?}")),
        (Datatype::Int64, Doc::Number(number)) => integer!(i64, number),
        (Datatype::Int8, Doc::Number(number)) => integer!(i8, number),
        (Datatype::Uint8, Doc::Number(number)) => integer!(u8, number),
        (Datatype::Uint64, Doc::Number(number)) => integer!(u64, number),
        (Datatype::Fp64, Doc::Number(number)) => number.as_f64().map(|number| format!("{number:?}")),
        // The library reads all floats as of 64 bits; of these texts none lies where rounding twice tells.
        (Datatype::Fp32, Doc::Number(number)) => {
            number.as_f64().map(|number| number as f32).filter(|number| number.is_finite()).map(|number| format!("{number:?}"))
        }
        (Datatype::Fp16, Doc::Number(number)) => {
            number.as_f64().map(f16::from_f64).filter(|number| number.is_finite()).map(|number| format!("{number:?}"))
        }
        _ => None,
    }
}

/// The elements of `data`, flat or nested as the shape says.
fn data(datatype: Datatype, shape: &[i64], doc: &Doc, nested: bool, into: &mut Vec<String>) -> Option<()> {
    let Doc::List(list) = doc else { return None };
    if !nested {
        return list.iter().try_for_each(|one| element(datatype, one).map(|one| into.push(one)));
    }
    let (length, inner) = shape.split_first()?;
    if list.len() != usize::try_from(*length).ok()? {
        return None;
    }
    for one in list {
        match one {
            Doc::List(_) => data(datatype, inner, one, true, into)?,
            one if inner.is_empty() => into.push(element(datatype, one)?),
            _ => return None,
        }
    }
    Some(())
}

/// What the buffers of a model with these inputs hold after this request; `None` when it must be refused.
fn expected(places: &[usize], doc: &Doc, body_bytes: usize) -> Option<Vec<String>> {
    // What the address says already may be repeated, even twice.
    let Doc::Object(all) = doc else { return None };
    let (ignored, rest): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|(name, _)| name == "model_name" || name == "model_version");
    if ignored.iter().any(|(_, value)| value.depth() > DEPTH_MAX) {
        return None;
    }
    let rest = Doc::Object(rest);
    let [id, inputs, outputs, own] = fields(&rest, ["id", "inputs", "outputs", "parameters"])?;
    if id.is_some_and(|id| !matches!(id, Doc::Text(_))) {
        return None;
    }
    parameters(own)?;
    let mut wanted = vec![];
    match outputs {
        Some(Doc::List(all)) => {
            for output in all {
                let [name, own] = fields(output, ["name", "parameters"])?;
                parameters(own)?;
                let Some(Doc::Text(name)) = name else { return None };
                if !OUTPUTS.contains(&name.as_str()) || wanted.contains(name) {
                    return None;
                }
                wanted.push(name.clone());
            }
        }
        Some(_) => return None,
        None => {}
    }
    let mut held = vec![None; places.len()];
    match inputs {
        Some(Doc::List(all)) => {
            for one in all {
                let (place, shown) = input(places, one, body_bytes)?;
                if held[place].replace(shown).is_some() {
                    return None;
                }
            }
        }
        Some(_) => return None,
        None => {}
    }
    held.into_iter().collect()
}

fn input(places: &[usize], doc: &Doc, body_bytes: usize) -> Option<(usize, String)> {
    let [name, shape, datatype, content, own] = fields(doc, ["name", "shape", "datatype", "data", "parameters"])?;
    let size = parameters(own)?;
    let (Doc::Text(name), Doc::List(dimensions), Doc::Text(datatype)) = (name?, shape?, datatype?) else { return None };
    let place = places.iter().position(|at| INPUTS[*at].0 == name)?;
    let (_, known, declared) = INPUTS[places[place]];
    let dimension = |doc: &Doc| match doc {
        Doc::Number(number) => i64::try_from(whole(number)?).ok().filter(|one| *one >= 0),
        _ => None,
    };
    let shape = dimensions.iter().map(dimension).collect::<Option<Vec<i64>>>()?;
    let fits = declared.is_empty() || (declared.len() == shape.len() && declared.iter().zip(&shape).all(|(a, b)| *a < 0 || a == b));
    if datatype != known.name() || !fits || shape.len() > RANK_MAX {
        return None;
    }
    let count = elements(&shape).ok().filter(|count| *count <= body_bytes)?;
    let Some(content) = content else {
        // No bytes are behind the JSON: nothing but an empty tensor can be there.
        return (size == Some(0) && count == 0).then(|| (place, shown(&shape, known, "[]")));
    };
    if size.is_some() {
        return None;
    }
    let nested = matches!(content, Doc::List(list) if matches!(list.first(), Some(Doc::List(_))));
    let mut all = vec![];
    data(known, &shape, content, nested, &mut all)?;
    (all.len() == count).then(|| (place, shown(&shape, known, &format!("[{}]", all.join(", ")))))
}

/// Texts of numbers, most of them good for something.
fn number() -> impl Strategy<Value = Doc> {
    let text = prop_oneof![
        5 => "-?(0|[1-9][0-9]{0,2})",
        2 => "-?(0|[1-9][0-9]{0,6})\\.[0-9]{1,4}",
        1 => "-?[1-9][0-9]{0,25}([eE][-+]?[0-9]{1,2})?",
        1 => prop::sample::select(&["-0", "-0.0", "0e9", "1E+2", "127", "128", "255", "256", "65504", "65520", "9223372036854775807",
            "9223372036854775808", "18446744073709551615", "18446744073709551616", "1e39", "3.5e38", "1e-50", "01", "1.", ".5", "+1", "NaN", "0x1"][..])
            .prop_map(str::to_owned),
    ];
    text.prop_map(Doc::Verbatim)
}

fn good(datatype: Datatype) -> BoxedStrategy<Doc> {
    match datatype {
        Datatype::Bool => any::<bool>().prop_map(Doc::Flag).boxed(),
        Datatype::Bytes => "\\PC{0,6}".prop_map(Doc::Text).boxed(),
        Datatype::Uint8 | Datatype::Uint64 => "0|[1-9][0-9]?".prop_map(Doc::Verbatim).boxed(),
        Datatype::Int8 | Datatype::Int64 => "-?(0|[1-9][0-9]?)".prop_map(Doc::Verbatim).boxed(),
        _ => number().prop_filter("a float that all take", |doc| matches!(doc, Doc::Verbatim(text) if text.parse::<f64>().is_ok_and(|v| v.abs() < 6e4) && serde_json::from_str::<f64>(text).is_ok())).boxed(),
    }
}

/// An input as a client writes it, flat or nested.
fn good_input(place: usize) -> BoxedStrategy<Doc> {
    let (name, datatype, declared) = INPUTS[place];
    (0usize..4, any::<bool>(), prop::collection::vec(good(datatype), 8))
        .prop_map(move |(rows, nested, elements)| {
            let shape: Vec<usize> = declared.iter().map(|one| usize::try_from(*one).unwrap_or(rows)).collect();
            let count = shape.iter().product();
            let mut data: Vec<Doc> = elements.into_iter().take(count).collect();
            if nested && shape.len() == 2 && shape[1] > 0 {
                data = data.chunks(shape[1]).map(|row| Doc::List(row.to_vec())).collect();
            }
            let shape = shape.iter().map(|one| Doc::Number((*one).into())).collect();
            Doc::Object(vec![
                ("name".to_owned(), Doc::Text(name.to_owned())),
                ("shape".to_owned(), Doc::List(shape)),
                ("datatype".to_owned(), Doc::Text(datatype.name().to_owned())),
                ("data".to_owned(), Doc::List(data)),
            ])
        })
        .boxed()
}

fn request() -> impl Strategy<Value = (Vec<usize>, Doc)> {
    let places = prop::sample::subsequence((0..INPUTS.len()).collect::<Vec<_>>(), 1..4).prop_shuffle();
    places.prop_flat_map(|places| {
        let inputs: Vec<_> = places.iter().map(|at| good_input(*at)).collect();
        let outputs = prop::option::of(prop::sample::subsequence(OUTPUTS.to_vec(), 0..=2));
        (Just(places), inputs, outputs, prop::option::of("\\PC{0,8}")).prop_map(|(places, inputs, outputs, id)| {
            let mut all = vec![("inputs".to_owned(), Doc::List(inputs))];
            all.extend(id.map(|id| ("id".to_owned(), Doc::Text(id))));
            all.extend(outputs.map(|names| {
                let named = |name: &&str| Doc::Object(vec![("name".to_owned(), Doc::Text((*name).to_owned()))]);
                ("outputs".to_owned(), Doc::List(names.iter().map(named).collect()))
            }));
            (places, Doc::Object(all))
        })
    })
}

/// What can be done to a document.
#[derive(Debug, Clone)]
enum Change {
    Replace(Index, Doc),
    Remove(Index, Index),
    Repeat(Index, Index),
    Swap(Index, Index),
    Add(Index, String, Doc),
    Wrap(Index, u32),
}

fn change() -> impl Strategy<Value = Change> {
    let leaf = prop_oneof![
        4 => number(),
        1 => Just(Doc::Null),
        1 => any::<bool>().prop_map(Doc::Flag),
        2 => ".{0,4}".prop_map(Doc::Text),
        1 => prop::sample::select(&["FP32", "INT64", "x", "word", "label", "scores", "none"][..]).prop_map(|text| Doc::Text(text.to_owned())),
        1 => Just(Doc::Verbatim("\"\\ud800\"".to_owned())),
        1 => Just(Doc::Verbatim("\"\\u0000\\ud83d\\ude00\"".to_owned())),
        1 => Just(Doc::List(vec![])),
        1 => Just(Doc::Object(vec![])),
    ];
    let name = prop::sample::select(
        &[
            "id",
            "inputs",
            "outputs",
            "parameters",
            "model_name",
            "name",
            "shape",
            "datatype",
            "data",
            "binary_data_size",
            "binary_data",
            "binary_data_output",
            "classification",
            "shared_memory_region",
            "other",
        ][..],
    );
    let name = name.prop_map(str::to_owned).boxed();
    let tuned = (name.clone(), leaf.clone()).prop_map(|(name, value)| Doc::Object(vec![(name, value)]));
    prop_oneof![
        3 => (any::<Index>(), leaf.clone()).prop_map(|(at, to)| Change::Replace(at, to)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(at, which)| Change::Remove(at, which)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(at, which)| Change::Repeat(at, which)),
        3 => (any::<Index>(), any::<Index>()).prop_map(|(at, by)| Change::Swap(at, by)),
        1 => (any::<Index>(), name, leaf).prop_map(|(at, name, value)| Change::Add(at, name, value)),
        2 => (any::<Index>(), tuned).prop_map(|(at, value)| Change::Add(at, "parameters".to_owned(), value)),
        1 => (any::<Index>(), prop_oneof![1u32..3, 29u32..34]).prop_map(|(at, levels)| Change::Wrap(at, levels)),
    ]
}

fn changed(mut doc: Doc, changes: &[Change]) -> Doc {
    for change in changes {
        let all = doc.count();
        let at = match change {
            Change::Replace(at, _)
            | Change::Remove(at, _)
            | Change::Repeat(at, _)
            | Change::Swap(at, _)
            | Change::Add(at, ..)
            | Change::Wrap(at, _) => at,
        };
        let Some(one) = doc.nth(&mut at.index(all)) else { continue };
        match (change, one) {
            (Change::Replace(_, to), one) => *one = to.clone(),
            (Change::Wrap(_, levels), one) => {
                for _ in 0..*levels {
                    *one = Doc::List(vec![std::mem::replace(one, Doc::Null)]);
                }
            }
            (Change::Remove(_, which), Doc::List(list)) if !list.is_empty() => drop(list.remove(which.index(list.len()))),
            (Change::Remove(_, which), Doc::Object(list)) if !list.is_empty() => drop(list.remove(which.index(list.len()))),
            (Change::Repeat(_, which), Doc::List(list)) if !list.is_empty() => list.push(list[which.index(list.len())].clone()),
            (Change::Repeat(_, which), Doc::Object(list)) if !list.is_empty() => list.push(list[which.index(list.len())].clone()),
            (Change::Swap(_, by), Doc::List(list)) if !list.is_empty() => {
                let by = by.index(list.len());
                list.rotate_left(by);
            }
            (Change::Swap(_, by), Doc::Object(list)) if !list.is_empty() => {
                let by = by.index(list.len());
                list.rotate_left(by);
            }
            (Change::Add(_, name, value), Doc::Object(list)) => list.push((name.clone(), value.clone())),
            _ => {}
        }
    }
    doc
}

#[test]
fn what_is_taken_is_what_a_whole_document_says() {
    let spaces = prop::collection::vec(any::<u8>(), 0..40);
    let byte = prop::option::weighted(0.3, (any::<Index>(), prop::sample::select(&b"{}[]\",:\\ 0123456789.-+eEtfnu\n\t\x01\x7f\xc3"[..])));
    let seen = std::cell::Cell::new([0u32; 2]);
    let cases = (request(), prop::collection::vec(change(), 0..4), spaces, byte);
    let done = fuzz(6_000, cases, |((places, doc), changes, spaces, byte)| {
        let (doc, mut text) = (changed(doc, &changes), String::new());
        doc.write(&mut spaces.into_iter(), &mut text);
        let untouched = changes.is_empty() && byte.is_none();
        let mut bytes = text.into_bytes();
        if let Some((at, to)) = byte {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        let expected = match serde_json::from_slice::<Doc>(&bytes) {
            Ok(doc) => expected(&places, &doc, bytes.len()),
            // A number past all floats where nobody reads it is no harm here, and an error there.
            Err(error) if error.to_string().contains("out of range") => return Ok(()),
            Err(_) => None,
        };
        let (body, signature) = (Bytes::from(bytes), signature(&places));
        let mut buffers = signature.buffers();
        let [mut taken, mut refused] = seen.get();
        let text = String::from_utf8_lossy(&body);
        match crate::oip::parse(&body, None, &signature, &mut buffers) {
            Ok(_) => {
                let held: Vec<String> =
                    buffers.iter().map(|buffer| format!("{buffer:?}").replace("raw: Some(b\"\")", "raw: None")).collect();
                prop_assert_eq!(Some(held), expected, "{}", text);
                taken += 1;
            }
            Err(fail) => {
                let long_id = fail.message.contains(&format!("longer than {ID_BYTES_MAX} bytes"));
                prop_assert!(long_id || expected.is_none(), "refused with `{}`: {}", fail.message, text);
                prop_assert!(!untouched, "a good request was refused with `{}`: {}", fail.message, text);
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
