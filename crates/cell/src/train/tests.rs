//! Training from end to end; the judge of the ONNX file is stock ONNX Runtime in Python.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::*;
use crate::data::tests::Memory;

const BREAST_CANCER: &str = include_str!("../../../../examples/breast-cancer.csv");
const PENGUINS: &str = include_str!("../../../../examples/penguins.csv");
const WINE: &str = include_str!("../../../../examples/wine.csv");
const DIABETES: &str = include_str!("../../../../examples/diabetes.csv");

struct Log(Vec<String>, Vec<(String, u64, u64)>);

impl Events for Log {
    fn progress(&mut self, stage: &str, done: u64, total: u64) {
        self.1.push((stage.to_owned(), done, total));
    }
    fn log(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }
}

fn spec(target: &str, task: Task, algorithm: Algorithm) -> wire::Train {
    wire::Train {
        source_bytes: 0,
        format: wire::Format::Csv,
        target: target.to_owned(),
        exclude: Vec::new(),
        task,
        algorithm,
        parameters: BTreeMap::new(),
        split: Split { test_share: 0.25, seed: 7 },
    }
}

fn fitted(data: &str, spec: &wire::Train) -> Result<(Fitted, Log), Fail> {
    let mut log = Log(Vec::new(), Vec::new());
    let mut source = Memory::new(data.as_bytes().to_vec());
    fit(&mut source, spec, &mut log).map(|fitted| (fitted, log))
}

fn metric(fitted: &Fitted, name: &str) -> f64 {
    fitted.trained.metrics.iter().find(|metric| metric.name == name).unwrap().value
}

/// Runs a script of this folder with JSON on its input; none, loudly, when there is no Python.
fn python(script: &str, input: &Value) -> Option<Value> {
    let Ok(python) = std::env::var("INSULA_PY") else {
        println!("SKIPPED: INSULA_PY names no Python with onnxruntime, numpy and scikit-learn");
        return None;
    };
    let mut child = Command::new(python)
        .env("OMP_NUM_THREADS", "1")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

const RUN_ONNX: &str = r#"
import json, sys, base64, numpy as np, onnx, onnxruntime as ort
ask = json.load(sys.stdin)
model = bytes(ask["model"])
onnx.checker.check_model(model, full_check=True)
options = ort.SessionOptions(); options.log_severity_level = 3
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
column = lambda values: np.array([np.nan if v is None else v for v in values], np.float32)
texts = lambda values: np.array(["" if v is None else v for v in values], object)
inputs = session.get_inputs()
if len(inputs) == 1 and inputs[0].name == "input":
    feed = {"input": np.stack([column(c) for c in ask["columns"]], 1)}
else:
    feed = {i.name: (texts(c) if i.type == "tensor(string)" else column(c)).reshape(-1, 1) for i, c in zip(inputs, ask["columns"])}
outputs = session.run(None, feed)
json.dump({o.name: v.tolist() for o, v in zip(session.get_outputs(), outputs)}, sys.stdout)
"#;

/// The held-out rows as a client would send them, and one row of all missing and unknown values.
fn columns(fitted: &Fitted) -> (Vec<Vec<f32>>, Vec<Value>) {
    let mut numbers = fitted.test_columns.clone();
    let mut values = Vec::new();
    for (feature, column) in fitted.features.iter().zip(&mut numbers) {
        column.push(f32::NAN);
        let value = |&code: &f32| match &feature.encoding {
            Encoding::Number if code.is_nan() => Value::Null,
            Encoding::Number => json!(code),
            Encoding::Text(_) if code.is_nan() => json!("never seen"),
            Encoding::Text(texts) => json!(texts[code as usize]),
        };
        values.push(column.iter().map(value).collect());
    }
    (numbers, values)
}

fn check_onnx(data: &str, spec: &wire::Train) {
    let (fitted, _) = fitted(data, spec).unwrap();
    let (numbers, values) = columns(&fitted);
    let Some(answer) = python(RUN_ONNX, &json!({ "model": fitted.file, "columns": values })) else { return };
    let rows = numbers[0].len();
    let scores = match &fitted.model {
        Model::Forest(forest) => forest.scores(&numbers, rows),
        Model::Linear(linear) => linear.scores(&numbers, rows),
    };
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} is not {b} in {spec:?}");
    for (row, scores) in scores.iter().enumerate() {
        if spec.task == Task::Regression {
            close(answer["prediction"][row][0].as_f64().unwrap(), f64::from(scores[0]));
            continue;
        }
        let ours = probabilities(scores);
        for (class, p) in ours.iter().enumerate() {
            close(answer["probabilities"][row][class].as_f64().unwrap(), f64::from(*p));
        }
        let label = answer["label"][row].as_str().map_or_else(|| answer["label"][row].to_string(), str::to_owned);
        assert_eq!(label, fitted.trained.classes[metrics::argmax(&ours)]);
    }
}

