//! Metering: a tenant's own use by minute and hour; for the operator, who crowds whom on this node, and the hours of all for the bill.

use futures_util::{StreamExt, stream};
use platform::tenancy::act::QuotaRead;
use platform::tenancy::{Bucket, Metered, MeteredPages, Neighbour, Operator, Permit, USAGE_DAYS_MAX, Usage};
use serde::Serialize;
use utoipa::ToSchema;

use super::{GET, micros, rfc3339};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

/// Minutes that can be asked for.
const MINUTES_MAX: u32 = 60;
/// Hours that are told when nothing is asked for.
const HOURS_DEFAULT: u32 = 24;
/// Neighbours that are told one by one; the rest is one line.
const NEIGHBOURS_MAX: usize = 200;
/// Days that an export covers when nothing is asked for.
const EXPORT_DAYS_DEFAULT: i64 = 31;
const DAY_MICROS: i64 = 86_400_000_000;

pub(super) fn register(api: &mut Api) {
    api.tenant_route(
        GET,
        "/v1/usage",
        Doc::new("usage_get", "What the tenant used: since the service started, and lately by minute and hour")
            .query("minutes", "integer", "how many of the last minutes, on this node, at most 60; none when absent")
            .query("hours", "integer", "how many of the last hours, at most 744; 24 when absent")
            .answers::<UsageAnswer>(),
        usage_get,
    );
    api.operator_route(
        GET,
        "/v1/service/neighbours",
        Doc::new("neighbours", "Who took which share of this node, and when")
            .query("minutes", "integer", "how many of the last minutes, at most 60; 60 when absent")
            .answers::<Neighbours>(),
        neighbours,
    );
    api.operator_route(
        GET,
        "/v1/service/usage",
        Doc::new("usage_export", "Hours of use by tenant and node, for the bill")
            .query("since", "string", "RFC 3339, inclusive; 31 days ago when absent")
            .query("until", "string", "RFC 3339, exclusive; now when absent")
            .query("format", "string", "ndjson (default) or csv")
            .answers_stream("application/x-ndjson", "one JSON object a line, or CSV with a header"),
        export,
    );
}

