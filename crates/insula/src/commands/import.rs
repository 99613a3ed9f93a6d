//! Moving in: everything that an MLflow server, database or folder holds comes into a tenant, and is compared when it is there.
//!
//! ```text
//! insula import mlflow --from sqlite:///mlflow.db --tenant clinic
//!     experiments → runs (params, tags, histories, inputs, artifacts) → logged models → registered models and versions → deletions
//! ```
//! Both sides speak MLflow's REST API, so this is a client as any other: it can do what its credential can do. Runs and logged models keep
//! their ids and versions their numbers, which is also how an import knows what it has done already: there is no state beside the target.
//! It adds what is missing, changes and removes nothing that is there, reads everything back, and says what differs.

mod api;
mod files;
mod forms;
mod models;
mod registry;
mod report;
mod runs;
mod source;

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Url;
use serde_json::Value;

use api::{Answer, Api, Credential, Trouble};
use report::{Kind, Report};
use source::Source;

use crate::client::{self, Client};
use crate::failure::{Class, Failure, Result};
use crate::output::Output;
use crate::settings::{MlflowEnvironment, Settings};

/// Tag of what was made by an import: what the source knew of it and has no place here.
const IMPORTED: &str = "insula.imported";

/// What can be imported.
#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Bring experiments, runs, artifacts, models and versions of an MLflow server into the tenant, and compare both sides.
    Mlflow(ImportArgs),
}

/// From where, and into which tenant.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Address of an MLflow server, a database (`sqlite:///mlflow.db`, `postgresql://…`), or a folder `mlruns`. A server's credential
    /// comes from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.
    #[arg(long, value_name = "SOURCE")]
    pub(crate) from: String,
    /// Name of the tenant; it must be the one that the credential belongs to.
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// Only count what is in the source.
    #[arg(long)]
    dry_run: bool,
    /// For a database or folder: the Python that has mlflow 3 or newer.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    pub(crate) python: String,
    /// For a database: where its server keeps artifacts (its --artifacts-destination) [default: ./mlartifacts].
    #[arg(long, value_name = "PLACE")]
    pub(crate) artifacts: Option<String>,
    /// PEM file with the source's certificate authority [env: MLFLOW_TRACKING_SERVER_CERT_PATH].
    #[arg(long, value_name = "FILE")]
    pub(crate) from_cacert: Option<PathBuf>,
}

/// One import on its way.
struct Import<'a> {
    source: &'a Source,
    target: &'a Api,
    report: RefCell<Report>,
    dry: bool,
    output: &'a Output,
}

pub(crate) async fn run(
    command: ImportCommand,
    client: &Client,
    settings: &Settings,
    environment: &MlflowEnvironment,
    output: &Output,
) -> Result<()> {
    let ImportCommand::Mlflow(args) = command;
    tenant_checked(&args.tenant, client).await?;
    let timeout = Duration::from_secs(settings.timeout_seconds);
    let target = Api {
        http: client::built(client::http(settings.cacert.as_deref(), timeout)?.https_only(true))?,
        base: Url::parse(&settings.url).map_err(|error| Failure::usage(format!("the address `{}` is not valid: {error}", settings.url)))?,
        credential: settings.token.clone().map_or(Credential::None, Credential::Bearer),
        timeout,
        name: settings.url.clone(),
    };
    let source = Source::open(&args, environment, timeout).await?;
    let import = Import { source: &source, target: &target, report: RefCell::default(), dry: args.dry_run, output };
    let done = import.everything().await;
    let (report, shown) = (import.report.into_inner(), source.shown.clone());
    source.close().await;
    done?;
    report.finish(&shown, &args.tenant, args.dry_run, output)
}

/// A credential belongs to one tenant: naming it keeps one from moving into another by mistake.
async fn tenant_checked(tenant: &str, client: &Client) -> Result<()> {
    let who = client.get(&["v1", "whoami"], &[]).await.map_err(|failure| match failure.code() {
        Some("credential_kind") => Failure::new(Class::Absent, "the operator's credential belongs to no tenant")
            .help(format!("use a key of a data scientist or administrator of `{tenant}`")),
        _ => failure,
    })?;
    match who.get("tenant").and_then(Value::as_str) {
        Some(own) if own == tenant => Ok(()),
        own => Err(Failure::usage(format!("the credential belongs to the tenant `{}`, not to `{tenant}`", own.unwrap_or_default()))
            .help(format!("use a key of `{tenant}`: --profile, or INSULA_TOKEN"))),
    }
}

impl Import<'_> {
    async fn everything(&self) -> Result<()> {
        let experiments = self.experiments().await?;
        for moved in &experiments {
            self.runs(moved).await?;
        }
        for moved in &experiments {
            self.logged_models(moved).await?;
        }
        self.registry(&experiments).await?;
        // Last, because nothing can be added to what is deleted.
        for moved in experiments.iter().filter(|_| !self.dry) {
            self.deletions(moved).await?;
        }
        Ok(())
    }

    fn differs(&self, kind: Kind, of: &str, name: &str, what: impl Into<String>) {
        self.report.borrow_mut().differs(kind, of, name, what);
    }

    fn settled<T>(&self, kind: Kind, of: &str, name: &str, answer: Answer<T>) -> Result<Option<T>> {
        self.report.borrow_mut().settled(kind, of, name, answer)
    }

    /// What there is no going on without.
    fn must<T>(&self, answer: Answer<T>) -> Result<T> {
        answer.map_err(|trouble| match trouble {
            Trouble::Failed(failure) | Trouble::Broken(failure) => failure,
            Trouble::Refused(refusal) => {
                Failure::new(Class::Failed, format!("the source refuses to list what it has: {}", refusal.message))
            }
            Trouble::Busy(_) => Failure::new(Class::Quota, "the source's rate is used up"),
        })
    }
}
