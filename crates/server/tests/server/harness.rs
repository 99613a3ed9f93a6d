//! A service, an operator, and tenants with members, as their clients see them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use server::{Config, Overrides, Server};
use tempfile::TempDir;

/// A running service and its folder.
pub(crate) struct Insula {
    pub(crate) server: Option<Server>,
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) ca: Vec<u8>,
    pub(crate) operator: String,
    pub(crate) dir: Arc<TempDir>,
}

/// An answer with everything a client can compare.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The service failed. To say what it does not do (501) is no failure.
    pub(crate) fn broke(&self) -> bool {
        self.status.is_server_error() && self.status != 501
    }

    /// The code of a problem document, or of an inference error.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        body["code"].as_str().or(body["error_code"].as_str()).unwrap_or_default().to_owned()
    }

    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    /// What an outsider may compare: everything but the request id, the clock and the rate that was just spent.
    pub(crate) fn comparable(&self) -> (u16, Vec<(String, String)>, String) {
        let mut headers = self.headers.clone();
        headers.retain(|(name, _)| name != "x-request-id" && name != "date");
        for (name, value) in &mut headers {
            if name == "ratelimit" {
                value.clear();
            }
        }
        headers.sort();
        (self.status.as_u16(), headers, self.body.clone())
    }
}

/// The cell program and the engine that the tests run with.
fn programs() -> (PathBuf, PathBuf) {
    let beside = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("insula-cell");
    let cell = std::env::var_os("INSULA_CELL").map_or(beside, PathBuf::from);
    assert!(cell.exists(), "there is no `{}`: run `cargo build -p insula-cell` first, or set INSULA_CELL", cell.display());
    let engine = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).expect("set ORT_DYLIB_PATH to libonnxruntime.so");
    (cell, engine)
}

impl Insula {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts with more configuration.
    pub(crate) async fn start_with(toml: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut insula = Self::open(dir, toml).await;
        let secret = insula.server.as_ref().unwrap().started().bootstrap_secret.clone().unwrap();
        let secret = std::fs::read_to_string(secret).unwrap();
        let made = insula.call(Method::POST, "/v1/bootstrap", None, Some(json!({"secret": secret}))).await.expect(201);
        insula.operator = made.json()["secret"].as_str().unwrap().to_owned();
        insula
    }

    /// A configuration in a folder.
    pub(crate) fn config(dir: &TempDir, toml: &str) -> Config {
        let (program, engine) = programs();
        let toml = format!(
            "{toml}\n[cells]\nfloor = 'development'\nprogram = '{}'\nengine_library = '{}'\npool_blank = 1\n",
            program.display(),
            engine.display()
        );
        let overrides = Overrides {
            data_dir: Some(dir.path().join("data")),
            keystore_dir: Some(dir.path().join("keys")),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            ..Overrides::default()
        };
        Config::parse(&toml, &overrides).unwrap()
    }

    /// Opens the service in a folder that may have been used before.
    pub(crate) async fn open(dir: Arc<TempDir>, toml: &str) -> Self {
        let server = Server::start(Self::config(&dir, toml)).await.unwrap();
        let ca = std::fs::read(server.started().ca_path.as_ref().unwrap()).unwrap();
        let url = server.started().url.clone();
        Self { client: client(&ca), url, ca, operator: String::new(), dir, server: Some(server) }
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.server.as_ref().unwrap().started().address
    }

    /// One request with a JSON body or none.
    pub(crate) async fn call(&self, method: Method, path: &str, token: Option<&str>, body: Option<Value>) -> Answer {
        self.call_as(method, path, token, body, None).await
    }

    /// The same under a request id of the caller's choice.
    pub(crate) async fn call_as(&self, method: Method, path: &str, token: Option<&str>, body: Option<Value>, id: Option<&str>) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Answer {
        self.call(Method::GET, path, Some(token), None).await
    }

    pub(crate) async fn put(&self, path: &str, token: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, Some(token), Some(body)).await
    }

    pub(crate) async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(token), Some(body)).await
    }

    /// A tenant with generous limits; the key of its first administrator.
    pub(crate) async fn tenant(&self, name: &str) -> String {
        let limits = json!({"requests_per_second": 100_000, "requests_burst": 100_000});
        let made = self.post("/v1/tenants", &self.operator, json!({"name": name, "admin": "ada", "limits": limits})).await.expect(201);
        made.json()["admin_key"]["secret"].as_str().unwrap().to_owned()
    }

    /// A member with one role, and a key for it.
    pub(crate) async fn member(&self, admin: &str, name: &str, role: &str) -> String {
        self.put(&format!("/v1/members/{name}"), admin, json!({"roles": [role]})).await.expect(200);
        let key = self.post("/v1/keys", admin, json!({"name": format!("{name}-key"), "member": name})).await.expect(201);
        key.json()["secret"].as_str().unwrap().to_owned()
    }

    /// A small data set.
    pub(crate) async fn upload(&self, token: &str, name: &str, bytes: impl Into<reqwest::Body>) -> Answer {
        let request = self.client.put(format!("{}/v1/datasets/{name}", self.url)).bearer_auth(token).header("content-type", "text/csv");
        answer(request.body(bytes)).await
    }
}

/// Sends it.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status();
    let headers =
        response.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned())).collect();
    Answer { status, headers, body: response.text().await.unwrap() }
}

/// A client that trusts the CA and nothing else of ours.
pub(crate) fn client(ca: &[u8]) -> Client {
    let ca = reqwest::Certificate::from_pem(ca).unwrap();
    Client::builder().add_root_certificate(ca).no_proxy().timeout(Duration::from_secs(60)).build().unwrap()
}

/// A request id that was not used before.
pub(crate) fn fresh_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Rows enough to train on.
pub(crate) fn rows() -> String {
    let mut text = "x,y,label\n".to_owned();
    for row in 0..120 {
        let (x, y) = (row % 12, row / 12);
        text += &format!("{x},{y},{}\n", if x > y { "up" } else { "down" });
    }
    text
}
