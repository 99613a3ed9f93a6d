//! What is said about data sets and training.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Load;

/// File formats of a data set. Told from content, never from a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Comma-separated values, RFC 4180, first row is the header.
    Csv,
    /// One JSON object a line.
    Ndjson,
    /// Apache Parquet.
    Parquet,
    /// Apache Arrow IPC, file or stream.
    Arrow,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnKind {
    /// Whole numbers.
    Integer,
    /// Numbers.
    Number,
    /// `true` and `false`.
    Boolean,
    /// Text.
    Text,
    /// Dates and times.
    Time,
    /// No value in any row.
    Empty,
    /// Lists, structures, bytes: kept and counted, not used for training.
    Other,
}

/// Read the data set of `source_bytes` bytes, check every row, and report schema, count and statistics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inspect {
    /// Length of the source in bytes; pulled by `Read`.
    pub source_bytes: u64,
    /// Demanded format; `None` to tell it from the content.
    pub format: Option<Format>,
    /// Most rows.
    pub rows_max: u64,
    /// Most columns.
    pub columns_max: u32,
}

/// Result of [`Inspect`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inspection {
    /// Format found.
    pub format: Format,
    /// Rows, the header not counted.
    pub rows: u64,
    /// Columns in file order.
    pub columns: Vec<ColumnSummary>,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnSummary {
    /// Name as in the file.
    pub name: String,
    /// What it holds.
    pub kind: ColumnKind,
    /// Statistics over all rows.
    pub statistics: ColumnStatistics,
}

/// Statistics of one column. Numeric fields are absent where they make no sense.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnStatistics {
    /// Rows without a value (empty cell, null, NaN).
    pub missing: u64,
    /// Distinct values; exact up to 1,000, then absent.
    pub distinct: Option<u64>,
    /// Smallest number.
    pub min: Option<f64>,
    /// Largest number.
    pub max: Option<f64>,
    /// Arithmetic mean.
    pub mean: Option<f64>,
    /// Sample standard deviation.
    pub standard_deviation: Option<f64>,
    /// Most frequent texts with their counts, at most ten, for text columns with few distinct values.
    pub top: Vec<(String, u64)>,
}

/// Read a few rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preview {
    /// Length of the source in bytes.
    pub source_bytes: u64,
    /// Its format.
    pub format: Format,
    /// First row.
    pub offset: u64,
    /// Number of rows.
    pub rows: u32,
}

/// Result of [`Preview`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// Column names.
    pub columns: Vec<String>,
    /// A value a column, in order; missing is null.
    pub rows: Vec<Vec<serde_json::Value>>,
}

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The target is one of several classes.
    Classification,
    /// The target is a number.
    Regression,
}

/// How it is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Gradient-boosted trees on histograms.
    GradientBoosting,
    /// Ridge regression, or logistic regression with an L2 penalty.
    Linear,
}

/// How rows are held out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Share of rows held out for the evaluation, in (0, 1).
    pub test_share: f64,
    /// Seed of the shuffle; classification is stratified by class.
    pub seed: u64,
}

/// Train a model on the pulled source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Length of the source in bytes.
    pub source_bytes: u64,
    /// Its format.
    pub format: Format,
    /// Column to predict.
    pub target: String,
    /// Columns to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// What is learned.
    pub task: Task,
    /// How.
    pub algorithm: Algorithm,
    /// Parameters by their usual names; unknown ones are an error that lists the known.
    #[serde(default)]
    pub parameters: BTreeMap<String, f64>,
    /// How rows are held out.
    pub split: Split,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// `accuracy`, `log_loss`, `roc_auc`, `f1_macro`, `rmse`, `mae`, `r2`, …
    pub name: String,
    /// Its value on the held-out rows.
    pub value: f64,
}

/// Result of [`Train`]; the ONNX file itself came before it as `Output` frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trained {
    /// Parameters as used, defaults filled in.
    pub parameters: BTreeMap<String, f64>,
    /// On held-out rows.
    pub metrics: Vec<Metric>,
    /// Feature names in the order of the model's inputs.
    pub features: Vec<String>,
    /// Class labels in the order of the probabilities; empty for regression.
    pub classes: Vec<String>,
    /// Rows trained on.
    pub rows_train: u64,
    /// Rows evaluated on.
    pub rows_test: u64,
    /// CPU time of the fit alone in milliseconds.
    pub fit_ms: u64,
    /// Length of the ONNX file in bytes.
    pub model_bytes: u64,
}

/// Ask the attached model about every row of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predict {
    /// Length of the source in bytes.
    pub source_bytes: u64,
    /// Its format.
    pub format: Format,
    /// The model in the attached memory file.
    pub load: Load,
    /// Columns that are the one input of a model, in its order; empty for all that are not kept.
    #[serde(default)]
    pub features: Vec<String>,
    /// Columns that go into the result as they are.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Rows in one run of the model.
    pub batch_rows: u32,
}

/// Result of [`Predict`]; the table itself came before it as `Output` frames, as CSV.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Rows asked about, and rows of the result.
    pub rows: u64,
    /// Length of the result in bytes.
    pub output_bytes: u64,
}
