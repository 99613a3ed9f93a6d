//! What can go wrong in the kernel. The public message is for the caller; the private context is for the operator's log.

use crate::place::Peer;
use crate::quota::Exceeded;

/// Result of the kernel.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One semantic error. `Display` is the public message: the user's words, no secrets, no other tenant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No credential, or one that does not verify. All causes look the same outside.
    #[error("the credential is missing, expired or not valid")]
    Unauthenticated,
    /// Not there, not yours, or not for your eyes: one answer for all three.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The caller may see the resource but not do this.
    #[error("`{act}` is not allowed for this credential")]
    Forbidden {
        /// Name of the refused act.
        act: &'static str,
    },
    /// The caller's input is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It exists already, or changed in the meantime.
    #[error("{0}")]
    Conflict(String),
    /// A quota or rate is used up.
    #[error("{0}")]
    Quota(Exceeded),
    /// The tenant does not take requests now: suspended, or being erased.
    #[error("the tenant is {0}")]
    TenantState(&'static str),
    /// Stored bytes are not what was stored: tampered with, rolled back, moved, or damaged.
    #[error("stored data failed its integrity check; nothing was served")]
    Integrity(String),
    /// Cannot do it now; nothing was done.
    #[error("the service cannot do this now: {0}")]
    Unavailable(&'static str),
    /// Another node serves this; ask there. Whoever shows it to a user could not forward the request.
    #[error("another node serves this, and it cannot be reached: try again")]
    Elsewhere(Box<Peer>),
    /// A fault of the service. The context is private.
    #[error("the service failed; nothing was done")]
    Internal(String),
}

impl Error {
    /// Every code that [`Error::code`] can give.
    pub const CODES: &'static [&'static str] = &[
        "unauthenticated",
        "not_found",
        "forbidden",
        "invalid",
        "conflict",
        "quota_exceeded",
        "tenant_state",
        "integrity",
        "unavailable",
        "internal",
    ];

    /// A fault of the service, with private context.
    pub fn internal(context: impl std::fmt::Display) -> Self {
        Self::Internal(context.to_string())
    }

    /// Stored bytes that do not hold, with private context.
    pub fn integrity(context: impl std::fmt::Display) -> Self {
        Self::Integrity(context.to_string())
    }

    /// What only the operator's log may hold.
    #[must_use]
    pub fn private(&self) -> Option<&str> {
        match self {
            Self::Integrity(context) | Self::Internal(context) => Some(context),
            _ => None,
        }
    }

    /// Stable code, one line in docs/errors.md each.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::NotFound(_) => "not_found",
            Self::Forbidden { .. } => "forbidden",
            Self::Invalid(_) => "invalid",
            Self::Conflict(_) => "conflict",
            Self::Quota(_) => "quota_exceeded",
            Self::TenantState(_) => "tenant_state",
            Self::Integrity(_) => "integrity",
            Self::Unavailable(_) | Self::Elsewhere(_) => "unavailable",
            Self::Internal(_) => "internal",
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if unreachable(&error) {
            tracing::warn!(%error, "the database cannot be reached");
            return Self::Unavailable("the database cannot be reached; try again");
        }
        if crowded(&error) {
            tracing::warn!(%error, "the database did not get to it");
            return Self::Unavailable("the database is busy; try again");
        }
        Self::Internal(format!("database: {error}"))
    }
}

/// Whether others were in the way for too long: a lock, the time of a statement, a deadlock (55P03, 57014, 40001, 40P01).
fn crowded(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|inner| inner.code());
    code.is_some_and(|code| ["55P03", "57014", "40001", "40P01"].contains(&code.as_ref()))
}

/// Whether a server is gone, starting, stopping or full, as opposed to refusing what was asked (PostgreSQL, appendix A: classes 08, 53, 57P).
fn unreachable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => true,
        sqlx::Error::Database(inner) => {
            inner.code().is_some_and(|code| code.len() == 5 && ["08", "53", "57P"].iter().any(|class| code.starts_with(class)))
        }
        _ => false,
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Internal(format!("file: {error}"))
    }
}
