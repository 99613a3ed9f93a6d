//! `serve`, `check` and `migrate`: the only commands that are not clients.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::failure::{Class, Failure, Result};
use crate::output::Output;
use crate::settings::home;

/// Where the service takes its configuration from.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for everything that is stored.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder for the root key, outside the data.
    #[arg(long, value_name = "DIR")]
    keystore: Option<PathBuf>,
    /// Address to listen on, as in 127.0.0.1:8443; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

/// Which stores are brought up to date.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Configuration file (TOML) with `[stores.postgres]` and its `owner_url`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the service until it is told to stop.
pub(crate) fn serve(args: StartArgs, output: &Output) -> Result<()> {
    let config = configuration(args)?;
    server::serve(config, |started| announce(started, output)).map_err(|error| failed(&error))
}

fn failed(error: &server::StartError) -> Failure {
    let failure = Failure::new(Class::Failed, error.to_string());
    match error.remedy() {
        Some(remedy) => failure.help(remedy),
        None => failure,
    }
}

/// Brings the shared stores up to date and says what was done.
pub(crate) fn migrate(args: MigrateArgs, output: &Output) -> Result<()> {
    let config = configuration(StartArgs { config: Some(args.config), data: None, keystore: None, listen: None })?;
    let applied = server::migrate(&config).map_err(|error| failed(&error))?;
    if output.is_json() {
        return output.value(&json!({ "applied": applied }));
    }
    if applied.is_empty() {
        output.note("Everything is up to date.");
    }
    applied.iter().try_for_each(|line| output.line(line))
}

/// Tells where the service is and what its first start made.
fn announce(started: &server::Started, output: &Output) {
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let facts = json!({
        "url": started.url,
        "address": started.address.to_string(),
        "cacert": shown(&started.ca_path),
        "root_key": shown(&started.root_key_created),
        "bootstrap_secret": shown(&started.bootstrap_secret),
    });
    if output.is_json() {
        // One line, so that who started the service can read it and go on.
        let _ = output.raw(format!("{facts}\n").as_bytes());
        return;
    }
    let fields = [
        ("listening on", "/url"),
        ("certificate authority", "/cacert"),
        ("root key made in", "/root_key"),
        ("first secret in", "/bootstrap_secret"),
    ];
    let _ = output.item(&facts, &fields);
    if let Some(path) = shown(&started.root_key_created) {
        output.note(&format!("Keep a copy of `{path}` apart from copies of the data: without it nothing can be read, with it everything."));
    }
    if let Some(path) = shown(&started.bootstrap_secret) {
        output.note(&format!("Next: insula login --bootstrap {path}"));
    }
}

/// Says whether the configuration is safe.
pub(crate) fn check(args: StartArgs, output: &Output) -> Result<()> {
    let config = configuration(args)?;
    let findings = server::check(&config);
    let bad = findings.iter().filter(|finding| !finding.ok).count();
    let rows: Vec<_> = findings.iter().map(|finding| json!({"ok": finding.ok, "what": finding.what, "remedy": finding.remedy})).collect();
    if output.is_json() {
        output.list(&rows, &[])?;
    } else {
        for finding in &findings {
            output.line(&format!("{}  {}", if finding.ok { "ok    " } else { "unsafe" }, finding.what))?;
            if let Some(remedy) = &finding.remedy {
                output.line(&format!("        help: {remedy}"))?;
            }
        }
    }
    match bad {
        0 => Ok(()),
        1 => Err(Failure::new(Class::Failed, "1 finding must be fixed before the service runs")),
        bad => Err(Failure::new(Class::Failed, format!("{bad} findings must be fixed before the service runs"))),
    }
}

fn configuration(args: StartArgs) -> Result<server::Config> {
    let overrides = server::Overrides {
        data_dir: args.data,
        keystore_dir: args.keystore,
        listen: args.listen,
        data_home: home("XDG_DATA_HOME", ".local/share"),
        config_home: home("XDG_CONFIG_HOME", ".config"),
        program_dir: std::env::current_exe().ok().and_then(|path| path.parent().map(PathBuf::from)),
        engine_library: std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from),
    };
    server::Config::load(args.config.as_deref(), &overrides).map_err(|error| Failure::new(Class::Usage, error.to_string()))
}
