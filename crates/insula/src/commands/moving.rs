//! Tenants on the move: between stores, out into a file, in from one; and the proof that they are apart.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Client, Outgoing, Wanted};
use crate::commands::table;
use crate::commands::tenant::TIERS;
use crate::failure::{Class, Failure, Result};
use crate::output::{Field, Output};
use crate::progress;

/// What is shown of a move.
const FIELDS: &[Field] = &[
    ("state", "/state"),
    ("from", "/from"),
    ("to", "/to"),
    ("records", "/records"),
    ("objects", "/objects"),
    ("size", "/bytes"),
    ("passes", "/passes"),
    ("writers waited ms", "/pause_milliseconds"),
    ("sha256", "/sha256"),
    ("ordered", "/started_at"),
    ("updated", "/updated_at"),
    ("error", "/error"),
];
/// What is shown of one attempt.
const PROBE: &[Field] =
    &[("probe", "/probe"), ("target", "/target"), ("refused", "/refused"), ("must be", "/must_refuse"), ("detail", "/detail")];
/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Media type of a bundle.
const BUNDLE: &str = "application/vnd.insula.bundle";
/// Carries its key.
const BUNDLE_KEY: &str = "insula-bundle-key";
/// Bytes of that key.
const KEY_BYTES: usize = 32;

/// Move a tenant.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["storage", "finish", "rollback", "status"])))]
pub(crate) struct MoveArgs {
    /// Its name.
    name: String,
    /// Order the move to this tier.
    #[arg(long, value_name = "TIER", value_parser = TIERS)]
    storage: Option<String>,
    /// Destroy the place where it lived before.
    #[arg(long)]
    finish: bool,
    /// Go back to the place where it lived before, with everything written since.
    #[arg(long)]
    rollback: bool,
    /// Say how far the last move is.
    #[arg(long)]
    status: bool,
    /// Wait until it has arrived.
    #[arg(long, conflicts_with_all = ["finish", "status"])]
    wait: bool,
}

/// Take a tenant out.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Its name.
    name: String,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// File of the key under which it is sealed; made when it is not there. Whoever has both has everything.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Overwrite the file.
    #[arg(long)]
    force: bool,
}

/// Bring a tenant in.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Its name here.
    name: String,
    /// The file that `export` wrote.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// File of its key.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Store the administrator's new key in this profile instead of showing it.
    #[arg(long, value_name = "PROFILE")]
    pub(crate) save: Option<String>,
}

pub(crate) async fn run(args: MoveArgs, client: &Client, output: &Output) -> Result<()> {
    let MoveArgs { name, storage, finish, rollback, wait, .. } = args;
    let path = ["v1", "tenants", &name, "move"];
    let deeper = |last| ["v1", "tenants", &name, "move", last];
    let ordered = match storage {
        Some(tier) => client.send(Method::POST, &path, &json!({ "storage": tier })).await?,
        None if rollback => client.call(Method::POST, &deeper("rollback")).await?,
        None if finish => {
            output.item(&client.call(Method::POST, &deeper("finish")).await?, FIELDS)?;
            output.note("The place before is gone.");
            return Ok(());
        }
        None => return output.item(&client.get(&path, &[]).await?, FIELDS),
    };
    if !wait {
        output.item(&ordered, FIELDS)?;
        output.note(&format!("Watch it with `insula tenant move {name} --status`."));
        return Ok(());
    }
    arrived(&name, ordered, client, output).await
}

