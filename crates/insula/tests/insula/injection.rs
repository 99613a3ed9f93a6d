//! SQL in every string that the API takes, on rows and control rows in PostgreSQL. The addresses and fields come from the service's own
//! OpenAPI document, those of MLflow's addresses from MLflow's protocol buffers; an address of MLflow's whose fields nobody knows fails the
//! test, so what is added later is tried too. What shows that a text became SQL: PostgreSQL's own log, a changed row or table, another
//! tenant's marker in an answer, or a failure of the service.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::mlflow;
use crate::nodes::cluster::{Cluster, Outcome};
use crate::nodes::stores::Kind;
use crate::world::{Body, question, rows};

/// What the other tenant has and nobody else may see.
const MARKER: &str = "marker-9f31c7";
/// Requests at once.
const AT_ONCE: usize = 6;
/// How deep a body is looked into.
const DEPTH_MAX: usize = 6;
/// Fewest requests that the walk must make, or it has walked past the API.
const REQUESTS_MIN: usize = 5000;

/// Fields of MLflow's addresses that its protocol buffers do not have; `*` stands for a parameter of the path.
const MLFLOW_FIELDS: [(&str, &[&str]); 13] = [
    ("POST /api/2.0/mlflow/experiments/permissions/create", &["experiment_id", "username", "permission"]),
    ("GET /api/2.0/mlflow/experiments/permissions/get", &["experiment_id", "username"]),
    ("PATCH /api/2.0/mlflow/experiments/permissions/update", &["experiment_id", "username", "permission"]),
    ("DELETE /api/2.0/mlflow/experiments/permissions/delete", &["experiment_id", "username"]),
    ("POST /api/2.0/mlflow/registered-models/permissions/create", &["name", "username", "permission"]),
    ("GET /api/2.0/mlflow/registered-models/permissions/get", &["name", "username"]),
    ("PATCH /api/2.0/mlflow/registered-models/permissions/update", &["name", "username", "permission"]),
    ("DELETE /api/2.0/mlflow/registered-models/permissions/delete", &["name", "username"]),
    ("GET /api/2.0/mlflow/metrics/get-history-bulk", &["run_id", "metric_key"]),
    ("GET /api/3.0/mlflow/workspaces", &[]),
    ("GET /api/2.0/mlflow/workspaces", &[]),
    ("GET /api/2.0/mlflow/workspaces/*", &[]),
    ("GET /api/3.0/mlflow/server-info", &[]),
];

/// Quotes and comments of every kind, stacked statements, unions, settings, casts, escapes, and bytes that PostgreSQL's text refuses.
const TEXTS: [&str; 12] = [
    "' OR '1'='1",
    "'; DROP TABLE insula.record; --",
    "') UNION SELECT * FROM insula.record --",
    "x'; SELECT set_config('insula.tenant', (SELECT id::text FROM insula_control.tenant LIMIT 1), true); --",
    "\" OR \"\" = \"",
    "\\'; DELETE FROM insula_control.credential; /*",
    "$1",
    "$$; TRUNCATE insula.record; $$",
    "%' ESCAPE '",
    "0::int / 0",
    "\u{2019} \u{ff07} OR 1=1",
    "nul\u{0}'byte",
];

