//! The command line against a service that it runs itself: credentials, exit statuses, the audit log, unsafe configurations.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::world::{Service, insula, rows};

#[test]
fn credentials_are_kept_and_narrowed() {
    let Some(service) = Service::start() else { return };
    let profiles = service.home.path().join(".config/insula/profiles.toml");
    assert_eq!(fs::metadata(&profiles).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(service.run("operator", &["whoami"]).json()["kind"], "operator");

    service.tenant("clinic", &[]);
    let who = service.run("clinic", &["whoami"]).json();
    assert_eq!((who["tenant"].as_str(), who["principal"].as_str()), (Some("clinic"), Some("ada")));
    service.run("operator", &["tenant", "create", "clinic"]).failed(7, "clinic");
    service.run("operator", &["data", "list"]).failed(4, "credential_kind");
    service.run("clinic", &["tenant", "list"]).failed(4, "credential_kind");

    service.run("clinic", &["member", "set", "app", "--role", "invoker"]).json();
    let issued = service.run("clinic", &["key", "create", "app", "--member", "app", "--act", "Predict", "--days", "1"]).json();
    let (secret, id) = (issued["secret"].as_str().unwrap(), issued["key"]["id"].as_str().unwrap());
    let narrowed = |arguments: &[&str]| {
        let token = ("INSULA_TOKEN", secret.into());
        insula(
            service.home.path(),
            &[("INSULA_URL", service.url.clone().into()), ("INSULA_CACERT", service.cacert.clone().into()), token],
            arguments,
        )
    };
    assert_eq!(narrowed(&["data", "list"]).status, 4);
    assert_eq!(narrowed(&["member", "list"]).status, 4);
    let listed = service.run("clinic", &["key", "list"]);
    assert!(listed.json().as_array().unwrap().iter().any(|key| key["id"] == id));
    assert!(!listed.output.contains(secret), "a key is shown once");
    service.run("clinic", &["key", "revoke", id]).json_or_nothing();
    assert_eq!(narrowed(&["whoami"]).status, 3);
    service.run("", &["whoami", "--profile", "nobody"]).failed(2, "there are: clinic, operator");
}

#[test]
fn every_kind_of_failure_has_its_exit_status() {
    let Some(mut service) = Service::start() else { return };
    service.tenant("clinic", &["--limit", "requests_per_second=1000", "--limit", "requests_burst=1000", "--limit", "models=0"]);
    let good = service.file("good.csv", "a,y\n1,p\n2,q\n3,p\n");
    let bad = service.file("bad.csv", "a,y\n1,p\n2,q,extra\n");
    service.run("clinic", &["data", "put", "rows", &good]).json();
    service.run("clinic", &["data", "put", "rows", &bad]).failed(6, "line 3");
    assert_eq!(service.run("clinic", &["data", "show", "rows"]).json()["version"], 1, "a bad file leaves no version");
    service.run("clinic", &["data", "put", "no/name", &good]).failed(6, "");
    service.run("clinic", &["data", "put", "..", &good]).failed(2, "is not a name");
    service.run("clinic", &["data", "get", "rows", &good]).failed(2, "--force");
    service.run("clinic", &["data", "get", "rows", &good, "--force"]).json_or_nothing();
    assert_eq!(fs::read_to_string(&good).unwrap(), "a,y\n1,p\n2,q\n3,p\n");
    let absent = service.run("clinic", &["model", "show", "nothing"]).failed(4, "there is no such model");
    assert_eq!((absent["code"].as_str(), absent["help"].is_string()), (Some("not_found"), true));
    let train = ["train", "start", "--dataset", "rows", "--target", "z", "--task", "classification", "--name", "m"];
    service.run("clinic", &train).failed(6, "`z`");
    service.run("operator", &["tenant", "limits", "clinic", "requests_per_second=1", "requests_burst=1"]).json();
    let limited = (0..20).map(|_| service.run("clinic", &["data", "list"])).find(|ended| ended.status != 0).unwrap();
    assert_eq!(limited.failed(5, "requests_per_second")["code"], "quota_exceeded");

    let wrong = [
        ("INSULA_URL", service.url.clone().into()),
        ("INSULA_CACERT", service.cacert.clone().into()),
        ("INSULA_TOKEN", "insula_wrong".into()),
    ];
    let told = insula(service.home.path(), &wrong, &["whoami"]);
    assert!(told.error.starts_with("error: ") && told.error.contains("\nhelp: "), "{}", told.error);
    assert_eq!(told.status, 3);
    let elsewhere = tempfile::tempdir().unwrap();
    let nobody = insula(elsewhere.path(), &wrong[..2], &["whoami"]);
    assert_eq!(nobody.status, 3);
    assert!(nobody.error.contains("INSULA_TOKEN"), "{}", nobody.error);
    let distrusting = insula(elsewhere.path(), &[wrong[0].clone(), wrong[2].clone()], &["whoami"]);
    assert_eq!(distrusting.status, 8, "{}", distrusting.error);
    assert!(distrusting.error.contains("INSULA_CACERT"), "{}", distrusting.error);
    service.stop();
    service.run("clinic", &["whoami"]).failed(8, "cannot reach");
}

#[test]
fn a_log_is_verified_without_the_service_and_remembered() {
    let Some(mut service) = Service::start() else { return };
    service.tenant("clinic", &[]);
    let key = service.run("clinic", &["audit", "key"]).json()["vkey"].as_str().unwrap().to_owned();
    let home = service.home.path().to_owned();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let (early, late) = (path("early"), path("late"));
    service.run("clinic", &["audit", "export", &early]).json_or_nothing();
    service.run("clinic", &["data", "list"]).json();
    service.run("clinic", &["audit", "export", &late]).json_or_nothing();
    let entries = service.run("clinic", &["audit", "ls", "--act", "DatasetRead"]).json();
    assert_eq!(entries[0]["entry"]["actor"], "ada");
    service.stop();

    let offline = |arguments: &[&str]| insula(&home, &[], &[&["--json", "audit", "verify"], arguments].concat());
    let first = offline(&[&early, "--key", &key]).json();
    let second = offline(&[&late, "--key", &key]).json();
    assert_eq!(second["grown"].as_u64().unwrap(), second["size"].as_u64().unwrap() - first["size"].as_u64().unwrap());
    offline(&[&early, "--key", &key]).failed(10, "shrunk");
    offline(&[&late, "--key", &key, "--origin", "another.example/log"]).failed(10, "origin");
    let mut bytes = fs::read(&late).unwrap();
    let middle = (bytes.len() / 2..bytes.len()).find(|at| bytes[*at].is_ascii_alphanumeric()).unwrap();
    bytes[middle] ^= 1;
    let tampered = path("tampered");
    fs::write(&tampered, bytes).unwrap();
    offline(&[&tampered, "--key", &key]).failed(10, "does not verify");
    assert_eq!(offline(&[&late, "--key", &key]).json()["size"], second["size"], "what failed was not remembered");
    offline(&[&late, "--key", "nonsense"]).failed(2, "is not of the form");
}

#[test]
fn a_model_goes_out_and_comes_in() {
    let Some(service) = Service::start() else { return };
    service.tenant("clinic", &[]);
    let wine = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/wine.csv");
    service.run("clinic", &["data", "put", "wine", wine]).json();
    let train = ["train", "start", "--dataset", "wine", "--target", "cultivar", "--task", "classification", "--name", "taster", "--watch"];
    let run = service.run("clinic", &train).json();
    assert!(run["metrics"]["accuracy"].as_f64().unwrap() > 0.9, "{run}");
    let file = service.home.path().join("taster.onnx").to_str().unwrap().to_owned();
    service.run("clinic", &["model", "download", "taster", "1", &file]).json_or_nothing();
    let uploaded = service.run("clinic", &["model", "upload", "copy", &file]).json();
    assert_eq!((uploaded["version"].as_u64(), uploaded["sha256"].as_str()), (Some(1), run["model_sha256"].as_str()));
    service.run("clinic", &["model", "alias", "copy", "champion", "1"]).json();
    service.run("clinic", &["model", "tag", "copy", "stage", "tried"]).json_or_nothing();
    assert_eq!(service.run("clinic", &["model", "show", "copy"]).json()["tags"]["stage"], "tried");
    assert_eq!(service.run("clinic", &["model", "history", "copy"]).json()[0]["to"], 1);
    for model in ["taster", "copy"] {
        service.run("clinic", &["deploy", "put", model, "--model", model, "--version", "1"]).json();
    }
    let text = fs::read_to_string(wine).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let (names, first) = (lines.next().unwrap(), lines.next().unwrap());
    let cells: Vec<String> =
        names.iter().zip(&first).filter(|(name, _)| **name != "cultivar").map(|(name, cell)| format!("{name}={cell}")).collect();
    let ask = |model: &str, row: &str| service.run("clinic", &["predict", model, "--row", row]);
    let answer = ask("taster", &cells.join(",")).json();
    assert_eq!(answer["outputs"].as_array().unwrap().len(), 2);
    assert_eq!(answer["outputs"], ask("copy", &cells.join(",")).json()["outputs"], "the same bytes give the same numbers");
    let reversed = cells.iter().rev().cloned().collect::<Vec<_>>().join(",");
    assert_eq!(ask("taster", &reversed).json()["outputs"], answer["outputs"], "columns go by name where the run knows them");
    ask("taster", &cells[1..].join(",")).failed(6, "has no column");
    ask("taster", &cells.join(",").replace('=', "=x")).failed(6, "is not a number");
    service.run("clinic", &["model", "delete", "copy"]).failed(7, "copy");
}

#[test]
fn a_version_is_rolled_out_and_back_and_asked_about_a_table() {
    let Some(service) = Service::start() else { return };
    service.tenant("clinic", &[]);
    let table = service.file("rows.csv", rows(120));
    service.run("clinic", &["data", "put", "rows", &table]).json();
    let train = ["train", "start", "--dataset", "rows", "--target", "label", "--task", "classification", "--name", "m", "--watch"];
    for version in 1..=2 {
        assert_eq!(service.run("clinic", &train).json()["model_version"], version);
    }
    let put = |more: &[&str]| service.run("clinic", &[&["deploy", "put", "gate", "--model", "m", "--version", "1"], more].concat());
    put(&[]).json();
    put(&["--error-rate-max", "0.5"]).failed(6, "about a canary");
    let rollout = put(&["--canary", "2", "--canary-percent", "100", "--error-rate-max", "0.5"]).json();
    assert_eq!((rollout["serving_version"].as_u64(), rollout["canary_version"].as_u64()), (Some(1), Some(2)));
    let asked = |expected: &str| {
        let answer = service.run("clinic", &["predict", "gate", "--row", "x=11,y=0"]).json();
        assert_eq!(answer["model_version"], expected, "{answer}");
    };
    asked("2");
    let shown = service.run("clinic", &["deploy", "show", "gate"]).json();
    assert_eq!((&shown["rollout"]["state"], &shown["answers"][1]["answered"]), (&json!("canary"), &json!(1)), "{shown}");
    assert_eq!(service.run("clinic", &["deploy", "promote", "gate"]).json()["serving_version"], 2);
    asked("2");
    assert_eq!(service.run("clinic", &["deploy", "rollback", "gate"]).json()["serving_version"], 1);
    asked("1");
    service.run("clinic", &["deploy", "rollback", "gate"]).failed(7, "no state before");

    let batch = ["batch", "start", "gate", "--dataset", "rows", "--into", "answers", "--keep", "x", "--watch"];
    let job = service.run("clinic", &batch).json();
    assert_eq!((&job["state"], &job["rows"], &job["into_version"]), (&json!("succeeded"), &json!(120), &json!(1)), "{job}");
    let id = job["id"].as_str().unwrap();
    assert_eq!(service.run("clinic", &["batch", "list"]).json()[0]["id"], id);
    service.run("clinic", &["batch", "cancel", id]).failed(7, "already succeeded");
    let answers = service.run("clinic", &["data", "show", "answers"]).json();
    assert_eq!((&answers["rows"], &answers["lineage"]["prediction"]), (&json!(120), &json!(id)), "{answers}");
}

#[test]
fn a_receipt_is_verified_without_the_service() {
    let Some(mut service) = Service::start() else { return };
    service.tenant("clinic", &[]);
    let home = service.home.path().to_owned();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let wine = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/wine.csv");
    service.run("clinic", &["data", "put", "wine", wine]).json();
    let train = ["train", "start", "--dataset", "wine", "--target", "cultivar", "--task", "classification", "--name", "taster", "--watch"];
    service.run("clinic", &train).json();
    service.run("clinic", &["deploy", "put", "taster", "--model", "taster", "--version", "1"]).json();
    let key = service.run("clinic", &["audit", "key"]).json()["vkey"].as_str().unwrap().to_owned();
    let text = fs::read_to_string(wine).unwrap();
    let (names, first) = text.split_once('\n').map(|(names, rest)| (names, rest.lines().next().unwrap())).unwrap();
    let row = names.split(',').zip(first.split(',')).filter(|(name, _)| *name != "cultivar");
    let row = row.map(|(name, cell)| format!("{name}={cell}")).collect::<Vec<_>>().join(",");
    let (early, late, export) = (path("early"), path("late"), path("export"));
    service.run("clinic", &["predict", "taster", "--row", &row, "--receipt", &early]).json();
    let asked = service.run("clinic", &["audit", "ls", "--act", "Predict"]).json();
    assert_eq!(asked.as_array().unwrap().len(), 1);
    let index = asked[0]["index"].to_string();
    service.run("clinic", &["receipt", "get", &index, &late]).json_or_nothing();
    service.run("clinic", &["audit", "export", &export]).json_or_nothing();
    service.run("clinic", &["receipt", "get", "0", &path("none")]).failed(4, "receipt");
    service.stop();

    let offline = |arguments: &[&str]| insula(&home, &[], &[&["--json", "receipt", "verify"], arguments].concat());
    let told = offline(&[&early, "--key", &key]).json();
    assert_eq!((told["statement"]["entry"].to_string(), &told["proven_size"]), (index, &serde_json::Value::Null));
    assert_eq!(told["statement"]["model"], asked[0]["entry"]["detail"]["model_sha256"]);
    let told = offline(&[&late, "--key", &key, "--ledger", &export]).json();
    assert!(told["proven_size"].is_u64() && told["entry_compared"] == true, "{told}");
    offline(&[&early, "--key", &key, "--input", wine]).failed(10, "another input");
    let mut bytes = fs::read(&late).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    fs::write(path("tampered"), bytes).unwrap();
    offline(&[&path("tampered"), "--key", &key]).failed(10, "does not verify");
}

#[test]
fn unsafe_configurations_are_refused_with_a_remedy() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let inside = data.join("keys");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let ended = insula(home.path(), &[], &["check", "--data", &text(&data), "--keystore", &text(&inside)]);
    assert_eq!(ended.status, 1, "{}", ended.error);
    assert!(ended.output.contains("unsafe") && ended.output.contains("help: "), "{}", ended.output);
    let config = home.path().join("c.toml");
    fs::write(&config, "data_dri = \"x\"\n").unwrap();
    let ended = insula(home.path(), &[], &["check", "--config", &text(&config)]);
    assert_eq!(ended.status, 2);
    assert!(ended.error.contains("data_dri"), "{}", ended.error);
}

#[test]
fn completion_is_printed() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let ended = insula(home.path(), &[], &["completion", shell]);
        assert_eq!(ended.status, 0);
        assert!(ended.output.contains("insula"), "{shell}");
    }
}