/// What was used.
#[derive(Serialize, ToSchema)]
#[schema(as = Usage)]
struct Counts {
    /// Requests admitted, predictions not counted.
    requests: u64,
    predictions: u64,
    /// Refused by rate or concurrency.
    refused: u64,
    /// CPU of the tenant's sandboxes, in microseconds.
    cpu_micros: u64,
    /// Memory of the tenant's sandboxes times how long they held it.
    memory_byte_seconds: u64,
    /// How long the tenant's sandboxes lived, together, in microseconds.
    cell_micros: u64,
    /// Predictions that waited for a sandbox or a model, and how long in all, in microseconds.
    cold_starts: u64,
    cold_start_micros: u64,
    /// Time that predictions waited for their turn: among tenants, and in their sandbox behind others, in microseconds.
    queue_micros: u64,
    /// Sandboxes that ended badly, and that were stopped because they idled or to make room.
    cells_failed: u64,
    cells_evicted: u64,
    /// Time that jobs ran (trainings, and predictions for whole data sets), in microseconds.
    training_micros: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl From<Usage> for Counts {
    fn from(usage: Usage) -> Self {
        Self {
            requests: usage.requests,
            predictions: usage.predictions,
            refused: usage.refused,
            cpu_micros: usage.cpu_micros,
            memory_byte_seconds: usage.memory_byte_seconds,
            cell_micros: usage.cell_micros,
            cold_starts: usage.cold_starts,
            cold_start_micros: usage.cold_start_micros,
            queue_micros: usage.queue_micros,
            cells_failed: usage.cells_failed,
            cells_evicted: usage.cells_evicted,
            training_micros: usage.training_micros,
            bytes_in: usage.bytes_in,
            bytes_out: usage.bytes_out,
        }
    }
}

/// A minute or an hour.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageBucket)]
struct BucketAnswer {
    /// When it begins.
    #[schema(format = DateTime)]
    at: String,
    #[serde(flatten)]
    usage: Counts,
}

impl From<Bucket> for BucketAnswer {
    fn from(bucket: Bucket) -> Self {
        Self { at: at(bucket.at), usage: bucket.usage.into() }
    }
}

fn at(seconds: i64) -> String {
    rfc3339(seconds.saturating_mul(1_000_000))
}

/// Counters since the service started, and what they grew by lately. A stretch of time in which nothing was used is left out.
#[derive(Serialize, ToSchema)]
struct UsageAnswer {
    #[serde(flatten)]
    usage: Counts,
    minutes: Vec<BucketAnswer>,
    hours: Vec<BucketAnswer>,
}

fn count(ask: &Ask, name: &'static str, default: u32, most: u32) -> Result<u32> {
    match ask.query_as::<u32>(name, "a number")?.unwrap_or(default) {
        count if count <= most => Ok(count),
        _ => Err(Fail::new("query_invalid", format!("`{name}` is at most {most}"))),
    }
}

async fn usage_get(permit: &Permit<QuotaRead>, ask: Ask) -> Result<Reply> {
    let (minutes, hours) = (count(&ask, "minutes", 0, MINUTES_MAX)?, count(&ask, "hours", HOURS_DEFAULT, USAGE_DAYS_MAX * 24)?);
    let history = permit.usage_history(minutes, hours).await?;
    Reply::json(&UsageAnswer {
        usage: permit.quota_use().usage.into(),
        minutes: history.minutes.into_iter().map(BucketAnswer::from).collect(),
        hours: history.hours.into_iter().map(BucketAnswer::from).collect(),
    })
}

/// One tenant's part of this node. Shares are of what all tenants took together, from 0 to 1.
#[derive(Serialize, ToSchema)]
#[schema(as = Neighbour)]
struct NeighbourAnswer {
    tenant: String,
    cpu_share: f64,
    memory_share: f64,
    place_share: f64,
    /// Of all the time that anybody waited for a turn.
    queue_share: f64,
    usage: Counts,
    /// Minutes in which it used anything, and its share of the CPU in each.
    minutes: Vec<NeighbourMinute>,
}

/// One tenant's part of a minute.
#[derive(Serialize, ToSchema)]
struct NeighbourMinute {
    #[schema(format = DateTime)]
    at: String,
    cpu_micros: u64,
    cpu_share: f64,
    queue_micros: u64,
}

/// Who took what of this node.
#[derive(Serialize, ToSchema)]
struct Neighbours {
    /// Cores of this node.
    cores: usize,
    /// Sandboxes that this node holds at most.
    places: usize,
    /// What all tenants used together.
    all: Counts,
    /// The largest users of CPU first.
    tenants: Vec<NeighbourAnswer>,
    /// Tenants beyond those.
    more: usize,
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64 * 10_000.0).round() / 10_000.0 }
}

async fn neighbours(operator: &Operator, ask: Ask) -> Result<Reply> {
    let found = operator.neighbours(count(&ask, "minutes", MINUTES_MAX, MINUTES_MAX)?).await?;
    let (cores, places) = ask.service.platform.capacity();
    Reply::json(&told(found, cores, places))
}

fn told(found: Vec<Neighbour>, cores: usize, places: usize) -> Neighbours {
    let mut all = Usage::default();
    let mut by_minute = std::collections::BTreeMap::<i64, u64>::new();
    for bucket in found.iter().flat_map(|tenant| &tenant.minutes) {
        all.add(&bucket.usage);
        *by_minute.entry(bucket.at).or_default() += bucket.usage.cpu_micros;
    }
    let minute = |bucket: &Bucket| NeighbourMinute {
        at: at(bucket.at),
        cpu_micros: bucket.usage.cpu_micros,
        cpu_share: share(bucket.usage.cpu_micros, by_minute.get(&bucket.at).copied().unwrap_or(0)),
        queue_micros: bucket.usage.queue_micros,
    };
    let more = found.len().saturating_sub(NEIGHBOURS_MAX);
    let tenant = |tenant: Neighbour| NeighbourAnswer {
        cpu_share: share(tenant.total.cpu_micros, all.cpu_micros),
        memory_share: share(tenant.total.memory_byte_seconds, all.memory_byte_seconds),
        place_share: share(tenant.total.cell_micros, all.cell_micros),
        queue_share: share(tenant.total.queue_micros, all.queue_micros),
        usage: tenant.total.into(),
        minutes: tenant.minutes.iter().map(minute).collect(),
        tenant: tenant.name,
    };
    let tenants = found.into_iter().take(NEIGHBOURS_MAX).map(tenant).collect();
    Neighbours { cores, places, all: all.into(), tenants, more }
}

/// How an export is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Ndjson,
    Csv,
}

