//! Cells, the fork server and the whole service are killed at random under load: every request is answered or fails in clear words, no
//! answer is another's, none is given twice, the ledger has each of them, and nothing is left over when it ends, nor of a service that was
//! killed once the next one has started. The same for both isolation classes.
//!
//! `INSULA_CHAOS_SECONDS` makes it longer, `INSULA_CHAOS_SEED` other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::world::{Service, family, rows, until};

const TENANTS: [&str; 4] = ["amber", "birch", "cedar", "delta"];
/// A sandbox of theirs takes a quarter of a second of a core to start.
const GUARDED: [&str; 2] = ["ember", "flint"];
/// Connections of each tenant.
const CLIENTS: usize = 5;
/// How long it is shaken, unless the environment says otherwise.
const SECONDS: u64 = 18;
/// Pauses between kills, in milliseconds.
const PAUSE_MILLIS: u64 = 220;
const GUARDED_PAUSE_MILLIS: u64 = 600;
/// User ids from here on are those of sandboxes.
const OUTER_UID_FIRST: u32 = 1_879_048_192;
/// No answer takes longer: neither a kill nor a start may leave anybody waiting.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// What a request that could not be answered is told.
const CLEAR: [&str; 6] = ["cell_failed", "cell_unavailable", "model_unstable", "unavailable", "overloaded", "deadline_exceeded"];
/// One in so many requests of a tenant's first connection makes a key, up to some of them.
const KEY_EVERY: usize = 20;
const KEYS_MAX: usize = 200;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Where the service is now; odd while it is not.
struct Place {
    url: RwLock<String>,
    epoch: AtomicUsize,
    over: AtomicBool,
}

/// What became of the requests of one tenant.
#[derive(Default)]
struct Seen {
    /// Request id to the digest of the answer.
    answered: BTreeMap<String, String>,
    /// Request id to the code of its refusal.
    refused: BTreeMap<String, String>,
    /// Those whose connection broke with the service.
    broken: BTreeSet<String>,
    /// Secrets of keys whose making was acknowledged, by their names.
    keys: BTreeMap<String, String>,
}

