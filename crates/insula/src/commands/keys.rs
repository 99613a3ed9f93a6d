//! Encryption keys of the tenant.

use clap::Subcommand;
use reqwest::Method;

use crate::client::Client;
use crate::failure::Result;
use crate::output::{Field, Output};

const FIELDS: &[Field] = &[("version", "/version"), ("state", "/state"), ("created", "/created_at")];

/// Commands on encryption keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Show all versions and what state they are in.
    Show,
    /// Make a new version and re-wrap everything under it; reading and writing go on meanwhile.
    Rotate,
}

pub(crate) async fn run(command: &KeysCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        KeysCommand::Show => {}
        KeysCommand::Rotate => {
            client.call(Method::POST, &["v1", "keyring", "rotate"]).await?;
            output.note("a new version is in use");
        }
    }
    output.list(&client.list(&["v1", "keyring"], &[]).await?, FIELDS)
}
