//! What tenants notice of one another: twenty equal ones, and a victim beside every kind of attacker.
//!
//! The victim asks for predictions of a small model over one connection, alone and then beside the attack, in turn; what counts is the ratio
//! of each such pair. Attackers are tenants with limits as anybody's, or strangers. Their clients give way to everybody on the machine, so
//! that what is felt is the service's work and not the sending.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Ask, Attacking, Load};
use super::data::Data;
use super::report::Report;
use super::service::Service;
use super::train::{deploy, train};
use super::{Options, Programs};
use crate::run::quietly;
use crate::{Result, root};

/// Equal tenants, and connections of each.
const EQUALS: usize = 20;
const EQUAL_CONNECTIONS: usize = 2;
/// Rate of an attacker that has one, a second.
const RATE: u32 = 20;
/// How far over it the attacker goes.
const OVER: u32 = 100;
/// Connections of most attackers.
const CONNECTIONS: usize = 64;
/// Bytes of a huge body.
const HUGE_BYTES: usize = 16 << 20;
/// Memory of attackers that use it up, and that take much of it, in bytes.
const SMALL_MEMORY_BYTES: u64 = 192 << 20;
const LARGE_MEMORY_BYTES: u64 = 1 << 30;
/// An attack begins so long before the victim is watched, and ends so long after, in seconds.
const LEAD_SECONDS: f64 = 0.5;
/// A service that was attacked comes to rest.
const REST: Duration = Duration::from_millis(700);
/// Processes of the control: one for each core of the machine that the goals are for.
const SPINNING: usize = 2;
const KEPT_GOAL: &str = "≥ 95";
const GROWTH_GOAL: &str = "≤ 20";

/// One way to be a bad neighbour.
struct Bad {
    name: &'static str,
    ask: Ask,
    how: Attacking,
    goals: bool,
}

pub(super) fn measure(options: &Options, programs: &Programs, folder: &Path, report: &mut Report) -> Result<()> {
    let data = Data::make(folder, super::data::HELD_OUT_ROWS)?;
    let mut service = Service::start(programs, folder, "neighbours", "")?;
    let operator = service.bootstrap()?;
    let victim = service.tenant_create(&operator, "victim")?;
    service.client.json(Ask::file("PUT", "/v1/datasets/small?format=csv", &victim, &data.small))?;
    let trained = train(&mut service, &victim, "linear", "small", "linear")?;
    deploy(&mut service, &victim, "linear", trained.version)?;
    let model = super::predict::fetch(programs, &mut service, &victim, "linear", folder)?;
    equals(options, &mut service, &operator, &model, &data, report)?;
    let ask = Ask::send("POST", "/v2/models/linear/infer", &victim, data.request());
    report.section("A victim at one connection beside an attacker (small model; attackers' clients run at the lowest priority)");
    for _ in 0..options.rounds {
        control(options, &mut service, &ask, report)?;
    }
    for bad in attackers(programs, folder, &mut service, &operator, &model, &data)? {
        for _ in 0..options.rounds {
            pair(options, programs, &mut service, &ask, &bad, report)?;
        }
    }
    service.stop()
}