/// Where a text goes.
#[derive(Clone, Debug)]
enum Slot {
    Path(String),
    Query(String),
    Json(Vec<String>),
    Header(&'static str),
    Form(&'static str),
    Content,
}

/// One operation of the document.
struct Operation {
    method: Method,
    path: String,
    tenants: bool,
    parameters: Vec<(String, String)>,
    body: Option<Value>,
    media: Option<String>,
    /// Of an address of MLflow's: what its request takes, in the query or in the body. As in [`fields_of`].
    fields: Option<Vec<Vec<String>>>,
}

impl Operation {
    fn is_mlflow(&self) -> bool {
        self.fields.is_some() && self.media.is_none()
    }
}

/// What is there for the attacker, by the name of the field that names it.
type There = BTreeMap<&'static str, String>;

#[tokio::test(flavor = "multi_thread")]
async fn no_text_becomes_sql() {
    let Some(known) = mlflow_fields() else { return };
    let Some(cluster) = Cluster::start(1).await else { return };
    let (attacker, victim) = (cluster.tenant("attacker", json!({"keys": 100_000, "jobs_queued": 100_000})).await, prepare(&cluster).await);
    let there = furnish(&cluster, &attacker).await;
    let before = state(&cluster);
    assert!(before.starts_with("record: ") && !before.starts_with("record: 0"), "{before}");

    let document = cluster.get("/openapi.json", "").await.expect(200).json();
    let operations = operations(&document, &known);
    let mut tries = Vec::new();
    for operation in &operations {
        let slots = slots(&document, operation);
        tries.extend(slots.into_iter().flat_map(|slot| TEXTS.map(|text| (operation, slot.clone(), text))));
    }
    let (made, counts) = (AtomicUsize::new(0), std::sync::Mutex::new(BTreeMap::<u16, usize>::new()));
    let (cluster_ref, document_ref, attacker_ref, there_ref) = (&cluster, &document, attacker.as_str(), &there);
    let ended = futures_util::stream::iter(tries).map(|(operation, slot, text)| {
        let (made, counts) = (&made, &counts);
        async move {
            let answer = attempt(cluster_ref, document_ref, attacker_ref, there_ref, operation, &slot, text).await?;
            made.fetch_add(1, Ordering::Relaxed);
            *counts.lock().unwrap().entry(answer.status).or_default() += 1;
            let told = answer.text();
            let leaks = [MARKER, "syntax error", "SQLSTATE", "PgDatabaseError"].into_iter().find(|word| told.contains(word));
            // What is not supported says so, and has met no store.
            let bad = (answer.status >= 500 && answer.status != 501) || leaks.is_some();
            bad.then(|| format!("{} {} {slot:?} {text:?}: {} {told:.300}", operation.method, operation.path, answer.status))
        }
    });
    let bad: Vec<String> = ended.buffer_unordered(AT_ONCE).filter_map(|bad| async { bad }).collect().await;
    let made = made.into_inner();
    println!("{made} requests with SQL in {} operations: {:?}", operations.len(), counts.into_inner().unwrap());
    assert!(bad.is_empty(), "{} of {made}: {:#?}", bad.len(), &bad[..bad.len().min(12)]);
    assert!(made >= REQUESTS_MIN, "{made} requests");

    assert_eq!(state(&cluster), before, "the other tenant's rows, the tables, roles and functions");
    let description = cluster.get("/v1/members/victor", &victim).await.expect(200).json()["description"].clone();
    assert_eq!(description, MARKER);
    cluster.ask(Method::POST, "/v2/models/gate/infer", &attacker, question(3.0, 1.0)).await.expect(200);
    no_trace(&cluster);
}

/// Neither the service nor PostgreSQL met anything that looks like SQL made of a text. Proves that it would be seen.
fn no_trace(cluster: &Cluster) {
    let suspicious = |log: &str| {
        let words = [
            "syntax error",
            "SQLSTATE",
            "invalid byte sequence",
            "unterminated",
            "permission denied",
            "row-level security",
            "division by zero",
        ];
        log.lines().find(|line| words.iter().any(|word| line.contains(word))).map(str::to_owned)
    };
    let stores = cluster.stores.lock().unwrap();
    let server = || fs::read_to_string(stores.log(Kind::Postgres)).unwrap();
    assert_eq!(suspicious(&cluster.logs()), None, "in the service's log");
    assert_eq!(suspicious(&server()), None, "in PostgreSQL's log");
    stores.try_sql("insula", "SELECT 1 FROM tenant WHERE name = '' OR '1'='1' '").unwrap_err();
    assert!(suspicious(&server()).is_some(), "what looks like SQL made of a text would be in the log");
}

/// The other tenant, with its marker wherever a text is kept.
async fn prepare(cluster: &Cluster) -> String {
    let victim = cluster.tenant("victim", json!({})).await;
    let body = json!({"roles": ["viewer"], "description": MARKER});
    cluster.ask(Method::PUT, "/v1/members/victor", &victim, body).await.expect(200);
    cluster.ask(Method::PUT, &format!("/v1/datasets/{MARKER}"), &victim, format!("a,b\n1,{MARKER}\n")).await.expect(201);
    victim
}

/// What the defaults of the requests name, so that they get as far as they can.
async fn furnish(cluster: &Cluster, key: &str) -> There {
    cluster.ask(Method::PUT, "/v1/members/mallory", key, json!({"roles": ["viewer"]})).await.expect(200);
    cluster.ask(Method::PUT, "/v1/datasets/rows", key, rows(120)).await.expect(201);
    let body = json!({"name": "fence", "dataset": "rows", "target": "label", "task": "classification"});
    let begun = cluster.ask(Method::POST, "/v1/trainings", key, body).await.expect(202).json();
    let path = format!("/v1/trainings/{}", begun["id"].as_str().unwrap());
    for _ in 0..600 {
        let training = cluster.get(&path, key).await.expect(200).json();
        if training["state"] == "succeeded" {
            break;
        }
        assert!(matches!(training["state"].as_str(), Some("queued" | "running")), "{training}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    cluster.ask(Method::PUT, "/v1/models/fence/aliases/best", key, json!({"version": 1})).await.expect(200);
    cluster.ask(Method::PUT, "/v1/deployments/gate", key, json!({"model": "fence", "version": 1})).await.expect(200);
    let made = async |path: &str, body: Value| cluster.ask(Method::POST, path, key, body).await.expect(200).json();
    let run = made("/api/2.0/mlflow/runs/create", json!({"experiment_id": "0"})).await["run"]["info"]["run_id"].clone();
    made("/api/2.0/mlflow/runs/log-metric", json!({"run_id": run, "key": "loss", "value": 1, "timestamp": 1})).await;
    let model = made("/api/2.0/mlflow/logged-models", json!({"experiment_id": "0"})).await["model"]["info"]["model_id"].clone();
    let info = json!({
        "trace_id": "tr-1",
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}},
        "request_time": "2026-01-31T12:00:00Z",
    });
    made("/api/3.0/mlflow/traces", json!({"trace": {"trace_info": info}})).await;
    let hook = json!({"name": "hook", "url": "https://insula.invalid/", "events": [{"entity": "MODEL_VERSION", "action": "CREATED"}]});
    let hook = made("/api/2.0/mlflow/webhooks", hook).await["webhook"]["webhook_id"].clone();
    let mut there: There = [
        ("experiment_id", "0"),
        ("experiment_ids", "0"),
        ("trace_id", "tr-1"),
        ("trace_ids", "tr-1"),
        ("request_ids", "tr-1"),
        ("name", "fence"),
        ("version", "1"),
        ("alias", "best"),
        ("username", "mallory"),
        ("permission", "READ"),
        ("metric_key", "loss"),
        ("key", "stage"),
        ("value", "1"),
        ("assessment_name", "good"),
        ("source_type", "HUMAN"),
        ("status", "READY"),
        ("stage", "Staging"),
        ("workspace_name", "attacker"),
        ("url", "https://insula.invalid/"),
        ("entity", "MODEL_VERSION"),
        ("action", "CREATED"),
        ("update_mask", "rationale"),
        ("request_time", "2026-01-31T12:00:00Z"),
        ("type", "MLFLOW_EXPERIMENT"),
        ("field_name", "name"),
    ]
    .into_iter()
    .map(|(name, value)| (name, value.to_owned()))
    .collect();
    let word = |value: Value| value.as_str().unwrap().to_owned();
    there.extend(["run_id", "run_ids"].map(|name| (name, word(run.clone()))));
    there.extend([("model_id", word(model)), ("webhook_id", word(hook))]);
    there
}

/// What MLflow's addresses take, by method and path; `None` without its own client to ask.
fn mlflow_fields() -> Option<BTreeMap<String, Vec<String>>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mlflow/fields.py");
    let told = Command::new(mlflow::python()?).arg(script).env("MLFLOW_DISABLE_TELEMETRY", "true").output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let mut known: BTreeMap<String, Vec<String>> = serde_json::from_slice(&told.stdout).unwrap();
    for (address, fields) in MLFLOW_FIELDS {
        let before = known.insert(address.to_owned(), fields.iter().map(|field| (*field).to_owned()).collect());
        assert!(before.is_none() || fields.is_empty(), "{address} is known to MLflow by now");
    }
    Some(known)
}

/// Hashes of the other tenant's rows in all tables, and the names of all tables, functions and roles.
fn state(cluster: &Cluster) -> String {
    let stores = cluster.stores.lock().unwrap();
    let sql = |text: &str| stores.sql("insula", text);
    let id = sql("SELECT encode(id, 'hex')::uuid FROM insula_control.tenant WHERE name = 'victim'");
    let mut state = String::new();
    // The others keep house and may move on by themselves: generations, the log's shipping.
    for table in ["record", "field"] {
        let rows =
            sql(&format!("SELECT count(*), md5(string_agg(r::text, ',' ORDER BY r::text)) FROM insula.{table} r WHERE tenant = '{id}'"));
        writeln!(state, "{table}: {rows}").unwrap();
    }
    state += &sql(
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema LIKE 'insula%' OR table_schema = 'public' ORDER BY 1, 2",
    );
    state += &sql(
        "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
    );
    state += &sql("SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%' ORDER BY 1");
    state + &sql("SELECT name, state FROM insula_control.tenant WHERE name IN ('victim', 'attacker') ORDER BY 1")
}

fn operations(document: &Value, known: &BTreeMap<String, Vec<String>>) -> Vec<Operation> {
    let mut found = Vec::new();
    let placeless = |path: &str| {
        let parts: Vec<_> = path.split('/').map(|part| if part.starts_with('{') { "*" } else { part }).collect();
        // An artifact's path begins with its experiment, which is a parameter of its own in other descriptions.
        parts.join("/")
    };
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let word = |value: &Value| value.as_str().unwrap().to_owned();
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let content = operation["requestBody"]["content"].as_object().and_then(|content| content.iter().next());
            let security = operation["security"].as_array().unwrap();
            let address = format!("{} {}", method.to_uppercase(), placeless(path));
            let fields = path.starts_with("/api/").then(|| {
                let fields =
                    known.get(&address).unwrap_or_else(|| panic!("which fields `{address}` takes is not known: see MLFLOW_FIELDS"));
                fields.iter().map(|field| field.split('.').map(str::to_owned).collect()).collect()
            });
            found.push(Operation {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                tenants: security.iter().any(|way| way.get("member").is_some()),
                parameters: parameters.map(|parameter| (word(&parameter["in"]), word(&parameter["name"]))).collect(),
                body: content.map(|(_, of)| of["schema"].clone()),
                media: content.map(|(media, _)| media.clone()),
                fields,
            });
        }
    }
    // What takes the names away from all others comes last.
    found.sort_by_key(|operation| operation.path.ends_with("/rename"));
    found
}

