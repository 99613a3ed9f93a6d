//! Where an import comes from: a server by its address, or a database or folder that a private server of MLflow's own is started on.
//!
//! MLflow knows every version of its schema, so nothing here reads a table. The private server listens on a socket in a folder of its own,
//! reads a copy (SQLite), in read-only transactions (PostgreSQL) or through links (a folder), and ends with the importer: it looks at a
//! pipe that this process holds.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::ImportArgs;
use super::api::{Api, Credential};
use crate::client;
use crate::failure::{Class, Failure, Result};
use crate::settings::MlflowEnvironment;

/// What the user's Python runs.
const SERVE: &str = include_str!("serve.py");
/// Time for the private server to come up, a copy of a large database and its upgrade included.
const START_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Time for it to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Where `mlflow server` puts artifacts when nothing is said.
const ARTIFACTS_DEFAULT: &str = "./mlartifacts";

/// The side that is read.
pub(crate) struct Source {
    pub(crate) api: Api,
    /// As it may be shown: without a password.
    pub(crate) shown: String,
    local: Option<Local>,
    server: Option<Child>,
}

/// What lies on this machine.
struct Local {
    /// What `mlflow-artifacts:` stands for.
    artifacts: Option<PathBuf>,
    /// The folder that is imported.
    folder: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Started {
    socket: Option<PathBuf>,
    error: Option<String>,
    help: Option<String>,
}

impl Source {
    pub(crate) async fn open(args: &ImportArgs, environment: &MlflowEnvironment, timeout: Duration) -> Result<Self> {
        match args.from.starts_with("http://") || args.from.starts_with("https://") {
            true => Self::remote(args, environment, timeout),
            false => Self::private(args, timeout).await,
        }
    }

    fn remote(args: &ImportArgs, environment: &MlflowEnvironment, timeout: Duration) -> Result<Self> {
        let invalid = |why: String| Failure::usage(format!("the address after --from is not valid: {why}"));
        let mut base = Url::parse(&args.from).map_err(|error| invalid(error.to_string()))?;
        let given = (base.username().to_owned(), base.password().map(str::to_owned));
        if base.set_username("").is_err() || base.set_password(None).is_err() {
            return Err(invalid("it names no host".to_owned()));
        }
        let credential = match (&environment.token, &environment.username) {
            _ if !given.0.is_empty() => Credential::Basic(given.0, given.1),
            (_, Some(user)) => Credential::Basic(user.clone(), environment.password.clone()),
            (Some(token), None) => Credential::Bearer(token.clone()),
            (None, None) => Credential::None,
        };
        let http = client::built(client::http(args.from_cacert.as_deref().or(environment.cacert.as_deref()), timeout)?)?;
        let shown = base.to_string();
        let api = Api { http, base, credential, timeout, name: format!("the source {shown}") };
        Ok(Self { api, shown, local: None, server: None })
    }

