//! Nodes over one pair of stores, and a client that goes round them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::stores::{Kind, Stores, tail};
use crate::world::{Answer, Body, Ended, insula, programs, until};

/// Nodes of a whole cluster.
pub(crate) const NODES: usize = 3;
/// Longer than any deadline of the service that these tests meet.
const ANSWER_MAX: Duration = Duration::from_secs(40);

/// The nodes, with everything they share.
pub(crate) struct Cluster {
    pub(crate) stores: Mutex<Stores>,
    home: TempDir,
    nodes: Vec<Mutex<Option<Child>>>,
    ports: Vec<u16>,
    http: Client,
    authority: String,
    pub(crate) operator: String,
    turn: AtomicUsize,
    pub(crate) told: Mutex<Told>,
}

/// What the nodes said, all together.
#[derive(Default)]
pub(crate) struct Told {
    /// Answers by status and code, and what came instead of answers.
    pub(crate) counts: BTreeMap<String, usize>,
    /// Answers that no client should ever see.
    pub(crate) faults: Vec<String>,
    /// Other refusals than of too much, one of each code: whether they are right, who asked knows.
    pub(crate) refusals: BTreeMap<String, String>,
}

/// How a request ended.
pub(crate) enum Outcome {
    Answer(Answer),
    /// No connection: nothing was done.
    Unsent,
    /// The connection broke, or nothing came: nobody knows.
    Lost,
}

