//! Servers of others, from their Python packages, beside ours in one run: the same model, the same engine, one thread, one row a request.
//!
//! They are asked in plain text, and have no identity, no policy, no quota, no audit and no sandbox; ours has all of it, and TLS. What counts are
//! the ratios. Two more references are no peers: the engine alone, and the engine inside a server like our gateway without isolation.
//! Of Triton the package index has the Python backend only.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Ask, Client, Load};
use super::data::Data;
use super::neighbours::ten_ms;
use super::predict::alone;
use super::report::Report;
use super::service::{Service, below, cpu_below};
use super::train::deploy;
use super::{Options, Programs};
use crate::{Result, root, setup};

/// Connections of the load.
const CONNECTIONS: usize = 16;
/// Time for a peer to start and answer.
const START_MAX: Duration = Duration::from_secs(120);
/// Time for it to end by itself.
const STOP_MAX: Duration = Duration::from_secs(10);
/// A model of ten milliseconds is asked this many times less often, and all peers a few times less than we are.
const HEAVY_LESS: usize = 60;
const PEERS_LESS: usize = 10;

/// How a peer wants to be asked.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// `{"data": […]}`
    Numbers,
    /// `{"inputs": [[…]]}`
    Rows,
    /// Open Inference Protocol.
    Protocol,
}

/// Name for people, of its script and list of packages, address, form.
const PEERS: [(&str, &str, &str, Form); 7] = [
    ("mosec", "mosec", "/inference", Form::Numbers),
    ("Triton, Python backend", "triton", "/v2/models/m/infer", Form::Protocol),
    ("KServe's Python server", "kserve", "/v2/models/m/infer", Form::Protocol),
    ("MLServer", "mlserver", "/v2/models/m/infer", Form::Protocol),
    ("LitServe", "litserve", "/predict", Form::Numbers),
    ("MLflow models serve", "mlflow", "/invocations", Form::Rows),
    ("BentoML", "bentoml", "/predict", Form::Numbers),
];

/// What was measured of one server.
#[derive(Debug, Clone, Copy)]
struct Figures {
    p50_micros: f64,
    cpu_ms: [f64; 2],
    rate: f64,
}

/// Ours, the references, and with `--peers` those of others.
pub(super) fn measure(
    options: &Options,
    programs: &Programs,
    folder: &Path,
    data: &Data,
    service: &mut Service,
    tenant: &str,
    report: &mut Report,
) -> Result<()> {
    let ten = ten_ms(programs, folder)?;
    service.client.json(Ask::file("POST", "/v1/models/ten/versions", tenant, &ten))?;
    deploy(service, tenant, "ten", 1)?;
    fs::write(folder.join("request.json"), data.request()).map_err(|error| format!("cannot write a request: {error}"))?;
    for (model, about, heavy) in [("linear", "logistic regression, 30 features", false), ("ten", "a model of about 10 ms", true)] {
        report.section(&format!("Beside others: {about}, one row a request"));
        let ask = Ask::send("POST", format!("/v2/models/{model}/infer"), tenant, data.request());
        let place = Place { programs, folder, model, heavy };
        let mut last = None;
        for _ in 0..options.rounds {
            last = Some(references(options, place, service, &ask, report)?);
        }
        let Some(ours) = last.filter(|_| options.peers) else { continue };
        for peer in PEERS {
            // A peer that does not start here is no failure of ours.
            if let Err(why) = beside(options, place, peer, data, ours, report) {
                println!("  {} is left out: {why}", peer.0);
            }
        }
    }
    Ok(())
}

/// Where things are, and which model it is about.
#[derive(Debug, Clone, Copy)]
struct Place<'p> {
    programs: &'p Programs,
    folder: &'p Path,
    model: &'p str,
    heavy: bool,
}

impl Place<'_> {
    fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.onnx", self.model))
    }

    /// Predictions on one connection, and on many; `less` for those that take long.
    fn counts(&self, options: &Options, less: usize) -> [usize; 2] {
        let less = if self.heavy { HEAVY_LESS.max(less) } else { less };
        [options.predictions_alone, options.predictions_many].map(|count| (count / less).max(CONNECTIONS))
    }
}

