//! Three nodes on one PostgreSQL and one S3, all of them killed in turn while clients write through any node: errors are clear, nothing
//! acknowledged is lost, the service comes back by itself, and every audit log verifies.

pub(crate) mod cluster;
mod history;
mod load;
pub(crate) mod stores;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Body, rows};
use cluster::{Cluster, NODES, name};
use load::{INITIAL, Island};
use stores::Kind;

const ISLANDS: usize = 3;
/// A lease, and time to open what it was for on a machine that does much else.
const RECOVERY_MAX: Duration = Duration::from_secs(25);
/// How long a killed server stays away.
const AWAY: Duration = Duration::from_secs(2);
/// Acknowledgements after a kill until a tenant counts as served again: none of them may have been on its way.
const SERVED: usize = 8;
/// Trainings that a node has taken on when it is killed.
const TRAININGS: usize = 4;

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    /// Comes back when the others have taken over.
    NodeForLong(usize),
    /// Comes back at once.
    Node(usize),
    Store(Kind),
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing() {
    let Some(cluster) = Cluster::start(NODES).await else { return };
    let cluster = Arc::new(cluster);
    let mut islands = Vec::new();
    for number in 0..ISLANDS {
        islands.push(Arc::new(Island::make(&cluster, &format!("island{number}")).await));
    }
    let began = Instant::now();
    let loads: Vec<_> = islands.iter().map(|island| tokio::spawn(Arc::clone(island).load(Arc::clone(&cluster)))).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let school = Trainings::begin(&cluster).await;
    let home = cluster.home_of("school").unwrap();
    let others = (0..NODES).filter(|node| *node != home).map(Victim::Node);
    let victims = [Victim::NodeForLong(home)].into_iter().chain(others).chain([Victim::Store(Kind::Postgres), Victim::Store(Kind::S3)]);
    for victim in victims {
        kill_and_wait(&cluster, &islands, victim).await;
    }
    islands.iter().for_each(|island| island.stop());
    for load in loads {
        load.await.unwrap();
    }
    let told = std::mem::take(&mut *cluster.told.lock().unwrap());
    println!("answers in {:.1?}: {:?}", began.elapsed(), told.counts);
    let more = told.faults.len().saturating_sub(5);
    assert!(told.faults.is_empty(), "{:#?} and {more} more", &told.faults[..told.faults.len().min(5)]);
    assert!(told.refusals.is_empty(), "nobody may be refused because of an outage: {:#?}", told.refusals);
    for island in &islands {
        kept_whole(&cluster, island).await;
    }
    school.end(&cluster).await;
}

/// Kills, starts again, and waits until every tenant is served.
async fn kill_and_wait(cluster: &Cluster, islands: &[Arc<Island>], victim: Victim) {
    let homes: Vec<_> = islands.iter().map(|island| cluster.home_of(&island.name).map_or("-", name)).collect();
    let killed = Instant::now();
    match victim {
        Victim::Node(node) | Victim::NodeForLong(node) => cluster.kill(node),
        Victim::Store(kind) => cluster.stores_kill(kind),
    }
    if !matches!(victim, Victim::NodeForLong(_)) {
        tokio::time::sleep(AWAY).await;
    }
    match victim {
        Victim::NodeForLong(node) => {
            served_again(cluster, islands, victim, killed).await;
            cluster.launch(node);
            tokio::task::block_in_place(|| cluster.wait(node));
        }
        Victim::Node(node) => {
            cluster.launch(node);
            tokio::task::block_in_place(|| cluster.wait(node));
        }
        Victim::Store(kind) => tokio::task::block_in_place(|| cluster.stores_restart(kind)),
    }
    let back = Instant::now();
    served_again(cluster, islands, victim, back).await;
    let silences: Vec<_> = islands.iter().map(|island| format!("{:.1?}", island.silence(killed, Instant::now()))).collect();
    println!("{victim:?} killed (homes {homes:?}): back after {:.1?}, longest time without service {silences:?}", back - killed);
}

