//! Whether what is open of a tenant still gives and takes anything; if not, why.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

/// Why nothing more is given or taken. The later one is the stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It was closed here, and the next request opens it again: here, or on another node.
    Reopening = 1,
    /// It takes no requests: it is suspended, or being erased.
    Stopped = 2,
}

/// One for an open tenant, its store and its readers. Never undone: what is opened again has a new one.
#[derive(Debug, Default)]
pub(crate) struct Freeze(AtomicU8);

impl Freeze {
    /// From now on.
    pub(crate) fn set(&self, why: Why) {
        self.0.fetch_max(why as u8, Ordering::AcqRel);
    }

    /// Whether it was set.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// Refuses once it was set.
    ///
    /// # Errors
    /// [`Error::TenantState`] when the tenant takes no requests; [`Error::Unavailable`] when it only has to be opened again.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Acquire) {
            0 => Ok(()),
            why if why == Why::Reopening as u8 => Err(Error::Unavailable("the tenant is being opened again: try again")),
            _ => Err(Error::TenantState("not taking requests")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_takes_no_requests_is_told_so() {
        let freeze = Freeze::default();
        assert!(!freeze.is_set() && freeze.check().is_ok());
        freeze.set(Why::Reopening);
        assert!(matches!(freeze.check(), Err(Error::Unavailable(_))));
        freeze.set(Why::Stopped);
        freeze.set(Why::Reopening);
        assert!(freeze.is_set() && matches!(freeze.check(), Err(Error::TenantState(_))), "a suspension is not forgotten");
    }
}
