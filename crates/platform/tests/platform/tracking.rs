//! Experiments and runs on a real kernel: what was acknowledged is found, what was written is read back, what is deleted goes.

use platform::tenancy::act::{ExperimentRead, ExperimentWrite, PermissionWrite, QuotaRead, RunDelete, RunRead, RunWrite};
use platform::{Batch, ExperimentRequest, MetricPoint, Point, RunRequest, RunSearch, RunView, Text, ViewType};

use crate::world::{World, close, code};

fn point(key: &str, value: f64, step: i64) -> MetricPoint {
    MetricPoint { key: key.to_owned(), point: Point { value, timestamp: 1000 + step, step }, model: None }
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
    // Deleted, past its retention, and taken away bit by bit by whoever comes next.
    let permit = world.allow::<PermissionWrite>(&key, "").await;
    let set = world.platform.tracking_retention_set(&permit, 0).await;
    close(permit, set).unwrap();
    let permit = world.allow::<RunDelete>(&key, &run).await;
    let deleted = world.platform.tracking_run_delete(&permit).await;
    close(permit, deleted).unwrap();
    let mut others = 0;
    while world.records(&key).await.2 > 0 {
        let other = world.begin(&key, &experiment).await;
        let permit = world.allow::<RunDelete>(&key, &other).await;
        close(permit, Ok(())).unwrap();
        others += 1;
        assert!(others < 20, "it does not end");
    }
    assert!(others > 0, "a bounded part at a time");
    let permit = world.allow::<RunRead>(&key, &run).await;
    let gone = world.platform.tracking_run_get(&permit).await;
    assert_eq!(code(close(permit, gone)), "not_found");
    assert_eq!(world.search(&key, &experiment, "").await.len(), others, "nor found");
    // The others are all that is left, each with its record and the tag of its name.
    let (runs, items, blocks) = world.records(&key).await;
    assert_eq!((runs, items, blocks), (others as u64, others as u64, 0));
    let each = (world.stored(&key).await - before.1) / i64::try_from(others).unwrap();
    assert!((1024..2048).contains(&each), "the bytes are given back: {each}");
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
    }
    let permit = world.allow::<PermissionWrite>(&key, "").await;
    let set = world.platform.tracking_retention_set(&permit, 0).await;
    close(permit, set).unwrap();
    let permit = world.allow::<platform::tenancy::act::ExperimentDelete>(&key, &experiment).await;
    let deleted = world.platform.experiment_delete(&permit).await;
    close(permit, deleted).unwrap();
    for round in 0.. {
        if world.records(&key).await == (0, 0, 0) {
            break;
        }
        assert!(round < 40, "it does not end: {:?}", world.records(&key).await);
        // What sweeps is any change of the settings, too.
        let permit = world.allow::<PermissionWrite>(&key, "").await;
        let set = world.platform.tracking_retention_set(&permit, 0).await;
        close(permit, set).unwrap();
    }
    assert_eq!(world.stored(&key).await, stored, "every byte is given back");
    let permit = world.allow::<ExperimentRead>(&key, &experiment).await;
    let gone = world.platform.experiment_get(&permit).await;
    assert_eq!(code(close(permit, gone)), "not_found");
    world.experiment(&key, "doomed").await;
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
