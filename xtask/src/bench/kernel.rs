//! What identity, policy and ledger cost by themselves.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::report::Report;
use super::{Options, Programs};
use crate::Result;
use crate::run::quietly;

/// Name in the program's answer, name for people, unit, goal.
const FIGURES: [(&str, &str, &str, &str); 15] = [
    ("authenticate_key", "authenticate an API key and open its tenant, cached, CPU", "µs", ""),
    ("authenticate_key_uncached", "the same, first use of the key, CPU of all threads", "µs", ""),
    ("authenticate_token", "authenticate an access token and open its tenant, CPU", "µs", ""),
    ("authorize", "authorize (scope, policy, quota), cached, CPU", "µs", ""),
    ("authorize_uncached", "the same, first decision on a resource, CPU", "µs", ""),
    ("both", "API key: authentication and policy, cached, CPU", "µs", "≤ 3"),
    ("both_token", "access token: authentication and policy, CPU", "µs", "≤ 3 cached"),
    ("both_uncached", "API key: authentication and policy, uncached, CPU", "µs", "≤ 50"),
    ("append", "one ledger entry: sealed, hashed, written, CPU", "µs", ""),
    ("entries_per_second_1_thread", "permits allowed, entered and closed, 1 thread", "/s", "≥ 20,000"),
    ("entries_per_second_2_threads_1_tenant", "the same, 2 threads, one tenant", "/s", ""),
    ("entries_per_second_2_threads_2_tenants", "the same, 2 threads, a tenant each", "/s", ""),
    ("checkpoint_ms_right_after", "checkpoint right after that", "ms", "≤ 1000"),
    ("export_entries_per_second", "ledger export", "entries/s", ""),
    ("verify_entries_per_second", "offline verification of an export", "entries/s", ""),
];

pub(super) fn measure(options: &Options, programs: &Programs, folder: &Path, report: &mut Report) -> Result<()> {
    report.section("Identity, policy, ledger (kernel alone, no HTTP)");
    for round in 0..options.rounds {
        let dir = folder.join(format!("kernel-{round}"));
        fs::create_dir_all(&dir).map_err(|error| format!("cannot make `{}`: {error}", dir.display()))?;
        let mut command = Command::new(&programs.kernel_cost);
        let told = quietly(command.arg(&dir).arg(options.kernel_operations.to_string()))?;
        let mut told: Value = serde_json::from_str(&told).map_err(|error| format!("kernel_cost printed no JSON: {error}"))?;
        let get = |name: &str| told.get(name).and_then(Value::as_f64).unwrap_or_default();
        let sums = [
            ("both", get("authenticate_key") + get("authorize")),
            ("both_token", get("authenticate_token") + get("authorize")),
            ("both_uncached", get("authenticate_key_uncached") + get("authorize_uncached")),
        ];
        if let Some(map) = told.as_object_mut() {
            map.extend(sums.map(|(name, value)| (name.to_owned(), value.into())));
        }
        for (key, name, unit, goal) in FIGURES {
            let value = told.get(key).and_then(Value::as_f64).ok_or_else(|| format!("kernel_cost did not tell `{key}`"))?;
            report.add(name, unit, goal, value);
        }
    }
    Ok(())
}
