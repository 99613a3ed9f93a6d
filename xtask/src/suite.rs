//! `cargo xtask test`: everything that can be checked, in the order in which a mistake is cheapest to find. All stages run, also after
//! a failure, and the last line counts them and every test.

use std::time::Instant;

use crate::run::{cargo, seen, visibly, works};
use crate::servers::Servers;
use crate::setup::{self, Tools};
use crate::{Result, tidy};

/// What was counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn of(held: bool) -> Self {
        Self { passed: held.into(), failed: (!held).into(), skipped: 0 }
    }
}

/// Installs, checks and tests. The last line is `N passed, N failed, N skipped`.
pub(crate) fn test() -> Result<bool> {
    let tools = setup::for_tests()?;
    Servers::prepare()?;
    let mut counts = Counts::default();
    let mut stage = |name: &str, work: &mut dyn FnMut() -> Result<Counts>| {
        println!("\n== {name}");
        let began = Instant::now();
        let found = work().unwrap_or_else(|error| {
            println!("error: {error}");
            Counts::of(false)
        });
        println!("== {name}: {} in {:.1} s", if found.failed == 0 { "good" } else { "FAILED" }, began.elapsed().as_secs_f64());
        counts.add(found);
    };
    stage("format", &mut || visible(&tools, &["fmt", "--all", "--check"]));
    stage("tidy", &mut || {
        let found = tidy::report()?;
        Ok(Counts { passed: found.held, failed: found.broken, skipped: 0 })
    });
    stage("lints", &mut || visible(&tools, &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"]));
    stage("licences, bans, sources", &mut || {
        visible(&tools, &["deny", "--log-level", "error", "--all-features", "check", "licenses", "bans", "sources"])
    });
    stage("advisories", &mut || Ok(advisories(&tools)));
    stage("build", &mut || visible(&tools, &["build", "--locked", "--package", "insula", "--package", "insula-cell"]));
    stage("tests", &mut || {
        let folder = tempfile::tempdir().map_err(|error| format!("cannot make a folder: {error}"))?;
        let mut servers = Servers::start(folder.path())?;
        let mut counts = tests(&tools, &servers, ALL, "embedded")?;
        for tier in ["pooled", "schema", "database"] {
            println!("the kernel's suite again, rows in the tier `{tier}`");
            counts.add(tests(&tools, &servers, KERNEL, tier)?);
        }
        println!("the sessions of MLflow's client again, rows in the tier `pooled`, objects on S3");
        counts.add(tests(&tools, &servers, SESSIONS, "pooled")?);
        servers.stop()?;
        Ok(counts)
    });
    stage("document tests", &mut || document_tests(&tools));
    println!("\n{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    Ok(counts.failed == 0)
}

fn visible(tools: &Tools, arguments: &[&str]) -> Result<Counts> {
    visibly(tools.give(&mut cargo(arguments)))?;
    Ok(Counts::of(true))
}

/// Known vulnerabilities. Their database lives in the network: where it cannot be reached the check is skipped, and says so.
fn advisories(tools: &Tools) -> Counts {
    if !works(tools.give(&mut cargo(&["deny", "fetch", "db"])).env("GIT_TERMINAL_PROMPT", "0")) {
        println!("skipped: the advisory database cannot be reached, so known vulnerabilities were NOT looked for");
        return Counts { skipped: 1, ..Counts::default() };
    }
    Counts::of(visibly(tools.give(&mut cargo(&["deny", "--log-level", "error", "check", "--disable-fetch", "advisories"]))).is_ok())
}

/// What cargo is to test: everything, or what must hold in every tier. Compile errors and a table of figures do not change with it.
///
/// Both times the whole workspace is built: one package alone would have other features of its dependencies, and compile them again.
const ALL: &[&str] = &["--workspace"];
const KERNEL: &[&str] = &["--workspace", "--filterset", "package(tenancy) & binary(kernel)"];
/// By the module's name, so that a session that is added later is run too.
const SESSIONS: &[&str] = &["--workspace", "--filterset", "package(insula) & binary(insula) & test(/^mlflow::/)"];

fn tests(tools: &Tools, servers: &Servers, which: &[&str], tier: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut counted = false;
    let arguments = ["nextest", "run", "--locked", "--no-fail-fast", "--status-level", "fail", "--final-status-level", "fail"];
    let mut command = cargo(&arguments);
    let good = seen(tools.give(command.args(which)).envs(servers.variables()).env("INSULA_TEST_TIER", tier), |line| {
        if let Some(found) = nextest_summary(line) {
            counted = true;
            counts.add(found);
        }
    })?;
    Ok(judged(good, counted, counts))
}

fn document_tests(tools: &Tools) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut counted = false;
    let good = seen(tools.give(&mut cargo(&["test", "--workspace", "--locked", "--no-fail-fast", "--doc", "--quiet"])), |line| {
        if let Some(found) = libtest_summary(line) {
            counted = true;
            counts.add(found);
        }
    })?;
    Ok(judged(good, counted, counts))
}

/// A run that failed without counting a failure, or counted nothing at all, has failed.
fn judged(good: bool, counted: bool, mut counts: Counts) -> Counts {
    if counts.failed == 0 && (!good || !counted) {
        counts.failed = 1;
    }
    counts
}

/// `Summary [  1.234s] 12 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 3 skipped`
fn nextest_summary(line: &str) -> Option<Counts> {
    let (_, rest) = line.trim_start().strip_prefix("Summary [")?.split_once(']')?;
    let (_, figures) = rest.split_once("run:")?;
    let mut counts = Counts::default();
    for figure in figures.split(',') {
        let mut words = figure.split_whitespace();
        let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
        match what {
            "passed" => counts.passed += number,
            "skipped" => counts.skipped += number,
            _ => counts.failed += number,
        }
    }
    Some(counts)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
fn libtest_summary(line: &str) -> Option<Counts> {
    let figures = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| {
        let figure = figures.split("; ").find_map(|figure| figure.trim().strip_suffix(what)).map(str::trim);
        figure.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Some(Counts { passed: number("passed"), failed: number("failed"), skipped: number("ignored") })
}

#[cfg(test)]
mod tests_of_counting {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Option<Counts> {
        Some(Counts { passed, failed, skipped })
    }

    #[test]
    fn summaries_are_read() {
        assert_eq!(nextest_summary("     Summary [   1.234s] 12 tests run: 12 passed (2 slow), 3 skipped"), counts(12, 0, 3));
        assert_eq!(
            nextest_summary("     Summary [   1.234s] 12/15 tests run: 9 passed, 2 failed, 1 timed out, 0 skipped"),
            counts(9, 3, 0)
        );
        assert_eq!(nextest_summary("        PASS [   0.004s] tlog note::tests::a"), None);
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(libtest_summary(line), counts(3, 2, 1));
        assert_eq!(libtest_summary("running 3 tests"), None);
    }

    #[test]
    fn silence_is_a_failure() {
        let good = Counts { passed: 5, ..Counts::default() };
        assert_eq!(judged(true, true, good).failed, 0);
        assert_eq!(judged(false, true, good).failed, 1);
        assert_eq!(judged(true, false, Counts::default()).failed, 1);
        assert_eq!(judged(false, true, Counts { failed: 2, ..good }).failed, 2);
    }
}
