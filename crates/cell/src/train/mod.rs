//! Training: a data set and a target column in, figures and an ONNX file out.
//!
//! ```text
//! load ─► target and features ─► split by seed ─► fit on one part ─► figures on the other ─► ONNX
//! ```
//!
//! Two algorithms, each for classes and for numbers: gradient-boosted trees ([`boost`]) and linear models ([`linear`]). The same
//! data, parameters and seed give the same bytes. Figures are computed on held-out rows from the numbers that the ONNX file gives:
//! features, thresholds, leaves and scores are FP32 here as there.
//!
//! **The model's inputs.** When all features are numbers (or booleans, as 0 and 1): one tensor `input`, FP32 `[rows, features]`,
//! features in the order of [`wire::Trained::features`]. When one is text: an input a feature, of the feature's name, `[rows, 1]`,
//! FP32 or string. A missing number is NaN, a missing text the empty one; an unknown text counts as missing.
//! **Its outputs.** Classes: `label` (`[rows]`, INT64 when the classes are whole numbers, else strings) and `probabilities` (FP32
//! `[rows, classes]` in the order of [`wire::Trained::classes`]). Numbers: `prediction`, FP32 `[rows, 1]`.
//!
//! What is deliberately missing: a fit on all rows after the evaluation (the file is the one that was evaluated), and features out
//! of times, lists and long texts, which are left out with a line in the log.

mod bins;
mod boost;
mod export;
mod linear;
mod metrics;
mod parameters;
mod random;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::time::Instant;

use wire::{Algorithm, ColumnKind, Fail, FailCode, Split, Task};

use crate::data::Source;
use crate::data::load::{self, Column, MISSING, Table, Values};
use boost::Forest;
use linear::Linear;
use parameters::Parameters;
use random::Random;

/// Most classes.
const CLASSES_MAX: usize = 100;
/// Fewest rows with a target.
const ROWS_MIN: usize = 10;
/// Most different texts of a column that is used as a feature.
const TEXTS_MAX: u64 = 100;
/// Most features.
const FEATURES_MAX: usize = 5_000;
/// Lines about rounds in the log, at most.
const ROUNDS_LOGGED: usize = 20;
/// Reports of progress of one stage, at most about.
const REPORTS_MAX: u64 = 200;
/// Largest whole number that FP64 holds exactly.
const INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

/// Who hears how a training goes.
pub trait Events {
    /// `done` of `total` units of `stage`.
    fn progress(&mut self, stage: &str, done: u64, total: u64);
    /// A line for people.
    fn log(&mut self, line: &str);
}

/// Trains and returns what was learned and the ONNX file.
///
/// # Errors
/// [`Fail`] that names what is wrong with the data or the parameters.
pub fn train(source: &mut dyn Source, spec: &wire::Train, events: &mut dyn Events) -> Result<(wire::Trained, Vec<u8>), Fail> {
    fit(source, spec, events).map(|fitted| (fitted.trained, fitted.file))
}

/// A trained model with what it was evaluated on.
#[cfg_attr(not(test), expect(dead_code, reason = "tests hold the file against the model and the rows it came from"))]
struct Fitted {
    model: Model,
    /// Of the rows that have a target.
    train_rows: Vec<u32>,
    test_rows: Vec<u32>,
    test_columns: Vec<Vec<f32>>,
    features: Vec<Feature>,
    trained: wire::Trained,
    file: Vec<u8>,
}

