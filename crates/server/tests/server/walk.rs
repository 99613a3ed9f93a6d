//! The endpoint walk: every address of the running router × every kind of credential × own, foreign and absent things.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use server::{Access, RouteInfo};

use crate::harness::{Answer, Insula, fresh_id, rows};

/// Addresses that anybody may call. There is no switch that writes this list: a new public address is added by hand.
const PUBLIC: [&str; 16] = [
    "GET /.well-known/jwks.json",
    "GET /.well-known/oauth-authorization-server",
    "GET /api/3.0/mlflow/server-info",
    "GET /health",
    "GET /healthz",
    "GET /openapi.json",
    "GET /readyz",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /version",
    "POST /inference.GRPCInferenceService/ServerLive",
    "POST /inference.GRPCInferenceService/ServerMetadata",
    "POST /inference.GRPCInferenceService/ServerReady",
    "POST /oauth/token",
    "POST /v1/bootstrap",
];

const ABSENT: &str = "absent";

/// Two tenants; the first has one of everything.
struct World {
    insula: Insula,
    admin: String,
    other: String,
    viewer: String,
    invoker: String,
    auditor: String,
    expired: String,
    /// By the kind in the path.
    ids: BTreeMap<&'static str, String>,
    /// By the name of the field, or of the path's parameter, on MLflow addresses.
    fields: BTreeMap<&'static str, String>,
}

impl World {
    async fn new() -> Self {
        // More is refused here in a second than to anybody who means well.
        let insula = Insula::start_with("[limits]\nrefusals_per_second = 100000").await;
        let (admin, other) = (insula.tenant("alpha").await, insula.tenant("beta").await);
        let viewer = insula.member(&admin, "vera", "viewer").await;
        let invoker = insula.member(&admin, "ivan", "invoker").await;
        let auditor = insula.member(&admin, "otto", "auditor").await;
        let expired = expired_key(&insula, &admin).await;
        insula.upload(&admin, "flowers", rows()).await.expect(201);
        let training = json!({"name": "fence", "dataset": "flowers", "target": "label", "task": "classification"});
        let training = insula.post("/v1/trainings", &admin, training).await.expect(202).json()["id"].as_str().unwrap().to_owned();
        let run = trained(&insula, &admin, &training).await;
        insula.put("/v1/models/fence/aliases/champion", &admin, json!({"version": 1})).await.expect(200);
        insula.put("/v1/models/fence/tags/stage", &admin, json!({"value": "x"})).await.expect(204);
        insula.put("/v1/models/fence/versions/1/tags/stage", &admin, json!({"value": "x"})).await.expect(204);
        insula.put("/v1/models/fence/gate", &admin, json!({"aliases": ["later"], "approval": true})).await.expect(200);
        insula.put("/v1/deployments/portcullis", &admin, json!({"model": "fence", "alias": "champion"})).await.expect(200);
        let answers = json!({"deployment": "portcullis", "dataset": "flowers", "into": "answers", "keep": ["label"]});
        let prediction = insula.post("/v1/predictions", &admin, answers).await.expect(202).json()["id"].as_str().unwrap().to_owned();
        // Somebody of whom nothing else here depends: the walk may remove them.
        let spare = insula.member(&admin, "mona", "viewer").await;
        let key = insula.get("/v1/whoami", &spare).await.json()["credential"].as_str().unwrap().to_owned();
        let experiment = json!({"name": "walk"});
        let experiment =
            insula.post("/api/2.0/mlflow/experiments/create", &admin, experiment).await.expect(200).json()["experiment_id"].clone();
        let logged_run = insula.post("/api/2.0/mlflow/runs/create", &admin, json!({"experiment_id": experiment})).await.expect(200).json();
        let logged = json!({"experiment_id": experiment, "name": "walked"});
        let logged = insula.post("/api/2.0/mlflow/logged-models", &admin, logged).await.expect(200).json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let fields = BTreeMap::from([
            ("experiment_id", text(&experiment)),
            ("run_id", text(&logged_run["run"]["info"]["run_id"])),
            ("run_uuid", text(&logged_run["run"]["info"]["run_id"])),
            ("model_id", text(&logged["model"]["info"]["model_id"])),
            ("name", "fence".to_owned()),
            ("username", "mona".to_owned()),
        ]);
        let ids = BTreeMap::from([
            ("members", "mona".to_owned()),
            ("keys", key),
            ("datasets", "flowers".to_owned()),
            ("trainings", training),
            ("predictions", prediction),
            ("runs", run),
            ("models", "fence".to_owned()),
            ("deployments", "portcullis".to_owned()),
        ]);
        Self { insula, admin, other, viewer, invoker, auditor, expired, ids, fields }
    }

