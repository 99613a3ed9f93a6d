//! What the operator does with tenants. There is no way from here to what they hold.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::args::Globals;
use crate::client::Client;
use crate::commands::{erase, limit_pair, login, moving};
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};
use crate::settings::Environment;

const FIELDS: &[Field] = &[("name", "/name"), ("state", "/state"), ("storage", "/storage"), ("created", "/created_at")];

/// Where rows can lie.
pub(crate) const TIERS: [&str; 4] = ["embedded", "pooled", "schema", "database"];

/// Commands on tenants.
#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Create a tenant and the key of its first administrator, which is shown once.
    Create {
        /// Its name.
        name: String,
        /// Name of its first administrator.
        #[arg(long, value_name = "MEMBER", default_value = "admin")]
        admin: String,
        /// A limit that differs from the service's default, as in requests_per_second=20; repeatable.
        #[arg(long = "limit", value_name = "LIMIT=VALUE", value_parser = limit_pair)]
        limits: Vec<(String, Value)>,
        /// Where its rows lie, when not where the service puts new tenants.
        #[arg(long, value_name = "TIER", value_parser = TIERS)]
        storage: Option<String>,
        /// Store the key in this profile instead of showing it.
        #[arg(long, value_name = "PROFILE")]
        save: Option<String>,
    },
    /// List tenants.
    List,
    /// Show one tenant with its limits.
    Show {
        /// Its name.
        name: String,
    },
    /// Refuse its requests until it is resumed; nothing is lost.
    Suspend {
        /// Its name.
        name: String,
    },
    /// Take its requests again.
    Resume {
        /// Its name.
        name: String,
    },
    /// Change limits.
    Limits {
        /// Its name.
        name: String,
        /// Limits to change, as in models=50 or isolation=gvisor.
        #[arg(required = true, value_name = "LIMIT=VALUE", value_parser = limit_pair)]
        limits: Vec<(String, Value)>,
    },
    /// Move a tenant to another storage tier while it works; the place before is kept until `--finish`.
    Move(moving::MoveArgs),
    /// Take a whole tenant out as one sealed, signed file.
    Export(moving::ExportArgs),
    /// Bring such a file to life as a new tenant.
    Import(moving::ImportArgs),
    /// Try with the tenant's own credentials to reach what belongs to others; fails unless all of it is refused.
    VerifyIsolation {
        /// Its name.
        name: String,
    },
    /// Erase a tenant for good: its keys are destroyed, so that no copy of its data opens any more.
    Erase {
        /// Its name.
        name: String,
        /// The name once more.
        #[arg(long, value_name = "NAME")]
        confirm: String,
        /// Wait until the certificate is there.
        #[arg(long)]
        wait: bool,
    },
    /// List erasures.
    Erasures,
    /// Show how far an erasure is.
    Erasure {
        /// Id that `erase` gave.
        id: String,
    },
    /// Print the signed certificate of an erasure.
    Certificate {
        /// Id that `erase` gave.
        id: String,
    },
}

pub(crate) async fn run(
    command: TenantCommand,
    client: &Client,
    globals: &Globals,
    environment: &Environment,
    output: &Output,
) -> Result<()> {
    match command {
        TenantCommand::Create { name, admin, limits, storage, save } => {
            let mut body = json!({"name": name, "admin": admin});
            if let Some(map) = body.as_object_mut() {
                map.extend((!limits.is_empty()).then(|| ("limits".to_owned(), limits_object(limits))));
                map.extend(storage.map(|tier| ("storage".to_owned(), tier.into())));
            }
            let created = client.send(Method::POST, &["v1", "tenants"], &body).await?;
            created_shown(&created, save.as_deref(), client, globals, environment, output)
        }
        TenantCommand::List => output.list(&client.list(&["v1", "tenants"], &[]).await?, FIELDS),
        TenantCommand::Show { name } => show(&client.get(&["v1", "tenants", &name], &[]).await?, output),
        TenantCommand::Suspend { name } => show(&client.call(Method::POST, &["v1", "tenants", &name, "suspend"]).await?, output),
        TenantCommand::Resume { name } => show(&client.call(Method::POST, &["v1", "tenants", &name, "resume"]).await?, output),
        TenantCommand::Limits { name, limits } => {
            let tenant = client.get(&["v1", "tenants", &name], &[]).await?;
            let mut all = tenant.get("limits").cloned().unwrap_or_else(|| json!({}));
            if let (Some(all), Value::Object(changed)) = (all.as_object_mut(), limits_object(limits)) {
                all.extend(changed);
            }
            show(&client.send(Method::PUT, &["v1", "tenants", &name, "limits"], &all).await?, output)
        }
        TenantCommand::Move(args) => moving::run(args, client, output).await,
        TenantCommand::Export(args) => moving::export(args, client, output).await,
        TenantCommand::Import(args) => {
            let created = moving::import(&args, client, output).await?;
            created_shown(&created, args.save.as_deref(), client, globals, environment, output)
        }
        TenantCommand::VerifyIsolation { name } => moving::verify_isolation(&name, client, output).await,
        TenantCommand::Erase { name, confirm, wait } => {
            if name != confirm {
                return Err(Failure::usage(format!("`--confirm {confirm}` is not the tenant `{name}`; nothing was done")));
            }
            let ordered = client.call(Method::DELETE, &["v1", "tenants", &name]).await?;
            erase::ordered(ordered, wait, client, output).await
        }
        TenantCommand::Erasures => output.list(&client.list(&["v1", "erasures"], &[]).await?, erase::FIELDS),
        TenantCommand::Erasure { id } => output.item(&client.get(&["v1", "erasures", &id], &[]).await?, erase::FIELDS),
        TenantCommand::Certificate { id } => {
            let erasure = client.get(&["v1", "erasures", &id], &[]).await?;
            match erasure.get("certificate").and_then(Value::as_str) {
                Some(certificate) => output.raw(certificate.as_bytes()),
                None => {
                    let state = erasure.get("state").and_then(Value::as_str).unwrap_or("under way");
                    Err(Failure::new(Class::Conflict, format!("there is no certificate yet: the erasure is `{state}`")))
                }
            }
        }
    }
}

fn limits_object(limits: Vec<(String, Value)>) -> Value {
    Value::Object(limits.into_iter().collect())
}

fn show(tenant: &Value, output: &Output) -> Result<()> {
    output.item(tenant, &[FIELDS, &[("limits", "/limits")]].concat())
}

fn created_shown(
    created: &Value,
    save: Option<&str>,
    client: &Client,
    globals: &Globals,
    environment: &Environment,
    output: &Output,
) -> Result<()> {
    let secret = created.pointer("/admin_key/secret").and_then(Value::as_str).unwrap_or_default();
    if let Some(profile) = save {
        login::store(profile, client.url(), secret, globals, environment, false)?;
        show(created.get("tenant").unwrap_or(created), output)?;
        output.note(&format!("The administrator's key is in the profile `{profile}`: insula --profile {profile} whoami"));
        return Ok(());
    }
    if output.is_json() {
        return output.value(created);
    }
    show(created.get("tenant").unwrap_or(created), output)?;
    output.line(&format!("key      {secret}"))?;
    output.note("The key is shown this once. Hand it to the administrator; `insula login` stores it.");
    Ok(())
}
