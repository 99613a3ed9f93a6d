//! Deployments: a name under which a model version answers.

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use crate::client::Client;
use crate::failure::Result;
use crate::output::{Field, Output};

const FIELDS: &[Field] = &[
    ("name", "/name"),
    ("model", "/model"),
    ("version", "/version"),
    ("alias", "/alias"),
    ("serving", "/serving_version"),
    ("updated", "/updated_at"),
    ("updated by", "/updated_by"),
];

/// Commands on deployments.
#[derive(Debug, Subcommand)]
pub(crate) enum DeployCommand {
    /// Deploy a version of a model, or whatever an alias of it points at.
    Put {
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
    },
    /// List deployments.
    List,
    /// Show one deployment.
    Show {
        /// Name of the deployment.
        name: String,
    },
    /// Remove a deployment; its model stays.
    Delete {
        /// Name of the deployment.
        name: String,
    },
}

pub(crate) async fn run(command: DeployCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        DeployCommand::Put { name, model, version, alias } => {
            let body = match (version, alias) {
                (Some(version), _) => json!({"model": model, "version": version}),
                (None, alias) => json!({"model": model, "alias": alias}),
            };
            output.item(&client.send(Method::PUT, &["v1", "deployments", &name], &body).await?, FIELDS)
        }
        DeployCommand::List => output.list(&client.list(&["v1", "deployments"], &[]).await?, FIELDS),
        DeployCommand::Show { name } => output.item(&client.get(&["v1", "deployments", &name], &[]).await?, FIELDS),
        DeployCommand::Delete { name } => {
            client.call(Method::DELETE, &["v1", "deployments", &name]).await?;
            output.note(&format!("the deployment `{name}` is removed"));
            Ok(())
        }
    }
}
