//! What each place of a tenant's rows costs, beside plain SQL on the same server: PostgreSQL and PgBouncer of our own, in this folder.
//!
//! Of the ratios the first is what a user pays for the whole of it: against a program that keeps an audit entry with its change and
//! nothing else. The second tells how much of that is not the round trips of the fence: against the same statements by hand.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::report::Report;
use super::{Options, Programs};
use crate::Result;
use crate::run::quietly;
use crate::servers::Servers;

/// Name in the program's answer, name for people. The first two are the references.
const SUBJECTS: [(&str, &str); 6] = [
    ("plain", "plain SQL"),
    ("fenced", "plain SQL, fenced"),
    ("embedded", "embedded"),
    ("pooled", "pooled"),
    ("schema", "schema"),
    ("database", "database"),
];
/// Clients at once, each with a tenant of its own.
const CLIENTS: [usize; 2] = [1, 8];

pub(super) fn measure(options: &Options, programs: &Programs, folder: &Path, report: &mut Report) -> Result<()> {
    let mut servers = Servers::start(&folder.join("servers"))?;
    let dir = folder.join("stores");
    fs::create_dir_all(&dir).map_err(|error| format!("cannot make `{}`: {error}", dir.display()))?;
    println!("\nmeasuring rows in each tier");
    let mut command = Command::new(&programs.stores_cost);
    let sizes = [options.rounds, options.stores_operations, options.stores_made, options.tenants];
    command.arg(&dir).args(sizes.map(|size| size.to_string())).envs(servers.variables()).stderr(Stdio::inherit());
    let told = quietly(&mut command)?;
    servers.stop()?;
    let told = serde_json::from_str(&told).map_err(|error| format!("stores_cost printed no JSON: {error}"))?;
    let figures = Figures(told);
    operations(&figures, report, "read", "Rows: one record read through a permit")?;
    operations(&figures, report, "write", "Rows: one record replaced through a permit, with its ledger entry, durable")?;
    tenants(&figures, report)?;
    many(&figures, report)
}

/// One operation in all places.
fn operations(figures: &Figures, report: &mut Report, word: &str, title: &str) -> Result<()> {
    report.section(title);
    for (key, name) in SUBJECTS {
        for clients in CLIENTS {
            let of = format!("{key}.{word}.{clients}");
            let name = if clients == 1 { format!("{name}, 1 client") } else { format!("{name}, {clients} clients, a tenant each") };
            figures.add_all(report, &format!("{name}: p50"), "ms", &format!("{of}.p50"), 1e-3)?;
            figures.add_all(report, &format!("{name}: p99"), "ms", &format!("{of}.p99"), 1e-3)?;
            figures.add_all(report, &format!("{name}: throughput"), "/s", &format!("{of}.rate"), 1.0)?;
        }
    }
    for (key, name) in [("pooled", "pooled"), ("schema", "schema"), ("database", "database")] {
        for (against, reference) in [("plain", "plain SQL"), ("fenced", "plain SQL, fenced")] {
            let (ours, theirs) = (format!("{key}.{word}"), format!("{against}.{word}"));
            let text = format!("{name} to {reference}");
            figures.add_ratio(report, &format!("{text}: p50, 1 client"), &format!("{ours}.1.p50"), &format!("{theirs}.1.p50"))?;
            figures.add_ratio(report, &format!("{text}: throughput, 8 clients"), &format!("{ours}.8.rate"), &format!("{theirs}.8.rate"))?;
        }
    }
    figures.add_all(report, "pooled behind PgBouncer, nothing prepared, 1 client: p50", "ms", &format!("pgbouncer.{word}.1.p50"), 1e-3)
}

