//! The canary sweep. Two tenants put a mark of their own into everything they can name or say, play the main job with its errors, and
//! then the marks are searched everywhere but at home: in all that the other tenant and the operator can read, in the logs, the
//! metrics, every file, and what the system shows of the processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::oip;
use crate::world::{Body, Service, family};

/// Largest file of a temporary folder that is searched, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Rows of the data set.
const ROWS: usize = 240;

/// A text that cannot be there by chance, in the forms in which it could travel.
struct Mark {
    name: String,
    forms: Vec<Vec<u8>>,
}

impl Mark {
    fn new(name: &str) -> Self {
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
        let text = format!("zq{name}{nanos:09}{:05}qz", std::process::id());
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![text.clone().into_bytes(), text.to_uppercase().into_bytes(), hex.clone().into_bytes()];
        forms.push(hex.to_uppercase().into_bytes());
        forms.push(text.encode_utf16().flat_map(u16::to_le_bytes).collect());
        // In base64 three alignments are possible; the ends depend on what stands beside.
        for shift in 0..3 {
            let encoded = STANDARD_NO_PAD.encode([&b"\0\0\0"[..shift], text.as_bytes()].concat());
            forms.push(encoded.as_bytes()[4..encoded.len() - 4].to_vec());
        }
        Self { name: text, forms }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms.iter().any(|form| contains(bytes, form))
    }
}

fn contains(bytes: &[u8], form: &[u8]) -> bool {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == form[0]).map(|at| at + from) {
        if bytes[at..].starts_with(form) {
            return true;
        }
        from = at + 1;
    }
    false
}

/// One of the two, and what it left where.
struct Part {
    /// In what it calls itself and its requests: the operator's log may hold this, to answer for who did what.
    who: Mark,
    /// In everything that is its content.
    what: Mark,
    key: String,
    training: String,
    prediction: String,
    run: String,
    key_id: String,
    /// Its things in MLflow, by the name of the field or of the path's parameter.
    mlflow: Vec<(&'static str, String)>,
}

impl Part {
    fn dataset(&self) -> String {
        format!("data-{}", self.what.name)
    }

    fn model(&self) -> String {
        format!("model-{}", self.what.name)
    }

    fn deployment(&self) -> String {
        format!("gate-{}", self.what.name)
    }

    fn member(&self) -> String {
        format!("m-{}", self.who.name)
    }

