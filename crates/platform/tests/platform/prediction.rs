//! Predictions for whole data sets: the answers are those of single questions, and the job survives what a training survives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::TryStreamExt;
use platform::tenancy::act::{DatasetRead, LedgerRead, PredictionCancel, PredictionCreate, PredictionRead, QuotaRead};
use platform::tenancy::{Filter, Tenant};
use platform::{DatasetVersion, JobStep, PageRequest, Prediction, PredictionRequest, Result, TrainingState};
use serde_json::{Value, json};

use crate::models::{endless, times};
use crate::world::{World, close, code, example, until};

pub(crate) async fn queue(world: &World, key: &str, request: Value) -> Result<Prediction> {
    let request: PredictionRequest = serde_json::from_value(request).unwrap();
    let permit = world.allow::<PredictionCreate>(key, "").await;
    let prediction = world.platform.prediction_create(&permit, request).await;
    close(permit, prediction)
}

async fn get(world: &World, key: &str, id: &str) -> Result<Prediction> {
    let permit = world.allow::<PredictionRead>(key, id).await;
    let prediction = world.platform.prediction_get(&permit).await;
    close(permit, prediction)
}

pub(crate) async fn ended(world: &World, key: &str, id: &str) -> Prediction {
    until("a job of predictions", async || Some(get(world, key, id).await.unwrap()).filter(|job| job.state.is_final())).await
}

/// The newest version of a data set, and its text.
async fn content(world: &World, key: &str, name: &str) -> (DatasetVersion, String) {
    let permit = world.allow::<DatasetRead>(key, name).await;
    let (version, stream) = world.platform.dataset_read(&permit, None).await.unwrap();
    let pieces: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
    let _ = permit.finish().unwrap();
    (version, String::from_utf8(pieces.concat()).unwrap())
}

