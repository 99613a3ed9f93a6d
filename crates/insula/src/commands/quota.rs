//! Limits and use: a tenant's own, and for the operator that of all.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Client, Wanted};
use crate::commands::table;
use crate::failure::Result;
use crate::output::{Field, Output};

const BUCKET_FIELDS: &[Field] = &[
    ("at", "/at"),
    ("predictions", "/predictions"),
    ("requests", "/requests"),
    ("refused", "/refused"),
    ("cpu µs", "/cpu_micros"),
    ("memory byte·s", "/memory_byte_seconds"),
    ("queue µs", "/queue_micros"),
    ("bytes in", "/bytes_in"),
    ("bytes out", "/bytes_out"),
];
const NEIGHBOUR_FIELDS: &[Field] = &[
    ("tenant", "/tenant"),
    ("cpu", "/cpu_share"),
    ("memory", "/memory_share"),
    ("places", "/place_share"),
    ("queue", "/queue_share"),
    ("cpu µs", "/usage/cpu_micros"),
    ("predictions", "/usage/predictions"),
    ("busiest minute", "/busiest"),
];

/// What the tenant has used.
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// The last minutes one by one, on the node that answers, instead of all since the service started.
    #[arg(long, conflicts_with = "hours", value_parser = clap::value_parser!(u32).range(1..=60))]
    minutes: Option<u32>,
    /// The last hours one by one.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=744))]
    hours: Option<u32>,
}

/// Who took what share of a node.
#[derive(Debug, Args)]
pub(crate) struct NeighboursArgs {
    /// How many of the last minutes.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=60))]
    minutes: u32,
}

/// Hours of use of all tenants, for the bill.
#[derive(Debug, Args)]
pub(crate) struct MeteringArgs {
    /// File to write; `-` for standard output.
    file: PathBuf,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// Not before, as in 2027-01-31T12:00:00Z; 31 days ago when absent.
    #[arg(long)]
    since: Option<String>,
    /// Before, as in 2027-01-31T12:00:00Z; now when absent.
    #[arg(long)]
    until: Option<String>,
    /// Overwrite the file.
    #[arg(long)]
    force: bool,
}

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// With a header.
    Csv,
    /// One JSON object a line.
    Ndjson,
}

/// Each limit with what is used of it.
pub(crate) async fn quota(client: &Client, output: &Output) -> Result<()> {
    let quota = client.get(&["v1", "quota"], &[]).await?;
    if output.is_json() {
        return output.value(&quota);
    }
    let empty = serde_json::Map::new();
    let used = quota.get("used").and_then(Value::as_object).unwrap_or(&empty);
    let limits = quota.get("limits").and_then(Value::as_object).unwrap_or(&empty);
    let rows: Vec<Value> = limits.iter().map(|(name, limit)| json!({"limit": name, "value": limit, "used": used.get(name)})).collect();
    output.list(&rows, &[("limit", "/limit"), ("value", "/value"), ("used", "/used")])
}

/// Counters.
pub(crate) async fn usage(args: &UsageArgs, client: &Client, output: &Output) -> Result<()> {
    let stretch = [("minutes", args.minutes), ("hours", args.hours)];
    let query: Vec<_> = stretch.iter().filter_map(|(name, count)| Some((*name, (*count)?.to_string()))).collect();
    let usage = client.get(&["v1", "usage"], &query).await?;
    if output.is_json() {
        return output.value(&usage);
    }
    if let Some((name, _)) = query.first() {
        let buckets = usage.get(*name).and_then(Value::as_array).cloned().unwrap_or_default();
        return output.list(&buckets, BUCKET_FIELDS);
    }
    let counters = usage.as_object().into_iter().flatten().filter(|(_, count)| count.is_u64());
    let rows: Vec<Value> = counters.map(|(name, count)| json!({"counter": name, "value": count})).collect();
    output.list(&rows, &[("counter", "/counter"), ("value", "/value")])
}

/// Shares of a node, the largest user of CPU first.
pub(crate) async fn neighbours(args: &NeighboursArgs, client: &Client, output: &Output) -> Result<()> {
    let mut told = client.get(&["v1", "service", "neighbours"], &[("minutes", args.minutes.to_string())]).await?;
    if output.is_json() {
        return output.value(&told);
    }
    let mut tenants = told.get_mut("tenants").map(Value::take).and_then(|tenants| tenants.as_array().cloned()).unwrap_or_default();
    for tenant in tenants.iter_mut().filter_map(Value::as_object_mut) {
        let minutes = tenant.get("minutes").and_then(Value::as_array);
        let cpu = |minute: &&Value| minute.get("cpu_micros").and_then(Value::as_u64);
        let busiest = minutes.and_then(|minutes| minutes.iter().max_by_key(cpu)).and_then(|minute| minute.get("at").cloned());
        tenant.insert("busiest".to_owned(), busiest.unwrap_or_default());
    }
    output.list(&tenants, NEIGHBOUR_FIELDS)
}

/// Writes the hours of all tenants into a file.
pub(crate) async fn metering(args: &MeteringArgs, client: &Client, output: &Output) -> Result<()> {
    let format = match args.format {
        Format::Csv => "csv",
        Format::Ndjson => "ndjson",
    };
    let all = [("format", Some(format.to_owned())), ("since", args.since.clone()), ("until", args.until.clone())];
    let query: Vec<_> = all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let wanted = Wanted { method: Method::GET, path: &["v1", "service", "usage"], query: &query, header: None };
    table::save_wanted(&wanted, &args.file, args.force, None, client, output).await
}
