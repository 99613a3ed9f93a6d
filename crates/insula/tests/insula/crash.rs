//! `kill -9` of the whole service while it acknowledges: what was acknowledged is there afterwards, whole, and nothing outlives it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Service, family, question, rows, until};

/// Kills.
const ROUNDS: usize = 3;
/// Acknowledged requests before a kill.
const ACKNOWLEDGED: usize = 120;
/// Uploads go round these data sets, several at once into each.
const DATASETS: usize = 3;
/// Clients at once.
const CLIENTS: usize = 6;

/// What was acknowledged.
#[derive(Default)]
struct Promised {
    /// Data set and version to content.
    versions: BTreeMap<(String, u64), String>,
    keys: BTreeSet<String>,
    trainings: BTreeSet<String>,
    /// Request ids of predictions.
    predictions: BTreeSet<String>,
}

/// One client, until the connection breaks.
async fn client(service: &Service, key: &str, round: usize, number: usize, promised: &Mutex<Promised>, count: &AtomicUsize) {
    for turn in 0.. {
        let own = format!("r{round}c{number}t{turn}");
        let done = match (number + turn) % 4 {
            0 | 1 => upload(service, key, &own, turn % DATASETS, promised).await,
            2 => issue(service, key, &own, promised).await,
            _ if turn % 8 == 1 => train(service, key, promised).await,
            _ => predict(service, key, &own, promised).await,
        };
        if done.is_err() {
            return;
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}

async fn upload(service: &Service, key: &str, own: &str, to: usize, promised: &Mutex<Promised>) -> reqwest::Result<()> {
    let content = format!("a,b\n1,{own}\n{}", "2,filler\n".repeat(500));
    let path = format!("/v1/datasets/stream{to}");
    let answer = service.try_ask(Method::PUT, &path, key, None, content.clone()).await?.expect(201).json();
    promised.lock().unwrap().versions.insert((format!("stream{to}"), answer["version"].as_u64().unwrap()), content);
    Ok(())
}

async fn issue(service: &Service, key: &str, own: &str, promised: &Mutex<Promised>) -> reqwest::Result<()> {
    let body = json!({"name": own, "member": "ada"});
    let answer = service.try_ask(Method::POST, "/v1/keys", key, None, body).await?.expect(201).json();
    promised.lock().unwrap().keys.insert(answer["secret"].as_str().unwrap().to_owned());
    Ok(())
}

async fn train(service: &Service, key: &str, promised: &Mutex<Promised>) -> reqwest::Result<()> {
    let body = json!({"name": "later", "dataset": "fence", "target": "label", "task": "classification"});
    let answer = service.try_ask(Method::POST, "/v1/trainings", key, None, body).await?;
    // The queue has an end; what was refused was not promised.
    if answer.status != 429 {
        promised.lock().unwrap().trainings.insert(answer.expect(202).json()["id"].as_str().unwrap().to_owned());
    }
    Ok(())
}

async fn predict(service: &Service, key: &str, own: &str, promised: &Mutex<Promised>) -> reqwest::Result<()> {
    service.try_ask(Method::POST, "/v2/models/gate/infer", key, Some(own), question(3.0, 1.0)).await?.expect(200);
    promised.lock().unwrap().predictions.insert(own.to_owned());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let Some(mut service) = Service::start() else { return };
    let key = service.busy_tenant("clinic", "ada");
    service.ask(Method::PUT, "/v1/datasets/fence", &key, rows(120)).await.expect(201);
    let body = json!({"name": "fence", "dataset": "fence", "target": "label", "task": "classification"});
    let first = service.ask(Method::POST, "/v1/trainings", &key, body).await.expect(202).json();
    assert_eq!(service.trained(first["id"].as_str().unwrap(), &key).await["state"], "succeeded");
    service.ask(Method::PUT, "/v1/deployments/gate", &key, json!({"model": "fence", "version": 1})).await.expect(200);
    let pinned = service.get("/v1/ledger/key", &key).await.expect(200).json()["vkey"].as_str().unwrap().to_owned();

    let promised = Mutex::new(Promised::default());
    for round in 0..ROUNDS {
        let count = AtomicUsize::new(0);
        let (shared, all, kept) = (&service, &count, &promised);
        let clients = (0..CLIENTS).map(|number| client(shared, &key, round, number, kept, all));
        let pid = service.pid();
        let killer = async {
            while count.load(Ordering::Relaxed) < ACKNOWLEDGED {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            let running = family(pid);
            assert!(running.len() >= 3, "a fork server and a cell are running: {running:?}");
            assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
            running
        };
        let (_, running) = tokio::join!(futures_util::future::join_all(clients), killer);
        let home = service.kill();
        until("no process outlives its service", || {
            let alive = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
            (!running.iter().any(alive)).then_some(())
        });
        service = Service::open(home);
        // No client is left; the list is taken for the look and given back.
        let sofar = std::mem::take(&mut *promised.lock().unwrap());
        kept_whole(&service, &key, &sofar, &pinned, round).await;
        *promised.lock().unwrap() = sofar;
    }
    let promised = promised.into_inner().unwrap().trainings;
    assert!(!promised.is_empty());
    // A kill can come between a training's commit and its answer: such a one was not promised, and runs all the same.
    let made = items(&service, &key, "/v1/trainings").await;
    let made: BTreeSet<&str> = made.iter().filter(|one| one["name"] == "later").map(|one| one["id"].as_str().unwrap()).collect();
    assert!(promised.iter().all(|id| made.contains(id.as_str())), "{promised:?} {made:?}");
    for id in &made {
        let ended = service.trained(id, &key).await;
        assert_eq!(ended["state"], "succeeded", "{ended}");
    }
    let versions = items(&service, &key, "/v1/models/later/versions").await;
    assert_eq!(versions.len(), made.len(), "each training made one version, also those that a kill interrupted");
}

/// All pages of a list.
async fn items(service: &Service, key: &str, path: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let separator = if path.contains('?') { '&' } else { '?' };
        let page = service.get(&format!("{path}{separator}limit=500{after}"), key).await.expect(200).json();
        found.extend(page["items"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next"].as_str() else { return found };
        after = format!("&after={next}");
    }
}

async fn kept_whole(service: &Service, key: &str, promised: &Promised, pinned: &str, round: usize) {
    let total = promised.versions.len() + promised.keys.len() + promised.trainings.len() + promised.predictions.len();
    assert!(total >= ACKNOWLEDGED * (round + 1) * 9 / 10, "{total} acknowledged");
    for number in 0..DATASETS {
        let dataset = format!("stream{number}");
        let listed = items(service, key, &format!("/v1/datasets/{dataset}/versions")).await;
        let mut numbers: Vec<u64> = listed.iter().map(|version| version["version"].as_u64().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "no gap and nothing twice in {dataset}");
        for version in numbers {
            let content = service.get(&format!("/v1/datasets/{dataset}/versions/{version}/content"), key).await.expect(200).text();
            match promised.versions.get(&(dataset.clone(), version)) {
                Some(sent) => assert!(content == *sent, "{dataset} version {version} is not what was sent"),
                // Done, and killed before it could be said: whole all the same.
                None => assert_eq!(content.lines().count(), 502, "{dataset} version {version} is half"),
            }
        }
        let missing = promised.versions.keys().filter(|(of, version)| *of == dataset && *version > listed.len() as u64).count();
        assert_eq!(missing, 0, "{dataset} has lost versions");
    }
    for secret in &promised.keys {
        service.get("/v1/whoami", secret).await.expect(200);
    }
    for id in &promised.trainings {
        service.get(&format!("/v1/trainings/{id}"), key).await.expect(200);
    }
    let entries = items(service, key, "/v1/ledger?act=Predict").await;
    let written: BTreeSet<&str> = entries.iter().filter_map(|item| item["entry"]["request"].as_str()).collect();
    let lost: Vec<_> = promised.predictions.iter().filter(|id| !written.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "acknowledged predictions without an entry: {lost:?}");
    service.ask(Method::POST, "/v2/models/gate/infer", key, question(3.0, 1.0)).await.expect(200);
    let file = service.path(&format!("ledger{round}"));
    std::fs::write(&file, service.get("/v1/ledger/export", key).await.expect(200).body).unwrap();
    let report = service.run("", &["audit", "verify", &file, "--key", pinned]).json();
    assert_eq!(report["size"], report["opened"], "every entry is readable: {report}");
    if round > 0 {
        assert!(report["grown"].as_u64().unwrap() > 0, "the log continues what was verified before: {report}");
    }
}
