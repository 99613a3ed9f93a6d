//! All addresses of the service, in one readable function. Handlers are thin: they read the request, call the platform or
//! the permit, and shape the reply.

pub(crate) mod data;
pub(crate) mod deployment;
pub(crate) mod inference;
pub(crate) mod ledger;
pub(crate) mod metrics;
pub(crate) mod model;
pub(crate) mod moving;
pub(crate) mod operator;
pub(crate) mod people;
pub(crate) mod prediction;
pub(crate) mod training;
pub(crate) mod usage;

use http::Method;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::Api;
use crate::public::Public;

/// Registers everything.
pub(crate) fn all() -> Api {
    let mut api = Api::default();
    Public::ALL.into_iter().for_each(|which| api.public_route(which));
    operator::register(&mut api);
    moving::register(&mut api);
    people::register(&mut api);
    usage::register(&mut api);
    data::register(&mut api);
    training::register(&mut api);
    prediction::register(&mut api);
    model::register(&mut api);
    deployment::register(&mut api);
    inference::register(&mut api);
    crate::grpc::register(&mut api);
    ledger::register(&mut api);
    metrics::register(&mut api);
    crate::mlflow::register(&mut api);
    api
}

const GET: Method = Method::GET;
const PUT: Method = Method::PUT;
const POST: Method = Method::POST;
const DELETE: Method = Method::DELETE;

/// Unix microseconds as RFC 3339.
pub(crate) fn rfc3339(micros: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// RFC 3339 as Unix microseconds.
pub(crate) fn micros(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1000).ok()
}

/// A page out of up to `limit + 1` items: the one too many only says that there is more.
#[derive(serde::Serialize)]
pub(crate) struct Listed<T> {
    items: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl<T> Listed<T> {
    pub(crate) fn cut(mut items: Vec<T>, limit: usize, key: impl Fn(&T) -> String) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(key) } else { None };
        Self { items, next }
    }
}