/// Waits until each tenant and the operator are served.
async fn served_again(cluster: &Cluster, islands: &[Arc<Island>], victim: Victim, since: Instant) {
    loop {
        let late: Vec<_> = islands.iter().filter(|island| island.served_since(since) < SERVED).map(|island| &island.name).collect();
        let asked = cluster.try_ask(Method::GET, "/v1/tenants", &cluster.operator, None, Body::None).await;
        let operator = matches!(&asked, cluster::Outcome::Answer(answer) if answer.status == 200);
        if late.is_empty() && operator {
            return;
        }
        let answer = match asked {
            cluster::Outcome::Answer(answer) => answer.text(),
            _ => "no answer".to_owned(),
        };
        assert!(since.elapsed() < RECOVERY_MAX, "{victim:?}: {late:?} are not served, the operator hears {answer}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What was acknowledged is there, once, and in the audit log; the register is explained by a single one.
async fn kept_whole(cluster: &Cluster, island: &Island) {
    island.read_last(cluster).await;
    let seen = std::mem::take(&mut *island.seen.lock().unwrap());
    assert!(seen.wrong.is_empty(), "{}: {:#?}", island.name, &seen.wrong[..seen.wrong.len().min(5)]);
    history::judge(INITIAL, &seen.register).unwrap_or_else(|told| panic!("{}: {told}", island.name));

    let datasets: BTreeSet<&String> = seen.appended.keys().map(|(dataset, _)| dataset).collect();
    let mut total = 0;
    for dataset in datasets {
        let listed = cluster.items(&format!("/v1/datasets/{dataset}/versions"), &island.key).await;
        let mut numbers: Vec<u64> = listed.iter().map(|version| version["version"].as_u64().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "no gap and nothing twice in {dataset}");
        total += numbers.len();
        for ((_, version), content) in seen.appended.iter().filter(|((of, _), _)| of == dataset) {
            let path = format!("/v1/datasets/{dataset}/versions/{version}/content");
            let stored = cluster.get(&path, &island.key).await.expect(200).text();
            assert!(stored == *content, "{}: {dataset} version {version} is not what was sent", island.name);
        }
    }

    let objects = cluster.get("/v1/quota", &island.key).await.expect(200).json()["used"]["objects"].clone();
    assert_eq!(objects, total, "{}: the counter and what it counts", island.name);

    let file = cluster.path(&format!("{}.ledger", island.name)).display().to_string();
    std::fs::write(&file, cluster.get("/v1/ledger/export", &island.key).await.expect(200).body).unwrap();
    let report = cluster.offline(&["--json", "audit", "verify", &file, "--key", &island.vkey]).json();
    assert_eq!(report["size"], report["opened"], "every entry is readable: {report}");
    let entries = cluster.items("/v1/ledger?outcome=allowed", &island.key).await;
    let written: BTreeSet<&str> = entries.iter().filter_map(|item| item["entry"]["request"].as_str()).collect();
    let lost: Vec<_> = seen.acknowledged.iter().filter(|id| !written.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "{}: acknowledged writes without an entry: {lost:?}", island.name);
    let done = |ids: &[String]| ids.iter().filter(|id| written.contains(id.as_str())).count();
    println!(
        "{}: {} requests, {} writes acknowledged, {} refused (of them {} done), {} unknown (of them {} done), {} entries verified",
        island.name,
        seen.requests,
        seen.acknowledged.len(),
        seen.refused.len(),
        done(&seen.refused),
        seen.unknown.len(),
        done(&seen.unknown),
        report["size"],
    );
}

/// Trainings that a node has taken on when it is killed, of a tenant of their own.
struct Trainings {
    key: String,
    ids: Vec<String>,
}

impl Trainings {
    async fn begin(cluster: &Cluster) -> Self {
        let key = cluster.tenant("school", json!({"jobs_running": 1})).await;
        let wine = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/wine.csv")).unwrap();
        cluster.ask(Method::PUT, "/v1/datasets/wine", &key, wine).await.expect(201);
        let body = json!({"name": "taster", "dataset": "wine", "target": "cultivar", "task": "classification"});
        let mut ids = Vec::new();
        for _ in 0..TRAININGS {
            let answer = cluster.ask(Method::POST, "/v1/trainings", &key, body.clone()).await.expect(202).json();
            ids.push(answer["id"].as_str().unwrap().to_owned());
        }
        let last = cluster.get(&format!("/v1/trainings/{}", ids[TRAININGS - 1]), &key).await.expect(200).json();
        assert!(matches!(last["state"].as_str(), Some("queued" | "running")), "nothing is left for another node: {last}");
        Self { key, ids }
    }

    async fn end(&self, cluster: &Cluster) {
        let deadline = Instant::now() + RECOVERY_MAX;
        for id in &self.ids {
            loop {
                let training = cluster.get(&format!("/v1/trainings/{id}"), &self.key).await.expect(200).json();
                match training["state"].as_str() {
                    Some("succeeded") => break,
                    Some("queued" | "running") => assert!(Instant::now() < deadline, "a training does not end: {training}"),
                    _ => panic!("{training}"),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let versions = cluster.items("/v1/models/taster/versions", &self.key).await;
        assert_eq!(versions.len(), self.ids.len(), "each training made one version");
        println!("{} trainings outlived their node, each made one version", self.ids.len());
    }
}

/// What one node was told holds on all of them, from the answer on.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_agree() {
    let Some(cluster) = Cluster::start(NODES).await else { return };
    let key = cluster.tenant("clinic", json!({"objects": 12})).await;
    let whoami = |node: usize, key: String| {
        let cluster = &cluster;
        async move { cluster.ask_at(node, Method::GET, "/v1/whoami", &key, Body::None).await }
    };

    // A key that is revoked through one node is refused by all.
    for node in 0..NODES {
        let body = json!({"name": format!("key{node}"), "member": "ada"});
        let issued = cluster.ask_at(node, Method::POST, "/v1/keys", &key, body).await.expect(201).json();
        let (secret, id) = (issued["secret"].as_str().unwrap(), issued["key"]["id"].as_str().unwrap());
        for other in 0..NODES {
            whoami(other, secret.to_owned()).await.expect(200);
        }
        cluster.ask_at((node + 1) % NODES, Method::DELETE, &format!("/v1/keys/{id}"), &key, Body::None).await.expect(204);
        let refused = join_all((0..NODES).map(|other| whoami(other, secret.to_owned()))).await;
        for answer in refused {
            assert_eq!(answer.expect(401).code(), "unauthenticated");
        }
    }

    // A tenant that is suspended through one node is refused by all.
    for node in 0..NODES {
        let act = |what: &str| format!("/v1/tenants/clinic/{what}");
        cluster.ask_at(node, Method::POST, &act("suspend"), &cluster.operator, Body::None).await.expect(200);
        for answer in join_all((0..NODES).map(|other| whoami(other, key.clone()))).await {
            assert_eq!(answer.expect(403).code(), "tenant_state");
        }
        cluster.ask_at((node + 1) % NODES, Method::POST, &act("resume"), &cluster.operator, Body::None).await.expect(200);
        for answer in join_all((0..NODES).map(|other| whoami(other, key.clone()))).await {
            answer.expect(200);
        }
    }

    // Each node answers for itself: the tenant is open at its home alone.
    let mut open = Vec::new();
    for node in 0..NODES {
        let told = cluster.ask_at(node, Method::GET, "/metrics", &cluster.operator, Body::None).await.expect(200).text();
        open.push(told.lines().find_map(|line| line.strip_prefix("insula_tenants_open ")).unwrap().to_owned());
    }
    open.sort_unstable();
    assert_eq!(open, ["0", "0", "1"]);
    let told = cluster.items("/v1/service/ledger?act=ServiceMetricsRead", &cluster.operator).await;
    println!("{} of {NODES} readings are in the service's log by now", told.len());

    // One limit for all nodes together, exactly.
    let uploads = (0..40).map(|number| {
        let (cluster, key) = (&cluster, &key);
        async move { cluster.ask(Method::PUT, &format!("/v1/datasets/d{number}"), key, rows(4)).await }
    });
    let answers = join_all(uploads).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 12);
    assert!(answers.iter().all(|answer| answer.status == 201 || answer.code() == "quota_exceeded"));

    // A limit that is changed through one node holds on the others soon.
    for node in 0..NODES {
        let objects = 13 + node as u64;
        let path = "/v1/tenants/clinic/limits";
        let before = cluster.get("/v1/quota", &key).await.expect(200).json()["limits"].clone();
        let limits = with(before, "objects", objects);
        cluster.ask_at(node, Method::PUT, path, &cluster.operator, limits).await.expect(200);
        let changed = Instant::now();
        for other in 0..NODES {
            loop {
                let limits = cluster.ask_at(other, Method::GET, "/v1/quota", &key, Body::None).await.expect(200).json();
                if limits["limits"]["objects"] == objects {
                    break;
                }
                assert!(changed.elapsed() < Duration::from_secs(3), "node {} still says {limits}", name(other));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        println!("a limit changed through {} held everywhere after {:.2?}", name(node), changed.elapsed());
    }
    let told = cluster.told.lock().unwrap();
    assert!(told.faults.is_empty(), "{:#?}", told.faults);
}

fn with(mut limits: Value, name: &str, value: u64) -> Value {
    limits[name] = json!(value);
    limits
}
