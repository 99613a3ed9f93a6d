//! Cold starts: the first prediction of a tenant that has no cell, from the request to its answer, in the full sandbox.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::client::{Ask, Load, percentile};
use super::data::Data;
use super::report::Report;
use super::service::Service;
use super::train::deploy;
use super::{Options, Programs};
use crate::run::quietly;
use crate::{Result, root};

/// Pause between cold starts, so that the pool is full again.
const REFILL: Duration = Duration::from_millis(100);
/// Tenants with a network each.
const NETWORK_TENANTS: usize = 8;
/// A service that has just started settles.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) fn measure(
    options: &Options,
    programs: &Programs,
    folder: &Path,
    data: &Data,
    mut service: Service,
    operator: &str,
    report: &mut Report,
) -> Result<()> {
    report.section(&format!("Cold start to first prediction, full sandbox, {} tenants with a small model each", options.cold_tenants));
    let model = folder.join("linear.onnx");
    let mut tenants = Vec::new();
    for at in 0..options.cold_tenants {
        let tenant = service.tenant_create(operator, &format!("cold-{at}"))?;
        service.client.json(Ask::file("POST", "/v1/models/linear/versions", &tenant, &model))?;
        deploy(&mut service, &tenant, "linear", 1)?;
        tenants.push(tenant);
    }
    service.stop()?;
    let mut go = |name: &str, settings: &str, opened: bool, goal: &str| -> Result<()> {
        let mut service = Service::start(programs, folder, "serving", settings)?;
        thread::sleep(SETTLE);
        let names = ["insula_cold_start_seconds_sum", "insula_cold_start_seconds_count"];
        if opened {
            let opens: Vec<Ask> = tenants.iter().map(|tenant| Ask::get("/v2/models/linear", tenant)).collect();
            service.client.run(&opens, Load::once(opens.len()))?;
        }
        let asks: Vec<Ask> = tenants.iter().map(|tenant| Ask::send("POST", "/v2/models/linear/infer", tenant, data.request())).collect();
        let gap_micros = REFILL.as_micros() as u64;
        let told = service.client.run(&asks, Load { gap_micros, ..Load::once(asks.len()) })?;
        let again = service.client.run(&asks, Load::once(asks.len()))?;
        let [sum, count] = [service.metric(operator, names[0])?, service.metric(operator, names[1])?];
        if count != tenants.len() as f64 {
            return Err(format!("{count} cold starts were counted where {} were made", tenants.len()));
        }
        let ms: Vec<f64> = told.micros.iter().map(|micros| micros / 1e3).collect();
        report.add_spread(&format!("{name}: p50"), "ms", goal, percentile(&ms, 0.5), &ms);
        report.add(&format!("{name}: p99"), "ms", "", percentile(&ms, 0.99));
        report.add(&format!("{name}: mean of the service's own histogram"), "ms", "", sum * 1e3 / count);
        report.add(&format!("{name}: the same request again, p50"), "ms", "", again.micros_at(0.5) / 1e3);
        if opened && settings.is_empty() {
            thread::sleep(SETTLE);
            let live = service.memory();
            report.add("memory of everything with that many live cells (PSS)", "MiB", "", live.all);
            report.add("of that a tenant's share, gateway left out", "MiB", "≤ 1", (live.all - live.gateway) / tenants.len() as f64);
        }
        service.stop()
    };
    go("from the blank pool, tenant open", "", true, "≤ 1")?;
    go("on demand (no pool), tenant open", "pool_blank = 0", true, "≤ 5")?;
    go("from the blank pool, tenant closed too", "", false, "")?;
    for (kind, name, goal) in [("small", "a network of 2 MB", "≤ 12"), ("large", "a transformer of 58 MB, dynamic int8", "≤ 40")] {
        network(programs, folder, operator, (kind, name, goal), report)?;
    }
    Ok(())
}

/// The same with a model of which loading takes time, a tenant each.
fn network(programs: &Programs, folder: &Path, operator: &str, (kind, name, goal): (&str, &str, &str), report: &mut Report) -> Result<()> {
    let model = folder.join(format!("network-{kind}.onnx"));
    quietly(Command::new(&programs.python).arg(root().join("xtask/src/bench/networks.py")).arg(kind).arg(&model))?;
    let (shape, datatype, value, values) =
        if kind == "small" { ("1,3,32,32", "FP32", "0.5,", 3 * 32 * 32) } else { ("1,17", "INT64", "7,", 17) };
    let data = value.repeat(values);
    let data = data.trim_end_matches(',');
    let body = format!(r#"{{"inputs":[{{"name":"input","shape":[{shape}],"datatype":"{datatype}","data":[{data}]}}]}}"#);
    let mut service = Service::start(programs, folder, "serving", "")?;
    let mut asks = Vec::new();
    for at in 0..NETWORK_TENANTS {
        let tenant = service.tenant_create(operator, &format!("{kind}-{at}"))?;
        service.client.json(Ask::file("POST", "/v1/models/network/versions", &tenant, &model))?;
        deploy(&mut service, &tenant, "network", 1)?;
        asks.push(Ask::send("POST", "/v2/models/network/infer", &tenant, &body));
    }
    thread::sleep(SETTLE);
    let told = service.client.run(&asks, Load { gap_micros: REFILL.as_micros() as u64, ..Load::once(asks.len()) })?;
    let again = service.client.run(&asks, Load::once(asks.len()))?;
    let ms: Vec<f64> = told.micros.iter().map(|micros| micros / 1e3).collect();
    report.add_spread(&format!("{name}: p50"), "ms", goal, percentile(&ms, 0.5), &ms);
    report.add(&format!("{name}: the same request again, p50"), "ms", "", again.micros_at(0.5) / 1e3);
    service.stop()
}