/// A deployment `taster` of a model trained on `wines`.
async fn taster(world: &World, key: &str) {
    world.upload(key, "wines", example("wine.csv")).await.unwrap();
    let ask = json!({"name": "taster", "dataset": "wines", "target": "cultivar", "task": "classification"});
    let training = world.train(key, ask).await.unwrap();
    let training = world.training_until(key, &training.id, |training| training.state.is_final()).await;
    assert_eq!(training.state, TrainingState::Succeeded, "{:?}", training.error);
    world.deploy(key, "taster", json!({"model": "taster", "version": 1})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_gets_the_answer_that_it_would_get_alone() {
    let Some(world) = World::start(|_| {}).await else { return };
    let (key, other) = (world.tenant("clinic", |_| {}).await, world.tenant("vineyard", |_| {}).await);
    taster(&world, &key).await;
    let ask = |rows: u32| json!({"deployment": "taster", "dataset": "wines", "into": "tasted", "keep": ["cultivar"], "batch_rows": rows});
    let job = queue(&world, &key, ask(1)).await.unwrap();
    assert_eq!((job.state, job.features.len()), (TrainingState::Queued, 13), "the columns it was trained on");
    let done = ended(&world, &key, &job.id).await;
    assert_eq!((done.state, done.rows, done.into_version), (TrainingState::Succeeded, Some(178), Some(1)), "{:?}", done.error);
    let (version, text) = content(&world, &key, "tasted").await;
    let lineage = version.lineage.clone().unwrap();
    assert_eq!((lineage.prediction.as_str(), lineage.dataset_version, lineage.model_version), (done.id.as_str(), 1, 1));
    assert_eq!((lineage.dataset_sha256.len(), lineage.model_sha256.len(), version.rows), (64, 64, 178));
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("cultivar,label,probabilities_0,probabilities_1,probabilities_2"));
    // The same questions one by one, over the protocol that applications use.
    let csv = String::from_utf8(example("wine.csv")).unwrap();
    let names: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    for (row, answer) in csv.lines().skip(1).zip(lines).step_by(17) {
        let (row, answer): (Vec<&str>, Vec<&str>) = (row.split(',').collect(), answer.split(',').collect());
        let of = |name: &str| names.iter().position(|known| *known == name).map(|at| row[at]).unwrap();
        let data: Vec<f32> = job.features.iter().map(|name| of(name).parse().unwrap()).collect();
        let body = json!({"inputs": [{"name": "input", "shape": [1, 13], "datatype": "FP32", "data": data}]});
        let alone = world.predict(&key, "taster", body.to_string()).await.unwrap();
        assert_eq!(answer[0], of("cultivar"), "a kept column is as it was");
        assert_eq!(answer[1], alone["outputs"][0]["data"][0].to_string());
        for class in 0..3 {
            let (whole, alone) = (answer[2 + class].parse::<f32>().unwrap(), alone["outputs"][1]["data"][class].as_f64().unwrap() as f32);
            assert_eq!(whole.to_bits(), alone.to_bits(), "bit by bit, when the rows are asked about one by one");
        }
    }
    // Many at once: the same labels, and the next version.
    let job = queue(&world, &key, ask(64)).await.unwrap();
    assert_eq!(ended(&world, &key, &job.id).await.into_version, Some(2));
    let labels = |text: &str| text.lines().map(|line| line.split(',').nth(1).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(labels(&content(&world, &key, "tasted").await.1), labels(&text));
    // What was done stands in the ledger, in the name of whoever queued it.
    let permit = world.allow::<LedgerRead>(&key, "").await;
    for act in ["PredictionCreate", "PredictionRun", "DatasetRead", "Predict", "DatasetWrite"] {
        let found = permit.ledger().search(&Filter { act: Some(act.to_owned()), ..Filter::default() }, 500).unwrap();
        let entries = found.entries.into_iter().filter_map(|item| item.entry);
        let mut of_job = entries.filter(|entry| entry.detail.values().any(|value| *value == job.id) || entry.resource.contains(&job.id));
        assert!(of_job.any(|entry| entry.actor == "ada"), "{act}");
    }
    let _ = permit.finish().unwrap();
    // The neighbour sees none of it.
    assert_eq!(code(get(&world, &other, &job.id).await), "not_found");
    assert_eq!(code(queue(&world, &other, ask(1)).await), "not_found");
    let permit = world.allow::<PredictionRead>(&other, "").await;
    assert!(world.platform.prediction_list(&permit, &PageRequest::default()).await.unwrap().items.is_empty());
    let _ = permit.finish().unwrap();
    assert_eq!(world.platform.stats().predictions_succeeded, 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_names_its_row_and_leaves_nothing() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |limits| limits.jobs_queued = 2).await;
    world.serve(&key, "twice", times(2.0)).await;
    world.upload(&key, "good", "id,x\n007,1\n\"a,b\",2.5\n").await.unwrap();
    world.upload(&key, "bad", "id,x\n1,1\n2,two\n").await.unwrap();
    let ask = |dataset: &str| json!({"deployment": "twice", "dataset": dataset, "into": "answers", "keep": ["id"]});
    let job = queue(&world, &key, ask("bad")).await.unwrap();
    let failed = ended(&world, &key, &job.id).await;
    let error = failed.error.unwrap();
    assert_eq!((failed.state, error.code.as_str()), (TrainingState::Failed, "invalid_input"));
    assert_eq!(error.message, "row 2, column `x`: `two` is not a number");
    let permit = world.allow::<DatasetRead>(&key, "answers").await;
    assert_eq!(code(world.platform.dataset_get(&permit).await), "not_found");
    let _ = permit.finish().unwrap();
    let job = queue(&world, &key, ask("good")).await.unwrap();
    let done = ended(&world, &key, &job.id).await;
    assert_eq!(done.state, TrainingState::Succeeded, "{:?}", done.error);
    assert_eq!(content(&world, &key, "answers").await.1, "id,y\n007,2.0\n\"a,b\",5.0\n");
    let permit = world.allow::<QuotaRead>(&key, "").await;
    assert_eq!(permit.quota_use().used["objects"], 4, "two tables, a model, one table of answers");
    let _ = permit.finish().unwrap();

    let mut nothing = ask("good");
    nothing["keep"] = json!(["id", "x"]);
    let job = queue(&world, &key, nothing).await.unwrap();
    assert!(ended(&world, &key, &job.id).await.error.unwrap().message.contains("name the `features`"));

    let mut unknown = ask("good");
    unknown["keep"] = json!(["name"]);
    assert!(queue(&world, &key, unknown).await.unwrap_err().to_string().contains("no column `name`"));
    let mut absent = ask("good");
    absent["deployment"] = json!("thrice");
    assert_eq!(code(queue(&world, &key, absent).await), "not_found");
    world.stop().await;
}

async fn pids(tenant: &Tenant, world: &World) -> usize {
    let permit = tenant.allow::<PredictionRead>("").unwrap();
    let pids = world.platform.working_pids(&permit);
    let _ = permit.finish().unwrap();
    pids.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_queued_or_running_and_the_queue_is_bounded() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |limits| limits.jobs_queued = 1).await;
    world.serve(&key, "endless", endless()).await;
    world.upload(&key, "rows", "x\n1\n2\n").await.unwrap();
    let ask = || json!({"deployment": "endless", "dataset": "rows", "into": "answers", "batch_rows": 1});
    let running = queue(&world, &key, ask()).await.unwrap();
    let tenant = world.open(&key).await;
    until("the cell", async || (pids(&tenant, &world).await == 1).then_some(())).await;
    assert_eq!(get(&world, &key, &running.id).await.unwrap().state, TrainingState::Running, "in a cell of its own");
    let queued = queue(&world, &key, ask()).await.unwrap();
    assert_eq!(code(queue(&world, &key, ask()).await), "quota_exceeded");
    for id in [&queued.id, &running.id] {
        let permit = world.allow::<PredictionCancel>(&key, id).await;
        let cancelled = world.platform.prediction_cancel(&permit).await;
        assert_eq!(close(permit, cancelled).unwrap().state, TrainingState::Cancelled);
    }
    until("the cell's end", async || (world.platform.stats().cells_working.total() == 0).then_some(())).await;
    for id in [&queued.id, &running.id] {
        assert_eq!(get(&world, &key, id).await.unwrap().state, TrainingState::Cancelled);
    }
    drop(tenant);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_survives_a_crash_between_any_two_steps() {
    for step in JobStep::ALL {
        let armed = Arc::new(AtomicBool::new(false));
        let stopped = Arc::new(AtomicBool::new(false));
        let (loaded, seen) = (Arc::clone(&armed), Arc::clone(&stopped));
        let start = World::start(move |config| {
            let stop = move |at| at == step && loaded.load(Ordering::Acquire) && !seen.swap(true, Ordering::AcqRel);
            config.job_stop = Some(Arc::new(stop));
        });
        let Some(world) = start.await else { return };
        let key = world.tenant("clinic", |_| {}).await;
        world.serve(&key, "twice", times(2.0)).await;
        world.upload(&key, "rows", "x\n1\n2\n3\n").await.unwrap();
        armed.store(true, Ordering::Release);
        let ask = json!({"deployment": "twice", "dataset": "rows", "into": "answers", "keep": ["x"], "features": ["x"]});
        let job = queue(&world, &key, ask).await.unwrap();
        until("the stop", async || stopped.load(Ordering::Acquire).then_some(())).await;
        let world = world.restart(|_| {}).await;
        let done = ended(&world, &key, &job.id).await;
        assert_eq!((done.state, done.into_version), (TrainingState::Succeeded, Some(1)), "{step:?}: {:?}", done.error);
        assert_eq!(content(&world, &key, "answers").await.1, "x,y\n1,2.0\n2,4.0\n3,6.0\n", "{step:?}");
        let permit = world.allow::<QuotaRead>(&key, "").await;
        assert_eq!(permit.quota_use().used["objects"], 3, "{step:?}: rows, model, answers, nothing left over");
        let _ = permit.finish().unwrap();
        world.stop().await;
    }
}
