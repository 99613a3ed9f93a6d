//! Limits and use.

use clap::Args;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Result;
use crate::output::Output;

/// What the tenant has used.
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {}

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
pub(crate) async fn usage(_args: &UsageArgs, client: &Client, output: &Output) -> Result<()> {
    let usage = client.get(&["v1", "usage"], &[]).await?;
    if output.is_json() {
        return output.value(&usage);
    }
    let counters = usage.get("usage").unwrap_or(&usage);
    let rows: Vec<Value> =
        counters.as_object().into_iter().flatten().map(|(name, count)| json!({"counter": name, "value": count})).collect();
    output.list(&rows, &[("counter", "/counter"), ("value", "/value")])
}
