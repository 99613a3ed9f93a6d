//! Training jobs: queued by the service, watched from here.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::commands::number_pair;
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};
use crate::progress;

const FIELDS: &[Field] = &[
    ("id", "/id"),
    ("model", "/name"),
    ("data set", "/dataset"),
    ("data version", "/dataset_version"),
    ("state", "/state"),
    ("model version", "/model_version"),
    ("created", "/created_at"),
];
const DETAIL_FIELDS: &[Field] = &[
    ("target", "/recipe/target"),
    ("task", "/recipe/task"),
    ("algorithm", "/recipe/algorithm"),
    ("parameters", "/recipe/parameters"),
    ("stage", "/progress/stage"),
    ("error", "/error/message"),
    ("run", "/run_id"),
    ("attempts", "/attempts"),
    ("created by", "/created_by"),
    ("started", "/started_at"),
    ("finished", "/finished_at"),
];
const RUN_FIELDS: &[Field] = &[
    ("run", "/id"),
    ("model", "/model"),
    ("model version", "/model_version"),
    ("rows trained on", "/rows_train"),
    ("rows held out", "/rows_test"),
    ("fit ms", "/fit_ms"),
    ("metrics", "/metrics"),
];

/// How often `--watch` looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Commands on training jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum TrainCommand {
    /// Queue a training.
    Start(StartArgs),
    /// List trainings, newest first.
    List,
    /// Show one training.
    Show {
        /// Its id.
        id: String,
    },
    /// Print its log.
    Logs {
        /// Its id.
        id: String,
        /// Go on until it ends.
        #[arg(long, short)]
        follow: bool,
    },
    /// Cancel one that has not ended.
    Cancel {
        /// Its id.
        id: String,
    },
    /// List recorded runs with their metrics.
    Runs {
        /// Of this model only.
        #[arg(long)]
        model: Option<String>,
    },
}

/// What to train.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Data set to learn from.
    #[arg(long)]
    dataset: String,
    /// Its version; the newest when none is given.
    #[arg(long)]
    version: Option<u64>,
    /// Column to predict.
    #[arg(long)]
    target: String,
    /// What is learned.
    #[arg(long)]
    task: Task,
    /// Model under which the result is registered.
    #[arg(long)]
    name: String,
    /// How it is learned.
    #[arg(long, default_value = "gradient-boosting")]
    algorithm: Algorithm,
    /// Column to leave out; repeatable.
    #[arg(long, value_name = "COLUMN")]
    exclude: Vec<String>,
    /// Parameter of the algorithm, as in max_iter=200; repeatable.
    #[arg(long = "param", value_name = "NAME=NUMBER", value_parser = number_pair)]
    parameters: Vec<(String, f64)>,
    /// Share of rows held out for the evaluation.
    #[arg(long, default_value_t = 0.2)]
    test_share: f64,
    /// Seed of the split.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Wait for the end and show progress and metrics.
    #[arg(long)]
    watch: bool,
}

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Task {
    /// One of several classes.
    Classification,
    /// A number.
    Regression,
}

/// How it is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Algorithm {
    /// Gradient-boosted trees.
    #[value(alias = "gradient_boosting")]
    GradientBoosting,
    /// Ridge or logistic regression.
    Linear,
}

pub(crate) async fn run(command: TrainCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        TrainCommand::Start(args) => start(args, client, output).await,
        TrainCommand::List => output.list(&client.list(&["v1", "trainings"], &[]).await?, FIELDS),
        TrainCommand::Show { id } => shown(&client.get(&["v1", "trainings", &id], &[]).await?, output),
        TrainCommand::Logs { id, follow } => logs(&id, follow, client, output).await,
        TrainCommand::Cancel { id } => shown(&client.call(Method::POST, &["v1", "trainings", &id, "cancel"]).await?, output),
        TrainCommand::Runs { model } => {
            let query: Vec<(&str, String)> = model.map(|model| ("model", model)).into_iter().collect();
            output.list(&client.list(&["v1", "runs"], &query).await?, RUN_FIELDS)
        }
    }
}

