//! Deployments: a name under which a model version answers.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Result;
use crate::output::{Field, Output};

const FIELDS: &[Field] = &[
    ("name", "/name"),
    ("model", "/model"),
    ("version", "/version"),
    ("alias", "/alias"),
    ("serving", "/serving_version"),
    ("canary", "/canary_version"),
    ("canary %", "/canary/weight_percent"),
    ("shadow", "/shadow/version"),
    ("batch", "/batching/max_size"),
    ("rollout", "/rollout/state"),
    ("updated", "/updated_at"),
    ("updated by", "/updated_by"),
];

const DETAIL_FIELDS: &[Field] = &[
    ("reason", "/rollout/reason"),
    ("rules", "/rollback_on"),
    ("batching", "/batching"),
    ("before", "/previous"),
    ("answers", "/answers"),
];

/// Commands on deployments.
#[derive(Debug, Subcommand)]
pub(crate) enum DeployCommand {
    /// Deploy a version of a model, or whatever an alias of it points at.
    Put(PutArgs),
    /// List deployments.
    List,
    /// Show one deployment.
    Show {
        /// Name of the deployment.
        name: String,
    },
    /// Make the canary what answers.
    Promote {
        /// Name of the deployment.
        name: String,
    },
    /// Return to what was deployed before.
    Rollback {
        /// Name of the deployment.
        name: String,
    },
    /// Remove a deployment; its model stays.
    Delete {
        /// Name of the deployment.
        name: String,
    },
}

/// What to deploy.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// Name of the deployment.
    name: String,
    /// The model.
    #[arg(long)]
    model: String,
    /// A fixed version.
    #[arg(long, required_unless_present = "alias", conflicts_with = "alias")]
    version: Option<u64>,
    /// An alias, followed when it moves.
    #[arg(long)]
    alias: Option<String>,
    /// Another version that gets a share of the requests.
    #[arg(long, value_name = "VERSION", conflicts_with = "canary_alias")]
    canary: Option<u64>,
    /// Another alias that gets a share of the requests.
    #[arg(long, value_name = "ALIAS")]
    canary_alias: Option<String>,
    /// The canary's share in per cent.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100))]
    canary_percent: u32,
    /// A version that gets a copy of the requests; what it answers is dropped.
    #[arg(long, value_name = "VERSION")]
    shadow: Option<u64>,
    /// Take the canary out when a larger share of its answers fails, as in 0.05.
    #[arg(long, value_name = "SHARE")]
    error_rate_max: Option<f64>,
    /// Take the canary out when its 99th percentile is longer, in milliseconds.
    #[arg(long, value_name = "MS")]
    p99_ms_max: Option<u64>,
    /// Judge the canary after so many answers.
    #[arg(long, value_name = "COUNT")]
    requests_min: Option<u32>,
    /// Judge the canary by the last seconds.
    #[arg(long, value_name = "SECONDS")]
    window: Option<u32>,
    /// Answer requests that wait together by one run of the model, of at most so many rows.
    #[arg(long, value_name = "ROWS")]
    batch_size: Option<u32>,
    /// Wait so long for others while they are likely to come, in microseconds.
    #[arg(long, value_name = "US", requires = "batch_size", default_value_t = 0)]
    batch_window: u32,
}

impl PutArgs {
    /// The request's body, without what was not said.
    fn body(&self) -> Value {
        let mut body = json!({"model": self.model, "version": self.version, "alias": self.alias});
        if self.canary.is_some() || self.canary_alias.is_some() {
            let canary = json!({"version": self.canary, "alias": self.canary_alias, "weight_percent": self.canary_percent});
            set(&mut body, "canary", canary);
        }
        if let Some(version) = self.shadow {
            set(&mut body, "shadow", json!({"version": version}));
        }
        if self.error_rate_max.is_some() || self.p99_ms_max.is_some() {
            let window = json!({
                "error_rate": self.error_rate_max, "p99_ms": self.p99_ms_max,
                "requests_min": self.requests_min, "window_seconds": self.window,
            });
            set(&mut body, "rollback_on", window);
        }
        if let Some(max_size) = self.batch_size {
            set(&mut body, "batching", json!({"max_size": max_size, "window_us": self.batch_window}));
        }
        body
    }
}

fn set(body: &mut Value, field: &str, value: Value) {
    if let Some(fields) = body.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
}

pub(crate) async fn run(command: DeployCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        DeployCommand::Put(args) => output.item(&client.send(Method::PUT, &["v1", "deployments", &args.name], &args.body()).await?, FIELDS),
        DeployCommand::Promote { name } => act(&name, "promote", client, output).await,
        DeployCommand::Rollback { name } => act(&name, "rollback", client, output).await,
        DeployCommand::List => output.list(&client.list(&["v1", "deployments"], &[]).await?, FIELDS),
        DeployCommand::Show { name } => {
            output.item(&client.get(&["v1", "deployments", &name], &[]).await?, &[FIELDS, DETAIL_FIELDS].concat())
        }
        DeployCommand::Delete { name } => {
            client.call(Method::DELETE, &["v1", "deployments", &name]).await?;
            output.note(&format!("the deployment `{name}` is removed"));
            Ok(())
        }
    }
}

async fn act(name: &str, what: &str, client: &Client, output: &Output) -> Result<()> {
    output.item(&client.call(Method::POST, &["v1", "deployments", name, what]).await?, FIELDS)
}
