//! Start, use and stop: tokens, rate limits, metrics, and what survives.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use reqwest::Method;
use serde_json::json;
use tokio::sync::mpsc;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::harness::{Insula, answer, rows};

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_was_accepted_and_loses_nothing() {
    let mut insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }));
    let text = rows();
    let (first, second) = text.split_at(text.len() / 2);
    sender.send(Ok(Bytes::copy_from_slice(first.as_bytes()))).await.unwrap();
    let request = insula.client.put(format!("{}/v1/datasets/flowers", insula.url)).bearer_auth(&admin).header("content-type", "text/csv");
    let upload = tokio::spawn(answer(request.body(body)));
    // The second piece is taken only when the first one is on its way: the request is accepted.
    sender.send(Ok(Bytes::new())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let (address, server) = (insula.address(), insula.server.take().unwrap());
    let stop = tokio::spawn(server.stop());
    let mut refused = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        refused = tokio::net::TcpStream::connect(address).await.is_err();
        if refused {
            break;
        }
    }
    assert!(refused, "no new connections while it stops");
    assert!(!stop.is_finished(), "it waits for the upload");
    sender.send(Ok(Bytes::copy_from_slice(second.as_bytes()))).await.unwrap();
    drop(sender);
    upload.await.unwrap().expect(201);
    stop.await.unwrap().unwrap();

    let again = Insula::open(insula.dir.clone(), "").await;
    assert_eq!(again.get("/v1/datasets/flowers/versions/1/content", &admin).await.expect(200).body, rows());
}

