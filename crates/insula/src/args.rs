//! The command line as a whole. Each group of commands keeps its own arguments in its own module.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::commands::{
    audit, batch, data, deploy, erase, import, key, keys, login, member, model, predict, quota, receipt, serve, tenant, train,
};

/// What `--help` says about environment and exit status.
const AFTER_HELP: &str = "\
Environment:
  INSULA_URL      address of the service; https://localhost:8443 when nothing names one
  INSULA_TOKEN    API key or access token; keeps it out of the process list
  INSULA_CACERT   PEM file with the certificate authority of the service
  An option wins over a profile named with --profile, that over the environment, that over the current profile.

Exit status:
  0  done                                  6  the input is not valid
  1  failed for another reason             7  in conflict with what is there
  2  the command line is not valid         8  the service is unavailable or cannot be reached
  3  the credential is missing or invalid  10 a verification failed: do not trust what was verified
  4  not found, or not allowed
  5  a limit or rate of the tenant is reached";

/// A shared machine-learning service in which every tenant is an island.
#[derive(Debug, Parser)]
#[command(name = "insula", version, after_help = AFTER_HELP, max_term_width = 120, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Print JSON as the service answered it.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print only results and errors: no notes, no progress.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Use this profile of the profiles file.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Address of the service [env: INSULA_URL].
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// API key or access token. Others can read it in the process list: prefer INSULA_TOKEN or a profile.
    #[arg(long, global = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// PEM file with the service's certificate authority [env: INSULA_CACERT].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// Longest wait for an answer; for uploads and downloads the longest silence.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the service.
    Serve(serve::StartArgs),
    /// Say whether a configuration is safe to run, and what to change.
    Check(serve::StartArgs),
    /// Bring the shared stores up to date: roles, schemas, tables, rights. Before the first start and after each update.
    Migrate(serve::MigrateArgs),
    /// Operator: create, list, limit, suspend and erase tenants.
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Members of the tenant and their roles.
    #[command(subcommand)]
    Member(member::MemberCommand),
    /// API keys of the tenant.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Store a credential in a profile, or trade the first-start secret for an operator key.
    Login(login::LoginArgs),
    /// Say who the credential belongs to.
    Whoami,
    /// Data sets.
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Training jobs.
    #[command(subcommand, visible_alias = "job")]
    Train(train::TrainCommand),
    /// Registered models, their versions, aliases and tags.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Deployments: which model version answers under which name.
    #[command(subcommand)]
    Deploy(deploy::DeployCommand),
    /// Move in: bring over what an MLflow server, database or folder holds.
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// Ask a deployment for predictions.
    Predict(predict::PredictArgs),
    /// Ask a deployment about every row of a data set, and keep the answers as another.
    #[command(subcommand)]
    Batch(batch::BatchCommand),
    /// The audit log: read, export, and verify it offline.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Signed receipts of predictions: fetch, and verify offline.
    #[command(subcommand)]
    Receipt(receipt::ReceiptCommand),
    /// Encryption keys of the tenant.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Limits of the tenant and what is used of them.
    Quota,
    /// What the tenant has used.
    Usage(quota::UsageArgs),
    /// Operator: who took what share of this node, and when.
    Neighbours(quota::NeighboursArgs),
    /// Operator: hours of use of all tenants as a file, for the bill.
    Metering(quota::MeteringArgs),
    /// Erase the tenant one belongs to, for good.
    Erase(erase::EraseArgs),
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_are_understood_or_refused() {
        let accepted = [
            "insula serve --config c.toml --data d --listen 127.0.0.1:0",
            "insula check",
            "insula migrate --config c.toml --json",
            "insula tenant create clinic --admin ada --limit requests_per_second=5 --limit keys=3",
            "insula tenant create clinic --storage schema",
            "insula tenant move clinic --storage schema --wait",
            "insula tenant move clinic --finish",
            "insula tenant move clinic --rollback --wait",
            "insula tenant move clinic --status",
            "insula tenant export clinic --out f --key-file k",
            "insula tenant import clinic --from f --key-file k --save p",
            "insula tenant verify-isolation clinic",
            "insula tenant erase clinic --confirm clinic",
            "insula member set ada --role admin --role auditor",
            "insula key create ci --member ada --days 30 --act Predict --resource deployment:iris",
            "insula data put iris iris.csv --format csv",
            "insula data preview iris --rows 5",
            "insula train start --dataset d --target y --task classification --name m --param trees=5 --watch",
            "insula job list",
            "insula model alias m champion 3",
            "insula import mlflow --from http://localhost:5000 --tenant clinic",
            "insula import mlflow --from sqlite:///mlflow.db --tenant clinic --dry-run --python python3.11 --artifacts ./a",
            "insula model alias m champion --delete",
            "insula deploy put m --model m --alias champion",
            "insula deploy put m --model m --version 1 --canary 2 --canary-percent 5 --error-rate-max 0.05 --requests-min 50",
            "insula deploy put m --model m --alias champion --canary-alias challenger --shadow 4 --p99-ms-max 200 --window 120",
            "insula deploy rollback m",
            "insula batch start m --dataset rows --into answers --keep id --keep name --batch-rows 1 --watch",
            "insula predict m --row a=1,b=2 --row a=3,b=4",
            "insula predict m --data -",
            "insula predict m --data - --receipt r",
            "insula usage --hours 48",
            "insula neighbours --minutes 5",
            "insula metering - --format ndjson --since 2027-01-01T00:00:00Z",
            "insula receipt get 7 r --force",
            "insula receipt verify r --key k --ledger f --input i --output o",
            "insula audit ls --act Predict --limit 5 --json",
            "insula audit verify f --key example.org+1234abcd+AAAA",
            "insula --timeout 5 whoami --profile p",
            "insula completion bash",
        ];
        for line in accepted {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        let refused = [
            "insula",
            "insula fly",
            "insula --timeout 0 whoami",
            "insula tenant create",
            "insula tenant create clinic --admin ada --limit nonsense",
            "insula tenant create clinic --storage cloud",
            "insula tenant move clinic",
            "insula tenant move clinic --finish --rollback",
            "insula tenant move clinic --storage schema --finish",
            "insula tenant move clinic --status --wait",
            "insula tenant export clinic --out f",
            "insula tenant import clinic --key-file k",
            "insula tenant erase clinic",
            "insula member set ada",
            "insula member set ada --role king",
            "insula train start --dataset d --target y --name m --task guessing",
            "insula model alias m champion",
            "insula model alias m champion 3 --delete",
            "insula deploy put m --model m",
            "insula import mlflow --from sqlite:///mlflow.db",
            "insula import mlflow --tenant clinic",
            "insula deploy put m --model m --alias a --version 1",
            "insula predict m",
            "insula predict m --data f --row a=1",
            "insula predict m --row a",
            "insula receipt verify r",
            "insula usage --minutes 61",
            "insula usage --minutes 5 --hours 5",
            "insula serve --listen here",
            "insula migrate",
        ];
        for line in refused {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert!(error.use_stderr() || line == "insula", "{line}");
        }
    }
}
