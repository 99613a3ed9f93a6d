//! `cargo xtask bench`: builds the service for release, starts it in a temporary folder, and measures what the README claims.
//!
//! ```text
//! kernel ─► rows in each tier ─► upload ─► train (ours, LightGBM) ─► predict (engine alone, whole path) ─► cold starts
//! ─► neighbours ─► density ─► tracking ─► many tenants          soak, which takes as long as one wants, only when it is asked for
//! ```
//!
//! Each part can be measured alone, as in `cargo xtask bench neighbours --quick`. `--programs FOLDER` takes what was built before in place of
//! building.
//!
//! Everything goes over TLS with identity, policy, quota, audit and a sandbox on, as in production. The client is a program of its
//! own whose CPU is not counted. What can be compared is measured in the same run, because only ratios survive a busy machine; the
//! load average is written beside the figures. Results: `docs/bench/latest.json` and `docs/bench/latest.md`.
//!
//! Figures are not tests: nothing here fails because it was slow. It fails when the service answers wrongly.

mod client;
mod cold;
mod data;
mod density;
mod kernel;
mod neighbours;
mod peers;
mod predict;
mod report;
mod service;
mod soak;
mod stores;
mod tenants;
mod tracking;
mod train;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::run::cargo;
use crate::{Result, root, setup};
use report::Report;

/// How much is done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// Times that a measurement is repeated.
    rounds: usize,
    /// Operations of the kernel's loops.
    kernel_operations: usize,
    /// Predictions of one round on one connection, and on many.
    predictions_alone: usize,
    predictions_many: usize,
    /// Tenants whose cell is started cold.
    cold_tenants: usize,
    /// Tenants on one service.
    tenants: usize,
    /// Rows of the large data set.
    rows: usize,
    /// Reads and writes of one round on each tier of rows, and tenants made and opened there.
    stores_operations: usize,
    stores_made: usize,
    /// Requests of each kind to the tracking API, points of one run, and runs that are searched.
    tracking_operations: usize,
    tracking_points: usize,
    tracking_runs: usize,
    /// Steps of each run that a process of the stock client logs.
    client_steps: usize,
    /// Requests of each kind to a real MLflow server, and runs that it searches.
    peer_requests: usize,
    peer_runs: usize,
    /// How long a victim is watched.
    neighbour_seconds: f64,
    /// Cells that live at once, and tenants with a deployed model.
    live_cells: usize,
    registered: usize,
    soak_minutes: f64,
    /// Where programs are that were built before.
    programs: Option<PathBuf>,
    /// Also measure what others build.
    peers: bool,
    quick: bool,
    keep: bool,
    only: Option<Part>,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Kernel,
    Stores,
    Serving,
    Neighbours,
    Density,
    Soak,
    Tracking,
    Tenants,
}

impl Options {
    fn full() -> Self {
        Self {
            rounds: 5,
            kernel_operations: 50_000,
            predictions_alone: 5_000,
            predictions_many: 60_000,
            cold_tenants: 100,
            tenants: 10_000,
            rows: 200_000,
            stores_operations: 400,
            stores_made: 50,
            tracking_operations: 20_000,
            tracking_points: 10_000_000,
            tracking_runs: 100_000,
            client_steps: 200,
            peer_requests: 200,
            peer_runs: 500,
            neighbour_seconds: 5.0,
            live_cells: 5_000,
            registered: 20_000,
            soak_minutes: 120.0,
            programs: None,
            peers: false,
            quick: false,
            keep: false,
            only: None,
        }
    }

    /// To try out what was changed.
    fn quick() -> Self {
        Self {
            rounds: 3,
            kernel_operations: 20_000,
            predictions_alone: 1_500,
            predictions_many: 20_000,
            cold_tenants: 50,
            tenants: 500,
            rows: 20_000,
            stores_operations: 160,
            stores_made: 10,
            tracking_operations: 4_000,
            tracking_points: 1_000_000,
            tracking_runs: 10_000,
            client_steps: 40,
            peer_requests: 60,
            peer_runs: 100,
            neighbour_seconds: 2.0,
            live_cells: 200,
            registered: 600,
            soak_minutes: 1.0,
            quick: true,
            ..Self::full()
        }
    }

