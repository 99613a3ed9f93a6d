//! A running service, and its clients: the program itself, and plain HTTP.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Time for a start, a stop, and anything that is waited for.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// How the program ended.
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) output: String,
    pub(crate) error: String,
}

impl Ended {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 0, "{}", self.error);
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("{error}: {}", self.output))
    }

    #[track_caller]
    pub(crate) fn json_or_nothing(&self) {
        assert_eq!((self.status, self.output.as_str()), (0, ""), "{}", self.error);
    }

    /// The failure, as scripts read it.
    #[track_caller]
    pub(crate) fn failed(&self, status: i32, message: &str) -> Value {
        assert_eq!(self.status, status, "{}{}", self.output, self.error);
        assert!(self.error.contains(message), "`{message}` is not in: {}", self.error);
        self.error.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
    }
}

/// Runs the program with nothing in its environment but a home and what is given.
pub(crate) fn insula(home: &Path, environment: &[(&str, OsString)], arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insula"));
    command.args(arguments).env_clear().env("HOME", home).stdin(Stdio::null());
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { status: output.status.code().unwrap(), output: text(output.stdout), error: text(output.stderr) }
}

/// The sandbox's program and the engine. None, with a printed reason, where one is missing and nobody demands them.
pub(crate) fn programs() -> Option<(PathBuf, PathBuf)> {
    let cell = Path::new(env!("CARGO_BIN_EXE_insula")).with_file_name("insula-cell");
    match std::env::var_os("ORT_DYLIB_PATH") {
        Some(engine) if cell.exists() => Some((cell, engine.into())),
        _ => {
            assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "ORT_DYLIB_PATH and {} are demanded", cell.display());
            println!("SKIPPED: needs ORT_DYLIB_PATH and {}", cell.display());
            None
        }
    }
}

