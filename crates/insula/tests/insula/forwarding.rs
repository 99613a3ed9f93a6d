//! Two nodes on the same stores, each a process of its own: whichever is asked answers, for every kind of request and body.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stores::Database;
use crate::world::{Answer, WAIT_MAX, insula, programs, question, rows, until};

/// The stores and keystore that nodes share.
struct Shared {
    home: TempDir,
    database: Database,
}

impl Shared {
    /// None, with a printed reason, where a server is missing.
    fn make() -> Option<Self> {
        let database = Database::make()?;
        if std::env::var_os("INSULA_S3_ENDPOINT").is_none() {
            assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_S3_ENDPOINT is demanded");
            println!("SKIPPED: needs an S3 server in INSULA_S3_ENDPOINT");
            return None;
        }
        programs()?;
        let shared = Self { home: tempfile::tempdir().unwrap(), database };
        fs::create_dir(shared.home.path().join("tmp")).unwrap();
        let config = shared.config("migrate", 1);
        insula(shared.home.path(), &[], &["migrate", "--json", "--config", &config]).json();
        Some(shared)
    }

    /// The configuration file of a node.
    fn config(&self, name: &str, port: u16) -> String {
        let (cell, engine) = programs().unwrap();
        let s3 = |name: &str| std::env::var(name).unwrap();
        let home = self.home.path();
        let text = format!(
            "data_dir = {:?}\nkeystore_dir = {:?}\nlisten = '127.0.0.1:{port}'\npublic_url = 'https://localhost'\n\
             [log]\nlevel = 'info,server=debug'\n[limits]\ndrain_timeout_seconds = 10\n\
             [node]\nname = '{name}'\nurl = 'https://127.0.0.1:{port}'\n[stores]\ntier = 'pooled'\n{}\
             [stores.s3]\nendpoint = {:?}\nregion = 'us-east-1'\naccess_key_id = {:?}\nsecret_access_key = {:?}\nbucket_prefix = 'nodes'\n\
             [cells]\nprogram = {cell:?}\nengine_library = {engine:?}\nfloor = 'development'\n",
            home.join(name),
            home.join("keystore"),
            self.database.config(home),
            s3("INSULA_S3_ENDPOINT"),
            s3("INSULA_S3_ADMIN_KEY"),
            s3("INSULA_S3_ADMIN_SECRET"),
        );
        let file = home.join(format!("{name}.toml"));
        fs::write(&file, text).unwrap();
        private(&file);
        file.to_str().unwrap().to_owned()
    }

