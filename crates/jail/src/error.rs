//! What can go wrong, in the operator's words.

use std::{fmt, io, path::PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JailError {
    /// The zygote's program could not be started, or did not say hello.
    #[error("cannot start `{program}`: {reason}")]
    Start {
        /// The program's path.
        program: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// The zygote died and is not started again before its back-off has passed.
    #[error("the cell launcher keeps dying; it is started again in {retry_after_ms} ms")]
    BackOff {
        /// Milliseconds until the next attempt is made.
        retry_after_ms: u64,
    },
    /// The zygote died or broke its protocol while it was asked.
    #[error("the cell launcher is gone: {0}")]
    Gone(&'static str),
    /// A step of the confinement failed; the half-made cell was killed.
    #[error("cannot confine a cell: {step}: {source}")]
    Confine {
        /// The step of the recipe.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A control group could not be made or set.
    #[error("cannot use control group `{path}`: {source}")]
    Cgroup {
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A limit outside the accepted range.
    #[error("limits: {0}")]
    Limits(String),
    /// As many cells as one launcher may hold are alive.
    #[error("{0} cells are alive, which is the most one launcher holds")]
    Full(usize),
    /// The machine enforces less than the floor asks for.
    #[error("the jail is weaker than its floor: {}", list(.0))]
    BelowFloor(Vec<Missing>),
    /// Anything else the operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl JailError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// One layer that the floor asks for and the machine does not enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The layer.
    pub what: &'static str,
    /// What the operator can do about it.
    pub remedy: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is missing ({})", self.what, self.remedy)
    }
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
