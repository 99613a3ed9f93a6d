//! One module a group of commands.

pub(crate) mod audit;
pub(crate) mod batch;
pub(crate) mod data;
pub(crate) mod deploy;
pub(crate) mod erase;
pub(crate) mod import;
pub(crate) mod key;
pub(crate) mod keys;
pub(crate) mod login;
pub(crate) mod member;
pub(crate) mod model;
pub(crate) mod moving;
pub(crate) mod predict;
pub(crate) mod quota;
pub(crate) mod receipt;
pub(crate) mod serve;
pub(crate) mod table;
pub(crate) mod tenant;
pub(crate) mod train;

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::Value;

use crate::args::{Cli, Command, Globals};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::settings::{Environment, Settings};

/// Runs a command that asks the service, or works on files.
pub(crate) async fn run(command: Command, globals: &Globals, output: &Output) -> Result<()> {
    let environment = Environment::read();
    let command = match command {
        Command::Login(args) => return login::run(args, globals, &environment, output).await,
        Command::Receipt(receipt::ReceiptCommand::Verify(args)) => return receipt::verify(&args, output),
        Command::Audit(audit::AuditCommand::Verify(args)) => return audit::verify(&args, &environment, output),
        Command::Audit(audit::AuditCommand::VerifyCertificate(args)) => return audit::verify_certificate(&args, output),
        command => command,
    };
    let settings = Settings::resolve(globals, &environment)?;
    let client = Client::new(&settings)?;
    match command {
        Command::Tenant(command) => tenant::run(command, &client, globals, &environment, output).await,
        Command::Member(command) => member::run(command, &client, output).await,
        Command::Key(command) => key::run(command, &client, output).await,
        Command::Whoami => login::whoami(&client, output).await,
        Command::Data(command) => data::run(command, &client, output).await,
        Command::Train(command) => train::run(command, &client, output).await,
        Command::Model(command) => model::run(command, &client, output).await,
        Command::Deploy(command) => deploy::run(command, &client, output).await,
        Command::Import(command) => import::run(command, &client, &settings, &environment.mlflow, output).await,
        Command::Batch(command) => batch::run(command, &client, output).await,
        Command::Predict(args) => predict::run(args, &client, output).await,
        Command::Receipt(command) => receipt::run(command, &client, output).await,
        Command::Audit(command) => audit::run(command, &client, output).await,
        Command::Keys(command) => keys::run(&command, &client, output).await,
        Command::Quota => quota::quota(&client, output).await,
        Command::Usage(args) => quota::usage(&args, &client, output).await,
        Command::Neighbours(args) => quota::neighbours(&args, &client, output).await,
        Command::Metering(args) => quota::metering(&args, &client, output).await,
        Command::Erase(args) => erase::run(&args, &client, output).await,
        Command::Serve(_) | Command::Check(_) | Command::Migrate(_) | Command::Login(_) | Command::Completion { .. } => {
            Err(Failure::usage("this command runs alone"))
        }
    }
}

/// Prints a completion script.
pub(crate) fn completion(shell: Shell, output: &Output) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "insula", &mut script);
    output.raw(&script)
}

/// `key=value` of an argument.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err(format!("`{text}` is not of the form key=value")),
    }
}

/// `key=number` of an argument.
pub(crate) fn number_pair(text: &str) -> Result<(String, f64), String> {
    let (key, value) = pair(text)?;
    value.parse().map(|number| (key, number)).map_err(|_| format!("`{value}` is not a number"))
}

/// `key=whole number`, or `isolation=word`, of an argument.
pub(crate) fn limit_pair(text: &str) -> Result<(String, Value), String> {
    let (key, value) = pair(text)?;
    if key == "isolation" {
        return Ok((key, value.into()));
    }
    let count = value.replace('_', "").parse::<u64>();
    count.map(|count| (key, count.into())).map_err(|_| format!("`{value}` is not a whole number"))
}
