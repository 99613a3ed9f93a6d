//! Clients of one tenant, through any node: a register, a counter, and things that are appended; everything they saw is kept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::cluster::{Cluster, Outcome};
use super::history::Operation;
use crate::world::Body;

/// Clients of each kind.
const WRITERS: usize = 2;
const READERS: usize = 2;
const APPENDERS: usize = 2;
/// Rest of a client between two requests.
const REST: Duration = Duration::from_millis(60);
pub(crate) const INITIAL: &str = "before everything";

/// A tenant under load.
pub(crate) struct Island {
    pub(crate) name: String,
    pub(crate) key: String,
    /// Pinned before anything happened.
    pub(crate) vkey: String,
    pub(crate) seen: Mutex<Seen>,
    stop: AtomicBool,
    number: AtomicUsize,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) register: Vec<Operation>,
    /// Data set and version to content.
    pub(crate) appended: BTreeMap<(String, u64), String>,
    /// Request ids of acknowledged writes.
    pub(crate) acknowledged: Vec<String>,
    /// Request ids of writes that were refused with 503 or 429: nothing was done, they were told.
    pub(crate) refused: Vec<String>,
    /// Request ids of writes of which nothing is known.
    pub(crate) unknown: Vec<String>,
    /// When anything was acknowledged.
    pub(crate) served: Vec<Instant>,
    pub(crate) requests: usize,
    /// What contradicts what was seen before.
    pub(crate) wrong: Vec<String>,
    counter: Counter,
}

/// A counter as those see it who add to it. It also counts what is on its way and may yet come to nothing.
#[derive(Default)]
struct Counter {
    begun: u64,
    done: u64,
}

/// How a write ended.
enum Write {
    Done(crate::world::Answer),
    Refused,
    Unknown,
}