async fn export(operator: &Operator, ask: Ask) -> Result<Reply> {
    let time = |name| {
        let wrong = || Fail::new("query_invalid", "`since` and `until` are times as in 2027-01-31T12:00:00Z");
        ask.query(name)?.map(|text| micros(&text).ok_or_else(wrong)).transpose()
    };
    let now = i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX);
    let until = time("until")?.unwrap_or(now);
    let since = time("since")?.unwrap_or(now - EXPORT_DAYS_DEFAULT * DAY_MICROS);
    let (format, media) = match ask.query("format")?.as_deref() {
        None | Some("ndjson") => (Format::Ndjson, "application/x-ndjson"),
        Some("csv") => (Format::Csv, "text/csv"),
        Some(_) => return Err(Fail::new("query_invalid", "`format` is ndjson or csv")),
    };
    let pages = operator.metered(since.div_euclid(1_000_000), until.div_euclid(1_000_000)).await?;
    let head = stream::iter((format == Format::Csv).then(|| Ok(header().into())));
    let rows = stream::try_unfold(pages, move |mut pages: MeteredPages| async move {
        let page = pages.next().await?;
        let text: String = page.iter().map(|row| line(row, format)).collect();
        Ok((!page.is_empty()).then(|| (text.into(), pages)))
    });
    Ok(Reply::stream(media, None, head.chain(rows).boxed()))
}

fn header() -> String {
    format!("tenant,tenant_id,hour,node,{}\n", Usage::NAMES.join(","))
}

fn line(row: &Metered, format: Format) -> String {
    if format == Format::Csv {
        // Names are of a narrow alphabet; the node's is the operator's own and may have a comma.
        let node = format!("\"{}\"", row.node.replace('"', "\"\""));
        let values: Vec<String> = row.usage.values().iter().map(u64::to_string).collect();
        return format!("{},{},{},{node},{}\n", row.name, row.id, at(row.hour), values.join(","));
    }
    let mut object = serde_json::Map::new();
    for (name, text) in [("tenant", row.name.clone()), ("tenant_id", row.id.clone()), ("hour", at(row.hour)), ("node", row.node.clone())] {
        object.insert(name.to_owned(), text.into());
    }
    object.extend(Usage::NAMES.iter().zip(row.usage.values()).map(|(name, value)| ((*name).to_owned(), value.into())));
    format!("{}\n", serde_json::Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(at: i64, cpu_micros: u64) -> Bucket {
        Bucket { at, usage: Usage { cpu_micros, cell_micros: 60_000_000, ..Usage::default() } }
    }

    #[test]
    fn shares_are_of_all_and_of_each_minute() {
        let tenant = |name: &str, minutes: Vec<Bucket>| {
            let mut total = Usage::default();
            minutes.iter().for_each(|bucket| total.add(&bucket.usage));
            Neighbour { name: name.to_owned(), minutes, total }
        };
        let told = told(vec![tenant("loud", vec![used(0, 900), used(60, 600)]), tenant("calm", vec![used(60, 200)])], 2, 10);
        assert_eq!((told.tenants[0].cpu_share, told.tenants[1].cpu_share), (0.8824, 0.1176));
        assert_eq!(told.tenants[0].minutes.iter().map(|minute| minute.cpu_share).collect::<Vec<_>>(), [1.0, 0.75]);
        assert_eq!((told.tenants[1].place_share, told.tenants[1].queue_share), (0.3333, 0.0), "nothing of nothing is no share");
        assert_eq!((told.all.cpu_micros, told.more), (1700, 0));
    }

    #[test]
    fn lines_of_the_bill() {
        let usage = Usage { predictions: 3, bytes_out: 9, ..Usage::default() };
        let row = Metered { name: "clinic".into(), id: "00ff".into(), hour: 3_600, node: "a\"b".into(), usage };
        assert_eq!(line(&row, Format::Csv), "clinic,00ff,1970-01-01T01:00:00Z,\"a\"\"b\",0,3,0,0,0,0,0,0,0,0,0,0,0,9\n");
        assert_eq!(header().split(',').count(), line(&row, Format::Csv).split(',').count());
        let json: serde_json::Value = serde_json::from_str(&line(&row, Format::Ndjson)).unwrap();
        assert_eq!((&json["tenant"], &json["predictions"], &json["node"]), (&"clinic".into(), &3.into(), &"a\"b".into()));
    }
}
