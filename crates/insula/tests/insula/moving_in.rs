//! `insula import mlflow` from real MLflow: a server over HTTP, a database, a folder; whole, cut off, again, and with differences.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::mlflow::python;
use crate::world::{Ended, Service, WAIT_MAX, family, insula, until};

/// A tenant that an import is far from finished in when this is there.
const CUT_AT_RUNS: usize = 4;

/// A source: what its client takes as tracking address, and what the importer is told.
struct Origin {
    folder: PathBuf,
    address: String,
    server: Option<Child>,
}

impl Origin {
    /// MLflow's own server on a database and a folder of artifacts.
    fn server(python: &Path, folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(python);
        command.args(["-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "artifacts"]);
        quiet(&mut command, &folder).env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false");
        let log = fs::File::create(folder.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let mut server = command.spawn().unwrap();
        until("the source serves", || {
            assert!(server.try_wait().unwrap().is_none(), "{}", fs::read_to_string(folder.join("log")).unwrap());
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self { folder, address: format!("http://127.0.0.1:{port}"), server: Some(server) }
    }

    /// A database, or a folder, that no server runs on.
    fn alone(folder: PathBuf, address: impl FnOnce(&Path) -> String) -> Self {
        fs::create_dir(&folder).unwrap();
        let address = address(&folder);
        Self { folder, address, server: None }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            // The group: what is started first starts what serves.
            let group = format!("-{}", server.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = server.wait();
        }
    }
}

fn quiet<'a>(command: &'a mut Command, home: &Path) -> &'a mut Command {
    command.current_dir(home).env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").env("TMPDIR", std::env::temp_dir());
    command.env("MLFLOW_DISABLE_TELEMETRY", "true").env("GIT_PYTHON_REFRESH", "quiet").env("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2");
    command.env("MLFLOW_ALLOW_FILE_STORE", "true")
}

/// The players of a test.
struct Stage {
    python: PathBuf,
    service: Service,
}

impl Stage {
    fn set() -> Option<Self> {
        let python = python()?;
        Some(Self { python, service: Service::start()? })
    }

    /// Runs a script; what it prints.
    fn script(&self, name: &str, arguments: &[&str], address: &str, token: &str, odd: bool) -> String {
        let mut command = Command::new(&self.python);
        command.arg(format!("{}/tests/mlflow/{name}", env!("CARGO_MANIFEST_DIR"))).args(arguments);
        quiet(&mut command, self.service.home.path());
        command.env("MLFLOW_TRACKING_URI", address).env("MLFLOW_TRACKING_TOKEN", token);
        command.env("MLFLOW_TRACKING_SERVER_CERT_PATH", &self.service.cacert).env("LANG", "C.UTF-8");
        if odd {
            command.env("INSULA_ODD_NAMES", "1");
        }
        let output = command.output().unwrap();
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{name}: {}{}", told(&output.stdout), told(&output.stderr));
        told(&output.stdout)
    }

    fn fills(&self, what: &str, origin: &Origin, odd: bool) {
        self.script("import_fill.py", &[what], &origin.address, "", odd);
    }

    fn compares(&self, origin: &Origin, token: &str, more: &[&str]) {
        let address = [&[origin.address.as_str()], more].concat();
        println!("{}", self.script("import_compare.py", &address, &self.service.url, token, false));
    }

    fn arguments<'a>(&'a self, origin: &'a Origin, tenant: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let python = ["--python", self.python.to_str().unwrap()];
        let python = if more.contains(&"--python") { &[][..] } else { &python[..] };
        [&["--json", "--url", &self.service.url, "import", "mlflow", "--from", &origin.address, "--tenant", tenant], python, more].concat()
    }

    fn environment(&self, token: &str) -> Vec<(&'static str, OsString)> {
        let path = "/usr/bin:/bin".into();
        vec![
            ("INSULA_TOKEN", token.into()),
            ("INSULA_CACERT", self.service.cacert.clone().into()),
            ("PATH", path),
            ("TMPDIR", self.tmp().into()),
        ]
    }

    /// Where the importer's private server keeps its things.
    fn tmp(&self) -> PathBuf {
        // A socket's path is short.
        self.service.home.path().join("t")
    }

    fn imports(&self, origin: &Origin, tenant: &str, token: &str, more: &[&str]) -> Ended {
        fs::create_dir_all(self.tmp()).unwrap();
        let ended = insula(self.service.home.path(), &self.environment(token), &self.arguments(origin, tenant, more));
        assert_eq!(fs::read_dir(self.tmp()).unwrap().count(), 0, "the private server's folder is gone");
        ended
    }

    /// Begins, and is killed as soon as `far` says so.
    fn cut(&self, origin: &Origin, tenant: &str, token: &str, mut far: impl FnMut() -> bool) {
        fs::create_dir_all(self.tmp()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_insula"));
        command.args(self.arguments(origin, tenant, &[])).env_clear().env("HOME", self.service.home.path());
        command.envs(self.environment(token)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let ended = until("the import is under way", || match child.try_wait().unwrap() {
            Some(status) => Some(Some(status)),
            None => far().then_some(None),
        });
        assert!(ended.is_none(), "the import was over before it could be cut: {ended:?}");
        let servers: Vec<u32> = family(child.id()).into_iter().skip(1).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        until("what the importer started has ended too", || {
            servers.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(())
        });
        assert_eq!(fs::read_dir(self.tmp()).unwrap().count(), 0, "the private server's folder is gone");
    }

    /// How many runs the tenant has.
    fn runs(&self, token: &str) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let post = |path: &'static str, body: Value| self.service.ask(Method::POST, path, token, body);
            let found =
                post("/api/2.0/mlflow/experiments/search", json!({"max_results": 1000, "view_type": "ALL"})).await.expect(200).json();
            let ids: Vec<_> =
                found["experiments"].as_array().unwrap().iter().map(|experiment| experiment["experiment_id"].clone()).collect();
            let asked = json!({"experiment_ids": ids, "run_view_type": "ALL", "max_results": 1000});
            post("/api/2.0/mlflow/runs/search", asked).await.expect(200).json()["runs"].as_array().map_or(0, Vec::len)
        })
    }
}

/// What was written, by kind; nothing left out.
#[track_caller]
fn written(report: &Value) -> u64 {
    let counts = report["counts"].as_object().unwrap();
    assert!(counts.len() > 10, "{report}");
    counts.values().map(|count| count["written"].as_u64().unwrap()).sum()
}

#[track_caller]
fn both_sides_count_the_same(report: &Value) {
    for (kind, count) in report["counts"].as_object().unwrap() {
        assert_eq!(count["source"], count["target"], "{kind}: {report}");
    }
    for kind in ["experiments", "runs", "params", "run tags", "metric points", "artifacts", "registered models", "versions"] {
        assert!(report["counts"][kind]["source"].as_u64().unwrap() > 0, "{kind}: {report}");
    }
    assert_eq!(report["differences_total"], 0);
}

#[test]
fn a_server_moves_in_cut_off_and_again_and_every_difference_is_told() {
    let Some(stage) = Stage::set() else { return };
    let origin = Origin::server(&stage.python, stage.service.home.path().join("source"));
    stage.fills("full", &origin, false);
    let token = stage.service.busy_tenant("clinic", "ada");
    let other = stage.service.busy_tenant("other", "bob");

    // Into the tenant of the credential, and no other.
    stage.imports(&origin, "other", &token, &[]).failed(2, "belongs to the tenant `clinic`, not to `other`");
    let counted = stage.imports(&origin, "clinic", &token, &["--dry-run"]).json();
    assert_eq!((counted["dry_run"].clone(), stage.runs(&token)), (json!(true), 0), "{counted}");

    // Cut off twice, at different places, and gone on with.
    stage.cut(&origin, "clinic", &token, || stage.runs(&token) >= 1);
    stage.cut(&origin, "clinic", &token, || stage.runs(&token) >= CUT_AT_RUNS);
    let report = stage.imports(&origin, "clinic", &token, &[]).json();
    both_sides_count_the_same(&report);
    assert!(written(&report) > 0, "{report}");
    for (kind, count) in counted["counts"].as_object().unwrap() {
        assert_eq!(count["source"], report["counts"][kind]["source"], "{kind}: a dry run counts what is there");
    }
    stage.compares(&origin, &token, &[]);

    // Again: nothing is written.
    let again = stage.imports(&origin, "clinic", &token, &[]).json();
    both_sides_count_the_same(&again);
    assert_eq!(written(&again), 0, "{again}");

    // Another tenant may hold the same ids, and neither notices.
    both_sides_count_the_same(&stage.imports(&origin, "other", &other, &[]).json());

    // Differences on either side are told, and left as they are.
    let artifacts = origin.folder.join("artifacts");
    let planted = stage.script("import_plant.py", &[artifacts.to_str().unwrap()], &stage.service.url, &token, false);
    let planted: Vec<[String; 3]> = serde_json::from_str(planted.lines().last().unwrap()).unwrap();
    for _ in 0..2 {
        let found = stage.imports(&origin, "clinic", &token, &[]);
        assert_eq!(found.status, 10, "{}{}", found.output, found.error);
        let report: Value = serde_json::from_str(&found.output).unwrap();
        let told = report["differences"].as_array().unwrap();
        for [kind, name, what] in &planted {
            let is =
                |found: &Value| found["kind"] == **kind && found["name"] == **name && found["what"].as_str().unwrap().contains(&**what);
            assert!(told.iter().any(is), "{kind} {name} {what}: {report:#}");
        }
        assert_eq!((told.len(), written(&report)), (planted.len(), 0), "{report:#}");
    }
}

#[test]
fn a_database_moves_in_without_being_touched() {
    let Some(stage) = Stage::set() else { return };
    let origin = Origin::alone(stage.service.home.path().join("source"), |folder| format!("sqlite:///{}/mlflow.db", folder.display()));
    // Its clients write to the disk themselves, so there are names that no server would take.
    let filled = Origin { folder: origin.folder.clone(), address: origin.address.clone(), server: None };
    stage.fills("full", &filled, true);
    let database = fs::read(origin.folder.join("mlflow.db")).unwrap();
    let token = stage.service.busy_tenant("clinic", "ada");
    stage.cut(&origin, "clinic", &token, || stage.runs(&token) >= CUT_AT_RUNS);
    let report = stage.imports(&origin, "clinic", &token, &[]).json();
    both_sides_count_the_same(&report);
    stage.compares(&origin, &token, &["on-disk"]);
    let again = stage.imports(&origin, "clinic", &token, &[]).json();
    assert_eq!(written(&again), 0, "{again}");
    assert!(database == fs::read(origin.folder.join("mlflow.db")).unwrap(), "the database is what it was");
}

#[test]
fn a_folder_moves_in_and_what_cannot_be_read_is_said() {
    let Some(stage) = Stage::set() else { return };
    let origin = Origin::alone(stage.service.home.path().join("source"), |folder| format!("{}/mlruns", folder.display()));
    stage.fills("small", &origin, false);
    let before = tree(&origin.folder);
    let small = ["--limit", "requests_per_second=5", "--limit", "requests_burst=5"];
    stage.service.tenant("clinic", &small);
    // A rate of the tenant's is waited for.
    let report = stage.imports(&origin, "clinic", &stage.service.key_of("clinic"), &[]).json();
    assert_eq!(
        (&report["counts"]["metric points"], &report["differences_total"]),
        (&json!({"source": 70, "target": 70, "written": 70}), &json!(0))
    );
    assert_eq!(tree(&origin.folder), before, "the folder is what it was");

    let token = stage.service.key_of("clinic");
    let absent = Origin { folder: PathBuf::new(), address: "sqlite:////nowhere/mlflow.db".to_owned(), server: None };
    stage.imports(&absent, "clinic", &token, &[]).failed(1, "there is no database `/nowhere/mlflow.db`");
    let other = Origin { folder: PathBuf::new(), address: "mysql://u:geheim@h/db".to_owned(), server: None };
    let said = stage.imports(&other, "clinic", &token, &[]);
    said.failed(1, "a source of the kind `mysql` is not read from here");
    assert!(!said.error.contains("geheim"), "{}", said.error);
    stage.imports(&absent, "clinic", &token, &["--python", "/nowhere/python"]).failed(1, "cannot run `/nowhere/python`");
    let operator = stage.service.key_of("operator");
    stage.imports(&absent, "clinic", &operator, &[]).failed(4, "the operator's credential belongs to no tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_brought_along_is_given_once() {
    let Some(service) = Service::start() else { return };
    let (token, other) = (service.busy_tenant("left", "ada"), service.busy_tenant("right", "bob"));
    let ask = async |method: Method, path: &str, token: &str, body: Value| {
        let answer = service.ask(method, path, token, body).await;
        let code = serde_json::from_slice::<Value>(&answer.body).unwrap()["error_code"].as_str().unwrap_or_default().to_owned();
        (answer.status, code)
    };
    let post = async |path: &str, token: &str, body: Value| ask(Method::POST, &format!("/api/2.0/mlflow/{path}"), token, body).await;
    let (fine, taken, wrong) =
        ((200, String::new()), (400, "RESOURCE_ALREADY_EXISTS".to_owned()), (400, "INVALID_PARAMETER_VALUE".to_owned()));

    let id = "0123456789abcdef".repeat(2);
    let run = |id: &str| json!({"experiment_id": "0", "run_id": id});
    for bad in ["models", "..", &id[1..], &id.to_uppercase(), &format!("{id}/x")] {
        assert_eq!(post("runs/create", &token, run(bad)).await, wrong, "{bad}");
    }
    assert_eq!(post("runs/create", &token, run(&id)).await, fine);
    assert_eq!(post("runs/create", &token, run(&id)).await, taken);
    assert_eq!(post("runs/create", &other, run(&id)).await, fine, "another tenant does not notice");

    // A run that is swept goes in steps; until the last of it is gone nobody takes its place and finds the rest as his own.
    for part in 0..8 {
        let params: Vec<_> = (0..100).map(|at| json!({"key": format!("{part}/{at}"), "value": "x"})).collect();
        assert_eq!(post("runs/log-batch", &token, json!({"run_id": id, "params": params})).await, fine);
    }
    assert_eq!(ask(Method::PUT, "/v1/tracking", &token, json!({"retention_days": 0})).await, fine);
    assert_eq!(post("runs/delete", &token, json!({"run_id": id})).await, fine);
    let (mut refused, began) = (0, std::time::Instant::now());
    while post("runs/create", &token, run(&id)).await == taken {
        refused += 1;
        assert!(began.elapsed() < WAIT_MAX, "what is left of a run never goes");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(refused > 0, "800 records do not go at once");
    let found = service.get(&format!("/api/2.0/mlflow/runs/get?run_id={id}"), &token).await.expect(200).json();
    assert_eq!(found["run"]["data"]["params"], json!([]));

    let model = format!("m-{id}");
    let logged = |id: &str| json!({"experiment_id": "0", "model_id": id, "name": "n"});
    assert_eq!(post("logged-models", &token, logged(&id)).await, wrong);
    assert_eq!(post("logged-models", &token, logged(&model)).await, fine);
    assert_eq!(post("logged-models", &token, logged(&model)).await, taken);
    let version = |number: Value| json!({"name": "net", "source": format!("models:/{model}"), "version": number});
    assert_eq!(post("registered-models/create", &token, json!({"name": "net"})).await, fine);
    assert_eq!(post("model-versions/create", &token, version(json!("3"))).await, fine);
    for before in ["1", "2", "3"] {
        assert_eq!(post("model-versions/create", &token, version(json!(before))).await, taken, "{before}");
    }
    assert_eq!(ask(Method::DELETE, "/api/2.0/mlflow/model-versions/delete", &token, json!({"name": "net", "version": "3"})).await, fine);
    assert_eq!(post("model-versions/create", &token, version(json!("3"))).await, taken, "also that of one that was deleted");
    assert_eq!(post("model-versions/create", &token, version(json!(u64::from(u32::MAX)))).await, wrong);
    let next = service.ask(Method::POST, "/api/2.0/mlflow/model-versions/create", &token, version(Value::Null)).await.expect(200).json();
    assert_eq!(next["model_version"]["version"], "4");
}

/// All files below a folder with their lengths.
fn tree(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let (path, facts) = (entry.as_ref().unwrap().path(), entry.unwrap().metadata().unwrap());
            if facts.is_dir() {
                folders.push(path.clone());
            }
            found.push((path, if facts.is_dir() { 0 } else { facts.len() }));
        }
    }
    found.sort();
    found
}
