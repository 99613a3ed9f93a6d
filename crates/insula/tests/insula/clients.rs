//! Clients of others against the service: Triton's inference client over TLS, and stock ONNX Runtime with the downloaded model.

use std::process::Command;

use serde_json::Value;

use crate::world::Service;

/// Largest difference between the service's numbers and stock ONNX Runtime's: both are single precision from the same kernels.
const DIFFERENCE_MAX: f64 = 1e-6;

#[test]
fn stock_clients_are_served_and_see_the_same_numbers() {
    let Some(python) = std::env::var_os("INSULA_PY") else {
        assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_PY is demanded");
        println!("SKIPPED: needs INSULA_PY, a Python with tritonclient[http], onnxruntime and numpy");
        return;
    };
    let Some(service) = Service::start() else { return };
    service.tenant("zoo", &[]);
    let example = |name: &str| format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"));
    for (set, target, task, ask) in
        [("penguins", "species", "classification", "penguins-ask.json"), ("diabetes", "progression", "regression", "diabetes-ask.json")]
    {
        service.run("zoo", &["data", "put", set, &example(&format!("{set}.csv"))]).json();
        let train = ["train", "start", "--dataset", set, "--target", target, "--task", task, "--name", set, "--watch"];
        service.run("zoo", &train).json();
        service.run("zoo", &["deploy", "put", set, "--model", set, "--version", "1"]).json();
        let file = service.path(&format!("{set}.onnx"));
        service.run("zoo", &["model", "download", set, "1", &file]).json_or_nothing();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/insula/stock_clients.py");
        let address = service.url.strip_prefix("https://").unwrap();
        let mut command = Command::new(&python);
        command.args([script, address, service.cacert.to_str().unwrap(), set, &file, &example(ask)]);
        let output = command.env("INSULA_TOKEN", service.key_of("zoo")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{set}: {told}");
        let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(seen["rows"].as_u64().unwrap() > 0, "{seen}");
        assert!(seen["difference"].as_f64().unwrap() <= DIFFERENCE_MAX, "{seen}");
        for (attempt, told) in [("no credential", "credential"), ("no such deployment", "deployment")] {
            assert!(seen["refusals"][attempt].as_str().unwrap().contains(told), "{attempt}: {seen}");
        }
    }
}
