//! The Open Inference Protocol as clients of others speak it: Triton's over REST and gRPC, and KServe's.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::world::Service;

/// A Python with the clients; `None`, said aloud, where there is none and nobody demands it.
pub(crate) fn python() -> Option<PathBuf> {
    let python = std::env::var_os("INSULA_PY").map(PathBuf::from);
    if python.is_none() {
        assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_PY is demanded");
        println!("SKIPPED: needs INSULA_PY, a Python with tritonclient, kserve, onnx and numpy");
    }
    python
}

fn play(service: &Service, python: &PathBuf, script: &str, keys: &[(&str, &str)]) -> Value {
    let address = service.url.strip_prefix("https://").unwrap();
    let mut command = Command::new(python);
    command.args([&format!("{}/tests/insula/{script}", env!("CARGO_MANIFEST_DIR")), address, service.cacert.to_str().unwrap()]);
    let output = command.envs(keys.iter().copied()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {told}\n{}", service.log_tail());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn member(service: &Service, role: &str) -> String {
    service.run("zoo", &["member", "set", role, "--role", role]).json();
    let made = service.run("zoo", &["key", "create", role, "--member", role]).json();
    made["secret"].as_str().unwrap().to_owned()
}

#[test]
fn tritons_client_over_rest_and_grpc() {
    let (Some(python), Some(service)) = (python(), Service::start()) else { return };
    let limits = ["--limit", "requests_per_second=100000", "--limit", "requests_burst=100000"];
    service.tenant("zoo", &limits);
    service.tenant("farm", &limits);
    let (mine, other) = (service.key_of("zoo"), service.key_of("farm"));
    let members = ["invoker", "auditor", "viewer"].map(|role| (format!("INSULA_{}_TOKEN", role.to_uppercase()), member(&service, role)));
    let mut keys = vec![("INSULA_TOKEN", mine.as_str()), ("INSULA_OTHER_TOKEN", other.as_str())];
    keys.extend(members.iter().map(|(name, key)| (name.as_str(), key.as_str())));
    let seen = play(&service, &python, "oip.py", &keys);
    assert_eq!((seen["datatypes"].as_u64(), seen["streamed"].as_u64()), (Some(14), Some(1000)));
}

#[test]
fn kserves_client_over_rest_and_grpc() {
    let (Some(python), Some(service)) = (python(), Service::start()) else { return };
    service.tenant("zoo", &[]);
    play(&service, &python, "kserve_client.py", &[("INSULA_TOKEN", &service.key_of("zoo"))]);
}