    /// The path of a route about a thing that is there, or about one that is not.
    fn path(&self, route: &RouteInfo, there: bool) -> String {
        let mut segments: Vec<String> = route.path.split('/').map(str::to_owned).collect();
        let kind = if route.path.starts_with("/v2/") { "deployments" } else { route.path.split('/').nth(2).unwrap_or_default() };
        let mut first = true;
        for segment in &mut segments {
            let value = match segment.as_str() {
                "{version}" => "1",
                "{alias}" => "champion",
                "{key}" => "stage",
                "{index}" => "0",
                "{path...}" if route.path.starts_with("/api/") => "walk/file.txt",
                "{path...}" => "0/000.p/1",
                named if route.path.starts_with("/api/") => match named.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                    Some("experiment" | "experiment_id") if there => &self.fields["experiment_id"],
                    Some("experiment" | "experiment_id") => "7777",
                    Some(name) if first && there => self.fields.get(name).map_or(ABSENT, String::as_str),
                    Some(_) => ABSENT,
                    None => continue,
                },
                "{name}" | "{id}" if first && there => self.ids.get(kind).map_or(ABSENT, String::as_str),
                "{name}" | "{id}" => ABSENT,
                _ => continue,
            };
            first = false;
            *segment = value.to_owned();
        }
        segments.join("/")
    }

    /// What an MLflow address is told to be about.
    fn field(&self, route: &RouteInfo, there: bool) -> Option<(&'static str, &str)> {
        let field = route.field.filter(|field| !field.is_empty())?;
        if route.path == "/api/2.0/mlflow/registered-models/create" {
            return Some((field, "made-by-the-walk")); // what is made is not there before
        }
        let absent = if field == "experiment_id" { "7777" } else { ABSENT };
        Some((field, self.fields.get(field).map(String::as_str).filter(|_| there).unwrap_or(absent)))
    }

    /// Whether it is about one thing.
    fn names_something(&self, route: &RouteInfo) -> bool {
        self.path(route, true) != self.path(route, false) || self.field(route, true) != self.field(route, false)
    }

    /// The answer without the name that was asked for: MLflow's errors repeat it.
    fn comparable(&self, route: &RouteInfo, there: bool, answer: &Answer) -> (u16, Vec<(String, String)>, String) {
        let (status, mut headers, body) = answer.comparable();
        if route.path.starts_with("/api/") {
            headers.retain(|(name, _)| name != "content-length");
        }
        let path = self.path(route, there);
        let named = path.split('/').filter(|_| route.path.starts_with("/api/")).zip(route.path.split('/'));
        let in_path = named.filter(|(_, segment)| segment.starts_with('{')).map(|(value, _)| value);
        let body = in_path.chain(self.field(route, there).map(|(_, value)| value)).fold(body, |body, value| body.replace(value, "…"));
        (status, headers, body)
    }

    async fn ask(&self, route: &RouteInfo, there: bool, token: Option<&str>) -> Answer {
        self.ask_as(route, there, token, &fresh_id()).await
    }

    async fn ask_as(&self, route: &RouteInfo, there: bool, token: Option<&str>, id: &str) -> Answer {
        let writes = matches!(route.method, Method::PUT | Method::POST);
        // A body that no address takes: nothing is changed by the walk.
        let mut body = (writes && !takes_no_body(route)).then(|| json!({"no_such_field": 1}));
        let mut path = self.path(route, there);
        if let Some((field, value)) = self.field(route, there) {
            match route.method {
                Method::GET => path = format!("{path}?{field}={value}"),
                _ => body.get_or_insert_with(|| json!({}))[field] = json!(value),
            }
        }
        // A name is all that this address needs: it gets tags that are none.
        if let Some(body) = body.as_mut().filter(|_| route.operation == "mlflow_model_create") {
            body["tags"] = json!(1);
        }
        // A data set may be any text, so that address is told what to expect.
        let format = if route.operation.starts_with("dataset_") && writes { "?format=parquet" } else { "" };
        self.insula.call_as(route.method.clone(), &format!("{path}{format}"), token, body, Some(id)).await
    }

    fn tenant_routes(&self) -> Vec<RouteInfo> {
        server::routes().into_iter().filter(|route| matches!(route.access, Access::Tenant { .. } | Access::Either { .. })).collect()
    }
}