fn fit(source: &mut dyn Source, spec: &wire::Train, events: &mut dyn Events) -> Result<Fitted, Fail> {
    let mut events = Thinned { events, last: None };
    let events: &mut dyn Events = &mut events;
    let parameters = Parameters::new(spec.algorithm, &spec.parameters)?;
    if !(spec.split.test_share > 0.0 && spec.split.test_share < 1.0) {
        return Err(invalid(format!("`test_share` is {}, not a number between 0 and 1", spec.split.test_share)));
    }
    if spec.exclude.contains(&spec.target) {
        return Err(invalid("the target is among the excluded columns").at_column(&spec.target));
    }
    let total = source.bytes().saturating_mul(2);
    let mut watched = Watched { source, events, read: 0, total };
    let table = load::load(&mut watched, spec.format, &spec.target, &spec.exclude, TEXTS_MAX)?;
    events.progress("reading", total, total);
    let Prepared { goal, classes, features, columns } = prepare(table, spec, events)?;
    let (train_rows, test_rows) = split(&goal, &spec.split)?;
    let (features, train_columns, test_columns) = part(features, columns, &train_rows, &test_rows, events)?;
    let (train_goal, test_goal) = (goal.of(&train_rows), goal.of(&test_rows));
    events.log(&format!("{} rows to train, {} to evaluate, {} features", train_rows.len(), test_rows.len(), features.len()));

    let start = Instant::now();
    let model = match spec.algorithm {
        Algorithm::GradientBoosting => Model::Forest(boost::fit(&train_columns, &train_goal, &parameters, spec.split.seed, events)?),
        Algorithm::Linear => Model::Linear(linear::fit(&features, &train_columns, &train_goal, &parameters, events)?),
    };
    let fit_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);

    events.progress("evaluating", 0, 1);
    let metrics = evaluate(&model, &test_columns, &test_goal);
    for metric in &metrics {
        events.log(&format!("{} {:.6} on held-out rows", metric.name, metric.value));
    }
    events.progress("writing", 0, 1);
    let file = export::onnx(&model, &features, classes.as_ref(), spec.task, spec.algorithm, &spec.target);
    let trained = wire::Trained {
        parameters: parameters.0,
        metrics,
        features: features.iter().map(|feature| feature.name.clone()).collect(),
        classes: classes.map(|classes| classes.names()).unwrap_or_default(),
        rows_train: train_rows.len() as u64,
        rows_test: test_rows.len() as u64,
        fit_ms,
        model_bytes: file.len() as u64,
    };
    Ok(Fitted { model, train_rows, test_rows, test_columns, features, trained, file })
}

/// What is to be learned, by row.
pub(crate) enum Goal {
    /// A class below `count`.
    Classes {
        /// By row.
        codes: Vec<u32>,
        /// Classes.
        count: usize,
    },
    /// A number.
    Numbers(Vec<f64>),
}

impl Goal {
    fn rows(&self) -> usize {
        match self {
            Self::Classes { codes, .. } => codes.len(),
            Self::Numbers(values) => values.len(),
        }
    }

    fn of(&self, rows: &[u32]) -> Self {
        match self {
            Self::Classes { codes, count } => Self::Classes { codes: pick(codes, rows), count: *count },
            Self::Numbers(values) => Self::Numbers(pick(values, rows)),
        }
    }
}

/// Names of classes in the order of their codes.
pub(crate) enum Classes {
    /// Whole numbers.
    Integers(Vec<i64>),
    /// Texts.
    Texts(Vec<String>),
}

impl Classes {
    fn len(&self) -> usize {
        match self {
            Self::Integers(labels) => labels.len(),
            Self::Texts(labels) => labels.len(),
        }
    }

    fn names(self) -> Vec<String> {
        match self {
            Self::Integers(labels) => labels.iter().map(ToString::to_string).collect(),
            Self::Texts(labels) => labels,
        }
    }
}

/// One input of the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Feature {
    name: String,
    encoding: Encoding,
}

/// How a feature becomes a number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Encoding {
    /// It is one.
    Number,
    /// By its position among these texts.
    Text(Vec<String>),
}

/// What was learned.
pub(crate) enum Model {
    /// Trees.
    Forest(Forest),
    /// Weights.
    Linear(Linear),
}

struct Prepared {
    goal: Goal,
    classes: Option<Classes>,
    features: Vec<Feature>,
    columns: Vec<Vec<f32>>,
}

fn invalid(message: impl Into<String>) -> Fail {
    Fail::new(FailCode::Invalid, message)
}

fn pick<T: Copy>(values: &[T], rows: &[u32]) -> Vec<T> {
    rows.iter().filter_map(|&row| values.get(row as usize).copied()).collect()
}

