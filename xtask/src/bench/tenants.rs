//! Many tenants on one service: creating them, holding them, opening one, erasing one.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Ask, Load, percentile};
use super::report::Report;
use super::service::{Service, tenant_body, text};
use super::{Options, Programs};
use crate::Result;

/// A service that has just started settles.
const SETTLE: Duration = Duration::from_secs(3);
/// Tenants that are opened cold.
const OPENED: usize = 200;
/// Requests that create tenants go in parts, so that progress is seen.
const PART: usize = 1_000;
/// Tenants erased, one after the other.
const ERASED: usize = 5;
/// Time for one erasure.
const ERASE_MAX: Duration = Duration::from_secs(300);
/// States in which the tenant's keys are gone.
const UNREADABLE: [&str; 5] = ["shredded", "blobs_gone", "rows_gone", "backups_noted", "certified"];

pub(super) fn measure(options: &Options, programs: &Programs, folder: &Path, report: &mut Report) -> Result<()> {
    report.section(&format!("{} tenants on one service", options.tenants));
    let mut service = Service::start(programs, folder, "tenants", "")?;
    let operator = service.bootstrap()?;
    thread::sleep(SETTLE);
    let none = service.memory();
    report.add("idle memory with none: the service's own process (PSS)", "MiB", "", none.gateway);
    report.add("idle memory with none: with fork server and blank cells", "MiB", "≤ 60", none.all);
    let (mut micros, mut keys, mut seconds) = (Vec::new(), Vec::new(), 0.0);
    while micros.len() < options.tenants {
        let from = micros.len();
        let part = PART.min(options.tenants - from);
        let asks: Vec<Ask> =
            (from..from + part).map(|at| Ask::send("POST", "/v1/tenants", &operator, tenant_body(&format!("tenant-{at}")))).collect();
        let told = service.client.run(&asks, Load { bodies: true, ..Load::once(part) })?;
        for body in &told.bodies {
            let made: Value = serde_json::from_str(body).map_err(|error| format!("the answer is no JSON: {error}"))?;
            keys.push(text(&made, "/admin_key/secret")?);
        }
        println!("  {} tenants, the last {part} in {:.1} s", from + part, told.seconds);
        seconds += told.seconds;
        micros.extend(told.micros);
    }
    let ms: Vec<f64> = micros.iter().map(|micros| micros / 1e3).collect();
    report.add_spread("create one over HTTP: p50", "ms", "≤ 10", percentile(&ms, 0.5), &ms);
    report.add("create one over HTTP: p99", "ms", "", percentile(&ms, 0.99));
    report.add("create all", "s", "", seconds);
    let last: Vec<f64> = ms.iter().rev().take(PART.min(ms.len() / 2)).copied().collect();
    report.add("create one: p50 of the last ones", "ms", "", percentile(&last, 0.5));
    report.add("memory right after, 256 still open: the service's own process (PSS)", "MiB", "", service.memory().gateway);
    service.stop()?;

    let began = Instant::now();
    let mut service = Service::start(programs, folder, "tenants", "")?;
    report.add("restart with all of them, to ready", "s", "", began.elapsed().as_secs_f64());
    thread::sleep(SETTLE);
    let all = service.memory();
    report.add("idle memory with all registered: the service's own process (PSS)", "MiB", "", all.gateway);
    report.add("idle memory with all registered: with fork server and blank cells", "MiB", "≤ 60", all.all);
    let step = (keys.len() / OPENED).max(1);
    let asks: Vec<Ask> = keys.iter().step_by(step).take(OPENED).map(|key| Ask::get("/v1/quota", key)).collect();
    let cold = service.client.run(&asks, Load::once(asks.len()))?;
    let warm = service.client.run(&asks, Load::once(asks.len()))?;
    let opening: Vec<f64> = cold.micros.iter().zip(&warm.micros).map(|(cold, warm)| (cold - warm) / 1e3).collect();
    report.add_spread("open a cold tenant: p50 over a warm one", "ms", "", percentile(&opening, 0.5), &opening);
    report.add("open a cold tenant: p99 over a warm one", "ms", "", percentile(&opening, 0.99));
    report.add("the same request to an open tenant: p50", "ms", "", warm.micros_at(0.5) / 1e3);
    for at in 0..ERASED.min(options.tenants) {
        erase(&mut service, &operator, &format!("tenant-{}", at * step), report)?;
    }
    service.stop()
}

/// Erases one tenant and watches.
fn erase(service: &mut Service, operator: &str, name: &str, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let erasure = service.client.json(Ask::delete(format!("/v1/tenants/{name}"), operator))?;
    let id = text(&erasure, "/id")?;
    let mut unreadable = None;
    while began.elapsed() < ERASE_MAX {
        let state = text(&service.client.json(Ask::get(format!("/v1/erasures/{id}"), operator))?, "/state")?;
        if UNREADABLE.contains(&state.as_str()) {
            unreadable.get_or_insert(began.elapsed().as_secs_f64());
        }
        if state == "certified" {
            report.add("erase one: until nothing of it can be read", "s", "≤ 5", unreadable.unwrap_or_default());
            report.add("erase one: until certified", "s", "", began.elapsed().as_secs_f64());
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Err(format!("`{name}` was not erased within {} s", ERASE_MAX.as_secs()))
}
