//! The wall clock, in the units the kernel stores.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970-01-01 UTC.
pub(crate) fn now_micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Seconds since 1970-01-01 UTC.
pub(crate) fn now_seconds() -> i64 {
    now_micros() / 1_000_000
}