/// Without a stop. What still works on a file when the process exits meets the clean-up of the library that encrypts it.
#[test]
fn a_service_that_is_dropped_has_let_go_of_its_files() {
    for _ in 0..5 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let dir = runtime.block_on(async {
            let insula = Insula::start().await;
            insula.tenant("alpha").await;
            insula.dir.clone()
        });
        drop(runtime);
        let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        let ours: Vec<_> = open.filter(|file| file.starts_with(dir.path())).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_buys_a_token_that_is_narrower() {
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let key = insula.post("/v1/keys", &admin, json!({"name": "app", "member": "ada"})).await.expect(201).json();
    let (id, secret) = (key["key"]["id"].as_str().unwrap(), key["secret"].as_str().unwrap());
    let token_url = format!("{}/oauth/token", insula.url);
    let form = [("grant_type", "client_credentials"), ("scope", "MemberRead")];
    let basic = answer(insula.client.post(&token_url).basic_auth(id, Some(secret)).form(&form)).await.expect(200).json();
    let form = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
    let posted = answer(insula.client.post(&token_url).form(&form)).await.expect(200).json();
    let narrow = basic["access_token"].as_str().unwrap();
    assert_eq!((basic["token_type"].as_str(), basic["expires_in"].as_u64()), (Some("Bearer"), Some(900)));
    insula.get("/v1/members", narrow).await.expect(200);
    insula.get("/v1/datasets", narrow).await.expect(404);
    insula.get("/v1/datasets", posted["access_token"].as_str().unwrap()).await.expect(200);
    // Revoking the key ends its tokens with the next request.
    insula.call(Method::DELETE, &format!("/v1/keys/{id}"), Some(&admin), None).await.expect(204);
    insula.get("/v1/members", narrow).await.expect(401);
    // Errors speak OAuth.
    let cases = [
        (vec![("grant_type", "client_credentials"), ("client_id", id), ("client_secret", "wrong")], 401, "invalid_client"),
        (vec![("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)], 401, "invalid_client"),
        (vec![("grant_type", "password")], 400, "unsupported_grant_type"),
        (vec![("client_id", id)], 400, "invalid_request"),
    ];
    for (form, status, error) in cases {
        let refused = answer(insula.client.post(&token_url).form(&form)).await.expect(status);
        assert_eq!(refused.json()["error"], error, "{form:?}");
    }
    let metadata = insula.call(Method::GET, "/.well-known/oauth-authorization-server", None, None).await.expect(200).json();
    assert_eq!(metadata["token_endpoint"], token_url.as_str());
    let keys = insula.call(Method::GET, "/.well-known/jwks.json", None, None).await.expect(200).json();
    assert_eq!(keys["keys"][0]["kty"], "OKP");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_said_held_and_one_tenants_own() {
    let insula = Insula::start().await;
    let (admin, other) = (insula.tenant("alpha").await, insula.tenant("beta").await);
    let limits = json!({"requests_per_second": 1, "requests_burst": 3});
    insula.put("/v1/tenants/alpha/limits", &insula.operator, limits).await.expect(200);
    let mut refused = None;
    for _ in 0..6 {
        let answer = insula.get("/v1/whoami", &admin).await;
        assert!(answer.header("ratelimit").is_some_and(|value| value.contains("r=")), "{answer:?}");
        assert!(answer.header("ratelimit-policy").is_some_and(|value| value.contains("q=3")), "{answer:?}");
        if answer.status == 429 {
            refused = Some(answer);
        }
    }
    let refused = refused.expect("the fourth of six at once is one too many");
    assert_eq!(refused.code(), "quota_exceeded");
    assert!(refused.header("retry-after").is_some_and(|value| value.parse::<u64>().is_ok_and(|seconds| seconds >= 1)), "{refused:?}");
    insula.get("/v1/whoami", &other).await.expect(200);
}

/// Of 30 at once one is said at once, and the others wait their second.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_too_often_waits_for_it_and_nobody_else() {
    let insula = Arc::new(Insula::start_with("[limits]\nrefusals_per_second = 1").await);
    let (admin, other) = (insula.tenant("alpha").await, insula.tenant("beta").await);
    let limits = json!({"requests_per_second": 1, "requests_burst": 1});
    insula.put("/v1/tenants/alpha/limits", &insula.operator, limits).await.expect(200);
    let delayed = async || {
        let metrics = insula.get("/metrics", &insula.operator).await.expect(200).body;
        metrics.lines().find_map(|line| line.strip_prefix("insula_refusals_delayed_total ")?.parse::<u64>().ok()).unwrap()
    };
    for (token, refusal) in [(Some(admin.clone()), 429), (None, 401)] {
        let (insula_too, begun, before) = (insula.clone(), Instant::now(), delayed().await);
        let flood = tokio::spawn(async move {
            let calls = (0..30).map(|_| insula_too.call(Method::GET, "/v1/whoami", token.as_deref(), None));
            let answers = futures_util::future::join_all(calls).await;
            answers.iter().filter(|answer| answer.status.as_u16() == refusal).count()
        });
        while !flood.is_finished() {
            insula.get("/v1/whoami", &other).await.expect(200);
            insula.call(Method::GET, "/healthz", None, None).await.expect(200);
        }
        let (refused, took) = (flood.await.unwrap(), begun.elapsed());
        assert!(refused >= 20, "{refused} of 30 are refused: {refusal}");
        assert!(took >= Duration::from_millis(900), "{refusal} after {took:?}");
        assert!(delayed().await >= before + 15, "{refusal}: {before} to {}", delayed().await);
    }
    // Who comes again when it was told to waits no more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = delayed().await;
    insula.get("/v1/whoami", &admin).await.expect(200);
    insula.get("/v1/whoami", &admin).await;
    assert_eq!(delayed().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_two_views() {
    let insula = Insula::start().await;
    let (admin, other) = (insula.tenant("alpha").await, insula.tenant("beta").await);
    insula.get("/v1/datasets/secret-project", &admin).await.expect(404);
    let own = insula.get("/metrics", &admin).await.expect(200).body;
    assert!(own.contains("insula_requests_total{operation=\"dataset_get\",status=\"4xx\"} 1"), "{own}");
    assert!(own.contains("insula_quota_limit{limit=\"members\"}"), "{own}");
    let theirs = insula.get("/metrics", &other).await.expect(200).body;
    assert!(!theirs.contains("dataset_get") && !theirs.contains("alpha"), "{theirs}");
    let all = insula.get("/metrics", &insula.operator).await.expect(200).body;
    assert!(all.contains("insula_tenant_requests_total{tenant=\"alpha\"}"), "{all}");
    assert!(!all.contains("secret-project") && !own.contains("secret-project"));
}

/// Everything this service logs, at the finest level.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_hold_no_content_and_no_secret() {
    let lines = Lines::default();
    let writer = lines.clone();
    let filter: Targets = "server=trace,platform=trace,tenancy=trace".parse().unwrap();
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    tracing_subscriber::registry().with(filter).with(layer).init();
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let key = insula.post("/v1/keys", &admin, json!({"name": "app", "member": "ada"})).await.expect(201).json();
    let (id, secret) = (key["key"]["id"].as_str().unwrap(), key["secret"].as_str().unwrap());
    let form = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
    let token = answer(insula.client.post(format!("{}/oauth/token", insula.url)).form(&form)).await.expect(200).json();
    let token = token["access_token"].as_str().unwrap();
    insula.upload(token, "canaryname", "canarycolumn,b\ncanaryvalue,2\n").await.expect(201);
    insula.upload(token, "canaryname", "canarycolumn,b\ncanaryvalue,2,3\n").await.expect(400);
    insula.get("/v1/datasets/canaryname?canaryquery=1", token).await.expect(400);
    insula.post("/v2/models/canaryname/infer", token, json!({"canaryfield": "canarytensor"})).await.expect(404);
    let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("dataset_upload") && logged.contains("alpha"), "the log says what was done, for whom: {logged}");
    for secret in [admin.as_str(), secret, token, insula.operator.as_str(), "canary"] {
        assert!(!logged.contains(secret), "{secret}: {}", logged.lines().find(|line| line.contains(secret)).unwrap_or_default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_secret_works_once() {
    let insula = Insula::start().await;
    let path = insula.dir.path().join("keys/bootstrap.secret");
    assert!(!path.exists(), "it is removed once used");
    insula.call(Method::POST, "/v1/bootstrap", None, Some(json!({"secret": "insula_bootstrap_x"}))).await.expect(401);
    insula.get("/v1/tenants", &insula.operator).await.expect(200);
    let health = insula.call(Method::GET, "/readyz", None, None).await.expect(200);
    assert_eq!(health.json()["status"], "ready");
    assert_eq!(health.header("x-content-type-options"), Some("nosniff"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_waits_and_an_erased_one_is_gone() {
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    insula.call(Method::POST, "/v1/tenants/alpha/suspend", Some(&insula.operator), None).await.expect(200);
    assert_eq!(insula.get("/v1/whoami", &admin).await.expect(403).code(), "tenant_state");
    insula.call(Method::POST, "/v1/tenants/alpha/resume", Some(&insula.operator), None).await.expect(200);
    insula.get("/v1/whoami", &admin).await.expect(200);
    let erasure = insula.call(Method::DELETE, "/v1/tenant?confirm=alpha", Some(&admin), None).await.expect(202).json();
    let path = format!("/v1/erasures/{}", erasure["id"].as_str().unwrap());
    let mut state = String::new();
    for _ in 0..200 {
        state = insula.get(&path, &insula.operator).await.expect(200).json()["state"].as_str().unwrap().to_owned();
        if state == "certified" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(state, "certified");
    insula.get("/v1/whoami", &admin).await.expect(401);
    let again = insula.tenant("alpha").await;
    assert_eq!(insula.get("/v1/members", &again).await.expect(200).json()["items"].as_array().unwrap().len(), 1);
    insula.get("/v1/whoami", &admin).await.expect(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_configuration_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Insula::config(&dir, "");
    config.listen = "0.0.0.0:0".parse().unwrap();
    let refused = server::Server::start(config).await.err().unwrap();
    assert!(refused.remedy().is_some_and(|remedy| remedy.contains("tls.certificate")), "{refused}");
    assert!(!dir.path().join("data").exists() && !dir.path().join("keys").exists(), "nothing was made");
    let config = Insula::config(&dir, "");
    let findings = tokio::task::spawn_blocking(move || server::check(&config)).await.unwrap();
    assert!(findings.iter().all(|finding| finding.ok), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.what.contains("sandbox enforces")), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_has_one_service() {
    let insula = Insula::start().await;
    let second = server::Server::start(Insula::config(&insula.dir, "")).await;
    assert!(second.is_err(), "two services on one data directory");
    insula.get("/v1/tenants", &insula.operator).await.expect(200);
}
