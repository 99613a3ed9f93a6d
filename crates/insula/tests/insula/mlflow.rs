//! The stock MLflow client against the service, unchanged: scripts in `tests/mlflow`, each with two tenants whose names cross.

use std::path::PathBuf;
use std::process::Command;

use crate::world::Service;

/// A Python with the stock client. None, with a printed reason, where it is missing and nobody demands it.
pub(crate) fn python() -> Option<PathBuf> {
    let python = std::env::var_os("INSULA_MLFLOW_PY").map(PathBuf::from);
    if python.is_none() {
        assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_MLFLOW_PY is demanded");
        println!("SKIPPED: needs INSULA_MLFLOW_PY, a Python with mlflow, scikit-learn and skl2onnx");
    }
    python
}

/// Runs a script as a data scientist of the tenant `left`; it also gets the token of the tenant `right`, whose things have the same names.
fn plays(script: &str) {
    plays_with(script, "");
}

/// The same with more configuration.
fn plays_with(script: &str, more: &str) {
    let Some(python) = python() else { return };
    let Some(service) = Service::start_with(|_| more.to_owned()) else { return };
    let (left, right) = (service.busy_tenant("left", "ada"), service.busy_tenant("right", "bob"));
    let file = format!("{}/tests/mlflow/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    command.arg(file).current_dir(service.home.path()).env_clear().env("HOME", service.home.path()).env("PATH", "/usr/bin:/bin");
    command.env("MLFLOW_TRACKING_URI", &service.url).env("MLFLOW_TRACKING_SERVER_CERT_PATH", &service.cacert);
    command.env("MLFLOW_TRACKING_TOKEN", &left).env("INSULA_OTHER_TOKEN", &right);
    // A refusal is to be seen at once, not after a minute of trying again.
    command.env("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2").env("MLFLOW_DISABLE_TELEMETRY", "true").env("GIT_PYTHON_REFRESH", "quiet");
    let output = command.output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {told}\n{}", service.log_tail());
}

#[test]
fn permissions_are_the_policys() {
    plays("permissions.py");
}

#[test]
fn tracking_is_mlflows() {
    plays("tracking.py");
}

#[test]
fn artifacts_and_logged_models() {
    plays("artifacts.py");
}

#[test]
fn from_run_to_endpoint() {
    plays("registry.py");
}

#[test]
fn traces_are_recorded_searched_and_assessed() {
    plays("traces.py");
}

#[test]
fn webhooks_are_told_what_happens_and_reach_nothing_inside() {
    // The script listens on this address and no other, and asks for others too.
    plays_with("webhooks.py", "[egress]\nhttp = true\nnetworks = ['127.0.0.9']\n");
}

#[test]
fn what_is_not_supported_is_said() {
    plays("endpoints.py");
}
