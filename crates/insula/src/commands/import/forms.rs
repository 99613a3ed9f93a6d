//! What MLflow's REST API answers, as far as it is carried over. Fields that are absent are empty: protobuf leaves out what is.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// Key and value texts.
pub(crate) type Texts = BTreeMap<String, String>;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Pair {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
}

fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Texts, D::Error> {
    Ok(Vec::<Pair>::deserialize(from)?.into_iter().map(|Pair { key, value }| (key, value)).collect())
}

/// A number, or a text with one: older servers write 64 bits as texts.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    })
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct Experiment {
    pub(crate) experiment_id: String,
    pub(crate) name: String,
    lifecycle_stage: String,
    #[serde(deserialize_with = "number")]
    pub(crate) creation_time: Option<i64>,
    #[serde(deserialize_with = "texts")]
    pub(crate) tags: Texts,
}

#[derive(Debug, Deserialize)]
pub(crate) struct OneExperiment {
    pub(crate) experiment: Experiment,
}

impl Experiment {
    pub(crate) fn deleted(&self) -> bool {
        self.lifecycle_stage == "deleted"
    }
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct Run {
    pub(crate) info: RunInfo,
    pub(crate) data: RunData,
    inputs: Inputs,
    outputs: Outputs,
}

#[derive(Debug, Deserialize)]
pub(crate) struct OneRun {
    pub(crate) run: Run,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct RunInfo {
    pub(crate) run_id: String,
    pub(crate) run_name: String,
    pub(crate) experiment_id: String,
    pub(crate) user_id: String,
    pub(crate) status: String,
    #[serde(deserialize_with = "number")]
    pub(crate) start_time: Option<i64>,
    #[serde(deserialize_with = "number")]
    pub(crate) end_time: Option<i64>,
    pub(crate) artifact_uri: String,
    lifecycle_stage: String,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct RunData {
    pub(crate) metrics: Vec<Metric>,
    #[serde(deserialize_with = "texts")]
    pub(crate) params: Texts,
    #[serde(deserialize_with = "texts")]
    pub(crate) tags: Texts,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Inputs {
    dataset_inputs: Vec<Value>,
    model_inputs: Vec<ModelRef>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Outputs {
    model_outputs: Vec<ModelRef>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct ModelRef {
    model_id: String,
    #[serde(deserialize_with = "number")]
    step: Option<i64>,
}

impl Run {
    pub(crate) fn deleted(&self) -> bool {
        self.info.lifecycle_stage == "deleted"
    }

    /// What went in and came out, each under a key of its own, in the form in which it is compared and sent.
    pub(crate) fn linked(&self) -> BTreeMap<(Link, String), Value> {
        let mut linked = BTreeMap::new();
        for input in &self.inputs.dataset_inputs {
            let text = |pointer: &str| input.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let mut tags: Vec<Value> = input.get("tags").and_then(Value::as_array).cloned().unwrap_or_default();
            tags.sort_by_key(|tag| tag.get("key").and_then(Value::as_str).unwrap_or_default().to_owned());
            let mut dataset = json!({});
            for field in ["name", "digest", "source_type", "source", "schema", "profile"] {
                let text = text(&format!("/dataset/{field}"));
                if let (false, Some(dataset)) = (text.is_empty(), dataset.as_object_mut()) {
                    dataset.insert(field.to_owned(), text.into());
                }
            }
            let key = format!("{} {}", text("/dataset/name"), text("/dataset/digest"));
            linked.insert((Link::Dataset, key), json!({"dataset": dataset, "tags": tags}));
        }
        for input in &self.inputs.model_inputs {
            linked.insert((Link::ModelIn, input.model_id.clone()), json!({"model_id": input.model_id}));
        }
        for output in &self.outputs.model_outputs {
            let value = json!({"model_id": output.model_id, "step": output.step.unwrap_or_default()});
            linked.insert((Link::ModelOut, output.model_id.clone()), value);
        }
        linked
    }
}

/// How a run is linked with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    Dataset,
    ModelIn,
    ModelOut,
}

/// A metric with one point.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
pub(crate) struct Metric {
    pub(crate) key: String,
    #[serde(deserialize_with = "real")]
    value: f64,
    #[serde(deserialize_with = "number")]
    timestamp: Option<i64>,
    #[serde(deserialize_with = "number")]
    step: Option<i64>,
    pub(crate) run_id: String,
    pub(crate) dataset_name: String,
    pub(crate) dataset_digest: String,
}

fn real<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    match Value::deserialize(from)? {
        Value::Number(number) => Ok(number.as_f64().unwrap_or(f64::NAN)),
        // `NaN`, `Infinity`, `-Infinity`.
        Value::String(text) => text.parse().map_err(|_| serde::de::Error::custom(format!("`{text}` is not a number"))),
        other => Err(serde::de::Error::custom(format!("`{other}` is not a number"))),
    }
}

impl Metric {
    pub(crate) fn point(&self) -> Point {
        Point { timestamp: self.timestamp.unwrap_or_default(), step: self.step.unwrap_or_default(), value: self.value }
    }
}

/// One point of a metric.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    timestamp: i64,
    step: i64,
    value: f64,
}

impl Point {
    /// In the order of a history. All NaN are alike, and so are both zeros: so it is on both sides.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let value = self.value.partial_cmp(&other.value).unwrap_or_else(|| self.value.is_nan().cmp(&other.value.is_nan()));
        (self.timestamp, self.step).cmp(&(other.timestamp, other.step)).then(value)
    }

    /// As `log-batch` takes it.
    pub(crate) fn json(&self, key: &str) -> Value {
        let value = match self.value {
            value if value.is_finite() => json!(value),
            value if value.is_nan() => json!("NaN"),
            value if value > 0.0 => json!("Infinity"),
            _ => json!("-Infinity"),
        };
        json!({"key": key, "value": value, "timestamp": self.timestamp, "step": self.step})
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at step {}, time {}", self.value, self.step, self.timestamp)
    }
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct LoggedModel {
    pub(crate) info: LoggedModelInfo,
    pub(crate) data: LoggedModelData,
}

#[derive(Debug, Deserialize)]
pub(crate) struct OneLoggedModel {
    pub(crate) model: LoggedModel,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct LoggedModelInfo {
    pub(crate) model_id: String,
    pub(crate) experiment_id: String,
    pub(crate) name: String,
    pub(crate) model_type: String,
    pub(crate) source_run_id: String,
    pub(crate) artifact_uri: String,
    #[serde(deserialize_with = "status")]
    pub(crate) status: String,
    #[serde(deserialize_with = "number")]
    pub(crate) creation_timestamp_ms: Option<i64>,
    #[serde(deserialize_with = "texts")]
    pub(crate) tags: Texts,
}

/// A word, or its number in MLflow's protocol.
fn status<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(word) => word,
        Value::Number(number) => match number.as_u64() {
            Some(1) => "LOGGED_MODEL_PENDING".to_owned(),
            Some(2) => "LOGGED_MODEL_READY".to_owned(),
            Some(3) => "LOGGED_MODEL_UPLOAD_FAILED".to_owned(),
            _ => String::new(),
        },
        _ => String::new(),
    })
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct LoggedModelData {
    #[serde(deserialize_with = "texts")]
    pub(crate) params: Texts,
    pub(crate) metrics: Vec<Metric>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) description: String,
    #[serde(deserialize_with = "number")]
    pub(crate) creation_timestamp: Option<i64>,
    #[serde(deserialize_with = "texts")]
    pub(crate) tags: Texts,
    aliases: Vec<Alias>,
}

#[derive(Debug, Deserialize)]
struct Alias {
    alias: String,
    #[serde(deserialize_with = "number")]
    version: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct OneModel {
    pub(crate) registered_model: Model,
}

impl Model {
    /// Version by alias.
    pub(crate) fn aliases(&self) -> Texts {
        self.aliases.iter().map(|Alias { alias, version }| (alias.clone(), version.unwrap_or_default().to_string())).collect()
    }
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub(crate) struct Version {
    #[serde(deserialize_with = "number")]
    pub(crate) version: Option<i64>,
    pub(crate) source: String,
    pub(crate) run_id: String,
    pub(crate) run_link: String,
    pub(crate) model_id: String,
    pub(crate) description: String,
    pub(crate) user_id: String,
    pub(crate) current_stage: String,
    #[serde(deserialize_with = "number")]
    pub(crate) creation_timestamp: Option<i64>,
    #[serde(deserialize_with = "texts")]
    pub(crate) tags: Texts,
}

#[derive(Debug, Deserialize)]
pub(crate) struct OneVersion {
    pub(crate) model_version: Version,
}

/// An entry of a folder.
#[derive(Debug, Deserialize)]
pub(crate) struct FileInfo {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) is_dir: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_as_numbers_or_as_texts() {
        let metric: Metric = serde_json::from_str(r#"{"key":"m","value":"-Infinity","timestamp":"17","step":3}"#).unwrap();
        assert_eq!(metric.point().json("m"), json!({"key": "m", "value": "-Infinity", "timestamp": 17, "step": 3}));
        assert!(serde_json::from_str::<Metric>(r#"{"key":"m","value":"seven"}"#).is_err());
    }

    #[test]
    fn every_float_comes_over_as_it_is() {
        let mut bits = 0x3ff0_0000_0000_0001_u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = f64::from_bits(bits);
            if value.is_finite() {
                let text = json!({"value": value}).to_string();
                let read: Metric = serde_json::from_str(&text).unwrap();
                assert_eq!(read.value.to_bits(), value.to_bits(), "{text}");
            }
        }
    }

    #[test]
    fn a_history_has_one_order() {
        let point = |timestamp, step, value| Point { timestamp, step, value };
        assert!(point(1, 9, 0.0).order(&point(2, 0, 0.0)).is_lt());
        assert!(point(1, 1, f64::NAN).order(&point(1, 1, f64::INFINITY)).is_gt());
        assert!(point(1, 1, f64::NAN).order(&point(1, 1, -f64::NAN)).is_eq());
        assert!(point(1, 1, 0.0).order(&point(1, 1, -0.0)).is_eq());
    }
}