/// Jain's index: 1 when all get the same, 1/n when one gets everything.
fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) = (shares.iter().sum::<f64>(), shares.iter().map(|share| share * share).sum::<f64>());
    if squares == 0.0 { 0.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

fn equals(options: &Options, service: &mut Service, operator: &str, model: &Path, data: &Data, report: &mut Report) -> Result<()> {
    report.section(&format!("{EQUALS} equal tenants at once, {EQUAL_CONNECTIONS} connections each"));
    let mut asks = Vec::new();
    for at in 0..EQUALS {
        let tenant = service.tenant_create(operator, &format!("equal-{at}"))?;
        upload(service, &tenant, "linear", model)?;
        asks.push(Ask::send("POST", "/v2/models/linear/infer", &tenant, data.request()));
    }
    service.client.run(&asks, Load::once(EQUALS))?;
    for _ in 0..options.rounds {
        let load = Load { own: true, ..Load::lasting(options.neighbour_seconds, EQUALS * EQUAL_CONNECTIONS) };
        let told = service.client.run(&asks, load)?;
        report.add("Jain's index of their throughput", "", "≥ 0.97", jain(&told.done));
        report.add("all together", "predictions/s", "", told.rate());
        let least = told.done.iter().copied().fold(f64::INFINITY, f64::min);
        report.add("the slowest to the mean", "%", "", least * 1e2 * EQUALS as f64 / told.done.iter().sum::<f64>());
    }
    Ok(())
}

/// A model of somebody's, deployed under its name.
fn upload(service: &mut Service, tenant: &str, name: &str, model: &Path) -> Result<()> {
    service.client.json(Ask::file("POST", format!("/v1/models/{name}/versions"), tenant, model))?;
    deploy(service, tenant, name, 1)
}

/// A model of ten milliseconds of compute.
pub(super) fn ten_ms(programs: &Programs, folder: &Path) -> Result<PathBuf> {
    let model = folder.join("ten.onnx");
    if !model.exists() {
        let told = quietly(Command::new(&programs.python).arg(root().join("xtask/src/bench/ten_ms.py")).arg(&model))?;
        println!("  a model of about ten milliseconds: {}", told.trim());
    }
    Ok(model)
}

// Long because it is the list of attacks.
fn attackers(programs: &Programs, folder: &Path, service: &mut Service, operator: &str, small: &Path, data: &Data) -> Result<Vec<Bad>> {
    let grow = root().join("crates/cell/tests/fixtures/grow.onnx");
    let huge = folder.join("huge.json");
    let number = "0.123456789,";
    let body = format!(
        r#"{{"inputs":[{{"name":"input","shape":[1,30],"datatype":"FP32","data":[{}1]}}]}}"#,
        number.repeat(HUGE_BYTES / number.len())
    );
    fs::write(&huge, body).map_err(|error| format!("cannot write `{}`: {error}", huge.display()))?;
    let mut tenant = |name: &str, limits: Value, model: &str, file: &Path| -> Result<String> {
        let key = service.tenant_limited(operator, name, &limits)?;
        upload(service, &key, model, file)?;
        Ok(key)
    };
    let rate = json!({"requests_per_second": RATE, "requests_burst": RATE, "concurrency_max": CONNECTIONS});
    let boundless = json!({"concurrency_max": CONNECTIONS});
    let usual = |memory_bytes: u64| json!({"requests_per_second": 100, "requests_burst": 200, "concurrency_max": CONNECTIONS, "memory_bytes": memory_bytes});
    let limited = tenant("limited", rate, "linear", small)?;
    let equal = tenant("greedy", boundless.clone(), "linear", small)?;
    let heavy = tenant("heavy", boundless, "ten", &ten_ms(programs, folder)?)?;
    let bulky = tenant("bulky", usual(LARGE_MEMORY_BYTES), "linear", small)?;
    let crashing = tenant("crashing", usual(SMALL_MEMORY_BYTES), "grow", &grow)?;
    let eating = tenant("eating", usual(LARGE_MEMORY_BYTES), "grow", &grow)?;
    let elements = |count: u64| format!(r#"{{"inputs":[{{"name":"shape","shape":[1],"datatype":"INT64","data":[{count}]}}]}}"#);
    let infer = |model: &str, key: &str, body: String| Ask::send("POST", format!("/v2/models/{model}/infer"), key, body);
    let bad = |name, ask, how| Bad { name, ask, how, goals: true };
    Ok(vec![
        bad(
            "100 times its rate, at 64 connections",
            infer("linear", &limited, data.request()),
            Attacking { per_second: Some(f64::from(RATE * OVER)), ..Attacking::with(CONNECTIONS) },
        ),
        Bad {
            goals: false,
            ..bad("no rate, the same model at 64 connections", infer("linear", &equal, data.request()), Attacking::with(CONNECTIONS))
        },
        bad("no rate, a model of 10 ms at 64 connections", infer("ten", &heavy, data.request()), Attacking::with(CONNECTIONS)),
        bad("bodies of 16 MiB at 16 connections", Ask::file("POST", "/v2/models/linear/infer", &bulky, &huge), Attacking::with(16)),
        bad(
            "bodies that drop byte by byte, at 256 connections",
            infer("linear", &bulky, data.request()),
            Attacking { trickle_millis: Some(20), ..Attacking::with(256) },
        ),
        bad(
            "a flood of new connections from nobody, 64 at once",
            Ask::get("/v2/health/live", ""),
            Attacking { fresh: true, ..Attacking::with(CONNECTIONS) },
        ),
        bad(
            "a model that dies of its memory each time, at 8 connections",
            infer("grow", &crashing, elements(200_000_000)),
            Attacking::with(8),
        ),
        bad("a model that takes 160 MB each time, at 8 connections", infer("grow", &eating, elements(40_000_000)), Attacking::with(8)),
    ])
}

/// The victim beside processes that have nothing to do with the service: what the place and the way of measuring do by themselves.
fn control(options: &Options, service: &mut Service, ask: &Ask, report: &mut Report) -> Result<()> {
    let spinning = || {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0", "sh", "-c", "while :; do :; done"]);
        command.spawn().map(Spinning).map_err(|error| format!("cannot start a process that spins: {error}"))
    };
    let begin = |_: &mut Service| (0..SPINNING).map(|_| spinning()).collect::<Result<Vec<_>>>();
    let name = "no attack: two processes of another's at the lowest priority that only spin";
    beside(options, service, ask, (name, false), begin, report).map(|_| ())
}

struct Spinning(Child);

impl Drop for Spinning {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// The victim alone, and beside the attack.
fn pair(options: &Options, programs: &Programs, service: &mut Service, ask: &Ask, bad: &Bad, report: &mut Report) -> Result<()> {
    let name = bad.name;
    let seconds = options.neighbour_seconds + 2.0 * LEAD_SECONDS;
    let begin = |service: &mut Service| service.attack(programs, &bad.ask, bad.how, seconds);
    let attacked = beside(options, service, ask, (name, bad.goals), begin, report)?.end()?;
    let answered: u64 = attacked.statuses.values().sum();
    let good = attacked.statuses.get("200").copied().unwrap_or_default();
    report.add(&format!("{name}: attacker's requests answered"), "/s", "", answered as f64 / attacked.seconds);
    report.add(&format!("{name}: of these with success"), "%", "", if answered == 0 { 0.0 } else { good as f64 * 1e2 / answered as f64 });
    println!("    answers by status: {:?}, connections that broke: {}", attacked.statuses, attacked.broken);
    Ok(())
}

/// The victim alone, and beside what is begun then, which goes on.
fn beside<T>(
    options: &Options,
    service: &mut Service,
    ask: &Ask,
    (name, goals): (&str, bool),
    begin: impl FnOnce(&mut Service) -> Result<T>,
    report: &mut Report,
) -> Result<T> {
    let asks = std::slice::from_ref(ask);
    let seconds = options.neighbour_seconds;
    thread::sleep(REST);
    let alone = service.client.run(asks, Load::lasting(seconds, 1))?;
    let begun = begin(service)?;
    thread::sleep(Duration::from_secs_f64(LEAD_SECONDS));
    let beside = service.client.run(asks, Load::lasting(seconds, 1))?;
    let (kept_goal, growth_goal) = if goals { (KEPT_GOAL, GROWTH_GOAL) } else { ("", "") };
    report.add(&format!("{name}: the victim's throughput kept"), "%", kept_goal, beside.rate() / alone.rate() * 1e2);
    report.add(&format!("{name}: its p99 grows by"), "%", growth_goal, (beside.micros_at(0.99) / alone.micros_at(0.99) - 1.0) * 1e2);
    report.add(&format!("{name}: its p50 grows by"), "%", "", (beside.micros_at(0.5) / alone.micros_at(0.5) - 1.0) * 1e2);
    report.add(&format!("{name}: its p99 alone"), "µs", "", alone.micros_at(0.99));
    Ok(begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_of_fairness() {
        assert!((jain(&[3.0, 3.0, 3.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[9.0, 0.0, 0.0]) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(jain(&[0.0, 0.0]), 0.0);
    }
}