/// The same penguins with gaps in numbers and texts.
fn gaps(data: &str) -> String {
    let mut lines = data.lines();
    let mut out = format!("{}\n", lines.next().unwrap());
    for (number, line) in lines.enumerate() {
        let fields: Vec<&str> = line.split(',').collect();
        let last = fields.len() - 1;
        let gap = |index: usize| index != 0 && index != last && (number + index).is_multiple_of(5);
        let fields: Vec<&str> = fields.iter().enumerate().map(|(index, field)| if gap(index) { "" } else { *field }).collect();
        out.push_str(&fields.join(","));
        out.push('\n');
    }
    out
}

#[test]
fn onnx_runtime_gives_our_numbers() {
    for algorithm in [Algorithm::GradientBoosting, Algorithm::Linear] {
        check_onnx(BREAST_CANCER, &spec("diagnosis", Task::Classification, algorithm));
        check_onnx(PENGUINS, &spec("species", Task::Classification, algorithm));
        check_onnx(PENGUINS, &spec("sex", Task::Classification, algorithm));
        check_onnx(WINE, &spec("cultivar", Task::Classification, algorithm));
        check_onnx(DIABETES, &spec("progression", Task::Regression, algorithm));
        check_onnx(&gaps(PENGUINS), &spec("species", Task::Classification, algorithm));
        check_onnx(&gaps(PENGUINS), &spec("body_mass_g", Task::Regression, algorithm));
        check_onnx(&gaps(WINE), &spec("cultivar", Task::Classification, algorithm));
        check_onnx(&gaps(DIABETES), &spec("progression", Task::Regression, algorithm));
    }
}