/// Target and features; rows without a target are dropped.
fn prepare(table: Table, spec: &wire::Train, events: &mut dyn Events) -> Result<Prepared, Fail> {
    for (name, kind) in &table.left_out {
        if *name == spec.target {
            let message =
                if *kind == ColumnKind::Empty { "the target has no value in any row" } else { "the target is neither number nor text" };
            return Err(invalid(message).at_column(name));
        }
        if !spec.exclude.contains(name) {
            let why = match kind {
                ColumnKind::Text => format!("it has more than {TEXTS_MAX} different texts"),
                ColumnKind::Empty => "it is empty".to_owned(),
                ColumnKind::Time => "it holds dates or times".to_owned(),
                _ => "it holds lists, structures or bytes".to_owned(),
            };
            events.log(&format!("column `{name}` is left out: {why}"));
        }
    }
    let (targets, rest): (Vec<Column>, Vec<Column>) = table.columns.into_iter().partition(|column| column.name == spec.target);
    let target = targets.into_iter().next().ok_or_else(|| invalid("the target was not loaded").at_column(&spec.target))?;
    let known: Vec<u32> = (0..table.rows as u32).filter(|&row| has_value(&target, row as usize)).collect();
    if known.len() < table.rows {
        events.log(&format!("{} of {} rows have no target and are dropped", table.rows - known.len(), table.rows));
    }
    if known.len() < ROWS_MIN {
        return Err(invalid(format!("{} rows have a target, {ROWS_MIN} are needed", known.len())).at_column(&spec.target));
    }
    if rest.is_empty() {
        return Err(invalid("no column is left to learn from"));
    }
    if rest.len() > FEATURES_MAX {
        return Err(Fail::new(FailCode::TooLarge, format!("more than {FEATURES_MAX} features: exclude columns")));
    }
    let (goal, classes) = match spec.task {
        Task::Regression => (numbers(&target, &known)?, None),
        Task::Classification => {
            let (goal, classes) = classify(&target, &known)?;
            (goal, Some(classes))
        }
    };
    if let Some(classes) = &classes {
        events.log(&format!("{} classes", classes.len()));
    }
    let mut features = Vec::new();
    let mut columns = Vec::new();
    for Column { name, values, .. } in rest {
        let (encoding, column) = match values {
            Values::Numbers(values) => (Encoding::Number, pick(&values, &known)),
            Values::Wide(values) => (Encoding::Number, pick(&values, &known).into_iter().map(|value| value as f32).collect()),
            Values::Texts { codes, texts } => {
                let column = pick(&codes, &known).into_iter().map(|code| if code == MISSING { f32::NAN } else { code as f32 }).collect();
                (Encoding::Text(texts), column)
            }
        };
        features.push(Feature { name, encoding });
        columns.push(column);
    }
    Ok(Prepared { goal, classes, features, columns })
}

fn has_value(target: &Column, row: usize) -> bool {
    match &target.values {
        Values::Numbers(values) => values.get(row).is_some_and(|value| !value.is_nan()),
        Values::Wide(values) => values.get(row).is_some_and(|value| !value.is_nan()),
        Values::Texts { codes, .. } => codes.get(row).is_some_and(|&code| code != MISSING),
    }
}

/// The target of a regression.
fn numbers(target: &Column, rows: &[u32]) -> Result<Goal, Fail> {
    let Values::Wide(values) = &target.values else {
        return Err(invalid("the target is text; regression needs a number").at_column(&target.name));
    };
    let values = pick(values, rows);
    if values.iter().any(|&value| (value as f32).is_infinite()) {
        return Err(invalid("the target has a value that does not fit a number of single precision").at_column(&target.name));
    }
    Ok(Goal::Numbers(values))
}