/// One connection: asks until the end, each time something else.
async fn client(http: Client, place: Arc<Place>, (tenant, key): (&str, String), number: usize, seen: Arc<Mutex<Seen>>) {
    for turn in 0.. {
        if place.over.load(Ordering::Acquire) {
            return;
        }
        let (epoch, url) = (place.epoch.load(Ordering::Acquire), place.url.read().unwrap().clone());
        let id = format!("{tenant}-{number}-{turn}");
        let (x, y) = ((turn * 7 + number) % 12, turn % 10);
        let key_is_made = number == 0 && turn % KEY_EVERY == 0 && turn < KEY_EVERY * KEYS_MAX;
        let (path, body) = if key_is_made {
            ("/v1/keys", json!({"name": id, "member": "ada"}))
        } else {
            ("/v2/models/gate/infer", ask(&id, x as f64, y as f64))
        };
        let began = Instant::now();
        let sent = http.request(Method::POST, format!("{url}{path}")).bearer_auth(&key).header("x-request-id", &id).json(&body).send();
        let answer = async {
            let answer = sent.await?;
            Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.bytes().await?))
        };
        let answer = answer.await;
        assert!(began.elapsed() < ANSWER_MAX, "{id} waited for {:?}", began.elapsed());
        match answer {
            Ok((201, body)) if key_is_made => {
                let made: Value = serde_json::from_slice(&body).unwrap();
                seen.lock().unwrap().keys.insert(id, made["secret"].as_str().unwrap().to_owned());
            }
            Ok((200, body)) if !key_is_made => {
                is_mine(&body, tenant, &id, x > y);
                let digest = digest::digest(&digest::SHA256, &body);
                let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(seen.lock().unwrap().answered.insert(id, hex), None);
            }
            Ok((status, body)) => {
                let told: Value = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{id}: {status}: {error}: {body:?}"));
                let code = told["code"].as_str().or(told["error_code"].as_str()).unwrap_or_default().to_owned();
                assert!(CLEAR.contains(&code.as_str()), "{id}: {status}: {told}");
                seen.lock().unwrap().refused.insert(id, code);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => {
                let gone = epoch % 2 == 1 || place.epoch.load(Ordering::Acquire) != epoch;
                assert!(gone, "{id}: the connection broke and the service was not killed: {error:?}");
                seen.lock().unwrap().broken.insert(id);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn ask(id: &str, x: f64, y: f64) -> Value {
    json!({"id": id, "inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [x, y]}]})
}

/// That an answer is to this question, of this tenant's model.
fn is_mine(body: &[u8], tenant: &str, id: &str, up: bool) {
    let answer: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(answer["id"], id, "the answer to another question");
    let texts =
        |output: &Value| output["data"].as_array().unwrap().iter().filter_map(|one| one.as_str().map(str::to_owned)).collect::<Vec<_>>();
    let labels: Vec<String> = answer["outputs"].as_array().unwrap().iter().flat_map(texts).collect();
    // Near the line between the classes a small model may be wrong, but it never knows another tenant's words.
    assert!(!labels.is_empty() && labels.iter().all(|label| label.starts_with(tenant)), "{tenant} was told {labels:?} (up: {up})");
}

/// Processes below others, by the parent.
fn children() -> HashMap<u32, Vec<u32>> {
    let mut found: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        if fields[0] != "Z" {
            found.entry(fields[1].parse().unwrap()).or_default().push(pid);
        }
    }
    found
}

fn kill(pid: u32) {
    // It may have died by itself just now.
    let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).stderr(std::process::Stdio::null()).status();
}

/// How often each was killed.
#[derive(Debug, Default)]
struct Killed {
    cells: usize,
    zygotes: usize,
    services: usize,
}

/// All processes of services that there were, and the user ids of their sandboxes.
#[derive(Debug, Default)]
struct Known {
    pids: BTreeSet<u32>,
    uids: BTreeSet<u32>,
}

impl Known {
    fn look(&mut self, service: &Service) {
        let family = family(service.pid());
        self.uids.extend(family.iter().filter_map(|pid| uid_of(*pid)).filter(|uid| *uid >= OUTER_UID_FIRST));
        self.pids.extend(family);
    }
}

fn uid_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// Kills until the time is over; all processes that there were are known then.
async fn shake(mut service: Service, place: &Place, random: &mut Random, pause: u64, known: &mut Known) -> (Service, Killed) {
    let seconds = number("INSULA_CHAOS_SECONDS", SECONDS);
    let (end, mut killed) = (Instant::now() + Duration::from_secs(seconds), Killed::default());
    for turn in 1.. {
        if Instant::now() > end {
            break;
        }
        tokio::time::sleep(Duration::from_millis(pause / 2 + random.below(pause as usize) as u64)).await;
        known.look(&service);
        let all = children();
        let below = |pids: &[u32]| pids.iter().filter_map(|pid| all.get(pid)).flatten().copied().collect::<Vec<u32>>();
        let zygotes = below(&[service.pid()]);
        // A sandbox's first process is one, its file server and its kernel are below it.
        let mut cells = below(&zygotes);
        cells.extend(below(&cells));
        match random.below(12) {
            0..=7 if !cells.is_empty() => {
                kill(cells[random.below(cells.len())]);
                killed.cells += 1;
            }
            8..=10 if !zygotes.is_empty() => {
                kill(zygotes[random.below(zygotes.len())]);
                killed.zygotes += 1;
            }
            // One in a dozen, and never none.
            _ if turn % 4 == 0 || killed.services == 0 => {
                place.epoch.fetch_add(1, Ordering::AcqRel);
                known.look(&service);
                let home = service.kill();
                killed.services += 1;
                // A start takes a moment, and blocks: the clients go on beside it.
                service = tokio::task::block_in_place(|| Service::open(home));
                tokio::task::block_in_place(|| nothing_is_left(known));
                place.url.write().unwrap().clone_from(&service.url);
                place.epoch.fetch_add(1, Ordering::AcqRel);
            }
            _ => {}
        }
    }
    (service, killed)
}

/// All entries of an act.
async fn entries(service: &Service, key: &str, act: &str) -> Vec<Value> {
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/ledger?act={act}&limit=500{after}"), key).await.expect(200).json();
        found.extend(page["items"].as_array().unwrap().iter().map(|item| item["entry"].clone()));
        let Some(next) = page["next"].as_str() else { return found };
        after = format!("&after={next}");
    }
}

/// The ledger against what the clients saw.
async fn ledger_is_complete(service: &Service, tenants: &[&str], (tenant, key): (&str, &str), seen: &Seen) {
    let mut entered: HashMap<String, Value> = HashMap::new();
    for entry in entries(service, key, "Predict").await {
        let id = entry["request"].as_str().unwrap().to_owned();
        assert!(entered.insert(id.clone(), entry).is_none(), "{id} was done twice");
    }
    for (id, sent) in &seen.answered {
        let entry = entered.get(id).unwrap_or_else(|| panic!("{id} was answered and is not in the ledger"));
        assert_eq!((&entry["outcome"], &entry["detail"]["output_sha256"]), (&json!("allowed"), &json!(sent)), "{entry}");
    }
    for (id, code) in &seen.refused {
        let outcome = entered.get(id).map_or("none", |entry| entry["outcome"].as_str().unwrap());
        assert!(outcome == "failed" || outcome == "refused", "{id}: {code}, and {outcome} in the ledger");
    }
    let asked = |id: &String| seen.answered.contains_key(id) || seen.refused.contains_key(id) || seen.broken.contains(id);
    let strangers: Vec<&String> = entered.keys().filter(|id| id.starts_with(tenant) && !asked(id)).collect();
    assert!(strangers.is_empty(), "entries of requests that nobody made: {strangers:?}");
    assert!(entered.keys().all(|id| tenants.iter().all(|other| *other == tenant || !id.starts_with(other))), "an entry of somebody else");
    for (name, secret) in &seen.keys {
        service.get("/v1/whoami", secret).await.expect(200);
        assert!(!name.is_empty());
    }
    let made = entries(service, key, "KeyWrite").await;
    let made: BTreeSet<&str> = made.iter().filter_map(|entry| entry["request"].as_str()).collect();
    let lost: Vec<&String> = seen.keys.keys().filter(|id| !made.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "keys that were acknowledged without an entry: {lost:?}");
    let pinned = service.get("/v1/ledger/key", key).await.expect(200).json()["vkey"].as_str().unwrap().to_owned();
    let file = service.path(&format!("{tenant}.ledger"));
    fs::write(&file, service.get("/v1/ledger/export", key).await.expect(200).body).unwrap();
    let report = service.run("", &["audit", "verify", &file, "--key", &pinned]).json();
    assert_eq!(report["size"], report["opened"], "every entry is readable: {report}");
}

/// Control groups of these processes.
fn groups_of(pids: &BTreeSet<u32>, folder: &Path, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("insula-").and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid| pids.contains(&pid)) {
            found.push(entry.path().display().to_string());
        } else if depth > 0 {
            groups_of(pids, &entry.path(), depth - 1, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn killing_at_random_loses_nothing_and_confuses_nobody() {
    let Some(service) = Service::start() else { return };
    shaken(service, &TENANTS, "isolation=jail", PAUSE_MILLIS, 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_same_under_gvisor() {
    let Some(service) = Service::start() else { return };
    let made = service.run("operator", &["tenant", "create", "first", "--limit", "isolation=gvisor"]);
    if made.status != 0 {
        assert!(std::env::var_os("INSULA_REQUIRE").is_none(), "INSULA_REQUIRE is set: {}", made.error);
        println!("SKIPPED: {}", made.error);
        return;
    }
    shaken(service, &GUARDED, "isolation=gvisor", GUARDED_PAUSE_MILLIS, 100).await;
}

/// All of it, with these tenants and this limit for them; so many requests must be answered.
async fn shaken(service: Service, tenants: &'static [&'static str], limit: &str, pause_millis: u64, answered_min: usize) {
    let mounts = sandbox_mounts();
    let seed = number("INSULA_CHAOS_SEED", 20_261_130);
    println!("INSULA_CHAOS_SEED={seed}");
    let mut keys = Vec::new();
    for tenant in tenants {
        let key = service.busy_tenant(tenant, "ada");
        service.run("operator", &["tenant", "limits", tenant, limit]).json();
        // Its own words, so that an answer tells whose it is.
        let table = rows(120).replace("up", &format!("{tenant}-up")).replace("down", &format!("{tenant}-down"));
        service.ask(Method::PUT, "/v1/datasets/fence", &key, table).await.expect(201);
        let body = json!({"name": "fence", "dataset": "fence", "target": "label", "task": "classification"});
        let training = service.ask(Method::POST, "/v1/trainings", &key, body).await.expect(202).json();
        assert_eq!(service.trained(training["id"].as_str().unwrap(), &key).await["state"], "succeeded");
        service.ask(Method::PUT, "/v1/deployments/gate", &key, json!({"model": "fence", "version": 1})).await.expect(200);
        keys.push(key);
    }
    let place = Arc::new(Place { url: RwLock::new(service.url.clone()), epoch: AtomicUsize::new(0), over: AtomicBool::new(false) });
    let seen: Vec<Arc<Mutex<Seen>>> = tenants.iter().map(|_| Arc::default()).collect();
    let authority = reqwest::Certificate::from_pem(&fs::read(&service.cacert).unwrap()).unwrap();
    let mut clients = Vec::new();
    for ((tenant, key), seen) in tenants.iter().zip(&keys).zip(&seen) {
        for number in 0..CLIENTS {
            // A connection of its own each.
            let http = Client::builder().tls_certs_only([authority.clone()]).http1_only().no_proxy().timeout(ANSWER_MAX).build().unwrap();
            clients.push(tokio::spawn(client(http, Arc::clone(&place), (tenant, key.clone()), number, Arc::clone(seen))));
        }
    }
    let (mut random, mut known) = (Random(seed), Known::default());
    let (mut service, killed) = shake(service, &place, &mut random, pause_millis, &mut known).await;
    place.over.store(true, Ordering::Release);
    for client in clients {
        client.await.unwrap();
    }
    let mut seen: Vec<Seen> = seen.iter().map(|seen| std::mem::take(&mut *seen.lock().unwrap())).collect();
    for ((tenant, key), seen) in tenants.iter().zip(&keys).zip(&mut seen) {
        let codes = seen.refused.values().fold(BTreeMap::<&str, usize>::new(), |mut codes, code| {
            *codes.entry(code).or_default() += 1;
            codes
        });
        println!("{tenant}: {} answered, {} broken, refused: {codes:?}, {} keys", seen.answered.len(), seen.broken.len(), seen.keys.len());
        // It comes back by itself, once nobody shakes it any more.
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let id = format!("{tenant}-after");
            let answer = service.try_ask(Method::POST, "/v2/models/gate/infer", key, None, ask(&id, 3.0, 1.0)).await.unwrap();
            if answer.status == 200 {
                is_mine(&answer.body, tenant, &id, true);
                break;
            }
            assert!(Instant::now() < deadline, "{tenant} is not answered again: {}", answer.text());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ledger_is_complete(&service, tenants, (tenant, key), seen).await;
    }
    println!("{killed:?}");
    let total: usize = seen.iter().map(|seen| seen.answered.len()).sum();
    assert!(total > answered_min && seen.iter().all(|seen| seen.answered.len() > 20), "too little was answered to say anything: {total}");
    assert!(killed.cells >= 5 && killed.zygotes >= 2 && killed.services >= 1, "{killed:?}");
    known.look(&service);
    service.stop();
    nothing_is_left(&known);
    assert_eq!(sandbox_mounts(), mounts, "mounts are left");
    let left: Vec<_> = fs::read_dir(service.path("tmp")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "temporary files are left: {left:?}");
}

/// Of services that are gone.
fn nothing_is_left(known: &Known) {
    until("no process is left", || {
        // A process id may be somebody else's by now.
        let ours = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("insula"));
        let alive = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        let running = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let sandboxed = |pid: &u32| uid_of(*pid).is_some_and(|uid| known.uids.contains(&uid));
        let left =
            known.pids.iter().copied().filter(|pid| ours(pid) && alive(pid)).chain(running.filter(|pid| sandboxed(pid) && alive(pid)));
        (left.count() == 0).then_some(())
    });
    let mut groups = Vec::new();
    groups_of(&known.pids, Path::new("/sys/fs/cgroup"), 5, &mut groups);
    assert!(groups.is_empty(), "control groups are left: {groups:?}");
}

/// What the machine sees of sandboxes' file systems: nothing, if all is as it should be.
fn sandbox_mounts() -> Vec<String> {
    let ours = |line: &&str| [" - tmpfs keeper ", " - tmpfs sandbox ", "runsc"].iter().any(|name| line.contains(name));
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(ours).map(str::to_owned).collect()
}