/// An answer as it came.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The stable code of a refusal, whichever dialect it is in.
    pub(crate) fn code(&self) -> String {
        serde_json::from_slice::<Value>(&self.body).ok().and_then(|body| body["code"].as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// A service with a home of its own, and the operator's profile in it.
pub(crate) struct Service {
    child: Child,
    pub(crate) home: TempDir,
    pub(crate) url: String,
    pub(crate) cacert: PathBuf,
    pub(crate) http: Client,
}

impl Service {
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(|_| String::new())
    }

    /// With more configuration, which may need files in the home.
    pub(crate) fn start_with(more: impl FnOnce(&Path) -> String) -> Option<Self> {
        let (cell, engine) = programs()?;
        let home = tempfile::tempdir().unwrap();
        let config = format!(
            "{}[log]\nlevel = 'debug'\n[limits]\ndrain_timeout_seconds = 10\n[cells]\nprogram = {cell:?}\nengine_library = {engine:?}\nfloor = 'development'\n",
            more(home.path())
        );
        fs::write(home.path().join("config.toml"), config).unwrap();
        fs::create_dir(home.path().join("tmp")).unwrap();
        Some(Self::open(home))
    }

    /// Starts it in a home that may have been used before.
    pub(crate) fn open(home: TempDir) -> Self {
        let path = |name: &str| home.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_insula"));
        command.args(["--json", "serve", "--listen", "127.0.0.1:0", "--config"]).arg(path("config.toml"));
        command.arg("--data").arg(path("data")).arg("--keystore").arg(path("keystore"));
        command.env_clear().env("HOME", home.path()).env("TMPDIR", path("tmp")).current_dir(home.path()).stdin(Stdio::null());
        let log = File::options().create(true).append(true).open(path("log")).unwrap();
        let mut child = command.stdout(File::create(path("out")).unwrap()).stderr(log).spawn().unwrap();
        let facts = until("the service is ready", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the service ended with {status}: {}", fs::read_to_string(path("log")).unwrap());
            }
            fs::read_to_string(path("out")).unwrap().split_once('\n').map(|(line, _)| serde_json::from_str::<Value>(line).unwrap())
        });
        let text = |key: &str| facts[key].as_str().map(str::to_owned);
        let cacert = PathBuf::from(text("cacert").unwrap());
        let authority = reqwest::Certificate::from_pem(&fs::read(&cacert).unwrap()).unwrap();
        let http = Client::builder().tls_certs_only([authority]).no_proxy().timeout(WAIT_MAX).build().unwrap();
        let service = Self { child, url: text("url").unwrap(), cacert, http, home };
        if let Some(secret) = text("bootstrap_secret") {
            service.run("", &["login", "--profile", "operator", "--bootstrap", &secret]).json();
        }
        service
    }

    /// The last of what it logged.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs the program with a profile, or without one when it is empty.
    pub(crate) fn run(&self, profile: &str, arguments: &[&str]) -> Ended {
        let environment = [("INSULA_CACERT", self.cacert.clone().into())];
        let profile: &[&str] = if profile.is_empty() { &[] } else { &["--profile", profile] };
        // The address is an option, because a profile would still name the port before a restart.
        insula(self.home.path(), &environment, &[&["--json", "--url", &self.url], profile, arguments].concat())
    }

    /// A tenant whose administrator `ada` has a profile of the tenant's name.
    pub(crate) fn tenant(&self, name: &str, more: &[&str]) {
        self.run("operator", &[&["tenant", "create", name, "--admin", "ada", "--save", name], more].concat()).json();
    }

    /// A tenant without rate limits; the key of its administrator.
    pub(crate) fn busy_tenant(&self, name: &str, admin: &str) -> String {
        let limits = ["--limit", "requests_per_second=100000", "--limit", "requests_burst=100000"];
        let made = self.run("operator", &[&["tenant", "create", name, "--admin", admin], &limits[..]].concat()).json();
        made["admin_key"]["secret"].as_str().unwrap().to_owned()
    }

    /// The key in a profile.
    pub(crate) fn key_of(&self, profile: &str) -> String {
        let profiles: HashMap<String, toml::Value> =
            toml::from_str(&fs::read_to_string(self.path(".config/insula/profiles.toml")).unwrap()).unwrap();
        let token = profiles["profiles"][profile]["token"].as_str();
        token.unwrap().to_owned()
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// One request; a failure of the connection is an error.
    pub(crate) async fn try_ask(
        &self,
        method: Method,
        path: &str,
        token: &str,
        id: Option<&str>,
        body: impl Into<Body>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(token);
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        request = match body.into() {
            Body::None => request,
            Body::Json(json) => request.json(&json),
            Body::Bytes(bytes) => request.header("content-type", "application/octet-stream").body(bytes),
            Body::Form(form) => request.header("content-type", "application/x-www-form-urlencoded").body(form),
        };
        let answer = request.send().await?;
        let headers = format!("{:?}", answer.headers());
        Ok(Answer { status: answer.status().as_u16(), headers, body: answer.bytes().await?.to_vec() })
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, token: &str, body: impl Into<Body>) -> Answer {
        self.try_ask(method, path, token, None, body).await.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask(Method::GET, path, token, Body::None).await
    }

    /// Until a training has read its data.
    pub(crate) async fn trains(&self, id: &str, token: &str) {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let training = self.get(&format!("/v1/trainings/{id}"), token).await.expect(200).json();
            if training["progress"]["stage"] == "training" {
                return;
            }
            assert!(Instant::now() < deadline, "a training does not begin: {training}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a training has ended.
    pub(crate) async fn trained(&self, id: &str, token: &str) -> Value {
        self.ended(&format!("/v1/trainings/{id}"), token).await
    }

    /// Waits until the job at this address has ended.
    pub(crate) async fn ended(&self, path: &str, token: &str) -> Value {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let job = self.get(path, token).await.expect(200).json();
            if !matches!(job["state"].as_str(), Some("queued" | "running")) {
                return job;
            }
            assert!(Instant::now() < deadline, "a job does not end: {job}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn stop(&mut self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
        until("the service has stopped", || self.child.try_wait().unwrap());
    }

    /// `kill -9`, and what is left of it.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.home, tempfile::tempdir().unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = fs::read_to_string(self.path("log"))
        {
            let from = log.lines().count().saturating_sub(20);
            println!("the service's last lines:\n{}", log.lines().skip(from).collect::<Vec<_>>().join("\n"));
        }
        if self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
    }
}

/// A request's body.
pub(crate) enum Body {
    None,
    Json(Value),
    Bytes(Vec<u8>),
    Form(String),
}

impl From<Value> for Body {
    fn from(json: Value) -> Self {
        Self::Json(json)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Bytes(text.into_bytes())
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self::Bytes(text.into())
    }
}

/// Asks until there is an answer.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All processes below `pid`, and itself.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|parent| parent.trim().parse::<u32>().ok());
        parents.extend(parent.map(|parent| (child, parent)));
    }
    let mut found = vec![pid];
    let mut seen = 0;
    while let Some(parent) = found.get(seen).copied() {
        found.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(child, _)| *child));
        seen += 1;
    }
    found
}

/// A real table with a text class, two of its columns numbers.
pub(crate) fn rows(count: usize) -> String {
    let lines = (0..count).map(|row| format!("{},{},{}\n", row % 12, row / 12, if row % 12 > row / 12 { "up" } else { "down" }));
    format!("x,y,label\n{}", lines.collect::<String>())
}

/// A prediction for the model of [`rows`].
pub(crate) fn question(x: f64, y: f64) -> Value {
    json!({"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [x, y]}]})
}
