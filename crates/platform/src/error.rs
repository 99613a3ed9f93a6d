//! What can go wrong beside the kernel. Messages are for the tenant who asked.

use wire::FailCode;

/// Result of the platform.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One semantic error. `Display` is the public message; [`Error::code`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused or failed.
    #[error(transparent)]
    Kernel(#[from] tenancy::Error),
    /// What the tenant gave does not work: rows, tensors, parameters, models. May name line and column.
    #[error("{}", place(.0))]
    Input(wire::Fail),
    /// The tenant's cell died or broke its word while working on this request.
    #[error("{0}")]
    CellFailed(CellFailure),
    /// Nothing came back in time; the work was stopped.
    #[error("no result within {seconds} s; the work was stopped")]
    DeadlineExceeded {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The caller's own deadline came before the answer.
    #[error("the time that the request gave has passed; the work was stopped")]
    DeadlinePassed,
    /// Too much waits already; nothing was done.
    #[error("too much is waiting: {0}; try again later")]
    Overloaded(&'static str),
    /// The model broke its cell several times in a row and is left alone for a while.
    #[error("`{model}` broke its cell {failures} times in a row; it is tried again in {retry_after_seconds} s")]
    ModelUnstable {
        /// The deployment's name.
        model: String,
        /// How often in a row.
        failures: u32,
        /// When to come back, in seconds.
        retry_after_seconds: u64,
    },
    /// More bytes than allowed.
    #[error("the {what} is larger than {bytes_max} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The bound in bytes.
        bytes_max: u64,
    },
    /// A version that holds no model which can be deployed.
    #[error(
        "version {version} of `{model}` cannot be deployed: {reason}; log it as ONNX (`mlflow.onnx.log_model`, after `skl2onnx` for \
         scikit-learn, with `save_as_external_data=False`) or upload an ONNX file"
    )]
    NotDeployable {
        /// Name of the registered model.
        model: String,
        /// The version.
        version: u64,
        /// Why.
        reason: String,
    },
    /// The gate of a model is closed for a version.
    #[error("version {version} of `{model}` cannot have {target}: {missing}")]
    GateClosed {
        /// Name of the registered model.
        model: String,
        /// The version.
        version: u64,
        /// What it was to become.
        target: String,
        /// What is missing.
        missing: String,
    },
    /// The request's body broke off.
    #[error("the upload broke off before its end; nothing was stored")]
    UploadInterrupted,
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The run, experiment or version is not in a state for this.
    #[error("{0}")]
    State(&'static str),
}

/// How a cell failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CellFailure {
    /// It grew over the tenant's memory limit.
    #[error("the work needed more memory than the tenant's limit of {memory_bytes_max} bytes and was stopped")]
    OutOfMemory {
        /// The limit in bytes.
        memory_bytes_max: u64,
    },
    /// It ended: crash, kill, forbidden system call.
    #[error("the sandbox in which this ran ended unexpectedly ({0})")]
    Died(String),
    /// It sent something that nobody may send. The text says what; it is never shown verbatim from the cell.
    #[error("the sandbox in which this ran broke the protocol ({0}) and was stopped")]
    Protocol(String),
    /// No cell could be started.
    #[error("no sandbox could be started")]
    NotStarted(String),
    /// Cells of the class that the tenant must have do not start on this node, and it gets no other one.
    #[error(
        "this tenant's work runs in sandboxes of class `{class}` only, and none could be started on this node; the operator finds the reason in \
         the log and with `insula check`"
    )]
    NoIsolation {
        /// The class.
        class: &'static str,
        /// Why, for the operator.
        reason: String,
    },
    /// It was stopped by the service: shutdown, erasure, eviction.
    #[error("the sandbox in which this ran was stopped")]
    Stopped,
}

impl Error {
    /// Every code that [`Error::code`] can give beyond the kernel's own.
    pub const CODES: &'static [&'static str] = &[
        "invalid_input",
        "model_refused",
        "model_failed",
        "too_large",
        "unsupported",
        "cell_failed",
        "out_of_memory",
        "cell_unavailable",
        "deadline_exceeded",
        "overloaded",
        "model_unstable",
        "not_deployable",
        "gate_closed",
        "upload_interrupted",
        "cancelled",
        "mlflow_state",
    ];

    /// Stable code, one line in docs/errors.md each.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Kernel(error) => error.code(),
            Self::Input(fail) => match fail.code {
                FailCode::Invalid => "invalid_input",
                FailCode::ModelRefused => "model_refused",
                FailCode::ModelFailed => "model_failed",
                FailCode::TooLarge => "too_large",
                FailCode::Unsupported => "unsupported",
                FailCode::NoModel | FailCode::Internal => "cell_failed",
            },
            Self::CellFailed(CellFailure::OutOfMemory { .. }) => "out_of_memory",
            Self::CellFailed(CellFailure::NotStarted(_) | CellFailure::NoIsolation { .. }) => "cell_unavailable",
            Self::CellFailed(_) => "cell_failed",
            Self::DeadlineExceeded { .. } | Self::DeadlinePassed => "deadline_exceeded",
            Self::Overloaded(_) => "overloaded",
            Self::ModelUnstable { .. } => "model_unstable",
            Self::TooLarge { .. } => "too_large",
            Self::NotDeployable { .. } => "not_deployable",
            Self::GateClosed { .. } => "gate_closed",
            Self::UploadInterrupted => "upload_interrupted",
            Self::Cancelled => "cancelled",
            Self::State(_) => "mlflow_state",
        }
    }

    /// What only the operator's log may hold.
    #[must_use]
    pub fn private(&self) -> Option<&str> {
        match self {
            Self::Kernel(error) => error.private(),
            Self::CellFailed(CellFailure::NotStarted(context) | CellFailure::NoIsolation { reason: context, .. }) => Some(context),
            _ => None,
        }
    }

    /// Seconds after which trying again makes sense.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::Overloaded(_) => Some(1),
            Self::ModelUnstable { retry_after_seconds, .. } => Some(*retry_after_seconds),
            _ => None,
        }
    }

    /// The caller's input is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Kernel(tenancy::Error::Invalid(message.into()))
    }

    /// It exists already, is in use, or changed in the meantime.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::Kernel(tenancy::Error::Conflict(message.into()))
    }

    /// Not there.
    pub(crate) fn not_found(what: &'static str) -> Self {
        Self::Kernel(tenancy::Error::NotFound(what))
    }
}

/// The message with its place, as people read it.
fn place(fail: &wire::Fail) -> String {
    match (fail.line, &fail.column) {
        (Some(line), Some(column)) => format!("line {line}, column `{column}`: {}", fail.message),
        (Some(line), None) => format!("line {line}: {}", fail.message),
        (None, Some(column)) => format!("column `{column}`: {}", fail.message),
        (None, None) => fail.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_place() {
        let fail = wire::Fail::new(FailCode::Invalid, "`x` is not a number").at_line(7).at_column("age");
        let error = Error::Input(fail);
        assert_eq!(error.to_string(), "line 7, column `age`: `x` is not a number");
        assert_eq!(error.code(), "invalid_input");
    }
}
