//! Hours of mixed load: tenants come and are erased, models are registered and replaced, cells die, and all the while one tenant is served.
//! What the service holds is looked at after each turn; the last quarter of the looks is compared with the first one after warming up.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::client::{Ask, Attacking, Load, percentile};
use super::data::Data;
use super::report::Report;
use super::service::{Holds, Service, text};
use super::train::{deploy, train};
use super::{Options, Programs};
use crate::Result;

/// Tenants that are there at once.
const KEPT: usize = 8;
/// Predictions of each tenant in its life.
const PREDICTIONS: usize = 200;
/// Predictions a second of the tenant that is served all the time.
const STEADY_PER_SECOND: f64 = 100.0;
/// Share of the looks that are warming up.
const WARM_UP_SHARE: usize = 6;
/// Time for one erasure.
const ERASE_MAX: Duration = Duration::from_secs(60);
/// An idle cell goes after this, so that cells come and go too.
const IDLE: &str = "idle_timeout_seconds = 3.0\n";

pub(super) fn measure(options: &Options, programs: &Programs, folder: &Path, report: &mut Report) -> Result<()> {
    report.section(&format!("{} minutes of mixed load, with tenants, models and cells that come and go", options.soak_minutes));
    let data = Data::make(folder, super::data::HELD_OUT_ROWS)?;
    let mut service = Service::start(programs, folder, "soak", IDLE)?;
    let operator = service.bootstrap()?;
    let steady = service.tenant_create(&operator, "steady")?;
    service.client.json(Ask::file("PUT", "/v1/datasets/small?format=csv", &steady, &data.small))?;
    let trained = train(&mut service, &steady, "linear", "small", "linear")?;
    deploy(&mut service, &steady, "linear", trained.version)?;
    let model = super::predict::fetch(programs, &mut service, &steady, "linear", folder)?;
    let seconds = options.soak_minutes * 60.0;
    let ask = Ask::send("POST", "/v2/models/linear/infer", &steady, data.request());
    let how = Attacking { per_second: Some(STEADY_PER_SECOND), ..Attacking::with(4) };
    let served = service.attack(programs, &ask, how, seconds)?;
    let (began, mut looks, mut killed) = (Instant::now(), Vec::<Look>::new(), 0);
    for turn in 0.. {
        if began.elapsed().as_secs_f64() > seconds {
            break;
        }
        let name = format!("guest-{turn}");
        let tenant = service.tenant_create(&operator, &name)?;
        for version in 1..=2 {
            service.client.json(Ask::file("POST", "/v1/models/linear/versions", &tenant, &model))?;
            deploy(&mut service, &tenant, "linear", version)?;
            let asks = [Ask::send("POST", "/v2/models/linear/infer", &tenant, data.request())];
            service.client.run(&asks, Load { connections: 4, ..Load::once(PREDICTIONS) })?;
        }
        service.client.json(Ask::file("PUT", "/v1/datasets/small?format=csv", &tenant, &data.small))?;
        killed += kill_a_cell(&service, turn);
        if turn >= KEPT {
            erase(&mut service, &operator, &format!("guest-{}", turn - KEPT))?;
        }
        looks.push(Look { holds: service.holds(), files: files(&folder.join("soak")), temporary: files(&folder.join("soak/tmp")) });
    }
    let served = served.end()?;
    told(&looks, report);
    let good = served.statuses.get("200").copied().unwrap_or_default();
    let all: u64 = served.statuses.values().sum::<u64>() + served.broken;
    report.add("tenants that came", "", "", looks.len() as f64);
    report.add("cells that were killed", "", "", f64::from(killed));
    report.add("predictions of the steady tenant that succeeded", "%", "", good as f64 * 1e2 / all.max(1) as f64);
    println!("    its answers by status: {:?}, connections that broke: {}", served.statuses, served.broken);
    service.stop()
}

/// What is looked at: its name, its unit, and how it is read.
type Figure = (&'static str, &'static str, fn(&Look) -> f64);

/// What there was after one turn.
#[derive(Debug, Clone, Copy)]
struct Look {
    holds: Holds,
    files: usize,
    temporary: usize,
}

fn told(looks: &[Look], report: &mut Report) {
    let figures: [Figure; 7] = [
        ("memory of the service's own process (RSS)", "MiB", |look| look.holds.gateway_mib),
        ("memory of the fork server (RSS)", "MiB", |look| look.holds.zygote_mib),
        ("open descriptors", "", |look| look.holds.descriptors as f64),
        ("threads", "", |look| look.holds.threads as f64),
        ("processes", "", |look| look.holds.processes as f64),
        ("files, ledgers aside", "", |look| look.files as f64),
        ("temporary files", "", |look| look.temporary as f64),
    ];
    let steady = looks.get(looks.len() / WARM_UP_SHARE..).unwrap_or_default();
    let quarter = (steady.len() / 4).max(1);
    for (name, unit, of) in figures {
        let median = |part: &[Look]| percentile(&part.iter().map(of).collect::<Vec<_>>(), 0.5);
        let first = median(steady.get(..quarter).unwrap_or_default());
        let last = median(steady.get(steady.len().saturating_sub(quarter)..).unwrap_or_default());
        report.add(&format!("{name}: at the beginning"), unit, "", first);
        report.add(&format!("{name}: growth until the end"), unit, "0", last - first);
    }
}

/// Kills one of the cells, as a fault in an engine would. Returns how many.
fn kill_a_cell(service: &Service, turn: usize) -> u32 {
    let cells = service.cells();
    let Some(pid) = cells.get(turn % cells.len().max(1)) else { return 0 };
    u32::from(Command::new("kill").args(["-9", &pid.to_string()]).status().is_ok_and(|status| status.success()))
}

fn erase(service: &mut Service, operator: &str, name: &str) -> Result<()> {
    let erasure = service.client.json(Ask::delete(format!("/v1/tenants/{name}"), operator))?;
    let (id, began) = (text(&erasure, "/id")?, Instant::now());
    while began.elapsed() < ERASE_MAX {
        if text(&service.client.json(Ask::get(format!("/v1/erasures/{id}"), operator))?, "/state")? == "certified" {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("`{name}` was not erased within {} s", ERASE_MAX.as_secs()))
}

/// Files below a folder but for ledgers: of an erased tenant its ledger stays, unreadable and still whole.
fn files(folder: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        count += match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true if entry.file_name() == "ledger" => 0,
            true => files(&entry.path()),
            false => 1,
        };
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_below() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), "").unwrap();
        fs::write(dir.path().join("d"), "").unwrap();
        fs::create_dir_all(dir.path().join("a/ledger")).unwrap();
        fs::write(dir.path().join("a/ledger/entries.log"), "").unwrap();
        assert_eq!((files(dir.path()), files(&dir.path().join("no"))), (2, 0));
    }
}
