//! Erasure: ordered once, then watched until its certificate is there.

use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Method;
use serde_json::Value;

use crate::client::Client;
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};

/// What is shown of an erasure.
pub(crate) const FIELDS: &[Field] =
    &[("id", "/id"), ("state", "/state"), ("ordered", "/requested_at"), ("ordered by", "/requested_by"), ("moved", "/updated_at")];

/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How long `--wait` looks.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Erase one's own tenant.
#[derive(Debug, Args)]
pub(crate) struct EraseArgs {
    /// Name of the tenant that the credential belongs to.
    #[arg(long, value_name = "NAME")]
    confirm: String,
}

/// The tenant's own administrator erases it. Its credentials stop working with the answer, so the operator has the certificate.
pub(crate) async fn run(args: &EraseArgs, client: &Client, output: &Output) -> Result<()> {
    let ordered = client.call_with(Method::DELETE, &["v1", "tenant"], &[("confirm", args.confirm.clone())]).await?;
    output.item(&ordered, FIELDS)?;
    output.note("The tenant is being erased. Ask the operator for the certificate with this id.");
    Ok(())
}

/// The operator's order, and its end when that is waited for.
pub(crate) async fn ordered(ordered: Value, wait: bool, client: &Client, output: &Output) -> Result<()> {
    let id = ordered.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !wait {
        output.item(&ordered, FIELDS)?;
        output.note(&format!("Watch it with `insula tenant erasure {id}`."));
        return Ok(());
    }
    let deadline = Instant::now() + WAIT_MAX;
    let mut last = String::new();
    loop {
        let now = client.get(&["v1", "erasures", &id], &[]).await?;
        let state = now.get("state").and_then(Value::as_str).unwrap_or_default().to_owned();
        if state != last {
            output.note(&format!("erasure {state}"));
            last.clone_from(&state);
        }
        if state == "certified" {
            return output.item(&now, FIELDS);
        }
        if Instant::now() > deadline {
            let help = format!("it goes on by itself; look again with `insula tenant erasure {id}`");
            return Err(Failure::new(Class::Unavailable, format!("the erasure is still `{state}`")).help(help));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
