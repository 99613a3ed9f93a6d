//! `insula-cell`: the program that runs inside the jail.
//!
//! ```text
//! service ── jail::zygote::Launcher ──► insula-cell zygote
//!                                        │ engine loaded and warmed once, proved to be alone and silent
//!                                        └─ fork, confine ──► serve(socket): predictions, admission, data sets, training
//! ```
//!
//! In the other isolation class (`jail::gvisor`) the same program is three things: the keeper, which forks sandboxes, and in each of them, under
//! gVisor's kernel, the cell, with an engine that it has loaded for itself.
//!
//! The zygote trusts nobody's word that the engine's telemetry is off. It refuses to start without the switch, and
//! afterwards it counts: one thread, and no descriptor that it was not given. Only then does it fork cells.
//!
//! | module | what |
//! |---|---|
//! | `link`, `serve` | the socket and the loop over requests |
//! | `engine`, `batch`, `question`, `output`, `oip`, `grpc`, `scoring`, `tensor`, `element`, `json`, `admit` | models: predictions in three forms, alone or several in one run, and the check of uploads |
//! | `data`, `train`, `onnx`, `predict` | data sets, training, and predictions for whole data sets |
//!
//! What is deliberately missing: a mode without the jail.

#![expect(unreachable_pub, reason = "a program has no other crates: `pub` marks the face of a module")]

mod admit;
mod batch;
mod data;
mod element;
mod engine;
mod grpc;
mod json;
mod link;
mod oip;
mod onnx;
mod output;
mod predict;
mod question;
mod scoring;
mod serve;
mod tensor;
mod train;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::engine::{Engine, EngineError};

/// Why the zygote does not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(
        "usage: insula-cell zygote | keeper\nThis program is started by the service, which hands it a control socket; it has no use of its own"
    )]
    Usage,
    #[error("`{0}` must be set to `{1}`: the service starts this program with it")]
    Environment(&'static str, &'static str),
    #[error("`ORT_LOAD_CONFIG_FROM_MODEL` must not be set: a model would bring its own engine configuration")]
    ConfigFromModel,
    #[error(
        "ORT_DYLIB_PATH is not set: it must name libonnxruntime.so\nhelp: run `cargo xtask demo`, or take the library out of the PyPI wheel `onnxruntime` (1.31.1)"
    )]
    NoLibrary,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Control(std::io::Error),
    #[error(
        "the engine is not alone: {0}. A build with telemetry that does not honour ORT_DISABLE_TELEMETRY does this; take the pinned version"
    )]
    NotAlone(String),
    #[error("cannot read /proc/self: {0}")]
    Proc(#[from] std::io::Error),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--version" | "-V"] => {
            let _ = writeln!(std::io::stdout(), "insula-cell {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        ["zygote"] => zygote(),
        ["keeper"] => keeper(),
        [INSIDE] => inside(),
        _ => Err(StartError::Usage),
    };
    if let Err(error) = result {
        let _ = writeln!(std::io::stderr(), "insula-cell: {error}");
    }
    ExitCode::FAILURE
}

/// What the keeper has the program called with in a sandbox.
const INSIDE: &str = "inside";

/// Serves forks of a warmed engine. Returns only when it cannot start.
fn zygote() -> Result<(), StartError> {
    let library = library()?;
    let control = jail::zygote::control().map_err(StartError::Control)?;
    let engine = engine(&library)?;
    jail::zygote::serve(control, move |socket: OwnedFd| cell(engine, socket))
}

/// Serves sandboxes. What they see of the host is what this program has loaded, and so it loads the engine too.
fn keeper() -> Result<(), StartError> {
    let library = library()?;
    let control = jail::zygote::control().map_err(StartError::Control)?;
    engine(&library)?;
    jail::gvisor::serve(control, &[INSIDE])
}

/// A cell in a sandbox: its own engine, then no other calls than a jailed cell has.
fn inside() -> Result<(), StartError> {
    let engine = engine(&library()?)?;
    let error = jail::gvisor::enter(move |socket| {
        // There is nobody to tell: the service sees the socket close.
        let _ = serve::serve(engine, link::Link::in_pieces(socket));
    });
    Err(StartError::Control(error))
}

/// Where the engine is, if the environment is as it must be.
fn library() -> Result<PathBuf, StartError> {
    if std::env::var_os("ORT_DISABLE_TELEMETRY").is_none_or(|value| value != "1") {
        return Err(StartError::Environment("ORT_DISABLE_TELEMETRY", "1"));
    }
    if std::env::var_os("ORT_LOAD_CONFIG_FROM_MODEL").is_some() {
        return Err(StartError::ConfigFromModel);
    }
    std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from).ok_or(StartError::NoLibrary)
}

/// Starts the engine and proves that it is alone.
fn engine(library: &Path) -> Result<&'static Engine, StartError> {
    let given = descriptors()?;
    let engine = Engine::start(library)?;
    engine.warm()?;
    alone(&given)?;
    serve::quiet_panics();
    // Lives as long as the process: every cell inherits it by fork.
    Ok(Box::leak(Box::new(engine)))
}

/// One confined cell. Warms first what a fork has to touch again, while the service prepares its first request.
fn cell(engine: &Engine, socket: OwnedFd) {
    let _ = engine.warm();
    // There is nobody to tell: the service sees the socket close.
    let _ = serve::serve(engine, link::Link::new(socket));
}

/// That the engine left neither a thread nor an open descriptor behind.
fn alone(given: &BTreeSet<PathBuf>) -> Result<(), StartError> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(StartError::NotAlone(format!("{threads} threads")));
    }
    for path in descriptors()?.difference(given) {
        // The listing's own descriptor is in the list and gone by now.
        if let Ok(target) = std::fs::read_link(path) {
            return Err(StartError::NotAlone(format!("it holds `{}` open", target.display())));
        }
    }
    Ok(())
}

fn descriptors() -> Result<BTreeSet<PathBuf>, StartError> {
    Ok(std::fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}
