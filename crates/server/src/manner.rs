//! How a prediction is to be treated: headers that change nothing of what it says.
//!
//! | header | values | what it does |
//! |---|---|---|
//! | `Insula-Priority` | `low`, `normal`, `high` | the order among predictions of the same tenant that wait; nothing between tenants |
//! | `Insula-Timeout-Ms` | a whole number from 1 | after so many milliseconds the answer is of no use: the request leaves its queue, or is not waited for |

use std::time::{Duration, Instant};

use http::HeaderName;
use platform::{Manner, Priority};

use crate::api::Ask;
use crate::error::{Fail, Result};

const PRIORITY: HeaderName = HeaderName::from_static("insula-priority");
const TIMEOUT: HeaderName = HeaderName::from_static("insula-timeout-ms");

/// What the headers ask for. The time runs from here: the body has not been read yet.
pub(crate) fn manner(ask: &Ask) -> Result<Manner> {
    let text = |name: &HeaderName| ask.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let priority = match text(&PRIORITY) {
        None | Some("normal") => Priority::Normal,
        Some("low") => Priority::Low,
        Some("high") => Priority::High,
        Some(_) => return Err(Fail::new("invalid", "`Insula-Priority` is low, normal or high")),
    };
    let millis = text(&TIMEOUT).map(|text| text.parse::<u32>().ok().filter(|millis| *millis > 0));
    let deadline = match millis {
        None => None,
        Some(Some(millis)) => Some(Instant::now() + Duration::from_millis(millis.into())),
        Some(None) => return Err(Fail::new("invalid", "`Insula-Timeout-Ms` is a whole number of milliseconds, at least 1")),
    };
    Ok(Manner { priority, deadline, legs: ask.legs.clone() })
}