/// Making and opening them.
fn tenants(figures: &Figures, report: &mut Report) -> Result<()> {
    report.section("Rows: tenants of each tier");
    for (word, text) in [("create", "create one"), ("open", "open one, right after a start")] {
        for (key, name) in SUBJECTS.into_iter().skip(2) {
            for share in ["p50", "p99"] {
                figures.add_all(report, &format!("{text}, {name}: {share}"), "ms", &format!("{key}.{word}.{share}"), 1e-3)?;
            }
        }
    }
    Ok(())
}

/// Many in the same tables.
fn many(figures: &Figures, report: &mut Report) -> Result<()> {
    let count = figures.values("many.tenants")?.first().copied().unwrap_or_default();
    report.section(&format!("Rows: {count:.0} pooled tenants in the same tables"));
    let ms = [
        ("create one: p50", "many.create.p50"),
        ("create one: p99", "many.create.p99"),
        ("create one: p50 of the first tenth", "many.create.first"),
        ("create one: p50 of the last tenth", "many.create.last"),
    ];
    for (name, key) in ms {
        figures.add_all(report, name, "ms", key, 1e-3)?;
    }
    for (word, text) in [("read", "read one record"), ("write", "replace one record")] {
        let [few, early, last] = ["few.tenant_10", "many.tenant_10", "many.tenant_last"].map(|key| format!("{key}.{word}.1.p50"));
        figures.add_all(report, &format!("{text}, tenant 10 of 10: p50"), "ms", &few, 1e-3)?;
        figures.add_all(report, &format!("{text}, tenant 10 of {count:.0}: p50"), "ms", &early, 1e-3)?;
        figures.add_all(report, &format!("{text}, tenant {count:.0} of {count:.0}: p50"), "ms", &last, 1e-3)?;
        figures.add_ratio(report, &format!("{text}, the last tenant to tenant 10: p50"), &last, &early)?;
        let [few_plain, many_plain] = ["few.plain", "many.plain"].map(|key| format!("{key}.{word}.1.p50"));
        figures.add_ratio(report, &format!("{text}, tenant 10 of 10 to plain SQL then: p50"), &few, &few_plain)?;
        figures.add_ratio(report, &format!("{text}, the last tenant to plain SQL then: p50"), &last, &many_plain)?;
    }
    figures.add_all(report, "on PostgreSQL's disk, a tenant with 5 records and its first key", "KiB", "many.server_bytes", 1.0 / 1024.0)?;
    figures.add_all(report, "in the data folder and the keystore, a tenant", "KiB", "many.folder_bytes", 1.0 / 1024.0)?;
    figures.add_all(report, "the kernel's process before (PSS)", "MiB", "many.memory_before", 1.0)?;
    figures.add_all(report, "the kernel's process after all, 256 still open (PSS)", "MiB", "many.memory", 1.0)
}

/// What the program told: name → values, one a round.
struct Figures(Value);

impl Figures {
    fn values(&self, key: &str) -> Result<Vec<f64>> {
        let values = self.0.get(key).and_then(Value::as_array).ok_or_else(|| format!("stores_cost did not tell `{key}`"))?;
        Ok(values.iter().filter_map(Value::as_f64).collect())
    }

    fn add_all(&self, report: &mut Report, name: &str, unit: &str, key: &str, factor: f64) -> Result<()> {
        self.values(key)?.into_iter().for_each(|value| report.add(name, unit, "", value * factor));
        Ok(())
    }

    /// Round by round, so that the machine's other work cancels out.
    fn add_ratio(&self, report: &mut Report, name: &str, ours: &str, theirs: &str) -> Result<()> {
        let rounds = self.values(ours)?.into_iter().zip(self.values(theirs)?);
        rounds.for_each(|(ours, theirs)| report.add(name, "×", "", ours / theirs));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_is_missing_is_an_error() {
        let figures = Figures(serde_json::json!({ "a": [4.0, 9.0], "b": [2.0, 3.0] }));
        assert_eq!(figures.values("a").unwrap(), [4.0, 9.0]);
        assert!(figures.values("c").unwrap_err().contains("`c`"));
    }
}
