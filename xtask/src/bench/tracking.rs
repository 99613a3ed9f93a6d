//! MLflow's tracking API: single and many clients, a long history, search over many runs; with `--peers` beside a real MLflow server.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::client::{Ask, Load, Told};
use super::report::Report;
use super::service::{Service, text};
use super::{Options, Programs};
use crate::Result;
use crate::run::quietly;
use crate::servers::Servers;

/// Connections of many clients.
const CONNECTIONS: usize = 64;
/// Processes of the stock client.
const CLIENT_PROCESSES: usize = 8;
/// Points of one request where the history is made long.
const POINTS_PER_REQUEST: usize = 1000;

/// What a real server needs for the same.
struct Peer {
    name: &'static str,
    told: Value,
}

impl Peer {
    fn cpu_ms(&self, what: &str) -> f64 {
        self.told.pointer(&format!("/{what}/cpu_ms")).and_then(Value::as_f64).unwrap_or_default()
    }
}

pub(super) fn measure(options: &Options, programs: &Programs, folder: &Path, report: &mut Report) -> Result<()> {
    let peers = if options.peers { peers(options, folder, report)? } else { Vec::new() };
    report.section("MLflow tracking, over TLS, with identity, policy, quota and audit: rows in SQLite");
    let mut service = Service::start(programs, folder, "tracking", "")?;
    let (tenant, experiment) = begun(&mut service)?;
    let embedded = operations(options, &mut service, &tenant, &experiment, &peers, report)?;
    history(options, &mut service, &tenant, &experiment, report)?;
    search(options, &mut service, &tenant, &peers, report)?;
    stock_clients(options, folder, &mut service, &tenant, report)?;
    service.stop()?;

    report.section("The same on PostgreSQL, tier pooled, on the same machine");
    let mut servers = Servers::start(&folder.join("tracking-servers"))?;
    let mut service = Service::start(programs, folder, "tracking-pooled", &servers.settings("bench"))?;
    let (tenant, experiment) = begun(&mut service)?;
    let pooled = operations(options, &mut service, &tenant, &experiment, &[], report)?;
    for (ours, theirs) in pooled.iter().zip(&embedded) {
        let name = ours.name;
        report.add(&format!("{name}, 1 connection: p50 as a multiple of SQLite's"), "×", "≤ 3", ours.p50_us / theirs.p50_us);
        let label = format!("{name}, {CONNECTIONS} connections: SQLite's throughput as a multiple of this");
        report.add(&label, "×", "≤ 3", theirs.rate / ours.rate);
    }
    service.stop()?;
    servers.stop()
}

/// A tenant's key and its experiment.
fn begun(service: &mut Service) -> Result<(String, String)> {
    let operator = service.bootstrap()?;
    let tenant = service.tenant_create(&operator, "tracking")?;
    let experiment = post(service, &tenant, "experiments/create", &json!({"name": "bench"}))?;
    Ok((tenant, text(&experiment, "/experiment_id")?))
}

/// What one kind of request took.
struct Took {
    name: &'static str,
    p50_us: f64,
    rate: f64,
}

/// Each kind of request on one connection and on many.
fn operations(
    options: &Options,
    service: &mut Service,
    tenant: &str,
    experiment: &str,
    peers: &[Peer],
    report: &mut Report,
) -> Result<Vec<Took>> {
    let run = run_new(service, tenant, experiment)?;
    let total = options.tracking_operations;
    // Every request logs points of its own, as a training does; those that come twice would be kept once.
    let point =
        |step: usize| ask("runs/log-metric", tenant, &json!({"run_id": run, "key": "loss", "value": 0.5, "timestamp": step, "step": step}));
    let batch = |step: usize| {
        let metrics: Vec<Value> =
            (0..100).map(|n| json!({"key": format!("m{n}"), "value": 0.5, "timestamp": step, "step": step})).collect();
        ask("runs/log-batch", tenant, &json!({"run_id": run, "metrics": metrics}))
    };
    let get = Ask::get(format!("/api/2.0/mlflow/runs/get?run_id={run}"), tenant);
    let steps = |total: usize, ask: &dyn Fn(usize) -> Ask| (0..total + total / 5).map(ask).collect::<Vec<_>>();
    let kinds = [
        ("log-metric", "log_metric", steps(total, &point), total),
        ("runs/get", "runs_get", vec![get; 3], total),
        ("log-batch of 100 metrics", "log_batch", steps(total / 4, &batch), total / 4),
    ];
    let mut all = Vec::new();
    for (name, what, asks, total) in kinds {
        let load = |total, connections| Load { connections, ..Load::once(total) };
        let few = (asks.len() / 12).max(1);
        let (warm, rest) = asks.split_at(few);
        let (one, others) = rest.split_at(few);
        service.client.run(warm, load(total / 10, CONNECTIONS))?;
        let single = service.client.run(one, load(total / 10, 1))?;
        let before = service.cpu_seconds("insula");
        let many = service.client.run(others, load(total, CONNECTIONS))?;
        let cpu_ms = (service.cpu_seconds("insula") - before) * 1e3 / many.micros.len() as f64;
        report.add(&format!("{name}, 1 connection: p50"), "µs", "", single.micros_at(0.5));
        report.add(&format!("{name}, {CONNECTIONS} connections, beside the client on the same cores"), "requests/s", "", many.rate());
        report.add(&format!("{name}, {CONNECTIONS} connections: p99"), "µs", "", many.micros_at(0.99));
        report.add(&format!("{name}: CPU"), "ms", "", cpu_ms);
        if what == "log_metric" {
            report.add("log-metric: acknowledged and audited, a second of one core", "/s", "", 1e3 / cpu_ms);
        }
        for peer in peers {
            let goal = match (peer.name, what) {
                ("none", _) => "≥ 25",
                (_, "log_batch") => "",
                _ => "≥ 100",
            };
            let label = format!("{name}: CPU of a real MLflow server, {}, as a multiple of ours", shown(peer.name));
            report.add(&label, "×", goal, peer.cpu_ms(what) / cpu_ms);
        }
        all.push(Took { name, p50_us: single.micros_at(0.5), rate: many.rate() });
    }
    Ok(all)
}