fn slots(document: &Value, operation: &Operation) -> Vec<Slot> {
    let mut found: Vec<Slot> = operation
        .parameters
        .iter()
        .map(|(place, name)| if place == "path" { Slot::Path(name.clone()) } else { Slot::Query(name.clone()) })
        .collect();
    match operation.media.as_deref() {
        Some("application/json") => {
            let mut fields = Vec::new();
            fields_of(document, operation.body.as_ref().unwrap(), &mut Vec::new(), &mut fields);
            found.extend(fields.into_iter().map(Slot::Json));
        }
        Some("application/x-www-form-urlencoded") => {
            found.extend(["grant_type", "client_id", "client_secret", "scope"].map(Slot::Form));
        }
        Some(_) => found.push(Slot::Content),
        None => {
            let in_query = operation.method == Method::GET;
            for field in operation.fields.iter().flatten() {
                let name = field.first().unwrap();
                let in_path = operation.parameters.iter().any(|(_, known)| known == name);
                match (in_path, in_query) {
                    (true, _) => {}
                    (false, true) => found.push(Slot::Query(name.clone())),
                    (false, false) => found.push(Slot::Json(field.clone())),
                }
            }
        }
    }
    if operation.path == "/v1/whoami" || operation.path == "/v1/datasets" {
        found.extend(["authorization", "x-request-id"].map(Slot::Header));
    }
    found
}

