//! The operator's day at the command line: tenants held and let go, limits, erasure with its certificate, and configurations that a
//! service must not run with.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::world::{Service, insula, programs};

#[test]
fn a_tenant_is_held_limited_and_erased() {
    let Some(service) = Service::start() else { return };
    service.tenant("clinic", &[]);
    let file = service.file("rows.csv", "a,y\n1,p\n");
    service.run("clinic", &["data", "put", "rows", &file]).json();

    assert_eq!(service.run("operator", &["tenant", "suspend", "clinic"]).json()["state"], "suspended");
    assert_eq!(service.run("clinic", &["data", "list"]).failed(4, "suspended")["code"], "tenant_state");
    assert_eq!(service.run("operator", &["tenant", "resume", "clinic"]).json()["state"], "active");
    assert_eq!(service.run("clinic", &["data", "list"]).json()[0]["name"], "rows", "nothing is lost");
    service.run("operator", &["tenant", "suspend", "nobody"]).failed(4, "tenant");

    let before = service.run("operator", &["tenant", "show", "clinic"]).json();
    let after = service.run("operator", &["tenant", "limits", "clinic", "objects=1"]).json();
    assert_eq!(after["limits"]["objects"], 1);
    assert_eq!(after["limits"]["models"], before["limits"]["models"], "what is not named stays");
    service.run("clinic", &["data", "put", "more", &file]).failed(5, "objects");
    assert_eq!(service.run("clinic", &["quota"]).json()["limits"]["objects"], 1);
    service.run("operator", &["tenant", "limits", "clinic", "objekts=1"]).failed(6, "objekts");
    service.run("operator", &["tenant", "limits", "clinic", "requests_per_second=0"]).failed(6, "requests_per_second");
    assert_eq!(before["limits"]["isolation"], "jail");
    service.run("operator", &["tenant", "limits", "clinic", "isolation=none"]).failed(6, "gvisor");

    service.run("operator", &["tenant", "erase", "clinic", "--confirm", "clinik"]).failed(2, "nothing was done");
    let key = service.run("operator", &["audit", "key", "--service"]).json()["vkey"].as_str().unwrap().to_owned();
    let erasure = service.run("operator", &["tenant", "erase", "clinic", "--confirm", "clinic", "--wait"]).json();
    let id = erasure["id"].as_str().unwrap();
    assert_eq!(service.run("operator", &["tenant", "erasure", id]).json()["state"], erasure["state"]);
    service.run("clinic", &["data", "list"]).failed(3, "");
    service.run("operator", &["tenant", "show", "clinic"]).failed(4, "");
    service.run("operator", &["tenant", "resume", "clinic"]).failed(4, "");

    let printed = service.run("operator", &["tenant", "certificate", id]);
    assert_eq!(printed.status, 0, "{}", printed.error);
    let certificate = service.file("certificate", &printed.output);
    let offline = |arguments: &[&str]| insula(service.home.path(), &[], &[&["--json", "audit", "verify-certificate"], arguments].concat());
    offline(&[&certificate, "--key", &key]).json();
    let forged = service.file("forged", printed.output.replacen("clinic", "clinix", 1));
    if fs::read(&forged).unwrap() != fs::read(&certificate).unwrap() {
        offline(&[&forged, "--key", &key]).failed(10, "");
    }
    let cut = service.file("cut", &printed.output[..printed.output.len() / 2]);
    offline(&[&cut, "--key", &key]).failed(10, "");
    offline(&[&service.path("absent"), "--key", &key]).failed(1, "absent");
    let tenants_key = {
        service.tenant("zoo", &[]);
        service.run("zoo", &["audit", "key"]).json()["vkey"].as_str().unwrap().to_owned()
    };
    offline(&[&certificate, "--key", &tenants_key]).failed(10, "");
}