/// The target of a classification; codes follow the order of the labels.
fn classify(target: &Column, rows: &[u32]) -> Result<(Goal, Classes), Fail> {
    let (raw, classes): (Vec<u64>, Vec<(u64, Label)>) = match &target.values {
        Values::Texts { codes, texts } => {
            let raw: Vec<u64> = pick(codes, rows).into_iter().map(u64::from).collect();
            let label = |code: u64| Label::Text(texts.get(code as usize).cloned().unwrap_or_default());
            (raw.clone(), labels(raw, label, target)?)
        }
        Values::Wide(values) => {
            let values = pick(values, rows);
            if let Some(value) = values.iter().find(|value| value.fract() != 0.0 || value.abs() > INTEGER_MAX) {
                let message = format!("the target has the value {value:?}, which is no class: use regression, or whole numbers or texts");
                return Err(invalid(message).at_column(&target.name));
            }
            let raw: Vec<u64> = values.iter().map(|&value| value as i64 as u64).collect();
            let boolean = target.kind == ColumnKind::Boolean;
            let label = |code: u64| if boolean { Label::Text((code == 1).to_string()) } else { Label::Integer(code as i64) };
            (raw.clone(), labels(raw, label, target)?)
        }
        Values::Numbers(_) => return Err(Fail::new(FailCode::Internal, "the target was loaded as a feature")),
    };
    let index: BTreeMap<u64, u32> = classes.iter().enumerate().map(|(code, (raw, _))| (*raw, code as u32)).collect();
    let codes = raw.iter().filter_map(|raw| index.get(raw).copied()).collect();
    let count = classes.len();
    let mut integers = Vec::new();
    let mut texts = Vec::new();
    for (_, label) in classes {
        match label {
            Label::Integer(integer) => integers.push(integer),
            Label::Text(text) => texts.push(text),
        }
    }
    let classes = if texts.is_empty() { Classes::Integers(integers) } else { Classes::Texts(texts) };
    Ok((Goal::Classes { codes, count }, classes))
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Integer(i64),
    Text(String),
}

/// The labels in order, with what stands for them in the column.
fn labels(mut raw: Vec<u64>, label: impl Fn(u64) -> Label, target: &Column) -> Result<Vec<(u64, Label)>, Fail> {
    raw.sort_unstable();
    raw.dedup();
    match raw.len() {
        0 | 1 => Err(invalid("the target has one class only, two are needed").at_column(&target.name)),
        count if count > CLASSES_MAX => {
            let message = format!("the target has {count} classes, {CLASSES_MAX} at most: use regression, or group them");
            Err(invalid(message).at_column(&target.name))
        }
        _ => {
            let mut labels: Vec<(u64, Label)> = raw.into_iter().map(|raw| (raw, label(raw))).collect();
            labels.sort_by(|(_, a), (_, b)| a.cmp(b));
            Ok(labels)
        }
    }
}

/// Rows to train and rows to test, both ascending: a shuffle by seed, within each class for classes. A class of one row trains.
fn split(goal: &Goal, split: &Split) -> Result<(Vec<u32>, Vec<u32>), Fail> {
    let mut random = Random::new(split.seed, 1);
    let mut groups: Vec<Vec<u32>> = match goal {
        Goal::Numbers(values) => vec![(0..values.len() as u32).collect()],
        Goal::Classes { codes, count } => {
            let mut groups = vec![Vec::new(); *count];
            for (row, &code) in codes.iter().enumerate() {
                if let Some(group) = groups.get_mut(code as usize) {
                    group.push(row as u32);
                }
            }
            groups
        }
    };
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for group in &mut groups {
        random.shuffle(group);
        let held = ((group.len() as f64 * split.test_share).round() as usize).min(group.len().saturating_sub(1));
        let (to_test, to_train) = group.split_at(held);
        test.extend_from_slice(to_test);
        train.extend_from_slice(to_train);
    }
    if test.is_empty() || train.len() < 2 {
        return Err(invalid(format!(
            "a `test_share` of {} leaves {} rows to train and {} to evaluate",
            split.test_share,
            train.len(),
            test.len()
        )));
    }
    train.sort_unstable();
    test.sort_unstable();
    Ok((train, test))
}

type Parted = (Vec<Feature>, Vec<Vec<f32>>, Vec<Vec<f32>>);

