//! Registered models: versions that never change, aliases that move.

use std::path::PathBuf;

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Client, Outgoing};
use crate::commands::table;
use crate::failure::Result;
use crate::output::{Field, Output};
use crate::progress;

const FIELDS: &[Field] =
    &[("name", "/name"), ("versions", "/latest_version"), ("aliases", "/aliases"), ("tags", "/tags"), ("updated", "/updated_at")];
const VERSION_FIELDS: &[Field] = &[
    ("model", "/model"),
    ("version", "/version"),
    ("aliases", "/aliases"),
    ("tags", "/tags"),
    ("size", "/bytes"),
    ("stage", "/stage"),
    ("source", "/lineage/source"),
    ("created", "/created_at"),
    ("created by", "/created_by"),
];
const DETAIL_FIELDS: &[Field] = &[
    ("not deployable", "/not_deployable"),
    ("logged at", "/logged/source"),
    ("artifacts", "/logged/artifact_uri"),
    ("sha256", "/sha256"),
    ("producer", "/producer"),
    ("nodes", "/nodes"),
    ("smoke run", "/smoke_run"),
    ("run", "/run_id"),
    ("data set", "/lineage/dataset"),
    ("data version", "/lineage/dataset_version"),
    ("data sha256", "/lineage/dataset_sha256"),
];
const TENSOR_FIELDS: &[Field] = &[("name", "/name"), ("type", "/datatype"), ("shape", "/shape")];
const CHANGE_FIELDS: &[Field] =
    &[("what", "/what"), ("alias", "/alias"), ("version", "/version"), ("from", "/from"), ("to", "/to"), ("when", "/at"), ("by", "/by")];

/// Commands on models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// List models.
    List,
    /// Show a model with its versions, or one version.
    Show {
        /// Name of the model.
        name: String,
        /// Its version.
        #[arg(long)]
        version: Option<u64>,
    },
    /// Upload an ONNX file as the next version.
    Upload {
        /// Name of the model.
        name: String,
        /// The file; `-` for standard input.
        file: PathBuf,
    },
    /// Download the ONNX file of a version.
    Download {
        /// Name of the model.
        name: String,
        /// Its version.
        version: u64,
        /// File to write; `-` for standard output.
        file: PathBuf,
        /// Overwrite the file.
        #[arg(long)]
        force: bool,
    },
    /// Point an alias at a version, or remove it.
    Alias {
        /// Name of the model.
        name: String,
        /// The alias.
        alias: String,
        /// The version it points at.
        #[arg(required_unless_present = "delete", conflicts_with = "delete")]
        version: Option<u64>,
        /// Remove the alias; its history stays.
        #[arg(long)]
        delete: bool,
    },
    /// Set a tag of a model or of a version, or remove it.
    Tag {
        /// Name of the model.
        name: String,
        /// Key of the tag.
        key: String,
        /// Its value.
        #[arg(required_unless_present = "delete", conflicts_with = "delete")]
        value: Option<String>,
        /// Of this version.
        #[arg(long)]
        version: Option<u64>,
        /// Remove the tag.
        #[arg(long)]
        delete: bool,
    },
    /// Delete a model with all its versions.
    Delete {
        /// Name of the model.
        name: String,
    },
    /// Show who moved which alias and which version's stage, when, from and to.
    History {
        /// Name of the model.
        name: String,
    },
}

pub(crate) async fn run(command: ModelCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        ModelCommand::List => output.list(&client.list(&["v1", "models"], &[]).await?, FIELDS),
        ModelCommand::Show { name, version: None } => {
            let model = client.get(&["v1", "models", &name], &[]).await?;
            output.item(&model, FIELDS)?;
            if output.is_json() {
                return Ok(());
            }
            output.line("")?;
            output.list(&client.list(&["v1", "models", &name, "versions"], &[]).await?, VERSION_FIELDS)
        }
        ModelCommand::Show { name, version: Some(version) } => {
            shown(&client.get(&["v1", "models", &name, "versions", &version.to_string()], &[]).await?, output)
        }
        ModelCommand::Upload { name, file } => {
            let outgoing = Outgoing::open(&file).await?;
            let bar = progress::transfer(output, &name, outgoing.bytes);
            let path = ["v1", "models", &name, "versions"];
            shown(&client.upload(Method::POST, &path, &[], "application/octet-stream", outgoing, bar).await?, output)
        }
        ModelCommand::Download { name, version, file, force } => {
            let number = version.to_string();
            let facts = client.get(&["v1", "models", &name, "versions", &number], &[]).await?;
            let path = ["v1", "models", &name, "versions", &number, "content"];
            table::save(&path, &file, force, facts.get("sha256").and_then(Value::as_str), client, output).await
        }
        ModelCommand::Alias { name, alias, version, delete: _ } => {
            let path = ["v1", "models", &name, "aliases", &alias];
            match version {
                Some(version) => client.send(Method::PUT, &path, &json!({"version": version})).await?,
                None => client.call(Method::DELETE, &path).await?,
            };
            output.item(&client.get(&["v1", "models", &name], &[]).await?, FIELDS)
        }
        ModelCommand::Tag { name, key, value, version, delete: _ } => {
            let number = version.map(|version| version.to_string());
            let path = match &number {
                Some(number) => vec!["v1", "models", &name, "versions", number, "tags", &key],
                None => vec!["v1", "models", &name, "tags", &key],
            };
            match value {
                Some(value) => client.send(Method::PUT, &path, &json!({"value": value})).await?,
                None => client.call(Method::DELETE, &path).await?,
            };
            Ok(())
        }
        ModelCommand::Delete { name } => {
            client.call(Method::DELETE, &["v1", "models", &name]).await?;
            output.note(&format!("the model `{name}` is deleted"));
            Ok(())
        }
        ModelCommand::History { name } => output.list(&client.list(&["v1", "models", &name, "history"], &[]).await?, CHANGE_FIELDS),
    }
}

fn shown(version: &Value, output: &Output) -> Result<()> {
    output.item(version, &[VERSION_FIELDS, DETAIL_FIELDS].concat())?;
    if output.is_json() {
        return Ok(());
    }
    for what in ["inputs", "outputs"] {
        output.line(what)?;
        let tensors = version.get(what).and_then(Value::as_array).cloned().unwrap_or_default();
        output.list(&tensors, TENSOR_FIELDS)?;
    }
    Ok(())
}