impl Cluster {
    /// Migrates, then starts the nodes; the first makes what they share.
    pub(crate) async fn start(nodes: usize) -> Option<Self> {
        let (cell, engine) = programs()?;
        let stores = Stores::start()?;
        let home = tempfile::tempdir().unwrap();
        fs::DirBuilder::new().mode(0o700).create(home.path().join("keystore")).unwrap();
        fs::create_dir(home.path().join("tmp")).unwrap();
        let ports: Vec<u16> = (0..nodes as u16).map(|node| stores.node_port(node)).collect();
        for (node, port) in ports.iter().enumerate() {
            let config = format!(
                "listen = '127.0.0.1:{port}'\npublic_url = 'https://127.0.0.1:{}'\n[log]\nlevel = 'info'\n\
                 [node]\nname = '{}'\nurl = 'https://127.0.0.1:{port}'\n[cells]\nprogram = {cell:?}\nengine_library = {engine:?}\n\
                 floor = 'development'\npool_blank = 1\n{}",
                ports[0],
                name(node),
                stores.settings()
            );
            let path = home.path().join(format!("{}.toml", name(node)));
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).unwrap();
            file.write_all(config.as_bytes()).unwrap();
        }
        let config = home.path().join("a.toml").display().to_string();
        let migrated = insula(home.path(), &[], &["migrate", "--config", &config]);
        assert_eq!(migrated.status, 0, "{}{}", migrated.output, migrated.error);
        let mut cluster = Self {
            stores: Mutex::new(stores),
            home,
            nodes: (0..nodes).map(|_| Mutex::new(None)).collect(),
            ports,
            http: Client::new(),
            authority: String::new(),
            operator: String::new(),
            turn: AtomicUsize::new(0),
            told: Mutex::default(),
        };
        cluster.launch(0);
        let facts = cluster.wait(0);
        (1..nodes).for_each(|node| cluster.launch(node));
        cluster.authority = facts["cacert"].as_str().unwrap().to_owned();
        let authority = fs::read(&cluster.authority).unwrap();
        let authority = reqwest::Certificate::from_pem(&authority).unwrap();
        cluster.http = Client::builder().tls_certs_only([authority]).no_proxy().timeout(ANSWER_MAX).build().unwrap();
        (1..nodes).for_each(|node| drop(cluster.wait(node)));
        let secret = fs::read_to_string(facts["bootstrap_secret"].as_str().unwrap()).unwrap();
        let made = cluster.ask(Method::POST, "/v1/bootstrap", "", json!({"secret": secret.trim()})).await.expect(201).json();
        cluster.operator = made["secret"].as_str().unwrap().to_owned();
        Some(cluster)
    }

    pub(crate) fn launch(&self, node: usize) {
        let path = |what: &str| self.home.path().join(format!("{what}{}", name(node)));
        let mut command = Command::new(env!("CARGO_BIN_EXE_insula"));
        command.args(["--json", "serve", "--config"]).arg(self.home.path().join(format!("{}.toml", name(node))));
        command.arg("--data").arg(path("data-")).arg("--keystore").arg(self.home.path().join("keystore"));
        command.env_clear().env("HOME", self.home.path()).env("TMPDIR", self.home.path().join("tmp")).current_dir(self.home.path());
        let log = File::options().create(true).append(true).open(path("log-")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(File::create(path("out-")).unwrap()).stderr(log).spawn().unwrap();
        *self.nodes[node].lock().unwrap() = Some(child);
    }

    /// Where a node listens, and the certificate authority that answers for it.
    pub(crate) fn address(&self, node: usize) -> [String; 2] {
        [format!("127.0.0.1:{}", self.ports[node]), self.authority.clone()]
    }

    /// Waits until the node serves; what it says of itself.
    pub(crate) fn wait(&self, node: usize) -> Value {
        let path = |what: &str| self.home.path().join(format!("{what}{}", name(node)));
        until("the node is ready", || {
            let ended = self.nodes[node].lock().unwrap().as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "node {} ended with {ended:?}: {}", name(node), tail(&path("log-"), 20));
            fs::read_to_string(path("out-")).unwrap().split_once('\n').map(|(line, _)| serde_json::from_str(line).unwrap())
        })
    }

    /// `kill -9`.
    pub(crate) fn kill(&self, node: usize) {
        if let Some(mut child) = self.nodes[node].lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// All that the nodes wrote.
    pub(crate) fn logs(&self) -> String {
        (0..self.nodes.len())
            .map(|node| fs::read_to_string(self.home.path().join(format!("log-{}", name(node)))).unwrap_or_default())
            .collect()
    }

    pub(crate) fn stores_kill(&self, kind: Kind) {
        self.stores.lock().unwrap().kill(kind);
    }

    pub(crate) fn stores_restart(&self, kind: Kind) {
        self.stores.lock().unwrap().restart(kind);
    }

    /// Which node is home to the tenant.
    pub(crate) fn home_of(&self, tenant: &str) -> Option<usize> {
        let sql = format!(
            "SELECT l.node FROM insula_control.lease l JOIN insula_control.tenant t ON t.id = l.tenant
             WHERE t.name = '{tenant}' AND l.expires_at > clock_timestamp()"
        );
        let found = self.stores.lock().unwrap().sql("insula", &sql);
        (0..self.nodes.len()).find(|node| name(*node) == found)
    }

    /// One request to one node, counted and judged.
    pub(crate) async fn try_at(
        &self,
        node: usize,
        method: Method,
        path: &str,
        token: &str,
        id: Option<&str>,
        body: impl Into<Body>,
    ) -> Outcome {
        let mut request = self.http.request(method.clone(), format!("https://127.0.0.1:{}{path}", self.ports[node]));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        request = match body.into() {
            Body::None => request,
            Body::Json(json) => request.json(&json),
            Body::Bytes(bytes) => request.header("content-type", "application/octet-stream").body(bytes),
            Body::Form(form) => request.header("content-type", "application/x-www-form-urlencoded").body(form),
        };
        let began = Instant::now();
        let outcome = match request.send().await {
            Err(error) if error.is_connect() => Outcome::Unsent,
            Err(_) => Outcome::Lost,
            Ok(answer) => {
                let (status, headers) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
                match answer.bytes().await {
                    Ok(body) => Outcome::Answer(Answer { status, headers, body: body.to_vec() }),
                    Err(_) => Outcome::Lost,
                }
            }
        };
        self.judge(&outcome, &format!("{method} {path} at {} after {:?}", name(node), began.elapsed()));
        outcome
    }

    fn judge(&self, outcome: &Outcome, what: &str) {
        let mut told = self.told.lock().unwrap();
        let key = match outcome {
            Outcome::Unsent => "no connection".to_owned(),
            Outcome::Lost => "connection lost".to_owned(),
            Outcome::Answer(answer) if answer.status < 400 => answer.status.to_string(),
            Outcome::Answer(answer) => {
                let problem = answer.headers.contains("application/problem+json");
                if answer.status >= 500 && !(problem && is_clear(answer.status, &answer.code())) {
                    told.faults.push(format!("{what}: {} {}", answer.status, answer.text()));
                }
                let key = format!("{} {}", answer.status, answer.code());
                if answer.status < 500 && answer.status != 429 {
                    told.refusals.entry(key.clone()).or_insert_with(|| format!("{what}: {}", answer.text()));
                }
                key
            }
        };
        *told.counts.entry(key).or_default() += 1;
    }

    /// The next node's number.
    pub(crate) fn next(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.nodes.len()
    }

    /// One request to the next node.
    pub(crate) async fn try_ask(&self, method: Method, path: &str, token: &str, id: Option<&str>, body: impl Into<Body>) -> Outcome {
        self.try_at(self.next(), method, path, token, id, body).await
    }

    /// One request to the next node that must be answered.
    pub(crate) async fn ask(&self, method: Method, path: &str, token: &str, body: impl Into<Body>) -> Answer {
        match self.try_ask(method, path, token, None, body).await {
            Outcome::Answer(answer) => answer,
            Outcome::Unsent | Outcome::Lost => panic!("{path}: no answer"),
        }
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask(Method::GET, path, token, Body::None).await
    }

    /// One request to one node that must be answered.
    pub(crate) async fn ask_at(&self, node: usize, method: Method, path: &str, token: &str, body: impl Into<Body>) -> Answer {
        match self.try_at(node, method, path, token, None, body).await {
            Outcome::Answer(answer) => answer,
            Outcome::Unsent | Outcome::Lost => panic!("{path} at {}: no answer", name(node)),
        }
    }

    /// All pages of a list.
    pub(crate) async fn items(&self, path: &str, token: &str) -> Vec<Value> {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{separator}limit=500{after}"), token).await.expect(200).json();
            found.extend(page["items"].as_array().unwrap().iter().cloned());
            let Some(next) = page["next"].as_str() else { return found };
            after = format!("&after={next}");
        }
    }

    /// A tenant without rate limits; its administrator's key.
    pub(crate) async fn tenant(&self, name: &str, mut limits: Value) -> String {
        limits["requests_per_second"] = json!(100_000);
        limits["requests_burst"] = json!(100_000);
        let body = json!({"name": name, "admin": "ada", "limits": limits});
        let made = self.ask(Method::POST, "/v1/tenants", &self.operator, body).await.expect(201).json();
        made["admin_key"]["secret"].as_str().unwrap().to_owned()
    }

    /// The program without a service.
    pub(crate) fn offline(&self, arguments: &[&str]) -> Ended {
        insula(self.home.path(), &[] as &[(&str, OsString)], arguments)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            if std::thread::panicking() {
                println!("node {} said last:\n{}", name(node), tail(&self.home.path().join(format!("log-{}", name(node))), 12));
            }
            self.kill(node);
        }
    }
}

pub(crate) fn name(node: usize) -> &'static str {
    ["a", "b", "c"][node]
}

/// What an outage may look like: a code of ours that says what to do.
fn is_clear(status: u16, code: &str) -> bool {
    let clear = [(503, "unavailable"), (503, "overloaded"), (503, "cell_unavailable"), (502, "node_lost"), (504, "deadline_exceeded")];
    clear.contains(&(status, code))
}
