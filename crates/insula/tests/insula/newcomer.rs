//! What somebody new gets wrong, asked of the delivered programs: each time a clear refusal with a stable code that names what to
//! change, and nothing lost.

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Body, Service, question, rows};

/// A refusal that helps: 4xx, a code that the documentation knows, and the words that name the mistake.
#[track_caller]
fn refused(case: &str, answer: &Answer, code: &str, told: &str) {
    assert!((400..500).contains(&answer.status), "{case}: {} {}", answer.status, answer.text());
    assert_eq!(answer.code(), code, "{case}: {}", answer.text());
    assert!(server::remedy(code).is_some(), "{case}: `{code}` has no remedy");
    assert!(answer.text().contains(told), "{case}: `{told}` is not in {}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_other_kinds_are_told_from_tables() {
    let Some(service) = Service::start() else { return };
    let key = service.busy_tenant("clinic", "ada");
    let utf16: Vec<u8> = "\u{feff}a,b\n1,2\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let long = format!("a,b\n{},1\n", "x".repeat(5 << 20));
    let wide = format!("{}\n", (0..5000).map(|n| format!("c{n}")).collect::<Vec<_>>().join(","));
    let cases: [(&str, Vec<u8>, &str, &str); 18] = [
        ("an Excel workbook", b"PK\x03\x04\x14\x00\x06\x00\x08\x00[Content_Types].xml".to_vec(), "unsupported", "export it as CSV"),
        ("a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.".to_vec(), "unsupported", "pickle"),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03".to_vec(), "unsupported", "uncompressed"),
        ("a PDF", b"%PDF-1.7\n".to_vec(), "unsupported", "PDF"),
        ("a web page", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n".to_vec(), "unsupported", "HTML"),
        ("a web page without its type", b"  <html><body>Sign in</body></html>\n".to_vec(), "unsupported", "HTML"),
        ("UTF-16", utf16, "unsupported", "UTF-8"),
        ("semicolons", b"a;b\n1;2\n".to_vec(), "unsupported", "commas"),
        ("a JSON array", b"[{\"a\": 1}]".to_vec(), "unsupported", "one object a line"),
        ("a column twice", b"a,a\n1,2\n".to_vec(), "invalid_input", "two columns"),
        ("a column without a name", b"a,\n1,2\n".to_vec(), "invalid_input", "column 2 has no name"),
        ("Latin-1", b"name,b\nJos\xe9,2\n".to_vec(), "invalid_input", "line 2"),
        ("NDJSON cut", b"{\"a\":1}\n{\"a\":\n".to_vec(), "invalid_input", "line 2"),
        ("NDJSON nested", b"{\"a\":{\"b\":1}}\n".to_vec(), "invalid_input", "column `a`"),
        ("Parquet cut", b"PAR1\x15\x04".to_vec(), "invalid_input", "cut off"),
        ("a cell without end", long.into_bytes(), "too_large", "quote"),
        ("too many columns", wide.into_bytes(), "too_large", "4096"),
        ("nothing", Vec::new(), "invalid", "empty"),
    ];
    for (case, bytes, code, told) in cases {
        let answer = service.ask(Method::PUT, "/v1/datasets/mine", &key, bytes).await;
        refused(case, &answer, code, told);
    }
    service.get("/v1/datasets/mine", &key).await.expect(404);
    for (name, told) in
        [("a%20b", "is not a name"), ("%F0%9F%90%A7", "is not a name"), (&"x".repeat(65), "1 to 64"), ("-a", "begin and end")]
    {
        let answer = service.ask(Method::PUT, &format!("/v1/datasets/{name}"), &key, "a\n1\n").await;
        refused(name, &answer, "invalid", told);
    }
    let models: [(&str, Vec<u8>, &str); 5] = [
        ("a pickled model", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.".to_vec(), "pickle"),
        ("a PyTorch file", b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl".to_vec(), "torch.onnx.export"),
        ("a Keras file", [&b"\x89HDF\r\n\x1a\n"[..], &[0; 100]].concat(), "tf2onnx"),
        ("a table", b"a,b\n1,2\n".to_vec(), "ONNX"),
        ("noise", (0..500u32).map(|n| (n * 7919 % 251) as u8).collect(), "ONNX"),
    ];
    for (case, bytes, told) in models {
        let answer = service.ask(Method::POST, "/v1/models/mine/versions", &key, bytes).await;
        refused(case, &answer, "model_refused", told);
    }
    service.get("/v1/models/mine", &key).await.expect(404);
}

/// Starts a training and waits: its refusal, at once or later, in words.
async fn refusal(service: &Service, key: &str, body: Value) -> String {
    let answer = service.ask(Method::POST, "/v1/trainings", key, body).await;
    if answer.status != 202 {
        assert!((400..500).contains(&answer.status), "{}", answer.text());
        return format!("{} {}", answer.code(), answer.text());
    }
    let ended = service.trained(answer.json()["id"].as_str().unwrap(), key).await;
    assert_eq!(ended["state"], "failed", "{ended}");
    format!("{} {}", ended["error"]["code"].as_str().unwrap(), ended["error"]["message"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn trainings_that_cannot_work_say_why() {
    let Some(service) = Service::start() else { return };
    let key = service.busy_tenant("clinic", "ada");
    service.ask(Method::PUT, "/v1/datasets/fence", &key, rows(120)).await.expect(201);
    service.ask(Method::PUT, "/v1/datasets/short", &key, "a,y\n1,p\n2,q\n").await.expect(201);
    service.ask(Method::PUT, "/v1/datasets/bare", &key, "a,y\n").await.expect(201);
    let with = |changes: Value| {
        let mut body = json!({"name": "m", "dataset": "fence", "target": "label", "task": "classification"});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        body
    };
    let cases = [
        (json!({"target": "Label"}), "invalid", "has no column `Label`"),
        (json!({"dataset": "fense"}), "not_found", "dataset"),
        (json!({"version": 2}), "not_found", "version"),
        (json!({"task": "clustering"}), "json_invalid", "`classification` or `regression`"),
        (json!({"algorithm": "xgboost"}), "json_invalid", "gradient_boosting"),
        (json!({"task": "regression"}), "invalid_input", "is text"),
        (json!({"parameters": {"depth": 3}}), "invalid_input", "`depth`"),
        (json!({"parameters": {"learning_rate": 0}}), "invalid_input", "learning_rate"),
        (json!({"parameters": {"max_iter": 1e18}}), "invalid_input", "max_iter"),
        (json!({"parameters": {"max_iter": "many"}}), "json_invalid", "many"),
        (json!({"split": {"test_share": 1}}), "invalid", "test_share"),
        (json!({"split": {"test_share": 0.0001}}), "invalid_input", "0 to evaluate"),
        (json!({"exclude": ["z"]}), "invalid_input", "no column `z`"),
        (json!({"exclude": ["label"]}), "invalid_input", "excluded"),
        (json!({"exclude": ["x", "y"]}), "invalid_input", "no column is left"),
        (json!({"epochs": 3}), "json_invalid", "epochs"),
        (json!({"dataset": "short", "target": "y"}), "invalid_input", "2 rows"),
        (json!({"dataset": "bare", "target": "y"}), "invalid_input", "no value in any row"),
    ];
    for (changes, code, told) in cases {
        let words = refusal(&service, &key, with(changes.clone())).await;
        assert!(words.starts_with(&format!("{code} ")) && words.contains(told), "{changes}: {words}");
    }
    assert_eq!(service.get("/v1/models", &key).await.expect(200).json()["items"], json!([]), "no training left a model");
}

#[tokio::test(flavor = "multi_thread")]
async fn things_in_use_and_things_that_are_not_there() {
    let Some(service) = Service::start() else { return };
    let key = service.busy_tenant("clinic", "ada");
    service.ask(Method::PUT, "/v1/datasets/fence", &key, rows(120)).await.expect(201);
    let body = json!({"name": "fence", "dataset": "fence", "target": "label", "task": "classification"});
    let first = service.ask(Method::POST, "/v1/trainings", &key, body).await.expect(202).json();
    service.trained(first["id"].as_str().unwrap(), &key).await;
    let deploy = async |name: &str, body: Value| service.ask(Method::PUT, &format!("/v1/deployments/{name}"), &key, body).await;
    refused("a missing version", &deploy("d", json!({"model": "fence", "version": 9})).await, "not_found", "version");
    refused("a missing model", &deploy("d", json!({"model": "fense", "version": 1})).await, "not_found", "model");
    refused("a missing alias", &deploy("d", json!({"model": "fence", "alias": "best"})).await, "not_found", "alias");
    refused("both", &deploy("d", json!({"model": "fence", "alias": "best", "version": 1})).await, "invalid", "either");
    refused("a version in quotes", &deploy("d", json!({"model": "fence", "version": "1"})).await, "json_invalid", "string");
    deploy("d", json!({"model": "fence", "version": 1})).await.expect(200);
    let delete = async |path: &str| service.ask(Method::DELETE, path, &key, Body::None).await;
    refused("a model that is deployed", &delete("/v1/models/fence").await, "conflict", "deployment `d`");
    service.ask(Method::POST, "/v2/models/d/infer", &key, question(1.0, 1.0)).await.expect(200);
    for alias in ["1", "latest"] {
        let answer = service.ask(Method::PUT, &format!("/v1/models/fence/aliases/{alias}"), &key, json!({"version": 1})).await;
        refused(alias, &answer, "invalid", "mistaken for a version");
    }

    // Six at once: each a version of its own, each whole.
    let one = async |number: usize| {
        let content = format!("a,b\n{}", format!("1,{number}\n").repeat(1000 + number));
        let version =
            service.ask(Method::PUT, "/v1/datasets/twice", &key, content.clone()).await.expect(201).json()["version"].as_u64().unwrap();
        let path = format!("/v1/datasets/twice/versions/{version}/content");
        assert!(service.get(&path, &key).await.expect(200).text() == content);
        version
    };
    let mut versions = futures_util::future::join_all((0..6).map(one)).await;
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3, 4, 5, 6]);

    // A long training is cancelled; one whose data set goes while it waits says so.
    service.ask(Method::PUT, "/v1/datasets/long", &key, rows(60_000)).await.expect(201);
    let long = json!({"name": "slow", "dataset": "long", "target": "label", "task": "classification", "parameters": {"max_iter": 5000}});
    let start =
        async || service.ask(Method::POST, "/v1/trainings", &key, long.clone()).await.expect(202).json()["id"].as_str().unwrap().to_owned();
    let (running, waiting) = (start().await, start().await);
    // Gone before it was read, the data set would fail the first one too.
    service.trains(&running, &key).await;
    delete("/v1/datasets/long").await.expect(204);
    let cancel = async |id: &str| service.ask(Method::POST, &format!("/v1/trainings/{id}/cancel"), &key, Body::None).await;
    cancel(&running).await.expect(200);
    assert_eq!(service.trained(&running, &key).await["state"], "cancelled");
    refused("cancelled twice", &cancel(&running).await, "conflict", "is already cancelled");
    refused("nothing to cancel", &cancel("nothing").await, "not_found", "training");
    let ended = service.trained(&waiting, &key).await;
    assert_eq!((ended["state"].as_str(), ended["error"]["code"].as_str()), (Some("failed"), Some("not_found")), "{ended}");
    delete("/v1/deployments/d").await.expect(204);
    let gone = service.ask(Method::POST, "/v2/models/d/infer", &key, question(1.0, 1.0)).await;
    refused("a deployment that is gone", &gone, "not_found", "deployment");
    delete("/v1/models/fence").await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_that_do_not_fit_are_named() {
    let Some(service) = Service::start() else { return };
    let key = service.busy_tenant("clinic", "ada");
    service.ask(Method::PUT, "/v1/datasets/fence", &key, rows(120)).await.expect(201);
    let body = json!({"name": "fence", "dataset": "fence", "target": "label", "task": "classification"});
    let first = service.ask(Method::POST, "/v1/trainings", &key, body).await.expect(202).json();
    service.trained(first["id"].as_str().unwrap(), &key).await;
    service.ask(Method::PUT, "/v1/deployments/gate", &key, json!({"model": "fence", "version": 1})).await.expect(200);
    let with = |field: &str, value: Value| {
        let mut body = question(1.0, 1.0);
        body["inputs"][0][field] = value;
        Body::Json(body)
    };
    let raw = |text: &str| Body::Bytes(text.into());
    let good = question(1.0, 1.0).to_string();
    let cases: [(&str, Body, &str, &str); 17] = [
        ("a text for a number", with("data", json!(["1", 2])), "invalid_input", "`input`: element 0"),
        ("null for missing", with("data", json!([null, 1])), "invalid_input", "`input`: element 0"),
        ("too large for the type", with("data", json!([1e308, 1])), "invalid_input", "too large for FP32"),
        ("NaN as Python writes it", raw(&good.replacen("1.0", "NaN", 1)), "invalid_input", "NaN"),
        ("another type", with("datatype", json!("FP64")), "invalid_input", "expected datatype FP32"),
        ("one dimension less", with("shape", json!([2])), "invalid_input", "expected shape"),
        ("a shape beyond memory", with("shape", json!([1_000_000_000, 2])), "invalid_input", "elements"),
        ("a shape beyond counting", with("shape", json!([u64::MAX, u64::MAX])), "invalid_input", "`input`"),
        ("a negative shape", with("shape", json!([-1, 2])), "invalid_input", "not a dimension"),
        ("an unknown input", with("name", json!("z")), "invalid_input", "no input `z`"),
        ("an unknown output", raw(&good.replacen('{', "{\"outputs\": [{\"name\": \"z\"}],", 1)), "invalid_input", "no output `z`"),
        ("another protocol", json!({"instances": [[1, 2]]}).into(), "invalid_input", "`instances`"),
        ("no inputs", json!({"parameters": {"binary_data_output": true}, "inputs": []}).into(), "invalid_input", "is missing"),
        ("cut", raw(&good[..good.len() / 2]), "invalid_input", "byte"),
        ("deep", raw(&"[".repeat(100_000)), "invalid_input", "expected an object"),
        ("a form", raw("x=1&y=2"), "invalid_input", "expected an object"),
        ("nothing", Body::Bytes(Vec::new()), "invalid_input", "`inputs`"),
    ];
    for (case, body, code, told) in cases {
        let answer = service.ask(Method::POST, "/v2/models/gate/infer", &key, body).await;
        refused(case, &answer, code, told);
        assert!(!answer.text().contains("\\\\"), "{case}: escaped twice: {}", answer.text());
    }
    service.ask(Method::POST, "/v2/models/gate/infer", &key, question(1.0, 1.0)).await.expect(200);
}