#[test]
fn text_features_alone_and_awkward_names_work() {
    let mut data = String::from("label,insula/columns,Größe m²,y\n");
    for i in 0..60 {
        let (a, b) = (["x", "y", "", "ü z"][i % 4], ["p", "q", "r"][i % 3]);
        data.push_str(&format!("{a},{b},{},{}\n", i % 7, if i % 4 == 0 || i % 3 == 1 { "ja" } else { "nein" }));
    }
    for algorithm in [Algorithm::GradientBoosting, Algorithm::Linear] {
        let mut spec = spec("y", Task::Classification, algorithm);
        check_onnx(&data, &spec);
        spec.exclude = vec!["Größe m²".to_owned()];
        check_onnx(&data, &spec);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_does_not() {
    let mut spec = spec("species", Task::Classification, Algorithm::GradientBoosting);
    spec.parameters = [("subsample", 0.7), ("colsample", 0.6), ("early_stopping_rounds", 10.0)].map(|(k, v)| (k.to_owned(), v)).into();
    let first = fitted(PENGUINS, &spec).unwrap().0;
    let again = fitted(PENGUINS, &spec).unwrap().0;
    assert!(first.file == again.file && first.trained.metrics == again.trained.metrics);
    spec.split.seed += 1;
    assert!(fitted(PENGUINS, &spec).unwrap().0.file != first.file);
}

const REFERENCE: &str = r#"
import json, sys, io, numpy as np, pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier as C, HistGradientBoostingRegressor as R
ask = json.load(sys.stdin)
data = pd.read_csv(io.StringIO(ask["data"])).dropna(subset=[ask["target"]])
y = data.pop(ask["target"])
for c in data.columns:
    if data[c].dtype == object or str(data[c].dtype) in ("str", "string"): data[c] = data[c].astype("category")
scores = []
for seed, (a, b) in enumerate(ask["splits"]):
    model = (C if ask["classes"] else R)(random_state=seed, categorical_features="from_dtype")
    scores.append(model.fit(data.iloc[a], y.iloc[a]).score(data.iloc[b], y.iloc[b]))
json.dump(float(np.mean(scores)), sys.stdout)
"#;

/// Mean accuracy or R² over the same splits is within a point of scikit-learn's histogram gradient boosting.
#[test]
fn as_good_as_the_reference_on_the_shipped_sets() {
    const SEEDS: u64 = 10;
    for (data, target, task) in [
        (BREAST_CANCER, "diagnosis", Task::Classification),
        (PENGUINS, "species", Task::Classification),
        (WINE, "cultivar", Task::Classification),
        (DIABETES, "progression", Task::Regression),
    ] {
        let name = if task == Task::Classification { "accuracy" } else { "r2" };
        let mut splits = Vec::new();
        let mut mean = |algorithm| {
            let mut spec = spec(target, task, algorithm);
            splits.clear();
            let mut sum = 0.0;
            for seed in 0..SEEDS {
                spec.split.seed = seed;
                let (fitted, _) = fitted(data, &spec).unwrap();
                sum += metric(&fitted, name);
                splits.push(json!([fitted.train_rows, fitted.test_rows]));
            }
            sum / SEEDS as f64
        };
        let (boosted, linear) = (mean(Algorithm::GradientBoosting), mean(Algorithm::Linear));
        let ask = json!({ "data": data, "target": target, "splits": splits, "classes": task == Task::Classification });
        let Some(reference) = python(REFERENCE, &ask) else { return };
        let reference = reference.as_f64().unwrap();
        println!("{target}: {name} boosted {boosted:.4}, linear {linear:.4}, reference {reference:.4}");
        assert!(boosted > reference - 0.01, "{target}: {boosted} is more than a point below {reference}");
    }
}

/// A fit must learn: a rule of two columns with noise columns beside it, by every algorithm that can express it.
#[test]
fn missing_values_carry_information() {
    let mut data = String::from("a,noise,y\n");
    let mut random = Random::new(3, 3);
    for _ in 0..400 {
        let (a, noise) = (random.unit(), random.unit());
        let missing = random.unit() < 0.3;
        let y = missing || a > 0.8;
        let a = if missing { String::new() } else { a.to_string() };
        data.push_str(&format!("{a},{noise},{}\n", u8::from(y)));
    }
    let (fitted, _) = fitted(&data, &spec("y", Task::Classification, Algorithm::GradientBoosting)).unwrap();
    assert!(metric(&fitted, "accuracy") > 0.96, "{:?}", fitted.trained.metrics);
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let classes = || spec("species", Task::Classification, Algorithm::GradientBoosting);
    type Change = fn(&mut wire::Train);
    let cases: &[(&str, Change, &str)] = &[
        (
            PENGUINS,
            |s| s.target = "specis".into(),
            "there is no column `specis`; there are `species`, `island`, `bill_length_mm`, `bill_depth_mm`, `flipper_length_mm`, `body_mass_g`, `sex`, `year`",
        ),
        (
            PENGUINS,
            |s| s.exclude = vec!["nope".into()],
            "there is no column `nope`; there are `species`, `island`, `bill_length_mm`, `bill_depth_mm`, `flipper_length_mm`, `body_mass_g`, `sex`, `year`",
        ),
        (PENGUINS, |s| s.exclude = vec!["species".into()], "the target is among the excluded columns"),
        (PENGUINS, |s| s.task = Task::Regression, "the target is text; regression needs a number"),
        (
            PENGUINS,
            |s| s.target = "bill_length_mm".into(),
            "the target has the value 39.1, which is no class: use regression, or whole numbers or texts",
        ),
        (
            PENGUINS,
            |s| s.parameters = [("depth".into(), 3.0)].into(),
            "there is no parameter `depth`; there are `n_estimators`, `learning_rate`, `num_leaves`, `max_depth`, `min_samples_leaf`, `min_sum_hessian`, `l2`, `subsample`, `colsample`, `max_bins`, `early_stopping_rounds`, `validation_share`",
        ),
        (PENGUINS, |s| s.parameters = [("learning_rate".into(), f64::NAN)].into(), "`learning_rate` is NaN, not a number from 0.0001 to 1"),
        (PENGUINS, |s| s.parameters = [("num_leaves".into(), 2.5)].into(), "`num_leaves` is 2.5, not a whole number from 2 to 1024"),
        (PENGUINS, |s| s.parameters = [("n_estimators".into(), 5.0), ("iterations".into(), 6.0)].into(), "`n_estimators` is given twice"),
        (PENGUINS, |s| s.split.test_share = 1.0, "`test_share` is 1, not a number between 0 and 1"),
        (PENGUINS, |s| s.split.test_share = 0.001, "a `test_share` of 0.001 leaves 344 rows to train and 0 to evaluate"),
        ("a,species\n1,x\n2,y\n", |_| {}, "2 rows have a target, 10 are needed"),
        ("a,species\n1,\n2,\n", |_| {}, "the target has no value in any row"),
        ("a,species\n1,x\n1,x\n1,x\n1,x\n1,x\n1,x\n1,x\n1,x\n1,x\n1,x\n1,\n", |_| {}, "the target has one class only, two are needed"),
        ("species\n1\n2\n1\n2\n1\n2\n1\n2\n1\n2\n", |_| {}, "no column is left to learn from"),
        ("a,species\n1e300,1\n2,1\n", |_| {}, "`1e300` does not fit a number of single precision"),
    ];
    for (data, change, expected) in cases {
        let mut spec = classes();
        change(&mut spec);
        let fail = fitted(data, &spec).err().expect(expected);
        assert_eq!((fail.code, fail.message.as_str()), (FailCode::Invalid, *expected));
    }
    let ids: String = (0..300).map(|i| format!("{i},{i}\n")).collect();
    let fail = fitted(&format!("a,species\n{ids}"), &classes()).err().unwrap();
    assert_eq!(fail.message, "the target has 300 classes, 100 at most: use regression, or group them");
}

#[test]
fn the_log_tells_what_was_dropped_and_reports_are_few() {
    let mut data = String::from("id,constant,empty,x,y\n");
    for i in 0..300 {
        data.push_str(&format!("row {i},5,,{},{}\n", i % 10, if i % 50 == 0 { String::new() } else { (i % 10 / 5).to_string() }));
    }
    let mut spec = spec("y", Task::Classification, Algorithm::GradientBoosting);
    spec.parameters = [("n_estimators".to_owned(), 1_000.0)].into();
    let (fitted, log) = fitted(&data, &spec).unwrap();
    for line in [
        "column `id` is left out: it has more than 100 different texts",
        "column `empty` is left out: it is empty",
        "6 of 300 rows have no target and are dropped",
    ] {
        assert!(log.0.iter().any(|logged| logged == line), "{line} is not in {:?}", log.0);
    }
    assert_eq!(fitted.trained.features, ["constant", "x"]);
    assert_eq!(fitted.trained.rows_train + fitted.trained.rows_test, 294);
    assert_eq!(metric(&fitted, "accuracy"), 1.0);
    assert!(log.1.len() < 230 && log.1.contains(&("training".to_owned(), 1_000, 1_000)), "{}", log.1.len());
    assert!(log.0.len() < 40);
}