/// The schema behind references and behind `null`.
fn resolved<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return resolved(document, &document["components"]["schemas"][name]);
    }
    let mut ways = ["oneOf", "anyOf", "allOf"].into_iter().filter_map(|way| schema[way].as_array()).flatten();
    ways.find(|way| way["type"] != "null").map_or(schema, |way| resolved(document, way))
}

fn is_of(schema: &Value, kind: &str) -> bool {
    schema["type"] == kind || schema["type"].as_array().is_some_and(|kinds| kinds.iter().any(|known| known == kind))
}

/// All strings in a body: names of members from the outside in; `0` is an array's item, `*` any member's name.
fn fields_of(document: &Value, schema: &Value, at: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let schema = resolved(document, schema);
    if at.len() > DEPTH_MAX {
        return;
    }
    if is_of(schema, "string") {
        found.push(at.clone());
    }
    let mut inside = |name: &str, schema: &Value| {
        at.push(name.to_owned());
        fields_of(document, schema, at, found);
        at.pop();
    };
    for (name, of) in schema["properties"].as_object().into_iter().flatten() {
        inside(name, of);
    }
    if schema["items"].is_object() {
        inside("0", &schema["items"]);
    }
    if schema["additionalProperties"].is_object() {
        inside("member", &schema["additionalProperties"]);
        found.push([at.as_slice(), &["*".to_owned()]].concat());
    }
}

