//! Members: who somebody is in the tenant.

use clap::{Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::json;

use crate::client::Client;
use crate::failure::Result;
use crate::output::{Field, Output};

const FIELDS: &[Field] = &[("name", "/name"), ("roles", "/roles"), ("description", "/description")];

/// Commands on members.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// List members.
    List,
    /// Add a member, or change what it is.
    Set {
        /// Its name.
        name: String,
        /// A role; repeatable. What is not given is taken away.
        #[arg(long = "role", required = true)]
        roles: Vec<Role>,
        /// For people.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Remove a member and revoke its keys.
    Remove {
        /// Its name.
        name: String,
    },
}

/// What a member may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Everything in the tenant.
    Admin,
    /// Data sets, trainings, models, deployments, predictions.
    DataScientist,
    /// Sees what a data scientist makes.
    Viewer,
    /// Sees members, keys and the audit log, no content.
    Auditor,
    /// Asks deployments for predictions.
    Invoker,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::DataScientist => "data_scientist",
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
            Self::Invoker => "invoker",
        }
    }
}

pub(crate) async fn run(command: MemberCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        MemberCommand::List => output.list(&client.list(&["v1", "members"], &[]).await?, FIELDS),
        MemberCommand::Set { name, roles, description } => {
            let roles: Vec<_> = roles.into_iter().map(Role::word).collect();
            let member = client.send(Method::PUT, &["v1", "members", &name], &json!({"roles": roles, "description": description})).await?;
            output.item(&member, FIELDS)
        }
        MemberCommand::Remove { name } => {
            client.call(Method::DELETE, &["v1", "members", &name]).await?;
            output.note(&format!("`{name}` is no member any more; its keys are revoked"));
            Ok(())
        }
    }
}
