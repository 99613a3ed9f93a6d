//! Lists in pages, and points in time.

use serde::{Deserialize, Serialize};
use tenancy::Listed;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Most items in a page.
pub const PAGE_ITEMS_MAX: u32 = 500;
/// Items in a page when nothing is asked for.
pub const PAGE_ITEMS_DEFAULT: u32 = 100;

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PageRequest {
    /// `next` of the page before.
    pub after: Option<String>,
    /// Most items, 1 to 500; 100 when absent.
    pub limit: Option<u32>,
}

impl PageRequest {
    /// Items to fetch, within the bounds.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.unwrap_or(PAGE_ITEMS_DEFAULT).clamp(1, PAGE_ITEMS_MAX)
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Give it as `after` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// A page of records as they are stored; the next one begins after this key of the last one.
    pub(crate) fn of(listed: Listed<T>, key: impl Fn(&T) -> String) -> Self {
        let next = listed.next.and_then(|_| listed.records.last().map(key));
        Self { items: listed.records, next }
    }

    /// The same page of other things.
    pub(crate) fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(f).collect(), next: self.next }
    }
}

/// A point in time, microseconds since 1970 UTC; RFC 3339 in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, utoipa::ToSchema)]
#[schema(value_type = String, format = DateTime)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The clock's time.
    #[must_use]
    pub fn now() -> Self {
        Self(i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX))
    }

    /// Microseconds since 1970 UTC.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Milliseconds since 1970 UTC, as MLflow counts.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000).ok().and_then(|time| time.format(&Rfc3339).ok());
        f.write_str(text.as_deref().unwrap_or("1970-01-01T00:00:00Z"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)?;
        Ok(Self(i64::try_from(time.unix_timestamp_nanos() / 1000).map_err(serde::de::Error::custom)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_survives_json() {
        let now = Timestamp::now();
        assert_eq!(serde_json::from_str::<Timestamp>(&serde_json::to_string(&now).unwrap()).unwrap(), now);
        assert_eq!(serde_json::to_string(&Timestamp(0)).unwrap(), "\"1970-01-01T00:00:00Z\"");
    }

    #[test]
    fn a_page_knows_whether_there_is_more() {
        let listed = |next: Option<&str>| Listed { records: vec![1, 2], next: next.map(str::to_owned), bytes: 0 };
        let page = Page::of(listed(Some("models/2")), ToString::to_string);
        assert_eq!((page.items, page.next.as_deref()), (vec![1, 2], Some("2")));
        assert_eq!(Page::of(listed(None), ToString::to_string).next, None);
    }
}
