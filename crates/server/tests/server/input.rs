//! Bad input, tried as a new user would: a clear 4xx with a stable code, never a 5xx, and nothing lost.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Insula, answer, rows};

fn is_clear_refusal(case: &str, answer: &Answer) {
    assert!(answer.status.is_client_error(), "{case}: {answer:?}");
    let code = answer.code();
    assert!(server::remedy(&code).is_some(), "{case}: `{code}` has no line in docs/errors.md: {answer:?}");
    let detail = answer.json();
    let detail = detail["detail"].as_str().or(detail["error"].as_str()).unwrap_or_default();
    assert!(!detail.is_empty(), "{case}: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_wrong_say_what_is_wrong() {
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let put = |path: &'static str, body: Value| (Method::PUT, path, Some(body));
    let post = |path: &'static str, body: Value| (Method::POST, path, Some(body));
    let get = |path: &'static str| (Method::GET, path, None);
    let cases = [
        put("/v1/members/bob", json!({})),
        put("/v1/members/bob", json!({"roles": []})),
        put("/v1/members/bob", json!({"roles": "admin"})),
        put("/v1/members/bob", json!({"roles": ["owner"]})),
        put("/v1/members/bob", json!({"roles": ["viewer"], "tenant": "beta"})),
        put("/v1/members/bob", json!({"roles": ["viewer"], "description": "a\u{0}b"})),
        put("/v1/members/bob", json!([1, 2])),
        put("/v1/members/b%20b", json!({"roles": ["viewer"]})),
        put("/v1/members/%C3%BCnder", json!({"roles": ["viewer"]})),
        put("/v1/members/system", json!({"roles": ["viewer"]})),
        put("/v1/members/ada", json!({"roles": ["viewer"]})),
        post("/v1/keys", json!({"name": "k", "member": "nobody"})),
        post("/v1/keys", json!({"name": "k", "member": "ada", "expires_at": "tomorrow"})),
        post("/v1/keys", json!({"name": "k", "member": "ada", "expires_at": "1999-01-01T00:00:00Z"})),
        post("/v1/keys", json!({"name": "k", "member": "ada", "scope": {"acts": ["Fly"], "resources": ["*"]}})),
        post("/v1/keys", json!({"name": "k", "member": "ada", "secret": "mine"})),
        post("/v1/trainings", json!({"name": "m", "dataset": "none", "target": "y", "task": "classification"})),
        post("/v1/trainings", json!({"name": "m", "dataset": "none", "target": "y", "task": "poetry"})),
        post("/v1/trainings", json!({"name": "../m", "dataset": "d", "target": "y", "task": "regression"})),
        put("/v1/deployments/d", json!({"model": "none", "version": 1})),
        put("/v1/deployments/d", json!({"model": "none"})),
        put("/v1/deployments/d", json!({"model": "none", "version": -1})),
        put("/v1/models/m/aliases/champion", json!({"version": 1})),
        put("/v1/models/m", json!({"descriptoin": "x"})),
        get("/v1/members?limit=0"),
        get("/v1/members?limit=501"),
        get("/v1/members?limit=x"),
        get("/v1/members?limit=1&limit=2"),
        get("/v1/members?tenant=beta"),
        get("/v1/members?after=%zz"),
        get("/v1/ledger?since=yesterday"),
        get("/v1/ledger?outcome=lost"),
        get("/v1/ledger/entries/99999"),
        get("/v1/ledger/entries/x"),
        get("/v1/ledger/proofs/inclusion"),
        get("/v1/ledger/proofs/inclusion?index=5&size=1"),
        get("/v1/ledger/proofs/consistency?from=9&to=1"),
        get("/v1/ledger/tiles/9/999"),
        get("/v1/datasets/none"),
        get("/v1/datasets/none/versions/0"),
        get("/v1/datasets/none/versions/1e3"),
        get("/v1/nothing"),
        (Method::DELETE, "/v1/tenant", None),
        (Method::DELETE, "/v1/tenant?confirm=beta", None),
        (Method::DELETE, "/v1/members/ada", None),
        (Method::DELETE, "/v1/keys/none", None),
        (Method::PATCH, "/v1/members/ada", None),
        post("/v2/models/none/infer", json!({"inputs": []})),
    ];
    for (method, path, body) in cases {
        let case = format!("{method} {path} {body:?}");
        is_clear_refusal(&case, &insula.call(method, path, Some(&admin), body).await);
    }
    insula.get("/v1/members/ada", &admin).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_wrong_say_what_is_wrong() {
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let huge = format!("{{\"roles\": [\"viewer\"], \"description\": \"{}\"}}", "x".repeat(2 << 20));
    let cases: [(&str, &str, Vec<u8>); 7] = [
        ("no content type", "", b"{}".to_vec()),
        ("another content type", "text/plain", b"{}".to_vec()),
        ("not JSON", "application/json", b"{\"roles\": [".to_vec()),
        ("not UTF-8", "application/json", b"{\"roles\": [\"\xff\"]}".to_vec()),
        ("deep", "application/json", deep.into_bytes()),
        ("huge", "application/json", huge.into_bytes()),
        ("a key twice", "application/json", b"{\"roles\": [\"viewer\"], \"roles\": [\"admin\"]}".to_vec()),
    ];
    for (case, media, body) in cases {
        let mut request = insula.client.put(format!("{}/v1/members/bob", insula.url)).bearer_auth(&admin).body(body);
        if !media.is_empty() {
            request = request.header("content-type", media);
        }
        is_clear_refusal(case, &answer(request).await);
    }
    let compressed = insula.client.put(format!("{}/v1/members/bob", insula.url)).bearer_auth(&admin).header("content-encoding", "gzip");
    let refused = answer(compressed.header("content-type", "application/json").body(vec![0x1f, 0x8b, 8, 0])).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (415, "encoding_unsupported"));
    insula.get("/v1/members/bob", &admin).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_wrong_leave_nothing() {
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    let mut bomb = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    bomb.extend([0u8; 5000]);
    let cases: [(&str, Vec<u8>); 7] = [
        ("empty", Vec::new()),
        ("a row too long", b"a,b\n1,2\n3,4,5\n".to_vec()),
        ("an open quote", b"a,b\n1,\"2\n".to_vec()),
        ("zeros", vec![0; 10_000]),
        ("gzip", bomb),
        ("zip", b"PK\x03\x04\x14\x00\x00\x00\x08\x00aaaaaaaaaaaaaaaaaaaaaaaaaa".to_vec()),
        ("truncated parquet", b"PAR1\x15\x04\x15\x10".to_vec()),
    ];
    for (case, bytes) in cases {
        let refused = insula.upload(&admin, "data", bytes).await;
        is_clear_refusal(case, &refused);
    }
    insula.get("/v1/datasets/data", &admin).await.expect(404);
    let bad_row = insula.upload(&admin, "data", "a,b\n1,2\n3,4,5\n").await;
    assert!(bad_row.body.contains("line 3"), "{bad_row:?}");
    let model = insula.client.post(format!("{}/v1/models/m/versions", insula.url)).bearer_auth(&admin).body(&b"not a model"[..]);
    is_clear_refusal("not a model", &answer(model).await);
    // What is right still works, and reads back byte for byte.
    insula.upload(&admin, "data", rows()).await.expect(201);
    assert_eq!(insula.get("/v1/datasets/data/versions/latest/content", &admin).await.expect(200).body, rows());
    let used = insula.get("/v1/quota", &admin).await.expect(200).json();
    assert_eq!(used["used"]["objects"], 1, "refused files take no place: {used}");
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_that_are_wrong_say_what_is_wrong() {
    let insula = Insula::start().await;
    let admin = insula.tenant("alpha").await;
    insula.upload(&admin, "flowers", rows()).await.expect(201);
    let training = json!({"name": "fence", "dataset": "flowers", "target": "label", "task": "classification"});
    let training = insula.post("/v1/trainings", &admin, training).await.expect(202).json();
    crate::walk::trained(&insula, &admin, training["id"].as_str().unwrap()).await;
    insula.put("/v1/deployments/gate", &admin, json!({"model": "fence", "version": 1})).await.expect(200);
    let metadata = insula.get("/v2/models/gate", &admin).await.expect(200).json();
    let good: Vec<Value> = metadata["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| {
            let width = input["shape"].as_array().unwrap().last().and_then(Value::as_i64).unwrap_or(1).max(1);
            json!({"name": input["name"], "datatype": input["datatype"], "shape": [1, width], "data": vec![1; usize::try_from(width).unwrap()]})
        })
        .collect();
    insula.post("/v2/models/gate/infer", &admin, json!({"inputs": good})).await.expect(200);
    let mutated = |field: &str, value: Value| {
        let mut inputs = good.clone();
        inputs[0][field] = value;
        json!({"inputs": inputs})
    };
    let cases = [
        json!({}),
        json!({"inputs": []}),
        json!({"inputs": 7}),
        json!({"inputs": [{"name": "nope", "datatype": "FP32", "shape": [1], "data": [1]}]}),
        mutated("shape", json!([9_000_000_000_u64, 9_000_000_000_u64])),
        mutated("shape", json!([-1, 2])),
        mutated("shape", json!([1, 1, 1, 1, 1, 1])),
        mutated("data", json!([])),
        mutated("data", json!(["text"])),
        mutated("datatype", json!("COMPLEX")),
    ];
    for case in cases {
        is_clear_refusal(&case.to_string(), &insula.post("/v2/models/gate/infer", &admin, case.clone()).await);
    }
    insula.post("/v2/models/gate/infer", &admin, json!({"inputs": good})).await.expect(200);
}