    async fn private(args: &ImportArgs, timeout: Duration) -> Result<Self> {
        let missing = |error: std::io::Error| {
            Failure::new(Class::Failed, format!("cannot run `{}`: {error}", args.python))
                .help("a database or folder is read by MLflow itself: name a Python that has mlflow 3 or newer with --python")
        };
        let artifacts = args.artifacts.as_deref().unwrap_or(ARTIFACTS_DEFAULT);
        let mut server = Command::new(&args.python)
            .args(["-c", SERVE])
            .env("INSULA_IMPORT_STORE", &args.from)
            .env("INSULA_IMPORT_ARTIFACTS", artifacts)
            .env_remove("INSULA_TOKEN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(missing)?;
        let broken =
            || Failure::new(Class::Failed, format!("`{}` did not start a server of MLflow's", args.python)).help("is it a Python 3?");
        let mut line = String::new();
        let mut said = BufReader::new(server.stdout.take().ok_or_else(broken)?);
        match tokio::time::timeout(START_TIMEOUT, said.read_line(&mut line)).await {
            Ok(Ok(_)) => {}
            _ => return Err(broken()),
        }
        let started: Started = serde_json::from_str(&line).map_err(|_| broken())?;
        let socket = match started {
            Started { socket: Some(socket), .. } => socket,
            Started { error, help, .. } => {
                // It says so before it clears up.
                ended(server).await;
                let failure = Failure::new(Class::Failed, error.unwrap_or_else(|| "the source cannot be read".to_owned()));
                return Err(failure.help(help.unwrap_or_default()));
            }
        };
        let http = client::built(client::http(None, timeout)?.unix_socket(socket))?;
        let base = Url::parse("http://localhost").map_err(|error| Failure::new(Class::Failed, error.to_string()))?;
        let path = args.from.strip_prefix("file://").unwrap_or(&args.from);
        let folder = Some(PathBuf::from(path)).filter(|path| path.is_dir());
        let local = Some(Local { artifacts: local_path(artifacts, None), folder });
        let shown = without_password(&args.from);
        let api = Api { http, base, credential: Credential::None, timeout, name: format!("the source {shown}") };
        Ok(Self { api, shown, local, server: Some(server) })
    }

    /// Where artifacts lie that this machine has itself: they are read as files, whatever their names.
    pub(crate) fn path(&self, uri: &str) -> Option<PathBuf> {
        let local = self.local.as_ref()?;
        let path = local_path(uri, local.artifacts.as_deref())?;
        if path.exists() {
            return Some(path);
        }
        // A folder that was moved: its records still say where it was.
        let parts: Vec<&str> = uri.trim_end_matches('/').split('/').collect();
        let ends = [3, 4].into_iter().filter_map(|count| parts.get(parts.len().checked_sub(count)?..));
        let moved = ends.filter_map(|end| Some(end.iter().fold(local.folder.clone()?, |path, part| path.join(part))));
        moved.into_iter().find(|path| path.exists()).or(Some(path))
    }

    /// Ends the private server.
    pub(crate) async fn close(self) {
        if let Some(server) = self.server {
            ended(server).await;
        }
    }
}

/// Lets a private server end, and its folder go.
async fn ended(mut server: Child) {
    drop(server.stdin.take());
    if tokio::time::timeout(STOP_TIMEOUT, server.wait()).await.is_err() {
        // What it started goes with its process group; that it is gone already is as good.
        let _ = server.kill().await;
    }
}

/// The path in an address, if it is one of this machine.
fn local_path(uri: &str, artifacts: Option<&Path>) -> Option<PathBuf> {
    if let Some(rest) = uri.strip_prefix("mlflow-artifacts:") {
        // There may be a host: it is the server's own.
        let rest = rest.strip_prefix("//").map_or(rest, |rest| rest.split_once('/').map_or("", |(_, path)| path));
        return Some(artifacts?.join(rest.trim_start_matches('/')));
    }
    if uri.starts_with("file:") {
        return Url::parse(uri).ok()?.to_file_path().ok();
    }
    (!uri.is_empty() && !uri.contains(":/")).then(|| PathBuf::from(uri))
}

fn without_password(uri: &str) -> String {
    match Url::parse(uri) {
        Ok(mut url) if url.password().is_some() => match url.set_password(None) {
            Ok(()) => url.to_string(),
            Err(()) => url.scheme().to_owned(),
        },
        _ => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_addresses() {
        let artifacts = Path::new("/srv/artifacts");
        let table = [
            ("/a/mlruns/1/r/artifacts", Some("/a/mlruns/1/r/artifacts")),
            ("file:///a/gr%C3%B6%C3%9Fe/artifacts", Some("/a/größe/artifacts")),
            ("./mlruns/1", Some("./mlruns/1")),
            ("mlflow-artifacts:/1/r/artifacts", Some("/srv/artifacts/1/r/artifacts")),
            ("mlflow-artifacts://host:5000/1/r/artifacts", Some("/srv/artifacts/1/r/artifacts")),
            ("s3://bucket/1/r/artifacts", None),
            ("", None),
        ];
        for (uri, path) in table {
            assert_eq!(local_path(uri, Some(artifacts)).as_deref(), path.map(Path::new), "{uri}");
        }
        assert_eq!(local_path("mlflow-artifacts:/1", None), None);
    }

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(without_password("postgresql://u:secret@h/db"), "postgresql://u@h/db");
        assert_eq!(without_password("sqlite:///mlflow.db"), "sqlite:///mlflow.db");
    }
}
