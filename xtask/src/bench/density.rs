//! How many tenants a machine holds: live cells in memory, tenants with a deployed model on disk, and what a busy one notices of the others.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Ask, Load};
use super::data::Data;
use super::report::Report;
use super::service::{Service, tenant_body, text};
use super::train::{deploy, train};
use super::{Options, Programs};
use crate::Result;

/// Tenants that are made with one command to the client, so that progress is seen.
const PART: usize = 500;
/// Connections over which tenants are made.
const CONNECTIONS: usize = 4;
/// Predictions of the warm tenant at each step.
const WARM_PREDICTIONS: usize = 2_000;
/// Memory comes to rest.
const SETTLE: Duration = Duration::from_secs(3);
/// What must be enough for all of it.
const ALL_GIB: &str = "≤ 8";

pub(super) fn measure(options: &Options, programs: &Programs, folder: &Path, report: &mut Report) -> Result<()> {
    let data = Data::make(folder, super::data::HELD_OUT_ROWS)?;
    let settings = format!("cells_max = {}\nidle_timeout_seconds = 80000.0\n[limits]\ntenants_open_max = 256\n", options.live_cells + 64);
    let mut service = Service::start(programs, folder, "density", &settings)?;
    let operator = service.bootstrap()?;
    let warm = service.tenant_create(&operator, "warm")?;
    service.client.json(Ask::file("PUT", "/v1/datasets/small?format=csv", &warm, &data.small))?;
    let trained = train(&mut service, &warm, "linear", "small", "linear")?;
    deploy(&mut service, &warm, "linear", trained.version)?;
    let model = super::predict::fetch(programs, &mut service, &warm, "linear", folder)?;
    let ask = Ask::send("POST", "/v2/models/linear/infer", &warm, data.request());
    let mut crowd = Crowd { service, operator, model, made: 0, request: data.request() };

    report.section(&format!("{} live cells with a small model each", options.live_cells));
    thread::sleep(SETTLE);
    let (before, own_before) = (used_mib(), crowd.service.memory());
    let alone = crowd.warm(&ask)?;
    report.add("a warm tenant among no others: p50", "µs", "", alone.0);
    report.add("a warm tenant among no others: p99", "µs", "", alone.1);
    for live in [options.live_cells / 50, options.live_cells / 5, options.live_cells] {
        while crowd.made < live {
            let part = PART.min(live - crowd.made);
            crowd.make(part, true)?;
        }
        thread::sleep(SETTLE);
        let now = crowd.warm(&ask)?;
        report.add(&format!("a warm tenant among {live} live ones: p50"), "µs", "", now.0);
        report.add(&format!("a warm tenant among {live} live ones: p99"), "µs", "", now.1);
        report.add(&format!("a warm tenant among {live} live ones: p99 to that alone"), "×", "about 1", now.1 / alone.1);
    }
    let live = crowd.service.holds().processes as f64;
    if (live as usize) < options.live_cells {
        return Err(format!("of {} cells {live} processes are left: some were put out", options.live_cells));
    }
    let (own, cells) = (crowd.service.memory(), options.live_cells as f64);
    report.add("a live cell, kernel's memory included (of the whole machine)", "MiB", "≤ 1", (used_mib() - before) / cells);
    report.add("a live cell, its processes alone (PSS)", "MiB", "", (own.all - own.gateway - own_before.all + own_before.gateway) / cells);
    report.add("the service's own process with them (PSS)", "MiB", "", own.gateway);
    report.add("everything with them, kernel's memory included", "GiB", ALL_GIB, (used_mib() - before + own_before.all) / 1024.0);
    registered(options, &mut crowd, &ask, alone.1, before - own_before.all, report)?;
    crowd.service.stop()
}

/// Tenants that have a deployed model and no cell.
fn registered(options: &Options, crowd: &mut Crowd, ask: &Ask, alone: f64, base_mib: f64, report: &mut Report) -> Result<()> {
    report.section(&format!("{} tenants with a deployed model each, {} of them live", options.registered, options.live_cells));
    let began = Instant::now();
    let first = crowd.made;
    for step in 1..=4 {
        while crowd.made < options.registered * step / 4 {
            let part = PART.min(options.registered * step / 4 - crowd.made);
            crowd.make(part, false)?;
        }
        let now = crowd.warm(ask)?;
        report.add(&format!("a warm tenant among {} registered ones: p99", crowd.made), "µs", "", now.1);
        report.add(&format!("a warm tenant among {} registered ones: p99 to that alone", crowd.made), "×", "about 1", now.1 / alone);
    }
    let made = crowd.made.saturating_sub(first).max(1) as f64;
    report.add("make a tenant, register its model and deploy it, 4 at once", "ms", "", began.elapsed().as_secs_f64() * 1e3 / made);
    thread::sleep(SETTLE);
    report.add("the service's own process (PSS)", "MiB", "", crowd.service.memory().gateway);
    report.add("everything, kernel's memory included", "GiB", ALL_GIB, (used_mib() - base_mib) / 1024.0);
    Ok(())
}

/// A service with many tenants.
struct Crowd {
    service: Service,
    operator: String,
    model: std::path::PathBuf,
    request: String,
    made: usize,
}

impl Crowd {
    /// Makes so many tenants with a deployed model; `live` asks each for one prediction.
    fn make(&mut self, part: usize, live: bool) -> Result<()> {
        let began = Instant::now();
        let load = |total| Load { connections: CONNECTIONS, bodies: true, ..Load::once(total) };
        let names = self.made..self.made + part;
        let asks: Vec<Ask> =
            names.map(|at| Ask::send("POST", "/v1/tenants", &self.operator, tenant_body(&format!("crowd-{at}")))).collect();
        let told = self.service.client.run(&asks, load(part))?;
        let mut keys = Vec::new();
        for body in &told.bodies {
            let made: Value = serde_json::from_str(body).map_err(|error| format!("the answer is no JSON: {error}"))?;
            keys.push(text(&made, "/admin_key/secret")?);
        }
        let each = |ask: &dyn Fn(&str) -> Ask| keys.iter().map(|key| ask(key)).collect::<Vec<_>>();
        let body = r#"{"model":"linear","version":1}"#;
        self.service.client.run(&each(&|key| Ask::file("POST", "/v1/models/linear/versions", key, &self.model)), load(part))?;
        self.service.client.run(&each(&|key| Ask::send("PUT", "/v1/deployments/linear", key, body)), load(part))?;
        if live {
            self.service.client.run(&each(&|key| Ask::send("POST", "/v2/models/linear/infer", key, self.request.clone())), load(part))?;
        }
        self.made += part;
        println!("  {} tenants, the last {part} in {:.1} s", self.made, began.elapsed().as_secs_f64());
        Ok(())
    }

    /// p50 and p99 of a tenant that is asked all the time.
    fn warm(&mut self, ask: &Ask) -> Result<(f64, f64)> {
        let asks = std::slice::from_ref(ask);
        self.service.client.run(asks, Load::once(WARM_PREDICTIONS / 4))?;
        let told = self.service.client.run(asks, Load::once(WARM_PREDICTIONS))?;
        Ok((told.micros_at(0.5), told.micros_at(0.99)))
    }
}

/// Memory of the machine that nobody else could have, in MiB: of processes and of the kernel, without what it only caches.
fn used_mib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or_default()
    };
    (field("MemTotal:") - field("MemAvailable:")) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_use() {
        assert!(used_mib() > 10.0);
    }
}
