//! How a prediction is to be treated: headers that change nothing of what it says, the same over REST and gRPC.
//!
//! | header | values | what it does |
//! |---|---|---|
//! | `Insula-Priority` | `low`, `normal`, `high` | the order among predictions of the same tenant that wait; nothing between tenants |
//! | `Insula-Timeout-Ms` | a whole number from 1 | after so many milliseconds the answer is of no use: the request leaves its queue, or is not waited for |
//!
//! In a stream they hold for each message, from when it has come.

use std::time::{Duration, Instant};

use http::HeaderName;
use http::header::HeaderMap;
use platform::{Manner, Priority};

use crate::api::Ask;
use crate::error::{Fail, Result};
use crate::traces::Begun;

const PRIORITY: HeaderName = HeaderName::from_static("insula-priority");
const TIMEOUT: HeaderName = HeaderName::from_static("insula-timeout-ms");

/// What the headers ask for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    priority: Priority,
    patience: Option<Duration>,
}

impl Wish {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self> {
        let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let priority = match text(&PRIORITY) {
            None | Some("normal") => Priority::Normal,
            Some("low") => Priority::Low,
            Some("high") => Priority::High,
            Some(_) => return Err(Fail::new("invalid", "`Insula-Priority` is low, normal or high")),
        };
        let millis = text(&TIMEOUT).map(|text| text.parse::<u32>().ok().filter(|millis| *millis > 0));
        let patience = match millis {
            None => None,
            Some(Some(millis)) => Some(Duration::from_millis(millis.into())),
            Some(None) => return Err(Fail::new("invalid", "`Insula-Timeout-Ms` is a whole number of milliseconds, at least 1")),
        };
        Ok(Self { priority, patience })
    }

    /// For a prediction that begins now, and is of no use after `until` anyway.
    pub(crate) fn manner(self, until: Option<Instant>, trace: Option<&Begun>) -> Manner {
        let own = self.patience.map(|patience| Instant::now() + patience);
        let deadline = own.into_iter().chain(until).min();
        Manner { priority: self.priority, deadline, legs: trace.map(|begun| begun.legs.clone()) }
    }
}

/// What the headers of a request ask for. The time runs from here: the body has not been read yet.
pub(crate) fn manner(ask: &Ask) -> Result<Manner> {
    Ok(Wish::of(&ask.headers)?.manner(None, ask.trace.as_deref()))
}