async fn start(args: StartArgs, client: &Client, output: &Output) -> Result<()> {
    let task = match args.task {
        Task::Classification => "classification",
        Task::Regression => "regression",
    };
    let algorithm = match args.algorithm {
        Algorithm::GradientBoosting => "gradient_boosting",
        Algorithm::Linear => "linear",
    };
    let parameters: Map<String, Value> = args.parameters.into_iter().map(|(name, value)| (name, value.into())).collect();
    let mut body = json!({
        "name": args.name, "dataset": args.dataset, "target": args.target, "task": task, "algorithm": algorithm,
        "exclude": args.exclude, "parameters": parameters, "split": {"test_share": args.test_share, "seed": args.seed},
    });
    if let (Some(version), Some(map)) = (args.version, body.as_object_mut()) {
        map.insert("version".to_owned(), version.into());
    }
    let training = client.send(Method::POST, &["v1", "trainings"], &body).await?;
    let id = training.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !args.watch {
        shown(&training, output)?;
        output.note(&format!("Watch it with `insula train logs --follow {id}`."));
        return Ok(());
    }
    let ended = watch(&id, client, output).await?;
    finished(&ended, client, output).await
}

/// Looks until the job has ended. The job does not need this program: interrupting it leaves the job alone.
async fn watch(id: &str, client: &Client, output: &Output) -> Result<Value> {
    let bar = progress::steps(output, "queued");
    let mut line = 0u64;
    loop {
        let training = client.get(&["v1", "trainings", id], &[]).await?;
        let state = training.get("state").and_then(Value::as_str).unwrap_or_default();
        let page = client.get(&["v1", "trainings", id, "logs"], &[("after", line.to_string())]).await?;
        line = page.get("next").and_then(Value::as_u64).unwrap_or(line);
        for text in lines(&page) {
            bar.suspend(|| output.note(&text));
        }
        let number = |pointer: &str| training.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        bar.set_message(crate::output::visible(training.pointer("/progress/stage").and_then(Value::as_str).unwrap_or(state)));
        bar.set_length(number("/progress/total"));
        bar.set_position(number("/progress/done"));
        if matches!(state, "succeeded" | "failed" | "cancelled") {
            bar.finish_and_clear();
            return Ok(training);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn finished(training: &Value, client: &Client, output: &Output) -> Result<()> {
    let text = |pointer: &str| training.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match (text("/state"), text("/run_id")) {
        ("succeeded", run) => output.item(&client.get(&["v1", "runs", run], &[]).await?, RUN_FIELDS),
        ("cancelled", _) => Err(Failure::new(Class::Failed, "the training was cancelled")),
        _ => {
            let failure = Failure::new(Class::Failed, format!("the training failed: {}", text("/error/message")));
            Err(match server::remedy(text("/error/code")) {
                Some(remedy) => failure.help(remedy),
                None => failure,
            })
        }
    }
}

async fn logs(id: &str, follow: bool, client: &Client, output: &Output) -> Result<()> {
    let mut after = 0u64;
    loop {
        let page = client.get(&["v1", "trainings", id, "logs"], &[("after", after.to_string())]).await?;
        let found = lines(&page);
        for text in &found {
            output.line(text)?;
        }
        after = page.get("next").and_then(Value::as_u64).unwrap_or(after);
        let complete = page.get("complete").and_then(Value::as_bool).unwrap_or(true);
        if complete || (!follow && found.is_empty()) {
            return Ok(());
        }
        if found.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn lines(page: &Value) -> Vec<String> {
    let lines = page.get("lines").and_then(Value::as_array).into_iter().flatten();
    lines.filter_map(|line| line.get("text").and_then(Value::as_str)).map(str::to_owned).collect()
}

fn shown(training: &Value, output: &Output) -> Result<()> {
    output.item(training, &[FIELDS, DETAIL_FIELDS].concat())
}