/// A body that the service takes, as far as names tell.
fn example(document: &Value, schema: &Value, name: &str, depth: usize) -> Value {
    let schema = resolved(document, schema);
    let known = match name {
        "inputs" => question(3.0, 1.0)["inputs"].clone(),
        "roles" => json!(["viewer"]),
        "shape" => json!([1, 2]),
        "dataset" => json!("rows"),
        "target" => json!("label"),
        "task" => json!("classification"),
        "model" => json!("fence"),
        "member" | "admin" => json!("mallory"),
        _ => Value::Null,
    };
    if !known.is_null() {
        return known;
    }
    if is_of(schema, "object") || schema["properties"].is_object() {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let members = required.map(|name| (name.to_owned(), example(document, &schema["properties"][name], name, depth + 1)));
        return Value::Object(if depth > DEPTH_MAX { serde_json::Map::new() } else { members.collect() });
    }
    match () {
        () if is_of(schema, "array") => json!([]),
        () if is_of(schema, "integer") || is_of(schema, "number") => json!(1),
        () if is_of(schema, "boolean") => json!(false),
        () => schema["enum"][0].as_str().map_or(json!("plain"), |word| json!(word)),
    }
}

/// Puts a text where the field is, making what is around it.
fn put(body: &mut Value, at: &[String], text: &str) {
    let Some((first, rest)) = at.split_first() else {
        *body = json!(text);
        return;
    };
    if first == "0" {
        if body.as_array().is_none_or(Vec::is_empty) {
            *body = json!([null]);
        }
        return put(&mut body[0], rest, text);
    }
    if !body.is_object() {
        *body = json!({});
    }
    if first == "*" {
        body[text] = json!("plain");
    } else {
        put(&mut body[first.as_str()], rest, text);
    }
}

