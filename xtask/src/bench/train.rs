//! Uploads of a large table, and training on it: ours in the jail, and LightGBM on one thread beside it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Ask, Load};
use super::data::{Data, HELD_OUT_ROWS, request};
use super::report::Report;
use super::service::{Service, text};
use super::{Options, Programs};
use crate::Result;
use crate::run::quietly;

/// Trains LightGBM with our defaults.
const LIGHTGBM: &str = include_str!("lightgbm_alone.py");
/// How often a job is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Share of the rows that the service holds out.
const TEST_SHARE: f64 = 0.1;
/// Rows of one request when the held-out rows are predicted.
const BATCH_ROWS: usize = 500;
/// Rounds: each takes many seconds.
const ROUNDS_MAX: usize = 3;

pub(super) fn measure(
    options: &Options,
    programs: &Programs,
    data: &Data,
    service: &mut Service,
    tenant: &str,
    report: &mut Report,
) -> Result<()> {
    upload(options, data, service, tenant, report)?;
    report.section(&format!("Training, {} × 30 rows, 100 trees (LightGBM beside it on one thread)", data.rows));
    for _ in 0..options.rounds.min(ROUNDS_MAX) {
        let ours = train(service, tenant, "boosted", "large", "gradient_boosting")?;
        let mut python = Command::new(&programs.python);
        let rows_trained = (data.rows as f64 * (1.0 - TEST_SHARE)) as usize;
        python.arg("-c").arg(LIGHTGBM).arg(&data.large).arg(&data.held_out).arg(rows_trained.to_string());
        let theirs: Value =
            serde_json::from_str(&quietly(&mut python)?).map_err(|error| format!("the reference printed no JSON: {error}"))?;
        let their = |name: &str| theirs.get(name).and_then(Value::as_f64).unwrap_or_default();
        let fit = ours.stages.get("training").copied().unwrap_or_default();
        report.add("ours: whole job, queue to registered model", "s", "", ours.seconds);
        report.add("ours: CPU of the sandbox", "s", "", ours.cpu);
        report.add("ours: the fit alone (as progress tells)", "s", "", fit);
        report.add("LightGBM: read and fit", "s", "", their("read_seconds") + their("fit_seconds"));
        report.add("LightGBM: the fit alone", "s", "", their("fit_seconds"));
        report.add("ratio of the fits", "×", "≤ 2", fit / their("fit_seconds"));
        report.add("ratio of the whole job to read and fit", "×", "≤ 2", ours.seconds / (their("read_seconds") + their("fit_seconds")));
        deploy(service, tenant, "boosted", ours.version)?;
        report.add("ours: accuracy on other rows", "%", "", 100.0 * accuracy(service, tenant, data)?);
        report.add("LightGBM: accuracy on the same rows", "%", "", 100.0 * their("accuracy"));
    }
    Ok(())
}

fn upload(options: &Options, data: &Data, service: &mut Service, tenant: &str, report: &mut Report) -> Result<()> {
    report.section("Data set upload (CSV; sealed, parsed and checked in the jail before it is there)");
    let bytes = fs::metadata(&data.large).map_err(|error| format!("cannot read the data: {error}"))?.len();
    report.add("size of the file", "MB", "", bytes as f64 / 1e6);
    for _ in 0..options.rounds {
        let before = service.memory().gateway;
        service.memory_peak_reset();
        let cpu = service.cpu_seconds("insula");
        let told = service.client.run(&[Ask::file("PUT", "/v1/datasets/large?format=csv", tenant, &data.large)], Load::once(1))?;
        report.add("throughput", "MB/s", "", bytes as f64 / 1e6 / told.seconds);
        report.add("CPU of the service's own process", "s", "", service.cpu_seconds("insula") - cpu);
        report.add("service's own memory before (PSS)", "MiB", "", before);
        report.add("its peak during the upload (RSS)", "MiB", "", service.memory_peak());
    }
    Ok(())
}

/// A finished training.
pub(super) struct Trained {
    pub(super) version: u64,
    seconds: f64,
    cpu: f64,
    stages: BTreeMap<String, f64>,
}

/// Queues a training and watches it.
pub(super) fn train(service: &mut Service, tenant: &str, name: &str, dataset: &str, algorithm: &str) -> Result<Trained> {
    let cpu = cell_cpu(service, tenant)?;
    let asked = json!({
        "name": name, "dataset": dataset, "target": "y", "task": "classification", "algorithm": algorithm,
        "split": {"test_share": TEST_SHARE, "seed": 0},
    });
    let began = Instant::now();
    let mut job = service.client.json(Ask::send("POST", "/v1/trainings", tenant, asked.to_string()))?;
    let id = text(&job, "/id")?;
    let (mut stages, mut looked) = (BTreeMap::<String, f64>::new(), began);
    loop {
        let now = Instant::now();
        if let Some(stage) = job.pointer("/progress/stage").and_then(Value::as_str) {
            *stages.entry(stage.to_owned()).or_default() += (now - looked).as_secs_f64();
        }
        looked = now;
        match job.get("state").and_then(Value::as_str) {
            Some("queued" | "running") => thread::sleep(LOOK_EVERY),
            Some("succeeded") => break,
            _ => return Err(format!("the training did not succeed: {job}")),
        }
        job = service.client.json(Ask::get(format!("/v1/trainings/{id}"), tenant))?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let version = job.get("model_version").and_then(Value::as_u64).ok_or("the training has no model version")?;
    Ok(Trained { version, seconds, cpu: cell_cpu(service, tenant)? - cpu, stages })
}

/// CPU of the tenant's cells as its own metrics tell, in seconds.
fn cell_cpu(service: &mut Service, tenant: &str) -> Result<f64> {
    service.metric(tenant, "insula_cell_cpu_seconds_total")
}

/// Deploys a version under the model's name.
pub(super) fn deploy(service: &mut Service, tenant: &str, model: &str, version: u64) -> Result<()> {
    let body = json!({"model": model, "version": version}).to_string();
    service.client.json(Ask::send("PUT", format!("/v1/deployments/{model}"), tenant, body)).map(|_| ())
}

/// Share of held-out rows that the deployed model gets right.
fn accuracy(service: &mut Service, tenant: &str, data: &Data) -> Result<f64> {
    let batches: Vec<_> = data.held_out_rows.chunks(BATCH_ROWS).collect();
    let asks: Vec<Ask> = batches.iter().map(|rows| Ask::send("POST", "/v2/models/boosted/infer", tenant, request(rows))).collect();
    let told = service.client.run(&asks, Load { bodies: true, ..Load::once(asks.len()) })?;
    let mut right = 0;
    for (rows, body) in batches.iter().zip(&told.bodies) {
        let answer: Value = serde_json::from_str(body).map_err(|error| format!("the prediction is no JSON: {error}"))?;
        let outputs = answer.get("outputs").and_then(Value::as_array).cloned().unwrap_or_default();
        let labels = outputs.iter().find(|output| output.get("name").and_then(Value::as_str) == Some("label"));
        let labels = labels.and_then(|output| output.get("data")).and_then(Value::as_array).ok_or("the prediction has no labels")?;
        right += rows.iter().zip(labels).filter(|((_, class), label)| label.as_u64() == Some(u64::from(*class))).count();
    }
    Ok(right as f64 / HELD_OUT_ROWS as f64)
}
