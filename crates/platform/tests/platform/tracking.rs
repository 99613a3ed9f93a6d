//! Experiments and runs on a real kernel: what was acknowledged is found, what was written is read back, what is deleted goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use platform::tenancy::act::{
    ArtifactWrite, ExperimentDelete, ExperimentRead, ExperimentWrite, LedgerRead, LoggedModelDelete, LoggedModelWrite, PermissionWrite,
    QuotaRead, RunDelete, RunRead, RunWrite,
};
use platform::tenancy::{Entry, Filter};
use platform::{
    Batch, ExperimentRequest, LoggedModelRequest, MetricPoint, ModelLink, Point, RunRequest, RunSearch, RunView, Text, ViewType,
};

use crate::world::{World, close, code, until};

fn point(key: &str, value: f64, step: i64) -> MetricPoint {
    MetricPoint { key: key.to_owned(), point: Point { value, timestamp: 1000 + step, step }, model: None }
}

/// The same as a measurement of a logged model.
fn about(model: &str, point: MetricPoint) -> MetricPoint {
    MetricPoint { model: Some(ModelLink { model_id: model.to_owned(), dataset_name: None, dataset_digest: None }), ..point }
}

/// In so many days, in microseconds since 1970.
fn later(days: i64) -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap() + days * 86_400_000_000
}

fn text(key: &str, value: &str) -> Text {
    Text { key: key.to_owned(), value: value.to_owned() }
}

impl World {
    async fn experiment(&self, key: &str, name: &str) -> String {
        let permit = self.allow::<ExperimentWrite>(key, "").await;
        let made = self.platform.experiment_create(&permit, ExperimentRequest { name: name.to_owned(), ..Default::default() }).await;
        close(permit, made).unwrap()
    }

    async fn begin(&self, key: &str, experiment: &str) -> String {
        let permit = self.allow::<RunWrite>(key, "").await;
        let request = RunRequest { experiment_id: experiment.to_owned(), ..Default::default() };
        let made = self.platform.tracking_run_create(&permit, request).await;
        close(permit, made).unwrap().run.id
    }

    async fn log(&self, key: &str, run: &str, batch: Batch) -> platform::Result<()> {
        let permit = self.allow::<RunWrite>(key, run).await;
        let logged = self.platform.tracking_log(&permit, batch, false).await;
        close(permit, logged)
    }

    async fn search(&self, key: &str, experiment: &str, filter: &str) -> Vec<RunView> {
        let permit = self.allow::<RunRead>(key, "").await;
        let search = RunSearch {
            experiment_ids: vec![experiment.to_owned()],
            filter: filter.to_owned(),
            view: ViewType::All,
            limit: Some(50_000),
            ..Default::default()
        };
        let found = self.platform.tracking_search(&permit, &search).await;
        close(permit, found).unwrap().0
    }

    async fn records(&self, key: &str) -> (u64, u64, u64) {
        let permit = self.allow::<RunRead>(key, "").await;
        let records = self.platform.tracking_records(&permit).await;
        close(permit, records).unwrap()
    }

    async fn artifact(&self, key: &str, path: &str) -> platform::Result<()> {
        let permit = self.allow::<ArtifactWrite>(key, path.split('/').next().unwrap()).await;
        let put = self.platform.artifact_put(&permit, path, futures_util::stream::iter([Ok(Bytes::from_static(b"content"))])).await;
        close(permit, put)
    }

    async fn logged_model(&self, key: &str, experiment: &str) -> String {
        let permit = self.allow::<LoggedModelWrite>(key, "").await;
        let request = LoggedModelRequest { experiment_id: experiment.to_owned(), ..Default::default() };
        let made = self.platform.logged_model_create(&permit, request).await;
        close(permit, made).unwrap().id
    }

    /// What the ledger has about sweeps.
    async fn sweeps(&self, key: &str) -> Vec<Entry> {
        let permit = self.allow::<LedgerRead>(key, "").await;
        let filter = Filter { act: Some("RetentionSweep".to_owned()), ..Filter::default() };
        let found = permit.ledger().search(&filter, 100).unwrap();
        let _ = permit.finish().unwrap();
        found.entries.into_iter().map(|entry| entry.entry.unwrap()).collect()
    }