    /// From the words after `bench`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = if words.contains(&"--quick") { Self::quick() } else { Self::full() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
            match *word {
                "--minutes" => options.soak_minutes = number(value()?)?,
                "--live" => options.live_cells = number(value()?)?,
                "--registered" => options.registered = number(value()?)?,
                "--programs" => options.programs = Some(PathBuf::from(value()?)),
                "--quick" => {}
                "--keep" => options.keep = true,
                "--peers" => options.peers = true,
                "kernel" => options.only = Some(Part::Kernel),
                "stores" => options.only = Some(Part::Stores),
                "serving" => options.only = Some(Part::Serving),
                "neighbours" => options.only = Some(Part::Neighbours),
                "density" => options.only = Some(Part::Density),
                "soak" => options.only = Some(Part::Soak),
                "tracking" => options.only = Some(Part::Tracking),
                "tenants" => options.only = Some(Part::Tenants),
                other => {
                    return Err(format!(
                        "`bench` knows --quick, --keep, --peers, --live N, --registered N, --minutes N, --programs FOLDER, and one of kernel, stores, serving, neighbours, density, tracking, tenants, soak; not `{other}`"
                    ));
                }
            }
        }
        Ok(options)
    }

    fn wants(&self, part: Part) -> bool {
        // A soak takes hours, so it must be asked for.
        self.only.map_or(part != Part::Soak, |only| only == part)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

/// Everything that was built or found.
#[derive(Debug)]
struct Programs {
    insula: PathBuf,
    cell: PathBuf,
    client: PathBuf,
    engine_alone: PathBuf,
    engine_inside: PathBuf,
    kernel_cost: PathBuf,
    stores_cost: PathBuf,
    engine: PathBuf,
    /// Python with LightGBM.
    python: PathBuf,
}

/// Builds, measures, writes. An error is a service that does not do what it should.
pub(crate) fn bench(options: &Options) -> Result<bool> {
    let tools = setup::for_tests()?;
    let built = match &options.programs {
        Some(folder) => Built::In(folder.clone()),
        None => {
            println!("building for release (the first time takes many minutes)");
            // All at once: package by package, dependencies would be built again for the features that each one asks for.
            Built::Now(build(&["--workspace", "--bins", "--examples"])?)
        }
    };
    let programs = Programs {
        insula: built.program("insula")?,
        cell: built.program("insula-cell")?,
        client: built.program("bench_client")?,
        engine_alone: built.program("engine_alone")?,
        engine_inside: built.program("engine_inside")?,
        kernel_cost: built.program("kernel_cost")?,
        stores_cost: built.program("stores_cost")?,
        engine: tools.engine.clone(),
        python: tools.python.clone(),
    };
    let folder = std::env::temp_dir().join(format!("insula-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make `{}`: {error}", folder.display()))?;
    let mut report = Report::new(options.quick, &programs.python);
    let measured = measure(options, &programs, &folder, &mut report);
    if measured.is_err() || options.keep {
        println!("the files of this run, with the service's logs, are in {}", folder.display());
    } else {
        fs::remove_dir_all(&folder).map_err(|error| format!("cannot remove `{}`: {error}", folder.display()))?;
    }
    measured?;
    report.end();
    println!("\n{}", report.markdown());
    if options.only.is_none() {
        report.write(&root().join("docs/bench"))?;
    } else {
        println!("only a part was measured: docs/bench stays as it is");
    }
    Ok(true)
}

fn measure(options: &Options, programs: &Programs, folder: &Path, report: &mut Report) -> Result<()> {
    if options.wants(Part::Kernel) {
        kernel::measure(options, programs, folder, report)?;
    }
    if options.wants(Part::Stores) {
        stores::measure(options, programs, folder, report)?;
    }
    if options.wants(Part::Serving) {
        let data = data::Data::make(folder, options.rows)?;
        let mut service = service::Service::start(programs, folder, "serving", "")?;
        let operator = service.bootstrap()?;
        let tenant = service.tenant_create(&operator, "bench")?;
        train::measure(options, programs, &data, &mut service, &tenant, report)?;
        predict::measure(options, programs, folder, &data, &mut service, &tenant, report)?;
        predict::joined(options, &data, &mut service, &tenant, report)?;
        peers::measure(options, programs, folder, &data, &mut service, &tenant, report)?;
        cold::measure(options, programs, folder, &data, service, &operator, report)?;
    }
    if options.wants(Part::Neighbours) {
        neighbours::measure(options, programs, folder, report)?;
    }
    if options.wants(Part::Density) {
        density::measure(options, programs, folder, report)?;
    }
    if options.wants(Part::Soak) {
        soak::measure(options, programs, folder, report)?;
    }
    if options.wants(Part::Tracking) {
        tracking::measure(options, programs, folder, report)?;
    }
    if options.wants(Part::Tenants) {
        tenants::measure(options, programs, folder, report)?;
    }
    Ok(())
}

/// Runs cargo and returns what it says it made.
fn build(what: &[&str]) -> Result<Vec<Value>> {
    let arguments = [&["build", "--release", "--locked", "--message-format", "json-render-diagnostics"], what].concat();
    let mut build = cargo(&arguments);
    let output = build.stderr(Stdio::inherit()).output().map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err("the build failed".to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// What was built.
enum Built {
    /// As cargo says.
    Now(Vec<Value>),
    /// Before, into this folder; examples may be in `examples` below it.
    In(PathBuf),
}

impl Built {
    fn program(&self, name: &str) -> Result<PathBuf> {
        let found = match self {
            Self::Now(messages) => {
                let named = |message: &&Value| message.pointer("/target/name").and_then(Value::as_str) == Some(name);
                messages.iter().filter(named).find_map(|message| message.get("executable").and_then(Value::as_str)).map(PathBuf::from)
            }
            Self::In(folder) => [folder.join(name), folder.join("examples").join(name)].into_iter().find(|path| path.is_file()),
        };
        found.ok_or_else(|| format!("there is no `{name}` among what was built"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        assert!(Options::parse(&["--quick"]).unwrap().tenants < Options::parse(&[]).unwrap().tenants);
        assert_eq!(Options::parse(&["tenants", "--quick"]).unwrap().only, Some(Part::Tenants));
        assert!(Options::parse(&["--fast"]).unwrap_err().contains("--fast"));
        let soak = Options::parse(&["soak", "--minutes", "0.5"]).unwrap();
        assert!(soak.wants(Part::Soak) && !soak.wants(Part::Kernel) && soak.soak_minutes == 0.5);
        assert!(!Options::parse(&[]).unwrap().wants(Part::Soak));
        assert!(Options::parse(&["density", "--live", "many"]).unwrap_err().contains("many"));
    }
}