    fn node(&self, name: &'static str) -> Node {
        let keystore = self.home.path().join("keystore");
        if !keystore.exists() {
            fs::create_dir(&keystore).unwrap();
            fs::set_permissions(&keystore, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Node::start(self.home.path(), name, &self.config(name, port))
    }
}

fn private(file: &Path) {
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// One process.
struct Node {
    child: Child,
    url: String,
    http: Client,
    facts: Value,
    log: std::path::PathBuf,
}

impl Node {
    fn start(home: &Path, name: &'static str, config: &str) -> Self {
        let path = |kind: &str| home.join(format!("{name}.{kind}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_insula"));
        command.args(["--json", "serve", "--config", config]).env_clear().env("HOME", home).env("TMPDIR", home.join("tmp"));
        let (out, log) = (File::create(path("out")).unwrap(), File::create(path("log")).unwrap());
        let mut child = command.current_dir(home).stdin(Stdio::null()).stdout(out).stderr(log).spawn().unwrap();
        let facts = until("a node is ready", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the node ended with {status}: {}", fs::read_to_string(path("log")).unwrap());
            }
            fs::read_to_string(path("out")).unwrap().split_once('\n').map(|(line, _)| serde_json::from_str::<Value>(line).unwrap())
        });
        let authority = reqwest::Certificate::from_pem(&fs::read(facts["cacert"].as_str().unwrap()).unwrap()).unwrap();
        let http = Client::builder().tls_certs_only([authority]).no_proxy().timeout(WAIT_MAX).build().unwrap();
        let url = format!("https://{}", facts["address"].as_str().unwrap());
        Self { child, url, http, facts, log: path("log") }
    }

    fn request(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(token)
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        answer(self.request(Method::GET, path, token)).await.unwrap()
    }

    async fn send(&self, method: Method, path: &str, token: &str, body: Value) -> Answer {
        answer(self.request(method, path, token).json(&body)).await.unwrap()
    }

    async fn upload(&self, path: &str, token: &str, bytes: Vec<u8>) -> Answer {
        answer(self.request(Method::PUT, path, token).header("content-type", "text/csv").body(bytes)).await.unwrap()
    }

    /// How many requests it sent on to another node.
    fn sent_on(&self) -> usize {
        fs::read_to_string(&self.log).unwrap().lines().filter(|line| line.contains("forwarded")).count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
        if std::thread::panicking()
            && let Ok(log) = fs::read_to_string(&self.log)
        {
            let from = log.lines().count().saturating_sub(25);
            println!("the last lines of {}:\n{}", self.log.display(), log.lines().skip(from).collect::<Vec<_>>().join("\n"));
        }
    }
}

async fn answer(request: RequestBuilder) -> reqwest::Result<Answer> {
    let answer = request.send().await?;
    let headers = format!("{:?}", answer.headers());
    Ok(Answer { status: answer.status().as_u16(), headers, body: answer.bytes().await?.to_vec() })
}

fn secret(issued: &Value, pointer: &str) -> String {
    issued.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{issued}")).to_owned()
}

async fn operator(first: &Node, asked: &Node) -> String {
    let secret_file = first.facts["bootstrap_secret"].as_str().unwrap();
    let text = fs::read_to_string(secret_file).unwrap();
    let issued = asked.send(Method::POST, "/v1/bootstrap", "", json!({ "secret": text.trim() })).await.expect(201).json();
    secret(&issued, "/secret")
}

async fn tenant(node: &Node, operator: &str, name: &str) -> String {
    let limits = json!({"requests_per_second": 100_000, "requests_burst": 100_000});
    let made =
        node.send(Method::POST, "/v1/tenants", operator, json!({"name": name, "admin": "ada", "limits": limits})).await.expect(201).json();
    secret(&made, "/admin_key/secret")
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_node_is_asked_answers() {
    let Some(shared) = Shared::make() else { return };
    let (a, b) = (shared.node("a"), shared.node("b"));
    // The first node leads: what is asked of the second about the service goes on to it.
    let operator = operator(&a, &b).await;
    let admin = tenant(&b, &operator, "clinic").await;
    assert_eq!(a.get("/v1/tenants", &operator).await.expect(200).json(), b.get("/v1/tenants", &operator).await.expect(200).json());

    // Everything works on both, and is the same on both.
    let big = rows(200_000).into_bytes();
    assert!(big.len() > 1 << 20, "larger than any buffer on the way");
    for (node, name) in [(&a, "one"), (&b, "two")] {
        node.upload(&format!("/v1/datasets/{name}"), &admin, big.clone()).await.expect(201);
    }
    for name in ["one", "two"] {
        let content = format!("/v1/datasets/{name}/versions/1/content");
        for node in [&a, &b] {
            assert!(node.get(&content, &admin).await.expect(200).body == big, "{name} came back as it went");
        }
    }
    let training = json!({"name": "fence", "dataset": "one", "target": "label", "task": "classification"});
    let id = secret(&b.send(Method::POST, "/v1/trainings", &admin, training).await.expect(202).json(), "/id");
    let ended = until_trained(&a, &id, &admin).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    b.send(Method::PUT, "/v1/deployments/gate", &admin, json!({"model": "fence", "version": 1})).await.expect(200);
    let ask = |node: &Node| node.request(Method::POST, "/v2/models/gate/infer", &admin).json(&question(7.0, 2.0));
    let (one, two) = (answer(ask(&a)).await.unwrap().expect(200), answer(ask(&b)).await.unwrap().expect(200));
    assert_eq!(one.json()["outputs"], two.json()["outputs"]);

    // A token from one node opens the other, and a revocation on one is in force on the other with the next request.
    let key = a.send(Method::POST, "/v1/keys", &admin, json!({"name": "app", "member": "ada"})).await.expect(201).json();
    let (id, key) = (secret(&key, "/key/id"), secret(&key, "/secret"));
    for (node, other) in [(&a, &b), (&b, &a)] {
        let form = [("grant_type", "client_credentials"), ("client_id", &id), ("client_secret", &key)];
        let token = answer(node.http.post(format!("{}/oauth/token", node.url)).form(&form)).await.unwrap().expect(200).json();
        other.get("/v1/whoami", &secret(&token, "/access_token")).await.expect(200);
    }
    answer(b.request(Method::DELETE, &format!("/v1/keys/{id}"), &admin)).await.unwrap().expect(204);
    for node in [&a, &b] {
        node.get("/v1/whoami", &key).await.expect(401);
    }

    // One log: an act that was sent on is in it once, under its own request id, and both nodes export the same.
    let request = a.request(Method::GET, "/v1/datasets/one", &admin).header("x-request-id", "asked-of-a");
    assert!(answer(request).await.unwrap().expect(200).headers.contains("asked-of-a"));
    let request = b.request(Method::GET, "/v1/datasets/one", &admin).header("x-request-id", "asked-of-b");
    answer(request).await.unwrap().expect(200);
    for id in ["asked-of-a", "asked-of-b"] {
        let found = a.get(&format!("/v1/ledger?text={id}&act=DatasetRead"), &admin).await.expect(200).json();
        assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found}");
    }
    let (one, two) = (a.get("/v1/ledger/key", &admin).await.json(), b.get("/v1/ledger/key", &admin).await.json());
    assert_eq!(one, two);
    assert!(a.get("/v1/ledger/export", &admin).await.expect(200).body.len() > 1000);
    assert!(b.get("/v1/ledger/export", &admin).await.expect(200).body.len() > 1000);
    assert!(a.sent_on() + b.sent_on() > 10, "requests were sent on: {} and {}", a.sent_on(), b.sent_on());

    // The header that ends the journey gives nobody anything.
    for node in [&a, &b] {
        let request = node.request(Method::GET, "/v1/whoami", "nonsense").header("insula-forwarded", "a");
        answer(request).await.unwrap().expect(401);
    }
}

async fn until_trained(node: &Node, id: &str, token: &str) -> Value {
    let deadline = std::time::Instant::now() + WAIT_MAX;
    loop {
        let training = node.get(&format!("/v1/trainings/{id}"), token).await.expect(200).json();
        if !matches!(training["state"].as_str(), Some("queued" | "running")) {
            return training;
        }
        assert!(std::time::Instant::now() < deadline, "a training does not end: {training}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
