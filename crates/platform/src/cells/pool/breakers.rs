//! Models that keep killing their cells are left alone for a while, longer each time.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::SlotKey;
use crate::error::{Error, Result};

/// Models of one tenant whose crashes are remembered.
const MODELS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Crashes in a row after which a model is left alone.
const CRASHES_MAX: u32 = 3;
/// How long at first; doubles with each further crash.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
pub(super) const BACK_OFF_MAX: Duration = Duration::from_secs(60);

struct Breaker {
    crashes: u32,
    closed_until: Instant,
}

/// The circuit breakers of one tenant's models.
pub(super) struct Breakers {
    of: Mutex<LruCache<SlotKey, Breaker>>,
    /// Whether there is one: most tenants have none, and ask for each prediction.
    any: AtomicBool,
}

impl Default for Breakers {
    fn default() -> Self {
        Self { of: Mutex::new(LruCache::new(MODELS_MAX)), any: AtomicBool::new(false) }
    }
}

impl Breakers {
    /// Refuses a model that is left alone.
    pub(super) fn check(&self, key: &SlotKey) -> Result<()> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut breakers = self.of.lock();
        let Some(breaker) = breakers.get(key) else { return Ok(()) };
        let left = breaker.closed_until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let retry_after_seconds = left.as_secs() + 1;
        Err(Error::ModelUnstable { model: key.deployment.to_string(), failures: breaker.crashes, retry_after_seconds })
    }

    /// The model has killed a cell.
    pub(super) fn crashed(&self, key: &SlotKey) {
        let mut breakers = self.of.lock();
        let breaker = breakers.get_or_insert_mut(key.clone(), || Breaker { crashes: 0, closed_until: Instant::now() });
        breaker.crashes = breaker.crashes.saturating_add(1);
        if let Some(over) = breaker.crashes.checked_sub(CRASHES_MAX) {
            let back_off = BACK_OFF_MIN.saturating_mul(1 << over.min(10)).min(BACK_OFF_MAX);
            breaker.closed_until = Instant::now() + back_off;
        }
        self.any.store(true, Ordering::Release);
    }

    /// The model has answered: what was is forgotten.
    pub(super) fn worked(&self, key: &SlotKey) {
        if self.any.load(Ordering::Acquire) {
            let mut breakers = self.of.lock();
            breakers.pop(key);
            self.any.store(!breakers.is_empty(), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use tenancy::BlobId;

    use super::*;

    #[test]
    fn a_model_that_keeps_crashing_is_left_alone_until_it_works() {
        let key = SlotKey { deployment: "d".into(), version: 1, blob: BlobId::try_from("00".repeat(16)).unwrap(), batching: None };
        let breakers = Breakers::default();
        for _ in 1..CRASHES_MAX {
            breakers.crashed(&key);
            assert!(breakers.check(&key).is_ok());
        }
        breakers.crashed(&key);
        let error = breakers.check(&key).unwrap_err();
        assert!(matches!(error, Error::ModelUnstable { failures: CRASHES_MAX, retry_after_seconds: 1..=2, .. }), "{error}");
        breakers.worked(&key);
        assert!(breakers.check(&key).is_ok());
    }
}
