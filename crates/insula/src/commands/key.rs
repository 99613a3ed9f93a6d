//! API keys: issued for a member, narrowed by acts and resources, shown once.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

const FIELDS: &[Field] = &[
    ("id", "/id"),
    ("name", "/name"),
    ("member", "/member"),
    ("acts", "/scope/acts"),
    ("resources", "/scope/resources"),
    ("expires", "/expires_at"),
    ("revoked", "/revoked_at"),
    ("last used", "/last_used_at"),
];

/// Commands on API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// List keys, never their secrets.
    List,
    /// Issue a key; it is shown once.
    Create {
        /// Its name.
        name: String,
        /// Member it acts as.
        #[arg(long)]
        member: String,
        /// Days until it expires.
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=730))]
        days: u16,
        /// An act it may be used for, as in Predict; repeatable, everything the member may do when absent.
        #[arg(long = "act")]
        acts: Vec<String>,
        /// A resource it may be used on, as in deployment:iris or dataset:*; repeatable, everything when absent.
        #[arg(long = "resource")]
        resources: Vec<String>,
    },
    /// Revoke a key from the next request on.
    Revoke {
        /// Its id.
        id: String,
    },
}

pub(crate) async fn run(command: KeyCommand, client: &Client, output: &Output) -> Result<()> {
    match command {
        KeyCommand::List => output.list(&client.list(&["v1", "keys"], &[]).await?, FIELDS),
        KeyCommand::Create { name, member, days, acts, resources } => {
            let or_all = |words: Vec<String>| if words.is_empty() { vec!["*".to_owned()] } else { words };
            let expires =
                (OffsetDateTime::now_utc() + Duration::days(days.into())).replace_nanosecond(0).unwrap_or(OffsetDateTime::now_utc());
            let expires = expires.format(&Rfc3339).map_err(|error| Failure::new(Class::Failed, error.to_string()))?;
            let body = json!({
                "name": name, "member": member, "expires_at": expires,
                "scope": {"acts": or_all(acts), "resources": or_all(resources)},
            });
            let issued = client.send(Method::POST, &["v1", "keys"], &body).await?;
            if output.is_json() {
                return output.value(&issued);
            }
            output.item(issued.get("key").unwrap_or(&issued), FIELDS)?;
            output.line(&format!("key      {}", issued.get("secret").and_then(Value::as_str).unwrap_or_default()))?;
            output.note("The key is shown this once.");
            Ok(())
        }
        KeyCommand::Revoke { id } => {
            client.call(Method::DELETE, &["v1", "keys", &id]).await?;
            output.note(&format!("the key `{id}` is revoked"));
            Ok(())
        }
    }
}
