//! Predictions for whole data sets: queued by the service, watched from here.

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};
use crate::progress;

const FIELDS: &[Field] = &[
    ("id", "/id"),
    ("deployment", "/deployment"),
    ("data set", "/lineage/dataset"),
    ("data version", "/lineage/dataset_version"),
    ("state", "/state"),
    ("into", "/into"),
    ("into version", "/into_version"),
    ("rows", "/rows"),
    ("created", "/created_at"),
];
const DETAIL_FIELDS: &[Field] = &[
    ("model", "/lineage/model"),
    ("model version", "/lineage/model_version"),
    ("kept columns", "/keep"),
    ("error", "/error/message"),
    ("attempts", "/attempts"),
    ("created by", "/created_by"),
    ("started", "/started_at"),
    ("finished", "/finished_at"),
];

/// How often `--watch` looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Commands on predictions for whole data sets.
#[derive(Debug, Subcommand)]
pub(crate) enum BatchCommand {
    /// Ask a deployment about every row of a data set.
    Start(StartArgs),
    /// List jobs, newest first.
    List,
    /// Show one job.
    Show {
        /// Its id.
        id: String,
    },
    /// Cancel one that has not ended.
    Cancel {
        /// Its id.
        id: String,
    },
}

/// What to ask about what.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The deployment that is asked.
    deployment: String,
    /// Data set with the rows.
    #[arg(long)]
    dataset: String,
    /// Its version; the newest when none is given.
    #[arg(long)]
    version: Option<u64>,
    /// Data set that gets the answers as its next version.
    #[arg(long)]
    into: String,
    /// Column that is kept beside the answers; repeatable.
    #[arg(long, value_name = "COLUMN")]
    keep: Vec<String>,
    /// Column of the model's one input, in its order; repeatable. Those it was trained on when none is given.
    #[arg(long = "feature", value_name = "COLUMN")]
    features: Vec<String>,
    /// Rows in one run of the model: 1 gives to the last bit what single questions would.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_rows: Option<u32>,
    /// Wait for the end and show progress.
    #[arg(long)]
    watch: bool,
}

pub(crate) async fn run(command: BatchCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        BatchCommand::Start(args) => start(args, client, output).await,
        BatchCommand::List => output.list(&client.list(&["v1", "predictions"], &[]).await?, FIELDS),
        BatchCommand::Show { id } => shown(&client.get(&["v1", "predictions", &id], &[]).await?, output),
        BatchCommand::Cancel { id } => shown(&client.call(Method::POST, &["v1", "predictions", &id, "cancel"]).await?, output),
    }
}

async fn start(args: StartArgs, client: &Client, output: &Output) -> Result<()> {
    let body = json!({
        "deployment": args.deployment, "dataset": args.dataset, "version": args.version, "into": args.into,
        "keep": args.keep, "features": args.features, "batch_rows": args.batch_rows,
    });
    let job = client.send(Method::POST, &["v1", "predictions"], &body).await?;
    let id = job.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !args.watch {
        shown(&job, output)?;
        output.note(&format!("Look at it with `insula batch show {id}`."));
        return Ok(());
    }
    let ended = watch(&id, client, output).await?;
    let text = |pointer: &str| ended.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match text("/state") {
        "succeeded" => shown(&ended, output),
        "cancelled" => Err(Failure::new(Class::Failed, "the job was cancelled")),
        _ => {
            let failure = Failure::new(Class::Failed, format!("the job failed: {}", text("/error/message")));
            Err(match server::remedy(text("/error/code")) {
                Some(remedy) => failure.help(remedy),
                None => failure,
            })
        }
    }
}

/// Looks until the job has ended. The job does not need this program: interrupting it leaves the job alone.
async fn watch(id: &str, client: &Client, output: &Output) -> Result<Value> {
    let bar = progress::steps(output, "queued");
    loop {
        let job = client.get(&["v1", "predictions", id], &[]).await?;
        let state = job.get("state").and_then(Value::as_str).unwrap_or_default();
        let number = |pointer: &str| job.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        bar.set_message(crate::output::visible(state));
        bar.set_length(number("/progress/total"));
        bar.set_position(number("/progress/done"));
        if matches!(state, "succeeded" | "failed" | "cancelled") {
            bar.finish_and_clear();
            return Ok(job);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn shown(job: &Value, output: &Output) -> Result<()> {
    output.item(job, &[FIELDS, DETAIL_FIELDS].concat())
}
