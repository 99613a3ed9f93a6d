//! Credentials: where they come from and where they are kept. A secret is read from a file or without echo, never from an argument.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use console::Term;
use reqwest::Method;
use serde_json::{Value, json};

use crate::args::Globals;
use crate::client::Client;
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};
use crate::profile::{Profile, Profiles};
use crate::settings::{Environment, Settings, profiles_path};

const FIELDS: &[Field] =
    &[("kind", "/kind"), ("tenant", "/tenant"), ("principal", "/principal"), ("roles", "/roles"), ("credential", "/credential")];

/// Longest secret that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 16 << 10;
/// Profile when none is named.
const PROFILE_DEFAULT: &str = "default";

/// Store a credential, or make the operator's first one.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Trade the one-time secret in this file (`-`: standard input) for an operator key. It works once.
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
    /// Read the API key from this file (`-`: standard input) instead of asking for it.
    #[arg(long, value_name = "FILE", conflicts_with = "bootstrap")]
    key_file: Option<PathBuf>,
    /// Print the operator key instead of storing it in a profile.
    #[arg(long, requires = "bootstrap")]
    print: bool,
}

pub(crate) async fn run(args: LoginArgs, globals: &Globals, environment: &Environment, output: &Output) -> Result<()> {
    let name = globals.profile.clone().unwrap_or_else(|| PROFILE_DEFAULT.to_owned());
    // The profile may not exist yet: its name says where to write, not where to read.
    let mut settings = Settings::resolve(&Globals { profile: None, ..globals.clone() }, environment)?;
    let secret = match (&args.bootstrap, &args.key_file) {
        (Some(path), _) | (None, Some(path)) => secret_from(path)?,
        (None, None) => secret_asked()?,
    };
    let token = if args.bootstrap.is_some() {
        settings.token = None;
        let issued = Client::new(&settings)?.send(Method::POST, &["v1", "bootstrap"], &json!({"secret": secret})).await?;
        if args.print {
            return if output.is_json() { output.value(&issued) } else { output.line(issued_secret(&issued)?) };
        }
        issued_secret(&issued)?.to_owned()
    } else {
        secret
    };
    settings.token = Some(token.clone());
    let client = Client::new(&settings)?;
    let who = who(&client).await?;
    store(&name, &settings.url, &token, globals, environment, true)?;
    output.item(&who, FIELDS)?;
    output.note(&format!("stored in the profile `{name}`"));
    Ok(())
}

/// Who the credential belongs to.
pub(crate) async fn whoami(client: &Client, output: &Output) -> Result<()> {
    output.item(&who(client).await?, FIELDS)
}

/// The operator belongs to no tenant: the service says so by asking for another kind of credential.
async fn who(client: &Client) -> Result<Value> {
    match client.get(&["v1", "whoami"], &[]).await {
        Err(failure) if failure.code() == Some("credential_kind") => {
            client.get(&["v1", "tenants"], &[("limit", "1".to_owned())]).await?;
            Ok(json!({"kind": "operator"}))
        }
        other => other,
    }
}

/// Writes a credential into a profile; `current` makes it the one that is used when nothing is said.
pub(crate) fn store(name: &str, url: &str, token: &str, globals: &Globals, environment: &Environment, current: bool) -> Result<()> {
    let path = profiles_path(environment)?;
    let mut profiles = Profiles::read(&path)?;
    let settings = Settings::resolve(&Globals { profile: None, ..globals.clone() }, environment)?;
    let cacert = settings.cacert.map(|path| path.canonicalize().unwrap_or(path));
    profiles.profiles.insert(name.to_owned(), Profile { url: Some(url.to_owned()), token: Some(token.to_owned()), cacert });
    if current || profiles.current.is_none() {
        profiles.current = Some(name.to_owned());
    }
    profiles.write(&path)
}

fn issued_secret(issued: &Value) -> Result<&str> {
    issued.get("secret").and_then(Value::as_str).ok_or_else(|| Failure::new(Class::Failed, "the service answered without a key"))
}

fn secret_from(path: &Path) -> Result<String> {
    let failed = |error: std::io::Error| Failure::file("read", path, &error);
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    } else {
        std::fs::File::open(path).map_err(failed)?.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    }
    let secret = text.trim();
    if secret.is_empty() { Err(Failure::usage(format!("`{}` is empty", path.display()))) } else { Ok(secret.to_owned()) }
}

fn secret_asked() -> Result<String> {
    if !std::io::stdin().is_terminal() {
        return secret_from(Path::new("-"));
    }
    let terminal = Term::stderr();
    let asked = terminal.write_str("API key: ").and_then(|()| terminal.read_secure_line());
    let secret = asked.map_err(|error| Failure::new(Class::Failed, format!("cannot read the key: {error}")))?;
    if secret.trim().is_empty() { Err(Failure::usage("no key was given")) } else { Ok(secret.trim().to_owned()) }
}