/// One server under the load.
fn load(client: &mut Client, ask: &Ask, counts: [usize; 2], pid: u32) -> Result<Figures> {
    let asks = std::slice::from_ref(ask);
    client.run(asks, Load { connections: 2, ..Load::once(counts[0] / 5 + 2) })?;
    let began = cpu_below(pid);
    let single = client.run(asks, Load::once(counts[0]))?;
    let between = cpu_below(pid);
    let many = client.run(asks, Load { connections: CONNECTIONS, ..Load::once(counts[1]) })?;
    let ended = cpu_below(pid);
    let cpu_ms = [(between - began) * 1e3 / counts[0] as f64, (ended - between) * 1e3 / counts[1] as f64];
    Ok(Figures { p50_micros: single.micros_at(0.5), cpu_ms, rate: many.rate() })
}

fn add(report: &mut Report, name: &str, figures: Figures) {
    report.add(&format!("{name}: CPU per request, 1 connection"), "ms", "", figures.cpu_ms[0]);
    report.add(&format!("{name}: CPU per request, {CONNECTIONS} connections"), "ms", "", figures.cpu_ms[1]);
    report.add(&format!("{name}: p50, 1 connection"), "µs", "", figures.p50_micros);
    report.add(&format!("{name}: throughput, {CONNECTIONS} connections"), "/s", "", figures.rate);
}

/// Ours, beside the engine alone and the engine in a server without walls.
fn references(options: &Options, place: Place<'_>, service: &mut Service, ask: &Ask, report: &mut Report) -> Result<Figures> {
    let runs = place.counts(options, 1)[1];
    let engine = alone(place.programs, place.folder, place.model, "tensors", runs)?;
    let pid = service.pid();
    let ours = load(&mut service.client, ask, place.counts(options, 1), pid)?;
    let mut inside = Inside::start(place)?;
    let pid = inside.child.id();
    let without = load(&mut inside.client, ask, place.counts(options, 1), pid)?;
    drop(inside);
    add(report, "ours, with everything on", ours);
    add(report, "the engine inside a server, no isolation and nothing on", without);
    report.add("the engine alone, ready tensors: throughput", "/s", "", engine("per_second"));
    let goal = if place.heavy { "" } else { "≥ 0.85" };
    report.add("ours to the engine inside a server: throughput", "×", goal, ours.rate / without.rate);
    report.add("ours to the engine inside a server: CPU", "×", "", ours.cpu_ms[1] / without.cpu_ms[1]);
    if place.heavy {
        report.add("ours to the engine alone: throughput", "%", "≥ 98", ours.rate / engine("per_second") * 1e2);
    }
    Ok(ours)
}

/// The engine inside a server; ends with its input.
struct Inside {
    client: Client,
    child: Child,
}

impl Inside {
    fn start(place: Place<'_>) -> Result<Self> {
        let failed = |error: std::io::Error| format!("cannot start the engine inside a server: {error}");
        let ca = place.folder.join("inside.pem");
        let mut command = Command::new(&place.programs.engine_inside);
        command.arg(&place.programs.engine).arg(place.file()).arg(&ca).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line).map_err(failed)?;
        }
        let told: Value = serde_json::from_str(&line).map_err(|_| "the engine inside a server did not start: see above".to_owned())?;
        let client = Client::start(&place.programs.client, &super::service::text(&told, "/url")?, &ca)?;
        Ok(Self { client, child })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// One peer in the same run.