/// Watches a move until it has come to an end.
async fn arrived(name: &str, mut now: Value, client: &Client, output: &Output) -> Result<()> {
    let number = |now: &Value, key: &str| now.get(key).and_then(Value::as_u64).unwrap_or_default();
    let mut passes = 0;
    while now.get("state").and_then(Value::as_str) == Some("copying") {
        if number(&now, "passes") > passes {
            passes = number(&now, "passes");
            let size = crate::output::bytes(number(&now, "bytes"));
            output.note(&format!("pass {passes}: {} records, {} objects, {size}", number(&now, "records"), number(&now, "objects")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        now = client.get(&["v1", "tenants", name, "move"], &[]).await?;
    }
    output.item(&now, FIELDS)?;
    match now.get("state").and_then(Value::as_str) {
        Some("failed") => {
            let why = now.get("error").and_then(Value::as_str).unwrap_or("no reason is known");
            Err(Failure::new(Class::Failed, format!("the tenant did not move: {why}"))
                .help("it works on where it was; order the move again"))
        }
        Some("moved") => {
            output.note(&format!("The place before is kept: `insula tenant move {name} --rollback` goes back, `--finish` destroys it."));
            Ok(())
        }
        _ => Ok(()),
    }
}

pub(crate) async fn export(args: ExportArgs, client: &Client, output: &Output) -> Result<()> {
    let key = match read_key(&args.key_file)? {
        Some(key) => key,
        None => {
            let key = make_key(&args.key_file)?;
            output.note(&format!("A new key is in `{}`. Keep it apart from the bundle.", args.key_file.display()));
            key
        }
    };
    let path = ["v1", "tenants", &args.name, "export"];
    let wanted = Wanted { method: Method::POST, path: &path, query: &[], header: Some((BUNDLE_KEY, &key)) };
    table::save_wanted(&wanted, &args.out, args.force, None, client, output).await
}

/// What the service made of it.
pub(crate) async fn import(args: &ImportArgs, client: &Client, output: &Output) -> Result<Value> {
    let missing = || Failure::input(format!("there is no key in `{}`", args.key_file.display())).help("give the file that `export` used");
    let key = read_key(&args.key_file)?.ok_or_else(missing)?;
    let outgoing = Outgoing::open(&args.from).await?;
    let bar = progress::transfer(output, &args.name, outgoing.bytes);
    client.upload_with(&["v1", "tenants", &args.name, "import"], (BUNDLE_KEY, &key), BUNDLE, outgoing, bar).await
}

pub(crate) async fn verify_isolation(name: &str, client: &Client, output: &Output) -> Result<()> {
    let tried = client.call(Method::POST, &["v1", "tenants", name, "isolation"]).await?;
    let probes = tried.get("probes").and_then(Value::as_array).cloned().unwrap_or_default();
    if output.is_json() {
        output.value(&tried)?;
    } else {
        output.list(&probes, PROBE)?;
    }
    let broken = probes.iter().filter(|probe| probe.get("refused") != probe.get("must_refuse")).count();
    if broken > 0 || tried.get("holds") != Some(&Value::Bool(true)) {
        let help = "suspend the tenant until its credential opens nothing but its own; docs/shared-stores.md says what each store needs";
        return Err(Failure::new(Class::Failed, format!("{broken} of {} probes did not end as they must", probes.len())).help(help));
    }
    let count = |field: &str| tried.get(field).and_then(Value::as_u64).unwrap_or_default();
    let (some, all) = (count("others_tried"), count("others"));
    output.note(&format!("{} probes, all as they must be; {some} of {all} other tenants on servers were tried.", probes.len()));
    Ok(())
}

/// The key in a file that nobody else may read. None when there is no such file.
fn read_key(path: &Path) -> Result<Option<String>> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::file("read", path, &error)),
    };
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(Failure::usage(format!("others can read `{}`", path.display())).help(format!("chmod 600 {}", path.display())));
    }
    let text = fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))?;
    let key = text.trim();
    match STANDARD.decode(key) {
        Ok(bytes) if bytes.len() == KEY_BYTES => Ok(Some(key.to_owned())),
        _ => Err(Failure::input(format!("`{}` holds no key: it is base64 of {KEY_BYTES} bytes", path.display()))),
    }
}

fn make_key(path: &Path) -> Result<String> {
    let mut bytes = [0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Failure::new(Class::Failed, "the system gives no random numbers"))?;
    let key = STANDARD.encode(bytes);
    let failed = |error: std::io::Error| Failure::file("write", path, &error);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(format!("{key}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert_eq!(read_key(&path).unwrap(), None);
        let key = make_key(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_key(&path).unwrap(), Some(key));
        assert!(make_key(&path).is_err(), "a key that is there is never overwritten");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_key(&path).unwrap_err().text().contains("chmod 600"));
        fs::write(&path, "short").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read_key(&path).unwrap_err().text().contains("holds no key"));
    }
}