impl Island {
    pub(crate) async fn make(cluster: &Cluster, name: &str) -> Self {
        let key = cluster.tenant(name, json!({"objects": 100_000, "jobs_queued": 100})).await;
        let body = json!({"roles": ["viewer"], "description": INITIAL});
        cluster.ask(Method::PUT, "/v1/members/register", &key, body).await.expect(200);
        let vkey = cluster.get("/v1/ledger/key", &key).await.expect(200).json()["vkey"].as_str().unwrap().to_owned();
        let (stop, number) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { name: name.to_owned(), key, vkey, seen: Mutex::default(), stop, number }
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// All clients, until they are stopped.
    pub(crate) async fn load(self: Arc<Self>, cluster: Arc<Cluster>) {
        let cluster = &*cluster;
        let island = &self;
        let writers = (0..WRITERS).map(|_| island.again(|| island.write(cluster)));
        let readers = (0..READERS).map(|_| island.again(|| island.read(cluster)));
        let appenders = (0..APPENDERS).map(|dataset| island.again(move || island.append(cluster, dataset)));
        let counter = island.again(|| island.count(cluster));
        tokio::join!(join_all(writers), join_all(readers), join_all(appenders), counter);
    }

    async fn again<F: Future<Output = ()>>(&self, mut act: impl FnMut() -> F) {
        while !self.stop.load(Ordering::Acquire) {
            act().await;
            tokio::time::sleep(REST).await;
        }
    }

    fn fresh(&self) -> String {
        format!("{}-{}", self.name, self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// One write; what became of it is kept.
    async fn sent(&self, cluster: &Cluster, id: &str, method: Method, path: &str, body: impl Into<Body>) -> Write {
        let outcome = cluster.try_ask(method, path, &self.key, Some(id), body).await;
        let mut seen = self.seen.lock().unwrap();
        seen.requests += 1;
        match outcome {
            Outcome::Answer(answer) if answer.status < 300 => {
                seen.acknowledged.push(id.to_owned());
                seen.served.push(Instant::now());
                Write::Done(answer)
            }
            Outcome::Answer(answer) if answer.status == 503 || answer.status == 429 => {
                seen.refused.push(id.to_owned());
                Write::Refused
            }
            Outcome::Answer(answer) => {
                if answer.status < 500 {
                    seen.wrong.push(format!("{path}: {} {}", answer.status, answer.text()));
                }
                seen.unknown.push(id.to_owned());
                Write::Unknown
            }
            Outcome::Unsent => Write::Refused,
            Outcome::Lost => {
                seen.unknown.push(id.to_owned());
                Write::Unknown
            }
        }
    }

    async fn write(&self, cluster: &Cluster) {
        let value = self.fresh();
        let began = Instant::now();
        let body = json!({"roles": ["viewer"], "description": value});
        let sent = self.sent(cluster, &value, Method::PUT, "/v1/members/register", body).await;
        // What was refused counts as unknown here, so that the judgement rests on nothing but what was seen.
        let ended = matches!(sent, Write::Done(_)).then(Instant::now);
        self.seen.lock().unwrap().register.push(Operation { value, is_write: true, began, ended });
    }

    /// One read of the register, which must be answered.
    pub(crate) async fn read_last(&self, cluster: &Cluster) {
        let before = self.seen.lock().unwrap().register.len();
        self.read(cluster).await;
        assert_eq!(self.seen.lock().unwrap().register.len(), before + 1, "the register of {} cannot be read", self.name);
    }

    async fn read(&self, cluster: &Cluster) {
        let began = Instant::now();
        let outcome = cluster.try_ask(Method::GET, "/v1/members/register", &self.key, None, Body::None).await;
        let mut seen = self.seen.lock().unwrap();
        seen.requests += 1;
        let Outcome::Answer(answer) = outcome else { return };
        match answer.status {
            200 => {
                let value = answer.json()["description"].as_str().unwrap().to_owned();
                seen.register.push(Operation { value, is_write: false, began, ended: Some(Instant::now()) });
                seen.served.push(Instant::now());
            }
            400..500 => seen.wrong.push(format!("reading: {} {}", answer.status, answer.text())),
            _ => {}
        }
    }

    async fn append(&self, cluster: &Cluster, dataset: usize) {
        let (id, dataset) = (self.fresh(), format!("log{dataset}"));
        let content = format!("a,b\n1,{id}\n{}", "2,filler\n".repeat(50));
        self.seen.lock().unwrap().counter.begun += 1;
        let sent = self.sent(cluster, &id, Method::PUT, &format!("/v1/datasets/{dataset}"), content.clone()).await;
        let mut seen = self.seen.lock().unwrap();
        let Write::Done(answer) = sent else { return };
        seen.counter.done += 1;
        let version = answer.json()["version"].as_u64().unwrap();
        if let Some(before) = seen.appended.insert((dataset.clone(), version), content) {
            seen.wrong.push(format!("{dataset} version {version} was given twice: {before:.40}"));
        }
    }

    /// Reads the number of stored objects.
    async fn count(&self, cluster: &Cluster) {
        let least = self.seen.lock().unwrap().counter.done;
        let outcome = cluster.try_ask(Method::GET, "/v1/quota", &self.key, None, Body::None).await;
        let mut seen = self.seen.lock().unwrap();
        seen.requests += 1;
        let Outcome::Answer(answer) = outcome else { return };
        if answer.status != 200 {
            return;
        }
        let objects = answer.json()["used"]["objects"].as_u64().unwrap();
        let most = seen.counter.begun;
        if !(least..=most).contains(&objects) {
            seen.wrong.push(format!("the counter says {objects}, and it was {least} at least and {most} at most"));
        }
    }

    /// Longest time without anything acknowledged, of those that overlap what happened between.
    pub(crate) fn silence(&self, from: Instant, to: Instant) -> Duration {
        let served = &self.seen.lock().unwrap().served;
        let mut moments: Vec<Instant> = served.iter().copied().filter(|at| (from..=to).contains(at)).collect();
        moments.extend([from, to]);
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Acknowledged since.
    pub(crate) fn served_since(&self, moment: Instant) -> usize {
        self.seen.lock().unwrap().served.iter().filter(|at| **at > moment).count()
    }
}
