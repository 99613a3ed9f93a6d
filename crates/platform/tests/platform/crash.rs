//! A training survives the service's death between any two of its steps, and leaves one result.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use platform::tenancy::act::{ModelRead, QuotaRead, RunRead};
use platform::{JobStep, PageRequest, TrainingState};
use serde_json::json;

use crate::world::{World, example, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_training_survives_a_crash_between_any_two_steps() {
    for step in JobStep::ALL {
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let start =
            World::start(move |config| config.job_stop = Some(Arc::new(move |at| at == step && !seen.swap(true, Ordering::AcqRel))));
        let Some(world) = start.await else { return };
        let key = world.tenant("vineyard", |_| {}).await;
        world.upload(&key, "wines", example("wine.csv")).await.unwrap();
        let ask = json!({"name": "m", "dataset": "wines", "target": "cultivar", "task": "classification"});
        let training = world.train(&key, ask).await.unwrap();
        until("the stop", async || stopped.load(Ordering::Acquire).then_some(())).await;
        until("the job's end", async || (world.platform.stats().trainings_running <= 1).then_some(())).await;

        let world = world.restart(|_| {}).await;
        let done = world.training_until(&key, &training.id, |training| training.state.is_final()).await;
        assert_eq!(done.state, TrainingState::Succeeded, "{step:?}: {:?}", done.error);
        assert_eq!(done.model_version, Some(1), "{step:?}");
        let permit = world.allow::<ModelRead>(&key, "m").await;
        assert_eq!(world.platform.model_get(&permit).await.unwrap().latest_version, 1, "{step:?}: one version");
        let _ = permit.finish().unwrap();
        let permit = world.allow::<RunRead>(&key, "").await;
        assert_eq!(world.platform.run_list(&permit, Some("m"), &PageRequest::default()).await.unwrap().items.len(), 1, "{step:?}: one run");
        let _ = permit.finish().unwrap();
        let permit = world.allow::<QuotaRead>(&key, "").await;
        let used = permit.quota_use().used;
        assert_eq!((used["objects"], used["models"]), (2, 1), "{step:?}: data set and model, nothing left over");
        let _ = permit.finish().unwrap();
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_that_crashes_the_service_is_given_up() {
    let start = World::start(|config| {
        config.training_attempts_max = 2;
        config.job_stop = Some(Arc::new(|at| at == JobStep::Trained));
    });
    let Some(mut world) = start.await else { return };
    let key = world.tenant("vineyard", |_| {}).await;
    world.upload(&key, "wines", example("wine.csv")).await.unwrap();
    let ask = json!({"name": "m", "dataset": "wines", "target": "cultivar", "task": "classification"});
    let training = world.train(&key, ask).await.unwrap();
    for attempt in 1..=2 {
        world.training_until(&key, &training.id, |training| training.attempts == attempt).await;
        until("the attempt's end", async || (world.platform.stats().trainings_running <= 1).then_some(())).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        world = world
            .restart(|config| {
                config.training_attempts_max = 2;
                config.job_stop = Some(Arc::new(|at| at == JobStep::Trained));
            })
            .await;
    }
    let failed = world.training_until(&key, &training.id, |training| training.state.is_final()).await;
    assert_eq!(failed.state, TrainingState::Failed);
    assert!(failed.error.unwrap().message.contains("given up after 2 attempts"));
    world.stop().await;
}