fn beside(
    options: &Options,
    place: Place<'_>,
    (name, script, path, form): (&str, &str, &str, Form),
    data: &Data,
    ours: Figures,
    report: &mut Report,
) -> Result<()> {
    let python = if script == "mlflow" { setup::mlflow()? } else { setup::peer(script)? };
    let body = form.body(&data.request())?;
    let mut peer = Peer::start(place, &python, script)?;
    let ask = Ask::send("POST", path, "", body);
    peer.answers(&ask)?;
    let pid = peer.child.id();
    let theirs = load(&mut peer.client, &ask, place.counts(options, PEERS_LESS), pid)?;
    drop(peer);
    add(report, name, theirs);
    let goal = if place.heavy || name.starts_with("Triton") { "" } else { "≥ 5" };
    report.add(&format!("ours to {name}: throughput"), "×", goal, ours.rate / theirs.rate);
    report.add(&format!("ours to {name}: CPU per request, {CONNECTIONS} connections"), "×", "", ours.cpu_ms[1] / theirs.cpu_ms[1]);
    Ok(())
}

impl Form {
    /// The same numbers in this form.
    fn body(self, request: &str) -> Result<String> {
        let request: Value = serde_json::from_str(request).map_err(|error| error.to_string())?;
        let numbers = request.pointer("/inputs/0/data").cloned().unwrap_or_default();
        Ok(match self {
            Self::Numbers => serde_json::json!({ "data": numbers }),
            Self::Rows => serde_json::json!({ "inputs": [numbers] }),
            Self::Protocol => request,
        }
        .to_string())
    }
}

/// A running server of somebody else's.
struct Peer {
    client: Client,
    child: Child,
    log: PathBuf,
}

impl Peer {
    fn start(place: Place<'_>, python: &Path, script: &str) -> Result<Self> {
        let failed = |error: std::io::Error| format!("cannot start `{script}`: {error}");
        let folder = place.folder.join("peers");
        fs::create_dir_all(&folder).map_err(failed)?;
        let log = folder.join(format!("{script}.log"));
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).map_err(failed)?.port();
        let output = File::create(&log).map_err(failed)?;
        let mut command = Command::new(python);
        command.arg(root().join(format!("xtask/src/bench/peers/{script}_peer.py"))).arg(place.file()).arg(port.to_string()).arg(&folder);
        command.current_dir(&folder).env("HOME", &folder).env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
        command.stdout(output.try_clone().map_err(failed)?).stderr(output).process_group(0);
        let child = command.spawn().map_err(failed)?;
        // Plain text: the certificate is not looked at.
        let client = Client::start(&place.programs.client, &format!("http://localhost:{port}"), &log)?;
        Ok(Self { client, child, log })
    }

    /// Waits until it answers.
    fn answers(&mut self, ask: &Ask) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < START_MAX {
            thread::sleep(Duration::from_millis(200));
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("a peer ended with {status}; its log is {}", self.log.display()));
            }
            if self.client.patient(ask) {
                return Ok(());
            }
        }
        Err(format!("a peer does not answer; its log is {}", self.log.display()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // What it has started ends with it, or is ended.
        let all = below(self.child.id());
        let send = |signal: &str, pid: u32| Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status();
        let _asked = send("-TERM", self.child.id());
        let deadline = Instant::now() + STOP_MAX;
        while Instant::now() < deadline && !matches!(self.child.try_wait(), Ok(Some(_))) {
            thread::sleep(Duration::from_millis(50));
        }
        let left: Vec<u32> = all.into_iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
        left.into_iter().for_each(|pid| drop(send("-KILL", pid)));
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_in_each_form() {
        let request = r#"{"inputs":[{"name":"input","data":[1.5,2.0]}]}"#;
        assert_eq!(Form::Numbers.body(request).unwrap(), r#"{"data":[1.5,2.0]}"#);
        assert_eq!(Form::Rows.body(request).unwrap(), r#"{"inputs":[[1.5,2.0]]}"#);
        assert!(Form::Protocol.body(request).unwrap().contains("input"));
    }

    #[test]
    fn every_peer_has_its_script_and_its_packages() {
        for (_, script, ..) in PEERS {
            assert!(root().join(format!("xtask/src/bench/peers/{script}_peer.py")).is_file(), "{script}");
            assert!(script == "mlflow" || root().join(format!("xtask/peers/{script}.txt")).is_file(), "{script}");
        }
    }
}
