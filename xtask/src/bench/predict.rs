//! Predictions of a small model: the engine alone in a process, and the whole path with everything on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::client::{Ask, Load};
use super::data::Data;
use super::report::Report;
use super::service::Service;
use super::train::{deploy, train};
use super::{Options, Programs};
use crate::Result;
use crate::run::quietly;

/// Connections of the load.
const CONNECTIONS: usize = 16;
/// Connections of the load whose requests are joined.
const CONNECTIONS_MANY: usize = 64;
/// Runs of the engine alone.
const ENGINE_RUNS: usize = 20_000;

pub(super) fn measure(
    options: &Options,
    programs: &Programs,
    folder: &Path,
    data: &Data,
    service: &mut Service,
    tenant: &str,
    report: &mut Report,
) -> Result<()> {
    service.client.json(Ask::file("PUT", "/v1/datasets/small?format=csv", tenant, &data.small))?;
    let linear = train(service, tenant, "linear", "small", "linear")?;
    deploy(service, tenant, "linear", linear.version)?;
    for (model, about) in [("linear", "logistic regression, 30 features"), ("boosted", "gradient boosting, 100 trees, 30 features")] {
        report.section(&format!("Predictions: {about}, one row a request"));
        fetch(programs, service, tenant, model, folder)?;
        for _ in 0..options.rounds {
            round(options, programs, folder, data, service, tenant, model, report)?;
        }
    }
    Ok(())
}

/// The same model asked by many at once, each request run for itself and those that wait together run together.
pub(super) fn joined(options: &Options, data: &Data, service: &mut Service, tenant: &str, report: &mut Report) -> Result<()> {
    let version = service.client.json(Ask::get("/v1/deployments/linear", tenant))?.get("serving_version").and_then(Value::as_u64);
    let version = version.ok_or("nothing is deployed")?;
    report.section("Requests that wait together: logistic regression, 30 features, one row a request");
    for _ in 0..options.rounds {
        for (what, batching) in [
            ("each for itself", Value::Null),
            ("joined, no window", json!({"max_size": 64, "window_us": 0})),
            ("joined, window of 500 µs", json!({"max_size": 64, "window_us": 500})),
        ] {
            let body = json!({"model": "linear", "version": version, "batching": batching}).to_string();
            service.client.json(Ask::send("PUT", "/v1/deployments/linear", tenant, body))?;
            let asks = [Ask::send("POST", "/v2/models/linear/infer", tenant, data.request())];
            for connections in [1, CONNECTIONS, CONNECTIONS_MANY] {
                let load = |total| Load { connections, ..Load::once(total) };
                service.client.run(&asks, load(options.predictions_alone / 5))?;
                let before = service.cpu_by_process();
                let told =
                    service.client.run(&asks, load(if connections == 1 { options.predictions_alone } else { options.predictions_many }))?;
                let after = service.cpu_by_process();
                let per = |name: Option<&str>| cpu_between(&before, &after, name) * 1e3 / told.micros.len() as f64;
                let named = |figure: &str| format!("{connections} connections, {what}: {figure}");
                report.add(&named("CPU per prediction, all of ours"), "ms", "", per(None));
                report.add(&named("of that the cell"), "ms", "", per(Some("insula-cell")));
                report.add(&named("p50"), "µs", "", told.micros_at(0.5));
                report.add(&named("predictions/s, beside the client on the same cores"), "", "", told.rate());
            }
        }
    }
    Ok(())
}

/// Downloads the model as any client would, for the engine alone.
pub(super) fn fetch(programs: &Programs, service: &mut Service, tenant: &str, model: &str, folder: &Path) -> Result<PathBuf> {
    let deployment = service.client.json(Ask::get(format!("/v1/deployments/{model}"), tenant))?;
    let version = deployment.get("serving_version").and_then(Value::as_u64).ok_or("nothing is deployed")?;
    let mut command = Command::new(&programs.insula);
    let to = folder.join(format!("{model}.onnx"));
    command.args(["--json", "model", "download", model, &version.to_string()]).arg(&to);
    service.as_environment(&mut command, tenant);
    quietly(&mut command).map(|_| to)
}

