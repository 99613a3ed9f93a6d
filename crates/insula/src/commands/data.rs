//! Data sets: what is uploaded is kept in versions and read back byte for byte.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::Value;

use crate::client::{Client, Outgoing};
use crate::commands::table;
use crate::failure::Result;
use crate::output::{Field, Output};
use crate::progress;

const FIELDS: &[Field] = &[("name", "/name"), ("versions", "/latest_version"), ("created", "/created_at"), ("updated", "/updated_at")];
const VERSION_FIELDS: &[Field] = &[
    ("data set", "/dataset"),
    ("version", "/version"),
    ("format", "/format"),
    ("rows", "/rows"),
    ("size", "/bytes"),
    ("sha256", "/sha256"),
    ("created", "/created_at"),
    ("created by", "/created_by"),
];
const COLUMN_FIELDS: &[Field] = &[
    ("column", "/name"),
    ("kind", "/kind"),
    ("missing", "/missing"),
    ("distinct", "/distinct"),
    ("min", "/min"),
    ("max", "/max"),
    ("mean", "/mean"),
    ("deviation", "/standard_deviation"),
];

/// Commands on data sets.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Upload a file as the next version.
    Put {
        /// Name of the data set.
        name: String,
        /// CSV, NDJSON, Parquet or Arrow IPC; `-` for standard input.
        file: PathBuf,
        /// Demand a format instead of telling it from the content.
        #[arg(long)]
        format: Option<Format>,
    },
    /// List data sets.
    List,
    /// Show one version with its columns; the newest when none is given.
    Show {
        /// Name of the data set.
        name: String,
        /// Its version.
        #[arg(long)]
        version: Option<u64>,
    },
    /// List the versions of a data set.
    Versions {
        /// Name of the data set.
        name: String,
    },
    /// Show a few rows.
    Preview {
        /// Name of the data set.
        name: String,
        /// Its version; the newest when none is given.
        #[arg(long)]
        version: Option<u64>,
        /// How many rows.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rows: u32,
        /// The first of them.
        #[arg(long, default_value_t = 0)]
        offset: u64,
    },
    /// Read a version back, byte for byte.
    Get {
        /// Name of the data set.
        name: String,
        /// File to write; `-` for standard output.
        file: PathBuf,
        /// Its version; the newest when none is given.
        #[arg(long)]
        version: Option<u64>,
        /// Overwrite the file.
        #[arg(long)]
        force: bool,
    },
    /// Delete a data set with all its versions.
    Delete {
        /// Name of the data set.
        name: String,
    },
}

/// File formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object a line.
    Ndjson,
    /// Apache Parquet.
    Parquet,
    /// Apache Arrow IPC, file or stream.
    Arrow,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
        }
    }
}

pub(crate) async fn run(command: DataCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        DataCommand::Put { name, file, format } => put(&name, &file, format, client, output).await,
        DataCommand::List => output.list(&client.list(&["v1", "datasets"], &[]).await?, FIELDS),
        DataCommand::Show { name, version } => shown(&version_of(&name, version, client).await?, output),
        DataCommand::Versions { name } => {
            let versions = client.list(&["v1", "datasets", &name, "versions"], &[]).await?;
            output.list(&versions, VERSION_FIELDS)
        }
        DataCommand::Preview { name, version, rows, offset } => {
            let version = word(version);
            let query = [("offset", offset.to_string()), ("rows", rows.to_string())];
            let preview = client.get(&["v1", "datasets", &name, "versions", &version, "preview"], &query).await?;
            previewed(&preview, output)
        }
        DataCommand::Get { name, file, version, force } => {
            let facts = version_of(&name, version, client).await?;
            let number = facts.get("version").and_then(Value::as_u64).map_or_else(|| word(version), |number| number.to_string());
            let path = ["v1", "datasets", &name, "versions", &number, "content"];
            table::save(&path, &file, force, facts.get("sha256").and_then(Value::as_str), client, output).await
        }
        DataCommand::Delete { name } => {
            client.call(Method::DELETE, &["v1", "datasets", &name]).await?;
            output.note(&format!("the data set `{name}` is deleted"));
            Ok(())
        }
    }
}

/// A version in a path.
fn word(version: Option<u64>) -> String {
    version.map_or_else(|| "latest".to_owned(), |version| version.to_string())
}

async fn version_of(name: &str, version: Option<u64>, client: &Client) -> Result<Value> {
    client.get(&["v1", "datasets", name, "versions", &word(version)], &[]).await
}

async fn put(name: &str, file: &Path, format: Option<Format>, client: &Client, output: &Output) -> Result<()> {
    let outgoing = Outgoing::open(file).await?;
    let bar = progress::transfer(output, name, outgoing.bytes);
    let query: Vec<(&str, String)> = format.map(|format| ("format", format.word().to_owned())).into_iter().collect();
    let version = client.upload(Method::PUT, &["v1", "datasets", name], &query, "application/octet-stream", outgoing, bar).await?;
    output.item(&version, VERSION_FIELDS)
}

fn shown(version: &Value, output: &Output) -> Result<()> {
    output.item(version, VERSION_FIELDS)?;
    if output.is_json() {
        return Ok(());
    }
    let columns = version.get("columns").and_then(Value::as_array).cloned().unwrap_or_default();
    output.line("")?;
    output.list(&columns, COLUMN_FIELDS)
}

fn previewed(preview: &Value, output: &Output) -> Result<()> {
    if output.is_json() {
        return output.value(preview);
    }
    let texts = |row: &Value| -> Vec<String> {
        let cells = row.as_array().into_iter().flatten();
        cells.map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect()
    };
    let mut rows = vec![texts(preview.get("columns").unwrap_or(&Value::Null))];
    rows.extend(preview.get("rows").and_then(Value::as_array).into_iter().flatten().map(texts));
    output.rows(&rows)
}