/// Processes of the stock client, which log runs as people's training loops do. Each reads back what it logged.
fn stock_clients(options: &Options, folder: &Path, service: &mut Service, tenant: &str, report: &mut Report) -> Result<()> {
    let python = crate::setup::mlflow()?;
    let mut command = Command::new(&python);
    command.arg(crate::root().join("xtask/src/bench/mlflow_clients.py")).arg(CLIENT_PROCESSES.to_string());
    command.arg(options.client_steps.to_string()).env("HOME", folder);
    service.as_mlflow_environment(&mut command, tenant);
    let before = service.cpu_seconds("insula");
    let told = quietly(&mut command)?;
    let cpu_ms = (service.cpu_seconds("insula") - before) * 1e3;
    // The client says what it thinks of the server before.
    let told = told.lines().last().unwrap_or_default();
    let told: Value = serde_json::from_str(told).map_err(|error| format!("the clients printed no JSON: {error}"))?;
    let figure = |name: &str| told.get(name).and_then(Value::as_f64).ok_or_else(|| format!("the clients did not tell `{name}`"));
    let (calls, seconds) = (figure("calls")?, figure("seconds")?);
    report.add(
        &format!("{CLIENT_PROCESSES} processes of the stock client, beside the service on the same cores"),
        "calls/s",
        "",
        calls / seconds,
    );
    report.add("the same: CPU of the service a call", "ms", "", cpu_ms / calls);
    report.add("the same: CPU of the clients a call", "ms", "", figure("client_cpu_seconds")? * 1e3 / calls);
    Ok(())
}

/// A run with very many points: what the next write costs.
fn history(options: &Options, service: &mut Service, tenant: &str, experiment: &str, report: &mut Report) -> Result<()> {
    let run = run_new(service, tenant, experiment)?;
    let point = ask("runs/log-metric", tenant, &json!({"run_id": run, "key": "loss", "value": 0.5, "timestamp": 1, "step": 1}));
    let single = |service: &mut Service| -> Result<Told> { service.client.run(std::slice::from_ref(&point), Load::once(100)) };
    let before = single(service)?;
    let metrics: Vec<Value> =
        (0..POINTS_PER_REQUEST).map(|n| json!({"key": "loss", "value": n as f64 / 7.0, "timestamp": n, "step": n})).collect();
    let batch = ask("runs/log-batch", tenant, &json!({"run_id": run, "metrics": metrics}));
    let requests = options.tracking_points / POINTS_PER_REQUEST;
    let filled = service.client.run(&[batch], Load { connections: 8, ..Load::once(requests) })?;
    let after = single(service)?;
    report.add("points a second, 1,000 a request, 8 connections", "points/s", "", filled.rate() * POINTS_PER_REQUEST as f64);
    report.add("log-metric into an empty run: p50", "µs", "", before.micros_at(0.5));
    let label = format!("log-metric into a run with {} million points: p50", requests * POINTS_PER_REQUEST / 1_000_000);
    report.add(&label, "µs", "", after.micros_at(0.5));
    Ok(())
}