#[test]
fn every_listing_is_json_for_scripts() {
    let Some(service) = Service::start() else { return };
    service.tenant("clinic", &[]);
    let file = service.file("rows.csv", crate::world::rows(120));
    service.run("clinic", &["data", "put", "rows", &file]).json();
    let train = ["train", "start", "--dataset", "rows", "--target", "label", "--task", "classification", "--name", "fence", "--watch"];
    service.run("clinic", &train).json();
    service.run("clinic", &["model", "alias", "fence", "best", "1"]).json();
    service.run("clinic", &["deploy", "put", "gate", "--model", "fence", "--alias", "best"]).json();
    service.run("operator", &["tenant", "create", "gone", "--save", "gone"]).json();
    service.run("operator", &["tenant", "erase", "gone", "--confirm", "gone", "--wait"]).json();
    let id = service.run("clinic", &["train", "list"]).json()[0]["id"].as_str().unwrap().to_owned();
    let lists: [(&str, &[&str]); 13] = [
        ("operator", &["tenant", "list"]),
        ("operator", &["tenant", "erasures"]),
        ("clinic", &["member", "list"]),
        ("clinic", &["key", "list"]),
        ("clinic", &["keys", "show"]),
        ("clinic", &["data", "list"]),
        ("clinic", &["data", "versions", "rows"]),
        ("clinic", &["train", "list"]),
        ("clinic", &["train", "runs"]),
        ("clinic", &["model", "list"]),
        ("clinic", &["model", "history", "fence"]),
        ("clinic", &["deploy", "list"]),
        ("clinic", &["audit", "ls"]),
    ];
    for (who, arguments) in lists {
        let listed = service.run(who, arguments).json();
        assert!(listed.as_array().is_some_and(|items| !items.is_empty()), "{arguments:?}: {listed}");
    }
    let items: [(&str, &[&str]); 12] = [
        ("operator", &["whoami"]),
        ("operator", &["tenant", "show", "clinic"]),
        ("operator", &["audit", "key", "--service"]),
        ("clinic", &["data", "show", "rows"]),
        ("clinic", &["data", "preview", "rows"]),
        ("clinic", &["train", "show", &id]),
        ("clinic", &["model", "show", "fence"]),
        ("clinic", &["model", "show", "fence", "--version", "1"]),
        ("clinic", &["deploy", "show", "gate"]),
        ("clinic", &["audit", "show", "0"]),
        ("clinic", &["quota"]),
        ("clinic", &["usage"]),
    ];
    for (who, arguments) in items {
        let shown = service.run(who, arguments).json();
        assert!(shown.is_object(), "{arguments:?}: {shown}");
    }
}

#[test]
fn what_check_refuses_does_not_start() {
    let Some((cell, engine)) = programs() else { return };
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let good = format!("[cells]\nprogram = {cell:?}\nengine_library = {engine:?}\nfloor = 'development'\n");
    let config = place("config.toml");
    fs::write(&config, &good).unwrap();
    let (data, keys) = (place("data"), place("keys"));
    let run = |verb: &str, more: &[&str]| {
        insula(home.path(), &[], &[&[verb, "--config", &config, "--data", &data, "--keystore", &keys], more].concat())
    };
    let safe = run("check", &[]);
    assert_eq!(safe.status, 0, "{}{}", safe.output, safe.error);
    let refused = |told: &str, more: &[&str]| {
        let checked = run("check", more);
        assert!(checked.output.contains(told) && checked.output.contains("help: "), "{told}: {}", checked.output);
        assert_eq!(checked.status, 1, "{told}");
        run("serve", more).failed(1, told);
    };
    refused("development CA", &["--listen", "0.0.0.0:0"]);
    fs::create_dir(&keys).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o755)).unwrap();
    refused("entered by others", &[]);
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&config, good.replace(cell.to_str().unwrap(), "/nowhere/insula-cell")).unwrap();
    refused("/nowhere/insula-cell", &[]);
    fs::write(&config, good.replace(engine.to_str().unwrap(), "/nowhere/libonnxruntime.so")).unwrap();
    refused("/nowhere/libonnxruntime.so", &[]);
    fs::write(&config, format!("{good}uknown = 1\n")).unwrap();
    run("check", &[]).failed(2, "uknown");
    run("serve", &[]).failed(2, "uknown");
    assert!(!home.path().join("data").exists(), "nothing was made by what did not start");
}