/// The columns of each part. The texts that a model knows are those of the rows it is trained on, in alphabetical order.
fn part(features: Vec<Feature>, columns: Vec<Vec<f32>>, train: &[u32], test: &[u32], events: &mut dyn Events) -> Result<Parted, Fail> {
    let mut parted: Parted = (Vec::new(), Vec::new(), Vec::new());
    for (mut feature, column) in features.into_iter().zip(columns) {
        let (mut train, mut test) = (pick(&column, train), pick(&column, test));
        if train.iter().all(|value| value.is_nan()) {
            events.log(&format!("column `{}` is left out: it has no value in the rows to train", feature.name));
            continue;
        }
        if let Encoding::Text(texts) = &mut feature.encoding {
            let mut seen: Vec<(String, usize)> = texts.drain(..).enumerate().map(|(code, text)| (text, code)).collect();
            let mut used = vec![false; seen.len()];
            for code in train.iter().filter(|code| !code.is_nan()) {
                if let Some(used) = used.get_mut(*code as usize) {
                    *used = true;
                }
            }
            seen.retain(|&(_, code)| used.get(code) == Some(&true));
            seen.sort();
            let mut recode = vec![f32::NAN; used.len()];
            for (position, (text, code)) in seen.into_iter().enumerate() {
                texts.push(text);
                if let Some(slot) = recode.get_mut(code) {
                    *slot = position as f32;
                }
            }
            for code in train.iter_mut().chain(&mut test).filter(|code| !code.is_nan()) {
                *code = recode.get(*code as usize).copied().unwrap_or(f32::NAN);
            }
        }
        parted.0.push(feature);
        parted.1.push(train);
        parted.2.push(test);
    }
    if parted.0.is_empty() {
        return Err(invalid("no column is left to learn from"));
    }
    Ok(parted)
}

fn evaluate(model: &Model, columns: &[Vec<f32>], goal: &Goal) -> Vec<wire::Metric> {
    let scores = match model {
        Model::Forest(forest) => forest.scores(columns, goal.rows()),
        Model::Linear(linear) => linear.scores(columns, goal.rows()),
    };
    match goal {
        Goal::Numbers(values) => {
            let predicted: Vec<f32> = scores.iter().filter_map(|scores| scores.first().copied()).collect();
            metrics::regression(&predicted, values)
        }
        Goal::Classes { codes, count } => {
            let probabilities: Vec<Vec<f32>> = scores.iter().map(|scores| probabilities(scores)).collect();
            metrics::classification(&probabilities, codes, *count)
        }
    }
}

/// Probabilities of one row's scores, as the exported model computes them.
fn probabilities(scores: &[f32]) -> Vec<f32> {
    if let [z] = scores {
        let p = sigmoid(*z);
        return vec![1.0 - p, p];
    }
    let mut p = scores.to_vec();
    softmax(&mut p);
    p
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}

fn softmax(z: &mut [f32]) {
    let largest = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    z.iter_mut().for_each(|z| *z = (*z - largest).exp());
    let sum: f32 = z.iter().sum();
    z.iter_mut().for_each(|z| *z /= sum);
}

/// Reports how much was read; the loader reads a source twice.
struct Watched<'a> {
    source: &'a mut dyn Source,
    events: &'a mut dyn Events,
    read: u64,
    total: u64,
}

impl Source for Watched<'_> {
    fn bytes(&self) -> u64 {
        self.source.bytes()
    }

    fn read_at(&mut self, offset: u64, bytes: u32) -> Result<bytes::Bytes, Fail> {
        let block = self.source.read_at(offset, bytes)?;
        self.read = self.read.saturating_add(block.len() as u64).min(self.total);
        self.events.progress("reading", self.read, self.total);
        Ok(block)
    }
}

/// Lets through the first report of a stage, its last, and about [`REPORTS_MAX`] between.
struct Thinned<'a> {
    events: &'a mut dyn Events,
    last: Option<(String, u64)>,
}

impl Events for Thinned<'_> {
    fn progress(&mut self, stage: &str, done: u64, total: u64) {
        let step = u128::from(done) * u128::from(REPORTS_MAX) / u128::from(total.max(1));
        let step = u64::try_from(step).unwrap_or(u64::MAX);
        if self.last.as_ref().is_none_or(|(before, last)| before != stage || *last != step) {
            self.last = Some((stage.to_owned(), step));
            self.events.progress(stage, done, total);
        }
    }

    fn log(&mut self, line: &str) {
        self.events.log(line);
    }
}