/// A filter and an order over many runs.
fn search(options: &Options, service: &mut Service, tenant: &str, peers: &[Peer], report: &mut Report) -> Result<()> {
    let experiment = text(&post(service, tenant, "experiments/create", &json!({"name": "many"}))?, "/experiment_id")?;
    let runs = options.tracking_runs;
    let create = ask("runs/create", tenant, &json!({"experiment_id": experiment, "start_time": 1}));
    let load = Load { connections: CONNECTIONS, bodies: true, ..Load::once(runs) };
    let made = service.client.run(&[create], load)?;
    report.add(&format!("runs/create, {CONNECTIONS} connections"), "requests/s", "", made.rate());
    let ids = made.bodies.iter().map(|body| {
        let made: Value = serde_json::from_str(body).map_err(|error| format!("a run is no JSON: {error}"))?;
        text(&made, "/run/info/run_id")
    });
    let mut logs = Vec::with_capacity(runs);
    for (number, id) in ids.enumerate() {
        let value = number as f64 / runs as f64;
        logs.push(ask("runs/log-metric", tenant, &json!({"run_id": id?, "key": "accuracy", "value": value, "timestamp": 1, "step": 0})));
    }
    service.client.run(&logs, Load { connections: CONNECTIONS, ..Load::once(runs) })?;
    let fields = json!({
        "experiment_ids": [experiment], "filter": "metrics.accuracy > 0.9", "max_results": 100, "order_by": ["metrics.accuracy DESC"],
    });
    let find = [ask("runs/search", tenant, &fields)];
    let first = service.client.run(&find, Load::once(1))?;
    let before = service.cpu_seconds("insula");
    let found = service.client.run(&find, Load { bodies: true, ..Load::once(50) })?;
    let cpu_ms = (service.cpu_seconds("insula") - before) * 1e3 / 50.0;
    if !found.bodies.iter().all(|body| body.contains("accuracy")) {
        return Err("a search found nothing".to_owned());
    }
    report.add(&format!("search with a filter and an order over {runs} runs, the first time"), "ms", "", first.micros_at(0.5) / 1e3);
    let goal = if runs >= 100_000 { "≤ 20" } else { "" };
    report.add(&format!("the same, later: p50, a page of 100 runs over {runs}"), "ms", goal, found.micros_at(0.5) / 1e3);
    report.add("the same, later: CPU", "ms", "", cpu_ms);
    for peer in peers {
        let over = peer.told.get("runs").and_then(Value::as_u64).unwrap_or_default();
        let label = format!("a real MLflow server, {}, over {over} runs: CPU", shown(peer.name));
        report.add(&label, "ms", "", peer.cpu_ms("search"));
    }
    Ok(())
}

fn peers(options: &Options, folder: &Path, report: &mut Report) -> Result<Vec<Peer>> {
    let python = crate::setup::mlflow()?;
    report.section("A real MLflow server 3.18, one worker, SQLite, plain HTTP");
    let mut peers = Vec::new();
    // Basic auth takes a quarter of a second for each request, whatever it asks.
    for (name, share) in [("none", 1), ("basic", 5)] {
        println!("measuring a real MLflow server, {} (minutes)", shown(name));
        let mut command = Command::new(&python);
        command.arg(crate::root().join("xtask/src/bench/mlflow_peer.py")).arg(folder.join(format!("mlflow-{name}"))).arg(name);
        command.arg((options.peer_requests / share).to_string()).arg((options.peer_runs / share).to_string());
        let told = quietly(&mut command)?;
        let told: Value = serde_json::from_str(&told).map_err(|error| format!("the peer printed no JSON: {error}"))?;
        let peer = Peer { name, told };
        for (label, what) in [("log-metric", "log_metric"), ("runs/get", "runs_get"), ("log-batch of 100 metrics", "log_batch")] {
            report.add(&format!("{}: {label}: CPU", shown(name)), "ms", "", peer.cpu_ms(what));
        }
        peers.push(peer);
    }
    Ok(peers)
}

fn shown(peer: &str) -> &'static str {
    if peer == "basic" { "basic auth" } else { "no auth" }
}

fn ask(path: &str, tenant: &str, fields: &Value) -> Ask {
    Ask::send("POST", format!("/api/2.0/mlflow/{path}"), tenant, fields.to_string())
}

fn post(service: &mut Service, tenant: &str, path: &str, fields: &Value) -> Result<Value> {
    service.client.json(ask(path, tenant, fields))
}

fn run_new(service: &mut Service, tenant: &str, experiment: &str) -> Result<String> {
    let made = post(service, tenant, "runs/create", &json!({"experiment_id": experiment, "start_time": 1}))?;
    text(&made, "/run/info/run_id")
}
