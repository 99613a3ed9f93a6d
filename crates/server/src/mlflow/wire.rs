//! How MLflow's client writes: fields in a JSON body or in the query, 64-bit integers as numbers or as text.

use http::Method;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::api::Ask;
use crate::error::{Fail, Result};

/// The fields of a request: of its body, or of its query where it has no body. A query parameter that is there twice is a list.
pub(crate) async fn fields(ask: &mut Ask) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    for (name, value) in ask.query_pairs()? {
        let value = Value::String(value);
        match fields.get_mut(&name) {
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
            None => drop(fields.insert(name, value)),
        }
    }
    if ask.method == Method::GET {
        return Ok(fields);
    }
    let body = ask.bytes_taken().await?;
    if body.is_empty() {
        return Ok(fields);
    }
    match serde_json::from_slice(&body) {
        Ok(Value::Object(of_body)) => {
            fields.extend(of_body);
            Ok(fields)
        }
        Ok(_) => Err(Fail::new("json_invalid", "the body is not a JSON object")),
        Err(error) => Err(Fail::new("json_invalid", error.to_string())),
    }
}

/// An integer of 64 bits, given as a number or as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Int(pub(crate) i64);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        let number = match &value {
            Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.map(Self).ok_or_else(|| serde::de::Error::custom(format!("`{}` is not an integer of 64 bits", shown(&value))))
    }
}

/// Exactly an integer.
#[expect(clippy::cast_possible_truncation, reason = "within the bounds that are asked for first")]
fn whole(number: f64) -> Option<i64> {
    /// From here on not every integer is a number.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT_MAX).then_some(number as i64)
}

/// A text that is there once, or several times, in a query.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMore {
            One(String),
            More(Vec<String>),
        }
        Ok(Self(match OneOrMore::deserialize(from)? {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }))
    }
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_are_numbers_or_texts() {
        for (given, expected) in
            [(json!(7), 7), (json!("7"), 7), (json!(-1), -1), (json!(1.0), 1), (json!("9223372036854775807"), i64::MAX)]
        {
            assert_eq!(serde_json::from_value::<Int>(given).unwrap(), Int(expected));
        }
        for bad in [json!(1.5), json!("x"), json!(""), json!(null), json!([1]), json!(1e300), json!("9223372036854775808")] {
            assert!(serde_json::from_value::<Int>(bad.clone()).is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_value(Int(3)).unwrap(), json!(3));
    }

    #[test]
    fn texts_come_alone_or_in_lists() {
        assert_eq!(serde_json::from_value::<Texts>(json!("a")).unwrap().0, ["a"]);
        assert_eq!(serde_json::from_value::<Texts>(json!(["a", "b"])).unwrap().0, ["a", "b"]);
        assert!(serde_json::from_value::<Texts>(json!(1)).is_err());
    }
}
