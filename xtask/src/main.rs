//! `cargo xtask demo`, `cargo xtask test`, `cargo xtask tidy`: everything a fresh clone needs, with nothing installed by hand.
//!
//! | command | what it does |
//! |---|---|
//! | `demo [--stores shared] [--keep] [--json]` | builds, starts a real service and plays its main job with two tenants; exit 0 only if every step held |
//! | `bench [--quick]` | a release build under load; figures and ratios go to docs/bench |
//! | `test` | installs what tests need, then format, lints, licences, tidy and all tests; ends with one line of counts |
//! | `tidy` | the rules that no compiler knows: crate edges, unsafe, file lengths, documents |
//! | `setup` | only the installing |
//!
//! Deliberately small and without heavy dependencies: it has to say something before the long build begins.

#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

mod bench;
mod demo;
mod run;
mod servers;
mod setup;
mod suite;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;

/// Result of everything here: the error is a text for people.
type Result<T, E = String> = std::result::Result<T, E>;

const HELP: &str = "\
usage: cargo xtask COMMAND
  demo [--keep] [--json]  build, start a service, play the main job with two tenants (--keep: leave its files)
       [--stores shared]  the same on PostgreSQL and S3 servers of its own, and what only they can do
  bench [--quick] [PART]  build for release, measure, write docs/bench (PART, only shown: kernel, stores, serving, neighbours, density,
                          tracking or tenants; soak [--minutes N] only when it is asked for); --peers: beside servers of others
  test                    install what is needed, check everything, run all tests
  tidy                    check the rules that no compiler knows
  setup                   install what tests need, and stop";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["demo", options @ ..] => demo::Options::parse(options).and_then(|options| demo::demo(&options)),
        ["bench", options @ ..] => bench::Options::parse(options).and_then(|options| bench::bench(&options)),
        ["test"] => suite::test(),
        ["tidy"] => tidy::tidy(),
        ["setup"] => setup::for_tests().map(|_| true),
        // For developers: the tests' servers, kept up for any number of runs.
        ["servers", dir] => servers::foreground(Path::new(dir)),
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(true)
        }
        [] => Err(HELP.to_owned()),
        [other, ..] => Err(format!("there is no command `{other}`\n{HELP}")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The repository: of the clone that cargo runs us for, which need not be the one that this program was built from.
fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&manifest).parent().unwrap_or(Path::new(".")).to_owned()
    });
    &ROOT
}

/// Where downloads and tools stay between runs: `$XDG_CACHE_HOME/insula`, or `$HOME/.cache/insula`.
fn cache() -> Result<PathBuf> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("insula")).ok_or_else(|| "there is no home directory for the cache: set HOME".to_owned())
}