fn round(
    options: &Options,
    programs: &Programs,
    folder: &Path,
    data: &Data,
    service: &mut Service,
    tenant: &str,
    model: &str,
    report: &mut Report,
) -> Result<()> {
    let request = folder.join("request.json");
    fs::write(&request, data.request()).map_err(|error| format!("cannot write a request: {error}"))?;
    let tensors = alone(programs, folder, model, "tensors", ENGINE_RUNS)?;
    let json = alone(programs, folder, model, "json", ENGINE_RUNS)?;

    let asks = [Ask::send("POST", format!("/v2/models/{model}/infer"), tenant, data.request())];
    let load = |total, connections, per_second| Load { connections, per_second, ..Load::once(total) };
    service.client.run(&asks, load(options.predictions_alone / 5, 2, None))?;
    let single = service.client.run(&asks, load(options.predictions_alone, 1, None))?;
    let before = service.cpu_by_process();
    let many = service.client.run(&asks, load(options.predictions_many, CONNECTIONS, None))?;
    let after = service.cpu_by_process();
    let half = many.rate() / 2.0;
    let halved = service.client.run(&asks, load(options.predictions_many / 4, CONNECTIONS, Some(half)))?;

    let per = |name: Option<&str>| cpu_between(&before, &after, name) * 1e3 / many.micros.len() as f64;
    report.add("engine alone, ready tensors: p50", "µs", "", tensors("p50_micros"));
    report.add("engine alone, ready tensors: p99", "µs", "", tensors("p99_micros"));
    report.add("engine alone with the cell's JSON: p50", "µs", "", json("p50_micros"));
    report.add("engine alone with the cell's JSON: CPU", "ms", "", json("cpu_ms"));
    report.add("whole path, 1 connection: p50", "µs", "", single.micros_at(0.5));
    report.add("whole path, 1 connection: p99", "µs", "", single.micros_at(0.99));
    report.add("added over the engine alone: p50", "µs", "≤ 100", single.micros_at(0.5) - tensors("p50_micros"));
    report.add("added over the engine alone: p99", "µs", "", single.micros_at(0.99) - tensors("p99_micros"));
    let added = halved.micros_at(0.99) - tensors("p99_micros");
    report.add("added at half load, 16 connections: p99", "µs", "≤ 400", added);
    report.add("16 connections, beside the client on the same cores", "predictions/s", "", many.rate());
    report.add("16 connections: p50", "µs", "", many.micros_at(0.5));
    report.add("16 connections: p99", "µs", "", many.micros_at(0.99));
    report.add("CPU per prediction, all of ours", "ms", "≤ 0.05", per(None));
    report.add("of that the gateway", "ms", "", per(Some("insula")));
    report.add("of that the cell", "ms", "", per(Some("insula-cell")));
    Ok(())
}

/// Figures of the engine alone, by name.
pub(super) fn alone(programs: &Programs, folder: &Path, model: &str, mode: &str, runs: usize) -> Result<impl Fn(&str) -> f64 + use<>> {
    let mut command = Command::new(&programs.engine_alone);
    command.arg(mode).arg(&programs.engine).arg(folder.join(format!("{model}.onnx"))).arg(folder.join("request.json"));
    let told = quietly(command.arg(runs.to_string()))?;
    let told: Value = serde_json::from_str(&told).map_err(|error| format!("engine_alone printed no JSON: {error}"))?;
    Ok(move |name: &str| told.get(name).and_then(Value::as_f64).unwrap_or_default())
}

/// CPU seconds of one program, or of all.
fn cpu_between(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, name: Option<&str>) -> f64 {
    let sum = |all: &BTreeMap<String, f64>| -> f64 {
        all.iter().filter(|(known, _)| name.is_none_or(|name| name == known.as_str())).map(|(_, seconds)| seconds).sum()
    };
    sum(after) - sum(before)
}