    async fn objects(&self, key: &str) -> i64 {
        let permit = self.allow::<QuotaRead>(key, "").await;
        let objects = permit.rows().usage("objects").await;
        close(permit, objects.map_err(Into::into)).unwrap()
    }

    /// Stored bytes as the tenant's quota counts them.
    async fn stored(&self, key: &str) -> i64 {
        let permit = self.allow::<QuotaRead>(key, "").await;
        let stored = permit.rows().usage("storage_bytes").await;
        close(permit, stored.map_err(Into::into)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_is_found() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |_| ()).await;
    let experiment = world.experiment(&key, "crowded").await;
    let (world, key, experiment) = (&world, key.as_str(), experiment.as_str());
    world.search(key, experiment, "").await;
    let write_and_look = async |writer: i64| {
        let run = world.begin(key, experiment).await;
        assert_eq!(world.search(key, experiment, &format!("run_id IN ('{run}')")).await.len(), 1);
        for step in 0..12 {
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let value = (writer * 1000 + step) as f64;
            world.log(key, &run, Batch { metrics: vec![point("m", value, step)], ..Default::default() }).await.unwrap();
            let found = world.search(key, experiment, &format!("metrics.m = {value}")).await;
            assert_eq!(found.iter().map(|view| view.run.id.as_str()).collect::<Vec<_>>(), [run.as_str()], "{value}");
        }
        let permit = world.allow::<RunDelete>(key, &run).await;
        let deleted = world.platform.tracking_run_delete(&permit).await;
        close(permit, deleted).unwrap();
        let found = world.search(key, experiment, &format!("run_id IN ('{run}')")).await;
        assert!(found[0].run.lifecycle.deleted);
    };
    futures_util::future::join_all((0..8).map(write_and_look)).await;
}

/// Requests with many metrics wait together before they are sorted: whoever reads sees all of it at any time, in its order, once.
#[tokio::test(flavor = "multi_thread")]
async fn points_that_wait_are_seen() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |_| ()).await;
    let experiment = world.experiment(&key, "wide").await;
    let (before, run) = (world.stored(&key).await, world.begin(&key, &experiment).await);
    let (world, key, run, experiment) = (&world, key.as_str(), run.as_str(), experiment.as_str());
    let mut records = BTreeSet::new();
    for step in 0..100_i64 {
        // Some steps are logged twice, some metrics alone, and one name is new in between.
        let step = if step % 7 == 6 { step - 1 } else { step };
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let value = step as f64;
        let mut metrics: Vec<_> = (0..20).map(|n| point(&format!("m{n}"), value, step)).collect();
        metrics.extend((step >= 20).then(|| point("late", value, step)));
        world.log(key, run, Batch { metrics, ..Default::default() }).await.unwrap();
        world.log(key, run, Batch { metrics: vec![point("m3", value + 0.5, step)], ..Default::default() }).await.unwrap();
        let permit = world.allow::<RunRead>(key, run).await;
        let history = async |name: &str| world.platform.tracking_history(&permit, name, None, None).await.unwrap().points;
        let steps = |points: &[Point]| points.iter().map(|point| point.step).collect::<Vec<_>>();
        let so_far: Vec<_> = (0..=step).filter(|step| step % 7 != 6).collect();
        assert_eq!(steps(&history("m0").await), so_far, "{step}");
        assert_eq!(steps(&history("late").await), so_far.iter().copied().filter(|step| *step >= 20).collect::<Vec<_>>());
        let twice: Vec<_> = history("m3").await.iter().map(|point| point.value).collect();
        assert_eq!(twice.len(), so_far.len() * 2, "{step}: {twice:?}");
        assert!(twice.is_sorted(), "{twice:?}");
        let (mut paged, mut token) = (Vec::new(), None);
        loop {
            let page = world.platform.tracking_history(&permit, "m0", Some(10), token.as_deref()).await.unwrap();
            paged.extend(steps(&page.points));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(paged, so_far, "page by page");
        let view = world.platform.tracking_run_get(&permit).await.unwrap();
        let latest: BTreeMap<_, _> = view.metrics.into_iter().map(|(name, point)| (name, point.value)).collect();
        assert_eq!((latest["m7"], latest["m3"], latest.len()), (value, value + 0.5, if step >= 20 { 21 } else { 20 }));
        close(permit, Ok(())).unwrap();
        assert_eq!(world.search(key, experiment, &format!("metrics.m5 = {value}")).await.len(), 1, "{step}");
        records.insert(world.records(key).await.1);
    }
    assert!(records.len() > 8, "some waited: {records:?}");
    let permit = world.allow::<RunDelete>(key, run).await;
    let deleted = world.platform.tracking_run_delete(&permit).await;
    close(permit, deleted).unwrap();
    world.platform.retention_round(later(40)).await.unwrap();
    assert_eq!(world.records(key).await, (0, 0, 0));
    assert_eq!(world.stored(key).await, before, "all bytes are given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_runs_are_read_again_after_a_restart() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |_| ()).await;
    let experiment = world.experiment(&key, "many").await;
    // More than one page of runs, and runs whose parts lie on two pages.
    for at in 0..1100 {
        let run = world.begin(&key, &experiment).await;
        let batch = Batch { metrics: vec![point("m", f64::from(at), 0)], params: vec![text("p", &at.to_string())], ..Default::default() };
        world.log(&key, &run, batch).await.unwrap();
    }
    let world = world.restart(|_| ()).await;
    let found = world.search(&key, &experiment, "").await;
    assert_eq!(found.len(), 1100);
    let mut values = Vec::new();
    for view in &found {
        assert_eq!(view.metrics[0].1.value.to_string(), view.params[0].value, "{}", view.run.id);
        assert_eq!(view.tags.len(), 1);
        values.push(view.params[0].value.clone());
    }
    values.sort();
    values.dedup();
    assert_eq!(values.len(), 1100);
    assert_eq!(world.search(&key, &experiment, "metrics.m >= 1090").await.len(), 10);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_histories_are_whole_and_go_with_their_run() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |_| ()).await;
    let experiment = world.experiment(&key, "long").await;
    let before = (world.records(&key).await, world.stored(&key).await);
    let run = world.begin(&key, &experiment).await;
    #[expect(clippy::cast_precision_loss, reason = "small")]
    for batch in 0..50_i64 {
        let metrics = (0..1000).map(|at| point("m", (batch * 1000 + at) as f64, batch * 1000 + at)).collect();
        world.log(&key, &run, Batch { metrics, ..Default::default() }).await.unwrap();
    }
    let (_, items, blocks) = world.records(&key).await;
    assert_eq!((items, blocks), (2, 781), "a metric and the tag of the name; 64 points a block");
    assert!(world.stored(&key).await > before.1 + 781 * 1024, "counted");
    let permit = world.allow::<RunRead>(&key, &run).await;
    let (mut read, mut token) = (Vec::new(), None);
    loop {
        let page = world.platform.tracking_history(&permit, "m", Some(7777), token.as_deref()).await.unwrap();
        read.extend(page.points.iter().map(|point| point.step));
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(read, (0..50_000).collect::<Vec<i64>>());
    let _ = permit.finish().unwrap();
    let permit = world.allow::<RunDelete>(&key, &run).await;
    let deleted = world.platform.tracking_run_delete(&permit).await;
    close(permit, deleted).unwrap();
    assert_eq!(world.platform.retention_round(later(29)).await.unwrap(), 0, "it can still be restored");
    assert_eq!(world.records(&key).await.2, 781);
    // Nobody of the tenant does anything any more; the service was started anew since.
    let world = world.restart(|_| ()).await;
    world.platform.retention_round(later(31)).await.unwrap();
    let permit = world.allow::<RunRead>(&key, &run).await;
    let gone = world.platform.tracking_run_get(&permit).await;
    assert_eq!(code(close(permit, gone)), "not_found");
    assert_eq!(world.search(&key, &experiment, "").await.len(), 0, "nor found");
    assert_eq!((world.records(&key).await, world.stored(&key).await), before, "the bytes are given back");
    assert_eq!(world.platform.retention_round(later(60)).await.unwrap(), 0, "nothing is left to be done");
    let entries = world.sweeps(&key).await;
    assert!(entries.len() > 1 && entries.iter().all(|entry| entry.actor == "ada" && entry.via == "lease deleted"), "{entries:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_experiment_goes_with_everything_in_it() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |_| ()).await;
    let stored = world.stored(&key).await;
    let experiment = world.experiment(&key, "doomed").await;
    for _ in 0..20 {
        let run = world.begin(&key, &experiment).await;
        let metrics = (0..300).map(|step| point(&format!("m{}", step % 3), 1.0, step)).collect();
        let params = (0..40).map(|at| text(&format!("p{at}"), "value")).collect();
        world.log(&key, &run, Batch { metrics, params, tags: vec![text("t", "1"), text("t", "22")] }).await.unwrap();
        world.artifact(&key, &format!("{experiment}/{run}/artifacts/a/b.txt")).await.unwrap();
    }
    // Of a trace that never comes, and of a model with more points than one step takes.
    world.artifact(&key, &format!("{experiment}/traces/tr-1/artifacts/data.json")).await.unwrap();
    let (model, run) = (world.logged_model(&key, &experiment).await, world.begin(&key, &experiment).await);
    for batch in 0..2 {
        let metrics = (0..600).map(|step| about(&model, point("m", 1.0, batch * 600 + step))).collect();
        world.log(&key, &run, Batch { metrics, ..Default::default() }).await.unwrap();
    }
    let permit = world.allow::<ExperimentDelete>(&key, &experiment).await;
    let deleted = world.platform.experiment_delete(&permit).await;
    close(permit, deleted).unwrap();
    // A shorter time counts for what was deleted before.
    assert_eq!(world.platform.retention_round(later(3)).await.unwrap(), 0);
    let permit = world.allow::<PermissionWrite>(&key, "").await;
    let set = world.platform.tracking_retention_set(&permit, 2).await;
    close(permit, set).unwrap();
    world.platform.retention_round(later(0)).await.unwrap();
    assert_ne!(world.stored(&key).await, stored, "not yet");
    // The service itself may be looking at the same moment.
    until("every byte is given back", async || {
        world.platform.retention_round(later(3)).await.unwrap();
        (world.stored(&key).await == stored).then_some(())
    })
    .await;
    assert_eq!(world.records(&key).await, (0, 0, 0));
    assert_eq!(world.objects(&key).await, 0);
    let permit = world.allow::<ExperimentRead>(&key, &experiment).await;
    let gone = world.platform.experiment_get(&permit).await;
    assert_eq!(code(close(permit, gone)), "not_found");
    world.experiment(&key, "doomed").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_restored_stays_and_what_is_deleted_later_goes_later() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |_| ()).await;
    let (one, other) = (world.begin(&key, "0").await, world.begin(&key, "0").await);
    for run in [&one, &other] {
        let permit = world.allow::<RunDelete>(&key, run).await;
        let deleted = world.platform.tracking_run_delete(&permit).await;
        close(permit, deleted).unwrap();
    }
    let permit = world.allow::<RunDelete>(&key, &one).await;
    let restored = world.platform.tracking_run_restore(&permit).await;
    close(permit, restored).unwrap();
    world.platform.retention_round(later(31)).await.unwrap();
    assert_eq!(world.search(&key, "0", "").await.iter().map(|view| view.run.id.as_str()).collect::<Vec<_>>(), [one.as_str()]);
    // The sweep is over, and a new deletion makes a new one.
    let permit = world.allow::<RunDelete>(&key, &one).await;
    let deleted = world.platform.tracking_run_delete(&permit).await;
    close(permit, deleted).unwrap();
    assert_eq!(world.platform.retention_round(later(29)).await.unwrap(), 0);
    // Who sweeps may do nothing else.
    let lease = world.kernel.claim_sweep("here", later(31)).await.unwrap().unwrap();
    let sweeper = world.kernel.resume_sweep(&lease).await.unwrap();
    assert!(sweeper.allow::<RunRead>(&one).is_err() && sweeper.allow::<ExperimentDelete>("0").is_err());
    drop(sweeper);
    world.kernel.postpone_sweep(lease, later(30)).await.unwrap();
    assert_eq!(world.platform.retention_round(later(31)).await.unwrap(), 1);
    assert!(world.search(&key, "0", "").await.is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn points_of_a_model_count_once_and_are_given_back() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |limits| limits.storage_bytes = 1 << 20).await;
    let (model, run) = (world.logged_model(&key, "0").await, world.begin(&key, "0").await);
    let log = async |steps: std::ops::Range<i64>| {
        let metrics = steps.map(|step| about(&model, point("m", 1.0, step))).collect();
        world.log(&key, &run, Batch { metrics, ..Default::default() }).await
    };
    let before = world.stored(&key).await;
    // As many as a run's metric remembers without another record.
    log(0..50).await.unwrap();
    let of_fifty = world.stored(&key).await - before;
    assert!(of_fifty >= 50 * 256, "{of_fifty} bytes");
    let before = world.stored(&key).await;
    log(0..50).await.unwrap();
    assert_eq!(world.stored(&key).await, before, "what is there already counts once");
    let mut step = 50;
    let refused = loop {
        match log(step..step + 1000).await {
            Ok(()) => step += 1000,
            refused => break code(refused),
        }
        assert!(step < 10_000, "it does not end");
    };
    assert_eq!(refused, "quota_exceeded");
    let permit = world.allow::<LoggedModelDelete>(&key, &model).await;
    let deleted = world.platform.logged_model_delete(&permit).await;
    close(permit, deleted).unwrap();
    let full = world.stored(&key).await;
    world.platform.retention_round(later(31)).await.unwrap();
    assert!(full - world.stored(&key).await > step * 256, "given back");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_bytes_left_logs_nothing() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |limits| limits.storage_bytes = 100_000).await;
    let run = world.begin(&key, "0").await;
    let metrics: Vec<_> = (0..100).map(|at| point(&format!("m{at}"), 1.0, 0)).collect();
    assert_eq!(code(world.log(&key, &run, Batch { metrics, ..Default::default() }).await), "quota_exceeded");
    world.log(&key, &run, Batch { metrics: vec![point("m", 1.0, 0)], ..Default::default() }).await.unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_is_a_run() {
    let Some(world) = World::start(|_| ()).await else { return };
    let key = world.tenant("alpha", |_| ()).await;
    let rows: String = (0..200).map(|at| format!("{at},{}\n", at * 2)).collect();
    world.upload(&key, "lines", format!("x,y\n{rows}")).await.unwrap();
    let training = world
        .train(&key, serde_json::json!({"name": "double", "dataset": "lines", "target": "y", "task": "regression", "algorithm": "linear"}))
        .await
        .unwrap();
    let training = world.training_until(&key, &training.id, |training| training.state.is_final()).await;
    let id = training.run_id.unwrap_or_else(|| panic!("{:?}", training.error));
    let permit = world.allow::<RunRead>(&key, &id).await;
    let (run, view) = (world.platform.run_get(&permit).await.unwrap(), world.platform.tracking_run_get(&permit).await.unwrap());
    assert_eq!((view.run.name.as_str(), view.run.status.word(), view.run.user.as_str()), ("double", "FINISHED", "ada"));
    assert!(
        !run.metrics.is_empty()
            && run.metrics.iter().all(|(name, value)| view.metrics.iter().any(|(known, point)| known == name && point.value == *value))
    );
    assert!(view.params.contains(&text("algorithm", "linear")) && view.params.contains(&text("target", "y")));
    assert!(view.tags.contains(&text("insula.model_version", "1")));
    assert_eq!(view.datasets[0].dataset.name, "lines");
    let _ = permit.finish().unwrap();
    let found = world.search(&key, &view.run.experiment_id, "params.algorithm = 'linear' AND dataset.name = 'lines'").await;
    assert_eq!(found.len(), 1);
    let permit = world.allow::<ExperimentRead>(&key, "").await;
    let experiment = world.platform.experiment_by_name(&permit, "trainings").await;
    assert_eq!(close(permit, experiment).unwrap().id, view.run.experiment_id);
    world.stop().await;
}