fn takes_no_body(route: &RouteInfo) -> bool {
    matches!(
        route.operation,
        "keyring_rotate"
            | "training_cancel"
            | "prediction_cancel"
            | "deployment_promote"
            | "deployment_rollback"
            | "tenant_suspend"
            | "tenant_resume"
    )
}

async fn expired_key(insula: &Insula, admin: &str) -> String {
    let ends = time::OffsetDateTime::now_utc() + Duration::from_millis(1500);
    let ends = ends.format(&time::format_description::well_known::Rfc3339).unwrap();
    let key = insula.post("/v1/keys", admin, json!({"name": "short", "member": "ada", "expires_at": ends})).await.expect(201);
    let key = key.json()["secret"].as_str().unwrap().to_owned();
    insula.get("/v1/whoami", &key).await.expect(200);
    tokio::time::timeout(Duration::from_secs(10), async {
        while insula.get("/v1/whoami", &key).await.status != 401 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the key expires");
    key
}

/// Waits for a training to succeed; the id of its run.
pub(crate) async fn trained(insula: &Insula, admin: &str, training: &str) -> String {
    let mut last = Value::Null;
    for _ in 0..600 {
        last = insula.get(&format!("/v1/trainings/{training}"), admin).await.expect(200).json();
        match last["state"].as_str().unwrap() {
            "succeeded" => return last["run_id"].as_str().unwrap().to_owned(),
            "failed" | "cancelled" => break,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    panic!("the training did not succeed: {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_addresses_are_these_and_no_others() {
    let mut public: Vec<String> = server::routes()
        .iter()
        .filter(|route| route.access == Access::Public)
        .map(|route| format!("{} {}", route.method, route.path))
        .collect();
    public.sort();
    assert_eq!(public, PUBLIC);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_what_is_not_theirs() {
    let world = World::new().await;
    let forged = format!("{}x", &world.admin[..world.admin.len() - 1]);
    for route in world.tenant_routes() {
        let name = format!("{} {}", route.method, route.path);
        // Without a credential that verifies, everything is the same 401.
        let mut answers = Vec::new();
        for token in [None, Some("nonsense"), Some(forged.as_str()), Some(world.expired.as_str())] {
            for there in [true, false] {
                answers.push(world.ask(&route, there, token).await.comparable());
            }
        }
        assert_eq!(answers[0].0, 401, "{name}: {:?}", answers[0]);
        answers.iter().for_each(|answer| assert_eq!(answer, &answers[0], "{name}"));
        // Another tenant's administrator: what is there is like what is not, whole answers compared.
        let foreign = world.ask(&route, true, Some(&world.other)).await;
        let absent = world.ask(&route, false, Some(&world.other)).await;
        if !world.names_something(&route) {
            // The other tenant's own ledger holds the names it asked for; these nobody asked it.
            let mut names = vec!["vera", "ivan", "otto"];
            if route.operation != "ledger_search" && route.operation != "ledger_export" {
                names.extend(world.ids.values().map(String::as_str));
            }
            let leaked = names.into_iter().find(|name| foreign.body.contains(name));
            assert_eq!(leaked, None, "{name}: {foreign:?}");
        } else {
            assert_eq!(world.comparable(&route, true, &foreign), world.comparable(&route, false, &absent), "{name}");
        }
        assert!(!foreign.broke(), "{name}: {foreign:?}");
        // Members without the right: a refusal that does not depend on what is there, or a thing they may see.
        for token in [&world.viewer, &world.invoker, &world.auditor] {
            let own = world.ask(&route, true, Some(token)).await;
            let absent = world.ask(&route, false, Some(token)).await;
            if own.status == 404 || own.status == 403 {
                assert_eq!(world.comparable(&route, true, &own), world.comparable(&route, false, &absent), "{name}");
            }
            assert!(!own.broke(), "{name}: {own:?}");
        }
        // The operator has no way in.
        if !matches!(route.access, Access::Either { .. }) {
            let operator = world.ask(&route, true, Some(&world.insula.operator)).await;
            let code = if route.path.starts_with("/api/") || route.path == "/v1/traces" { "PERMISSION_DENIED" } else { "credential_kind" };
            assert_eq!((operator.status.as_u16(), operator.code().as_str()), (403, code), "{name}");
        }
    }
    for route in server::routes().iter().filter(|route| route.access == Access::Operator) {
        let name = format!("{} {}", route.method, route.path);
        for there in [true, false] {
            assert_eq!(world.ask(route, there, None).await.status, 401, "{name}");
            let answer = world.ask(route, there, Some(&world.admin)).await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "credential_kind"), "{name}");
        }
    }
    // After all of this tenant A has everything it had.
    let run = format!("/api/2.0/mlflow/runs/get?run_id={}", world.fields["run_id"]);
    for path in ["/v1/datasets/flowers", "/v1/models/fence", "/v1/deployments/portcullis", "/v1/members/mona", &run] {
        world.insula.get(path, &world.admin).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_writing_address_leaves_exactly_one_entry_also_when_it_is_refused() {
    let world = World::new().await;
    let mut asked = 0;
    for route in world.tenant_routes() {
        let Access::Tenant { act, .. } = route.access else { continue };
        for (token, there) in [(&world.viewer, true), (&world.viewer, false), (&world.admin, false), (&world.admin, true)] {
            let id = fresh_id();
            let answer = world.ask_as(&route, there, Some(token), &id).await;
            assert_eq!(answer.header("x-request-id"), Some(id.as_str()));
            let found = world.insula.get(&format!("/v1/ledger?text={id}"), &world.admin).await.expect(200).json();
            let entries: Vec<&Value> =
                found["items"].as_array().unwrap().iter().filter(|item| item["entry"]["request"] == id.as_str()).collect();
            let name = format!("{} {} {there}: {answer:?} {entries:?}", route.method, route.path);
            assert_eq!(entries.len(), 1, "{name}");
            let entry = &entries[0]["entry"];
            assert_eq!(entry["act"], act, "{name}");
            let expected = match answer.status.as_u16() {
                200..300 => "allowed",
                _ if entry["outcome"] == "refused" => "refused",
                _ => "failed",
            };
            assert_eq!(entry["outcome"], expected, "{name}");
            asked += 1;
        }
    }
    assert!(asked > 100, "the walk walked");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_acts_are_in_the_services_ledger() {
    let insula = Insula::start().await;
    insula.tenant("alpha").await;
    for (method, path) in [
        (Method::GET, "/v1/tenants"),
        (Method::GET, "/v1/tenants/alpha"),
        (Method::GET, "/v1/tenants/nobody"),
        (Method::POST, "/v1/tenants/alpha/suspend"),
        (Method::POST, "/v1/tenants/alpha/resume"),
        (Method::GET, "/v1/tenants/alpha/move"),
        (Method::GET, "/v1/tenants/nobody/move"),
        (Method::POST, "/v1/tenants/nobody/isolation"),
        (Method::POST, "/v1/tenants/nobody/move/finish"),
        (Method::GET, "/v1/erasures"),
        (Method::GET, "/v1/service/keys"),
        (Method::GET, "/metrics"),
        (Method::GET, "/v1/service/neighbours"),
        (Method::GET, "/v1/service/usage"),
    ] {
        let id = fresh_id();
        insula.call_as(method, path, Some(&insula.operator), None, Some(&id)).await;
        let found = insula.get(&format!("/v1/service/ledger?text={id}"), &insula.operator).await.expect(200).json();
        let entries = found["items"].as_array().unwrap().iter().filter(|item| item["entry"]["request"] == id.as_str()).count();
        assert_eq!(entries, 1, "{path}: {found}");
    }
}
