//! Requests of one deployment that wait together are answered by one run, and never with anybody else's.

use std::time::Duration;

use futures_util::future::join_all;
use platform::Counts;
use platform::tenancy::act::DeploymentRead;
use serde_json::json;

use crate::cells::kill;
use crate::models::{ask_times, counts_together, number_of, times, zeros};
use crate::world::{World, close, until};

const FOREVER: u64 = 1 << 50;
/// Takes the cell so long that whatever is asked meanwhile waits together.
const LONG: u64 = 3_000_000;

impl World {
    async fn serve_joined(&self, key: &str, name: &str, onnx: Vec<u8>) {
        let version = self.model(key, name, onnx).await.unwrap();
        let batching = json!({"max_size": 16, "window_us": 2000});
        self.deploy(key, name, json!({"model": name, "version": version.version, "batching": batching})).await.unwrap();
    }

    async fn counts_of(&self, key: &str, name: &str) -> Counts {
        let permit = self.allow::<DeploymentRead>(key, name).await;
        let told = self.platform.deployment_statistics(&permit, None).await;
        close(permit, told).unwrap().remove(0).1
    }
}

/// Runs of more than one row.
fn joined(counts: &Counts) -> u64 {
    counts.batches.iter().filter(|(rows, _)| **rows > 1).map(|(_, runs)| runs.count).sum()
}

/// Two tenants with models of their own, asked by many at once: each answer is its own, each batch one tenant's.
#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_get_their_own_answers_and_batches_never_cross() {
    let Some(world) = World::start(|_| {}).await else { return };
    let limits = |limits: &mut platform::tenancy::Limits| limits.concurrency_max = 1000;
    let (clinic, vineyard) = (world.tenant("clinic", limits).await, world.tenant("vineyard", limits).await);
    world.serve_joined(&clinic, "scale", times(2.0)).await;
    world.serve_joined(&vineyard, "scale", times(3.0)).await;
    const EACH: u16 = 400;
    let ask = async |key: &str, by: f64, at: u16| {
        let answer = world.predict(key, "scale", ask_times(f32::from(at))).await.unwrap();
        assert_eq!(number_of(&answer), f64::from(at) * by, "the answer to its own question");
    };
    tokio::join!(join_all((0..EACH).map(|at| ask(&clinic, 2.0, at))), join_all((0..EACH).map(|at| ask(&vineyard, 3.0, at))));
    let mut all = 0;
    for key in [&clinic, &vineyard] {
        let counts = world.counts_of(key, "scale").await;
        // Had a run had rows of both, the counts of one would have too many and those of the other too few.
        let rows: u64 = counts.batches.iter().map(|(rows, runs)| u64::from(*rows) * runs.count).sum();
        assert_eq!((counts.succeeded.count, counts.inferences, rows), (EACH.into(), EACH.into(), EACH.into()), "{counts:?}");
        assert!(counts.executions < u64::from(EACH) && joined(&counts) > 0, "they were joined: {counts:?}");
        all += counts.executions;
        let of = world.deployment(key, "scale").await.answers.remove(0);
        assert_eq!((of.runs, of.rows), (counts.executions, u64::from(EACH)));
    }
    assert_eq!(world.platform.stats().batches.buckets.iter().sum::<u64>(), all);
    assert_eq!(world.platform.stats().batches.rows, u64::from(EACH) * 2);

    // The control: the same load on the same deployment without batching joins nothing.
    world.deploy(&clinic, "scale", json!({"model": "scale", "version": 1})).await.unwrap();
    let before = world.counts_of(&clinic, "scale").await;
    join_all((0..EACH).map(|at| ask(&clinic, 2.0, at))).await;
    let after = world.counts_of(&clinic, "scale").await;
    assert_eq!((after.executions - before.executions, joined(&after)), (EACH.into(), joined(&before)));
    world.stop().await;
}

fn ask_counts_together(m: u64, x: u16) -> String {
    let m = json!({"name": "m", "shape": [1], "datatype": "INT64", "data": [m]});
    json!({"inputs": [m, {"name": "x", "shape": [1], "datatype": "FP32", "data": [x]}]}).to_string()
}

/// A run of several that kills its cell: who was first in it is not to blame, and who is to blame is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_cell_that_dies_over_joined_requests_fails_only_the_one_at_fault() {
    let Some(world) = World::start(|config| config.infer_timeout = Duration::from_secs(300)).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    world.serve_joined(&key, "together", counts_together()).await;
    let together = async |m, x| world.predict(&key, "together", ask_counts_together(m, x)).await;
    assert_eq!(number_of(&together(1, 0).await.unwrap()), 1.0);
    let first = world.pid(&key, "together").await.unwrap();
    let killer = async {
        // It is at the joined run, and would be for ever.
        let running = async || (world.counts_of(&key, "together").await.succeeded.count == 2).then_some(());
        until("the long one's answer", running).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill(first);
        let another = async || world.pid(&key, "together").await.filter(|pid| *pid != first);
        let second = until("another cell", another).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill(second);
    };
    let behind = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let ahead = together(3, 10);
        let bad = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            together(FOREVER, 0).await
        };
        let after = async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            together(3, 20).await
        };
        tokio::join!(ahead, bad, after)
    };
    let (long, (ahead, bad, after), ()) = tokio::join!(together(LONG, 0), behind, killer);
    assert_eq!(number_of(&long.unwrap()), LONG as f64);
    let error = bad.unwrap_err();
    assert!(error.code() == "cell_failed" && error.to_string().contains("signal 9"), "{error}");
    // Run for themselves, so that they counted no further than they asked.
    assert_eq!((number_of(&ahead.unwrap()), number_of(&after.unwrap())), (13.0, 23.0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_joined_is_not_deployed_so() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    world.model(&key, "zeros", zeros()).await.unwrap();
    world.model(&key, "scale", times(2.0)).await.unwrap();
    let with = async |model: &str, batching: serde_json::Value| {
        world.deploy(&key, "d", json!({"model": model, "version": 1, "batching": batching})).await
    };
    let error = with("zeros", json!({"max_size": 8})).await.unwrap_err();
    assert!(error.code() == "invalid" && error.to_string().contains("input `shape` has the shape [1]"), "{error}");
    for (batching, words) in [
        (json!({"max_size": 1}), "`batching.max_size` is 2 to 128"),
        (json!({"max_size": 129}), "`batching.max_size` is 2 to 128"),
        (json!({"max_size": 8, "window_us": 100_001}), "`batching.window_us` is 0 to 100000"),
    ] {
        let error = with("scale", batching).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let deployed = with("scale", json!({"max_size": 8})).await.unwrap();
    assert_eq!(serde_json::to_value(deployed.batching).unwrap(), json!({"max_size": 8, "window_us": 0}));
    assert_eq!(number_of(&world.predict(&key, "d", ask_times(4.0)).await.unwrap()), 8.0);
    // Part of the desired state: it is changed, and a rollback returns to it.
    world.deploy(&key, "d", json!({"model": "scale", "version": 1})).await.unwrap();
    assert_eq!(world.deployment(&key, "d").await.previous.unwrap().batching, deployed.batching);
    world.stop().await;
}