    /// A path of the API with this tenant's things in it, in as many ways as there are.
    fn paths(&self, path: &str) -> Vec<String> {
        if path.starts_with("/api/") {
            return vec![self.mlflow_path(path)];
        }
        let name = if path.contains("/datasets/") {
            self.dataset()
        } else if path.contains("/v1/models/") {
            self.model()
        } else if path.contains("/v2/") || path.contains("/deployments/") {
            self.deployment()
        } else if path.contains("/members/") {
            self.member()
        } else {
            self.who.name.clone()
        };
        let ids = [&self.training, &self.prediction, &self.run, &self.key_id];
        let path = path.replace("{name}", &name).replace("{version}", "1").replace("{alias}", &format!("alias-{}", self.what.name));
        match () {
            () if path.contains("{id}") => ids.iter().map(|id| path.replace("{id}", id)).collect(),
            () if path.contains("{index}") => (0..60).map(|index| path.replace("{index}", &index.to_string())).collect(),
            () if path.contains("{path}") => {
                let tiles =
                    ["checkpoint", "tile/0/000", "tile/entries/000", "tile/0/000.p/1", "tile/entries/000.p/1", "0/000", "entries/000"];
                tiles.iter().map(|tile| path.replace("{path}", tile)).collect()
            }
            () if path.contains("proofs/inclusion") => vec![format!("{path}?index=0")],
            () if path.contains("proofs/consistency") => vec![format!("{path}?from=1")],
            () => vec![path],
        }
    }
}

impl Part {
    /// An address of MLflow with this tenant's things in its path, and in its query where it has one.
    fn mlflow_path(&self, template: &str) -> String {
        let value = |name: &str| self.mlflow.iter().find(|(known, _)| *known == name).map_or(self.what.name.as_str(), |(_, value)| value);
        let segments: Vec<&str> = template
            .split('/')
            .map(|segment| segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')).map_or(segment, value))
            .collect();
        let path = segments.join("/");
        if template.contains("{path}") {
            return path;
        }
        let fields = ["experiment_id", "run_id", "model_id", "name", "alias", "experiment_name", "metric_key", "path"];
        let query: Vec<String> = fields.iter().map(|field| format!("{field}={}", value(field))).collect();
        format!("{path}?{}", query.join("&"))
    }
}

/// All that a credential can read with `GET`, asking for the things of `of`.
async fn readable(service: &Service, key: &str, of: &Part) -> Vec<(String, Vec<u8>)> {
    let document = service.get("/openapi.json", key).await.expect(200).json();
    let mut found = Vec::new();
    for (template, methods) in document["paths"].as_object().unwrap() {
        if methods.get("get").is_none() {
            continue;
        }
        for path in of.paths(template) {
            assert!(!path.contains('{'), "the sweep does not know how to ask for {template}");
            let answer = service.get(&path, key).await;
            found.push((path, [answer.headers.into_bytes(), answer.body].concat()));
        }
    }
    assert!(found.len() > 60, "the document lists {} ways to read", found.len());
    found.extend(called(service, key, of));
    found
}

/// What all methods over gRPC answer about the deployment of `of`.
fn called(service: &Service, key: &str, of: &Part) -> Vec<(String, Vec<u8>)> {
    let Some(python) = oip::python() else { return Vec::new() };
    let address = service.url.strip_prefix("https://").unwrap();
    let mut command = Command::new(python);
    command.arg(format!("{}/tests/insula/canary_grpc.py", env!("CARGO_MANIFEST_DIR"))).args([address, service.cacert.to_str().unwrap()]);
    command.args([of.deployment(), tensors(&of.what.name).to_string()]).env("INSULA_TOKEN", key);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: BTreeMap<String, String> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told.len() > 15, "Triton's protocol has more methods than {told:?}");
    let bytes = |hex: &str| (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    told.into_iter().map(|(method, hex)| (format!("grpc {method}"), bytes(&hex))).collect()
}

async fn play(service: &Service, tenant: &str) -> Part {
    let (who, what) = (Mark::new(&format!("who{tenant}")), Mark::new(&format!("what{tenant}")));
    let key = service.busy_tenant(&who.name, &format!("a-{}", who.name));
    let none = String::new;
    let mut part = Part { who, what, key, training: none(), prediction: none(), run: none(), key_id: none(), mlflow: Vec::new() };
    let (mark, id) = (part.what.name.clone(), part.who.name.clone());
    let key = part.key.clone();
    let ask = async |method: Method, path: &str, body: Body, status: u16| {
        let answer = service.try_ask(method, path, &key, Some(&id), body).await.unwrap();
        answer.expect(status)
    };
    let (dataset, model, gate) = (part.dataset(), part.model(), part.deployment());
    ask(Method::PUT, &format!("/v1/members/{}", part.member()), json!({"roles": ["viewer"], "description": mark}).into(), 200).await;
    let made = ask(Method::POST, "/v1/keys", json!({"name": format!("key-{mark}"), "member": part.member()}).into(), 201).await;
    part.key_id = made.json()["key"]["id"].as_str().unwrap().to_owned();
    let line = |row: usize| {
        let (town, class) = (if row.is_multiple_of(2) { &mark } else { "elsewhere" }, if row % 12 > row / 20 { &mark } else { "down" });
        format!("{},{},{town},free-{mark},{class}\n", row % 12, row / 12)
    };
    let csv = format!("x,y,town-{mark},text-{mark},class-{mark}\n{}", (0..ROWS).map(line).collect::<String>());
    ask(Method::PUT, &format!("/v1/datasets/{dataset}"), csv.into(), 201).await;
    let training = json!({
        "name": model, "dataset": dataset, "target": format!("class-{mark}"), "task": "classification", "exclude": [format!("text-{mark}")],
    });
    let started = ask(Method::POST, "/v1/trainings", training.clone().into(), 202).await.json();
    part.training = started["id"].as_str().unwrap().to_owned();
    let ended = service.trained(&part.training, &part.key).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
    part.run = ended["run_id"].as_str().unwrap().to_owned();
    let describe = json!({"description": format!("about {mark}")});
    ask(Method::PUT, &format!("/v1/models/{model}"), describe.into(), 200).await;
    ask(Method::PUT, &format!("/v1/models/{model}/tags/{mark}"), json!({"value": format!("tag-{mark}")}).into(), 204).await;
    ask(Method::PUT, &format!("/v1/models/{model}/aliases/alias-{mark}"), json!({"version": 1}).into(), 200).await;
    ask(Method::PUT, &format!("/v1/deployments/{gate}"), json!({"model": model, "alias": format!("alias-{mark}")}).into(), 200).await;
    let answer = ask(Method::POST, &format!("/v2/models/{gate}/infer"), tensors(&mark).into(), 200).await;
    assert!(part.what.is_in(&answer.body), "the class comes back with its mark: {}", answer.text());
    let answers = json!({"deployment": gate, "dataset": dataset, "into": format!("answers-{mark}"), "keep": [format!("town-{mark}")]});
    let job = ask(Method::POST, "/v1/predictions", answers.into(), 202).await.json();
    part.prediction = job["id"].as_str().unwrap().to_owned();
    errors(service, &part, &training).await;
    let done = service.ended(&format!("/v1/predictions/{}", part.prediction), &part.key).await;
    assert_eq!(done["state"], "succeeded", "{done}");
    part.mlflow = tracked(service, &part).await;
    part
}

/// What MLflow's clients leave: the mark in names, values, tags, a file and its name, a logged model, a trace of a request.
async fn tracked(service: &Service, part: &Part) -> Vec<(&'static str, String)> {
    let mark = &part.what.name;
    let ask = async |method: Method, path: &str, body: Body| {
        let path = format!("/api/2.0/{path}");
        service.try_ask(method, &path, &part.key, Some(&part.who.name), body).await.unwrap().expect(200).json()
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let tags = json!([{"key": mark, "value": mark}]);
    let body = json!({"name": format!("experiment-{mark}"), "tags": tags});
    let experiment = text(&ask(Method::POST, "mlflow/experiments/create", body.into()).await["experiment_id"]);
    let body = json!({"experiment_id": experiment, "run_name": format!("run-{mark}"), "tags": tags});
    let run = text(&ask(Method::POST, "mlflow/runs/create", body.into()).await["run"]["info"]["run_id"]);
    let batch = json!({
        "run_id": run, "tags": tags, "params": [{"key": mark, "value": mark}],
        "metrics": [{"key": format!("metric-{mark}"), "value": 1.5, "timestamp": 1, "step": 0}],
    });
    ask(Method::POST, "mlflow/runs/log-batch", batch.into()).await;
    let path = format!("{experiment}/{run}/artifacts/file-{mark}.txt");
    ask(Method::PUT, &format!("mlflow-artifacts/artifacts/{path}"), mark.as_str().into()).await;
    let body = json!({"experiment_id": experiment, "name": format!("logged-{mark}"), "source_run_id": run, "tags": tags});
    let model = text(&ask(Method::POST, "mlflow/logged-models", body.into()).await["model"]["info"]["model_id"]);
    let found = json!({"experiment_ids": [experiment], "filter": format!("params.`{mark}` = '{mark}'")});
    assert_eq!(ask(Method::POST, "mlflow/runs/search", found.into()).await["runs"].as_array().unwrap().len(), 1);
    vec![
        ("experiment_id", experiment),
        ("experiment_name", format!("experiment-{mark}")),
        ("run_id", run),
        ("model_id", model),
        ("name", part.model()),
        ("alias", format!("alias-{mark}")),
        ("metric_key", format!("metric-{mark}")),
        ("path", path),
    ]
}

/// A prediction with the mark in a name, a value and the id.
fn tensors(mark: &str) -> Value {
    let tensor = |name: &str, datatype: &str, value: Value| json!({"name": name, "shape": [1, 1], "datatype": datatype, "data": [value]});
    let town = tensor(&format!("town-{mark}"), "BYTES", json!(mark));
    json!({"id": mark, "inputs": [tensor("x", "FP32", json!(11)), tensor("y", "FP32", json!(0)), town]})
}

/// What is refused, early and late, with the mark in it.
async fn errors(service: &Service, part: &Part, training: &Value) {
    let mark = &part.what.name;
    let (dataset, gate, model) = (part.dataset(), part.deployment(), part.model());
    let with = |field: &str, value: Value| {
        let mut changed = training.clone();
        changed[field] = value;
        Body::Json(changed)
    };
    let infer = format!("/v2/models/{gate}/infer");
    let tensor = |field: &str, value: Value| {
        let mut changed = tensors(mark);
        changed["inputs"][0][field] = value;
        Body::Json(changed)
    };
    let versions = format!("/v1/models/{model}/versions");
    let cases: Vec<(Method, String, Body)> = vec![
        (Method::PUT, format!("/v1/datasets/{dataset}"), format!("a,b\n1,2\n{mark},{mark},{mark}\n").into()),
        (Method::PUT, format!("/v1/datasets/{dataset}"), format!("{mark},{mark}\n1,2\n").into()),
        (Method::PUT, format!("/v1/datasets/{dataset}"), format!("{{\"{mark}\": {{\"{mark}\": 1}}}}\n").into()),
        (Method::PUT, format!("/v1/datasets/{dataset}"), [b"PAR1", mark.as_bytes(), b"PAR1"].concat().into()),
        (Method::PUT, format!("/v1/datasets/{mark}%20x"), "a\n1\n".into()),
        (Method::PUT, format!("/v1/datasets/{dataset}?format={mark}"), "a\n1\n".into()),
        (Method::GET, format!("/v1/datasets?after={mark}&{mark}=1"), Body::None),
        (Method::GET, format!("/{mark}"), Body::None),
        (Method::GET, format!("/v1/datasets/{mark}"), Body::None),
        (Method::POST, "/v1/trainings".into(), with("target", json!(format!("none-{mark}")))),
        (Method::POST, "/v1/trainings".into(), with(mark, json!(1))),
        (Method::POST, "/v1/trainings".into(), with("task", json!(mark))),
        (Method::POST, "/v1/trainings".into(), with("dataset", json!(mark))),
        (Method::PUT, format!("/v1/deployments/{gate}"), json!({"model": mark, "version": 1}).into()),
        (Method::POST, versions.clone(), mark.as_str().into()),
        (Method::POST, versions, [b"\x08\x07\x12", mark.as_bytes()].concat().into()),
        (Method::POST, infer.clone(), tensor("name", json!(mark))),
        (Method::POST, infer.clone(), tensor("datatype", json!(mark))),
        (Method::POST, infer.clone(), tensor("data", json!([mark]))),
        (Method::POST, infer.clone(), json!({mark: 1, "inputs": []}).into()),
        (Method::POST, infer, format!("{{{mark}").into()),
        (Method::POST, "/v1/keys".into(), json!({"name": "k", "member": format!("none-{mark}")}).into()),
        (Method::PATCH, format!("/v1/members/{mark}"), Body::None),
    ];
    for (method, path, body) in cases {
        let answer = service.ask(method, &path, &part.key, body).await;
        assert!((400..500).contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
    }
    service.get("/v1/whoami", mark).await.expect(401);
    service.get("/v1/whoami", &format!("insula_{mark}")).await.expect(401);
    // These are refused by the job itself, and its message names the column.
    for (field, value) in [("task", json!("regression")), ("exclude", json!([format!("class-{mark}")])), ("parameters", json!({mark: 1}))] {
        let answer = service.ask(Method::POST, "/v1/trainings", &part.key, with(field, value)).await;
        if answer.status == 202 {
            let ended = service.trained(answer.json()["id"].as_str().unwrap(), &part.key).await;
            assert_eq!(ended["state"], "failed", "{ended}");
        }
    }
}

/// Every file below a folder, with its name.
fn files(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_dir() {
            files(&path, found);
        }
        let small = entry.metadata().is_ok_and(|facts| facts.len() <= FILE_BYTES_MAX);
        let content = if kind.is_file() && small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        found.push((path.display().to_string(), [path.as_os_str().as_encoded_bytes(), b"\n", &content].concat()));
    }
}

/// What the system shows of a process to others: its arguments, environment, names, open files and mappings.
fn shown(pid: u32) -> (String, Vec<u8>) {
    let folder = format!("/proc/{pid}");
    let mut bytes = Vec::new();
    for file in ["cmdline", "environ", "comm", "status", "maps", "mountinfo", "cgroup"] {
        bytes.extend(fs::read(format!("{folder}/{file}")).unwrap_or_default());
    }
    for entry in fs::read_dir(format!("{folder}/fd")).into_iter().flatten().flatten() {
        bytes.extend(fs::read_link(entry.path()).unwrap_or_default().into_os_string().into_encoded_bytes());
    }
    (folder, bytes)
}

fn found_in(mark: &Mark, places: &[(String, Vec<u8>)]) -> BTreeSet<String> {
    places.iter().filter(|(_, bytes)| mark.is_in(bytes)).map(|(place, _)| place.clone()).collect()
}

#[test]
fn a_mark_is_found_in_all_its_forms() {
    let mark = Mark::new("x");
    let text = mark.name.as_bytes();
    for before in 0..3 {
        let wrapped = [&b"abc"[..before], text, b"de"].concat();
        assert!(mark.is_in(&wrapped));
        assert!(mark.is_in(STANDARD_NO_PAD.encode(&wrapped).as_bytes()), "base64 after {before}");
    }
    assert!(mark.is_in(text.iter().map(|byte| format!("{byte:02x}")).collect::<String>().as_bytes()));
    assert!(!mark.is_in(&text[1..]) && !mark.is_in(b""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_marks_are_nowhere_but_at_home() {
    let Some(service) = Service::start() else { return };
    let parts = [play(&service, "clinic").await, play(&service, "zoo").await];
    let operator = service.key_of("operator");
    let processes = family(service.pid());
    assert!(processes.len() >= 4, "a service, its fork server and two cells: {processes:?}");
    let shown: Vec<_> = processes.into_iter().map(shown).collect();
    assert!(shown.iter().all(|(_, bytes)| !bytes.is_empty()));
    let mut stored = Vec::new();
    for folder in ["data", "keystore", "tmp"] {
        files(&service.home.path().join(folder), &mut stored);
    }
    assert!(stored.iter().any(|(place, bytes)| place.ends_with("rows.db") && bytes.len() > 4096), "the sweep sees the stores");
    for folder in ["/dev/shm", "/var/tmp"] {
        files(Path::new(folder), &mut stored);
    }
    let log = [fs::read(service.path("log")).unwrap(), fs::read(service.path("out")).unwrap()].concat();
    assert!(contains(&log, b"DEBUG"), "the log has all it can have");
    assert!(parts.iter().all(|part| part.who.is_in(&log)), "the log says who asked, so the search in it would find more");
    // First everybody asks for their own things, then for the other's: what one asked for stands in one's own log.
    let mut own = Vec::new();
    for part in &parts {
        own.push(readable(&service, &part.key, part).await);
    }
    for (at, part) in parts.iter().enumerate() {
        let (other, name) = (&parts[1 - at], &part.what.name);
        at_home(part, &own[at]);
        let foreign = readable(&service, &other.key, part).await;
        let foreign: Vec<_> = foreign.into_iter().filter(|(path, _)| !path.starts_with("/v1/ledger")).collect();
        for mark in [&part.who, &part.what] {
            assert_eq!(found_in(mark, &own[1 - at]), BTreeSet::new(), "the other tenant reads it among its own things");
            assert_eq!(found_in(mark, &foreign), BTreeSet::new(), "the other tenant reads it by asking for it");
            assert_eq!(found_in(mark, &stored), BTreeSet::new(), "it is stored in clear");
            assert_eq!(found_in(mark, &shown), BTreeSet::new(), "the system shows it");
        }
        let lines =
            String::from_utf8_lossy(&log).lines().filter(|line| part.what.is_in(line.as_bytes())).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines, Vec::<String>::new(), "the log holds content");
        let operators = readable(&service, &operator, part).await;
        assert_eq!(found_in(&part.what, &operators), BTreeSet::new(), "the operator reads content");
        let page = service.get("/metrics", &operator).await.expect(200);
        assert!(contains(&page.body, part.who.name.as_bytes()), "the operator's metrics count by tenant");
        for principal in [part.member(), format!("a-{}", part.who.name)] {
            assert!(!contains(&page.body, principal.as_bytes()), "the operator's metrics name members");
        }
        // The sweep over files would have seen it.
        let planted = service.home.path().join("tmp/planted");
        fs::write(&planted, format!("x{name}x")).unwrap();
        let mut again = Vec::new();
        files(&service.home.path().join("tmp"), &mut again);
        assert_eq!(found_in(&part.what, &again).len(), 1);
        fs::remove_file(planted).unwrap();
    }
}

/// The marks are where they must be, or the sweep searched for nothing.
fn at_home(part: &Part, own: &[(String, Vec<u8>)]) {
    let found = found_in(&part.what, own);
    let (dataset, model, gate) = (part.dataset(), part.model(), part.deployment());
    for place in [
        "/v1/datasets".to_owned(),
        format!("/v1/datasets/{dataset}"),
        format!("/v1/datasets/{dataset}/versions/1"),
        format!("/v1/datasets/{dataset}/versions/1/content"),
        format!("/v1/datasets/{dataset}/versions/1/preview"),
        "/v1/models".to_owned(),
        format!("/v1/models/{model}"),
        format!("/v1/models/{model}/versions/1"),
        format!("/v1/models/{model}/versions/1/content"),
        format!("/v1/models/{model}/aliases"),
        "/v1/deployments".to_owned(),
        format!("/v1/deployments/{gate}"),
        format!("/v2/models/{gate}"),
        "/v1/trainings".to_owned(),
        format!("/v1/trainings/{}", part.training),
        "/v1/predictions".to_owned(),
        format!("/v1/predictions/{}", part.prediction),
        "/v1/runs".to_owned(),
        format!("/v1/runs/{}", part.run),
        "/v1/keys".to_owned(),
        "/v1/ledger".to_owned(),
        format!("/v1/members/{}", part.member()),
    ] {
        assert!(found.contains(&place), "{place} does not hold the mark of its own tenant");
    }
    if own.iter().any(|(place, _)| place.starts_with("grpc ")) {
        for method in ["ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex", "ModelInfer", "ModelStreamInfer"] {
            assert!(found.contains(&format!("grpc {method}")), "{method} does not hold the mark of its own tenant");
        }
    }
    let who = found_in(&part.who, own);
    for place in ["/v1/whoami", "/v1/tenant", "/v1/members", "/v1/ledger"] {
        assert!(who.contains(place), "{place} does not hold the mark of its own tenant");
    }
}
