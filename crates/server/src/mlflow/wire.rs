//! How MLflow's client writes: fields in a JSON body or in the query, 64-bit integers as numbers or as text.

use std::collections::BTreeMap;

use http::Method;
use serde::de::DeserializeOwned;
use serde::de::value::MapDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::{RawValue, to_raw_value};

use crate::api::Ask;
use crate::error::{Fail, Result};

/// The fields of a request by name, each still the JSON that was sent: of two with one name the later one.
#[derive(Debug, Default)]
pub(crate) struct Fields(BTreeMap<String, Box<RawValue>>);

impl Fields {
    /// Of the body, or of the query where there is no body. A query parameter that is there twice is a list.
    pub(crate) async fn of(ask: &mut Ask) -> Result<Self> {
        let mut query: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in ask.query_pairs()? {
            query.entry(name).or_default().push(value);
        }
        let mut fields = Self::default();
        for (name, values) in query {
            match values.as_slice() {
                [one] => fields.put(name, one)?,
                all => fields.put(name, all)?,
            }
        }
        if ask.method != Method::GET {
            let body = ask.bytes_taken().await?;
            if !body.is_empty() {
                fields.0.extend(of_body(&body)?);
            }
        }
        Ok(fields)
    }

    /// Adds or replaces one.
    pub(crate) fn put(&mut self, name: String, value: &(impl Serialize + ?Sized)) -> Result<()> {
        self.0.insert(name, to_raw_value(value).map_err(Fail::internal)?);
        Ok(())
    }

    /// One of them, by itself.
    pub(crate) fn value(&self, name: &str) -> Option<Value> {
        self.0.get(name).and_then(|raw| serde_json::from_str(raw.get()).ok())
    }

    /// All that `T` knows; others are ignored, as MLflow does.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        let fields = MapDeserializer::new(self.0.iter().map(|(name, raw)| (name.as_str(), &**raw)));
        T::deserialize(fields).map_err(|error: serde_json::Error| Fail::new("invalid", error.to_string()))
    }
}

fn of_body(body: &[u8]) -> Result<BTreeMap<String, Box<RawValue>>> {
    let wrong = |error: serde_json::Error| match error.classify() {
        Category::Data => Fail::new("json_invalid", "the body is not a JSON object"),
        _ => Fail::new("json_invalid", error.to_string()),
    };
    serde_json::from_slice(body).map_err(wrong)
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