/// Sends one text at one place; none where HTTP itself cannot carry it.
async fn attempt(
    cluster: &Cluster,
    document: &Value,
    attacker: &str,
    there: &There,
    operation: &Operation,
    slot: &Slot,
    text: &str,
) -> Option<crate::world::Answer> {
    let mut path = operation.path.clone();
    let mut query = String::new();
    for (place, name) in &operation.parameters {
        let chosen = matches!(slot, Slot::Path(of) | Slot::Query(of) if of == name);
        if place == "path" {
            let usual = if operation.fields.is_some() { there.get(name.as_str()).map(String::as_str) } else { None };
            let value = if chosen { encoded(text) } else { usual.unwrap_or_else(|| self::usual(&operation.path, name)).to_owned() };
            path = path.replace(&format!("{{{name}}}"), &value);
        } else if chosen {
            query = format!("?{name}={}", encoded(text));
        }
    }
    if operation.is_mlflow() && operation.method == Method::GET {
        query = mlflow_query(operation, slot, text, there);
    }
    let body = match (operation.media.as_deref(), slot) {
        (Some("application/json"), slot) => {
            let mut body = example(document, operation.body.as_ref()?, "", 0);
            if let Slot::Json(at) = slot {
                put(&mut body, at, text);
            }
            Body::Json(body)
        }
        (Some("application/x-www-form-urlencoded"), slot) => {
            let usual = [("grant_type", "client_credentials"), ("client_id", "plain"), ("client_secret", "plain")];
            let mut fields: BTreeMap<&str, &str> = usual.into_iter().collect();
            if let Slot::Form(name) = slot {
                fields.insert(name, text);
            }
            Body::Form(fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&"))
        }
        (Some(_), Slot::Content) => {
            Body::Bytes(format!("a,\"{}\"\n1,\"{}\"\n", text.replace('"', "\"\""), text.replace('"', "\"\"")).into())
        }
        (Some(_), _) => Body::Bytes(rows(8).into()),
        (None, slot) if operation.is_mlflow() && operation.method != Method::GET => Body::Json(mlflow_body(operation, slot, text, there)),
        (None, _) => Body::None,
    };
    let own = if operation.tenants { attacker } else { &cluster.operator };
    let (token, id) = match slot {
        Slot::Header("authorization") => (format!("{own}{text}"), None),
        Slot::Header(_) => (own.to_owned(), Some(text)),
        _ => (own.to_owned(), None),
    };
    let in_header = matches!(slot, Slot::Header(_)) && !text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if in_header {
        return None;
    }
    match cluster.try_at(0, operation.method.clone(), &format!("{path}{query}"), &token, id, body).await {
        Outcome::Answer(answer) => Some(answer),
        Outcome::Unsent | Outcome::Lost => panic!("{} {path}{query}: no answer", operation.method),
    }
}

/// The fields of a request of MLflow's that are known, and the text in its place.
fn mlflow_query(operation: &Operation, slot: &Slot, text: &str, there: &There) -> String {
    let mut pairs: BTreeMap<&str, &str> = BTreeMap::new();
    for field in operation.fields.iter().flatten() {
        pairs.extend(there.get(field[0].as_str()).map(|value| (field[0].as_str(), value.as_str())));
    }
    if let Slot::Query(name) = slot {
        pairs.insert(name, text);
    }
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    format!("?{}", pairs.join("&"))
}

/// The same as a body. What lies beside the text is there too, so that the request gets as far as it can.
fn mlflow_body(operation: &Operation, slot: &Slot, text: &str, there: &There) -> Value {
    let mut body = json!({
        "timestamp": 1,
        "events": [{"entity": "MODEL_VERSION", "action": "CREATED"}],
        "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}],
    });
    let at: &[String] = if let Slot::Json(at) = slot { at } else { &[] };
    let passes = |path: &[String], words: &[&str]| path.iter().any(|part| words.contains(&part.as_str()));
    for field in operation.fields.iter().flatten() {
        let named = field.len() - usize::from(field.last().is_some_and(|part| part == "0"));
        let (around, name) = (&field[..named - 1], &field[named - 1]);
        let shared = around.iter().zip(at).take_while(|(one, other)| one == other).count();
        // Another list may need more than is known here.
        let beside = around.is_empty() || (shared > 0 && !around[shared..].contains(&"0".to_owned()));
        // An assessment says one thing.
        let other = passes(around, &["expectation"]) || (passes(around, &["feedback"]) && passes(at, &["expectation", "issue"]));
        if let Some(value) = there.get(name.as_str()).filter(|_| beside && !other) {
            put(&mut body, field, value);
        }
    }
    if !at.is_empty() {
        put(&mut body, at, text);
    }
    body
}

/// What is there under this parameter's name.
fn usual(path: &str, name: &str) -> &'static str {
    match name {
        "name" if path.starts_with("/v1/datasets") => "rows",
        "name" if path.starts_with("/v1/models") => "fence",
        "name" if path.starts_with("/v1/members") => "mallory",
        "name" if path.starts_with("/v1/tenants") => "attacker",
        "name" => "gate",
        "version" => "1",
        "alias" => "best",
        "key" => "stage",
        "index" => "0",
        "path" => "0/000",
        _ => "absent",
    }
}

/// Everything but letters and digits as per cent.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}
