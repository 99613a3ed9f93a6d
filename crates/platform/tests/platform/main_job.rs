//! Upload, train, register, deploy, predict; bad input; cancel; fairness.

use bytes::Bytes;
use futures_util::TryStreamExt;
use platform::tenancy::Filter;
use platform::tenancy::act::{
    DatasetDelete, DatasetRead, DatasetWrite, DeploymentRead, LedgerRead, ModelDelete, ModelRead, ModelWrite, Predict, QuotaRead, RunRead,
    TrainingCancel, TrainingRead,
};
use platform::{AliasRequest, Lineage, PageRequest, PreviewRequest, TagRequest, TrainingState};
use serde_json::json;

use crate::models::{ask_times, number_of, times};
use crate::world::{World, close, code, example, until};

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_from_upload_to_prediction() {
    let Some(world) = World::start(|_| {}).await else { return };
    let clinic = world.tenant("clinic", |_| {}).await;
    let vineyard = world.tenant("vineyard", |_| {}).await;

    let bytes = example("breast-cancer.csv");
    let version = world.upload(&clinic, "patients", bytes.clone()).await.unwrap();
    assert_eq!((version.version, version.rows, version.columns.len(), version.bytes), (1, 569, 31, bytes.len() as u64));
    let permit = world.allow::<DatasetRead>(&clinic, "patients").await;
    let (_, stream) = world.platform.dataset_read(&permit, None).await.unwrap();
    let read: Vec<Bytes> = stream.try_collect().await.unwrap();
    assert_eq!(read.concat(), bytes, "byte for byte");
    let request = PreviewRequest { offset: Some(1), rows: Some(2), ..PreviewRequest::default() };
    let preview = world.platform.dataset_preview(&permit, &request).await.unwrap();
    assert_eq!((preview.rows.len(), preview.columns.len()), (2, 31));
    let _ = permit.finish().unwrap();
    assert_eq!(world.upload(&clinic, "patients", bytes).await.unwrap().version, 2);
    world.upload(&vineyard, "wines", example("wine.csv")).await.unwrap();

    let ask = |name: &str, dataset: &str, target: &str| json!({"name": name, "dataset": dataset, "version": 1, "target": target, "task": "classification", "split": {"seed": 7}});
    let first = world.train(&clinic, ask("screening", "patients", "diagnosis")).await.unwrap();
    let other = world.train(&vineyard, ask("grapes", "wines", "cultivar")).await.unwrap();
    let second = world.train(&clinic, ask("screening", "patients", "diagnosis")).await.unwrap();
    for (key, training) in [(&clinic, &first), (&vineyard, &other), (&clinic, &second)] {
        let done = world.training_until(key, &training.id, |training| training.state.is_final()).await;
        assert_eq!(done.state, TrainingState::Succeeded, "{:?}", done.error);
    }

    let permit = world.allow::<ModelRead>(&clinic, "screening").await;
    let one = world.platform.model_version_get(&permit, 1).await.unwrap();
    let two = world.platform.model_version_get(&permit, 2).await.unwrap();
    let of = |version: &platform::ModelVersion| version.onnx.clone().expect("a training makes ONNX");
    assert_eq!(of(&one).sha256, of(&two).sha256, "the same recipe on the same data gives the same bytes");
    let Lineage::Training(lineage) = &one.lineage else { panic!("{:?}", one.lineage) };
    assert_eq!((lineage.dataset_sha256.as_str(), lineage.recipe.seed), (version.sha256.as_str(), 7));
    let (_, stream) = world.platform.model_version_download(&permit, 1).await.unwrap();
    let onnx: Vec<Bytes> = stream.try_collect().await.unwrap();
    assert_eq!(onnx.concat().len() as u64, of(&one).bytes);
    let _ = permit.finish().unwrap();

    let permit = world.allow::<RunRead>(&clinic, one.run_id.as_deref().unwrap()).await;
    let run = world.platform.run_get(&permit).await.unwrap();
    assert!(run.metrics["accuracy"] > 0.9, "{:?}", run.metrics);
    assert_eq!(run.rows_train + run.rows_test, 569);
    let _ = permit.finish().unwrap();
    let permit = world.allow::<TrainingRead>(&clinic, &first.id).await;
    let logs = world.platform.training_logs(&permit, 0).await.unwrap();
    assert!(logs.complete && !logs.lines.is_empty(), "{logs:?}");
    let _ = permit.finish().unwrap();

    let permit = world.allow::<ModelWrite>(&clinic, "screening").await;
    world.platform.alias_set(&permit, "champion", &AliasRequest { version: 1 }).await.unwrap();
    world.platform.alias_set(&permit, "champion", &AliasRequest { version: 2 }).await.unwrap();
    assert_eq!(code(world.platform.alias_set(&permit, "champion", &AliasRequest { version: 3 }).await), "not_found");
    world.platform.tag_set(&permit, Some(2), "stage", &TagRequest { value: "live".into() }).await.unwrap();
    let _ = permit.finish().unwrap();
    let permit = world.allow::<ModelRead>(&clinic, "screening").await;
    let history = world.platform.alias_history(&permit, &PageRequest::default()).await.unwrap().items;
    assert_eq!(history.iter().map(|change| (change.from, change.to)).collect::<Vec<_>>(), [(None, Some(1)), (Some(1), Some(2))]);
    assert_eq!(history[0].by, "ada");
    let versions = world.platform.model_versions(&permit, &PageRequest::default()).await.unwrap().items;
    assert_eq!((versions[1].aliases.clone(), versions[1].tags["stage"].as_str()), (vec!["champion".to_owned()], "live"));
    let _ = permit.finish().unwrap();

    world.deploy(&clinic, "triage", json!({"model": "screening", "alias": "champion"})).await.unwrap();
    let answer = world.predict(&clinic, "triage", example("breast-cancer-ask.json")).await.unwrap();
    assert_eq!((&answer["model_name"], &answer["model_version"]), (&json!("triage"), &json!("2")));
    assert_eq!(answer["outputs"][0]["data"], json!(["malignant", "benign", "malignant"]), "{answer}");
    let permit = world.allow::<DeploymentRead>(&clinic, "triage").await;
    let metadata = world.platform.deployment_metadata(&permit, Some("2")).await.unwrap();
    assert_eq!((metadata.versions, metadata.inputs[0].name.as_str()), (vec!["2".to_owned()], "input"));
    assert_eq!(code(world.platform.deployment_metadata(&permit, Some("1")).await), "not_found");
    let _ = permit.finish().unwrap();

    // The other tenant asks for it by its right name, and finds nothing.
    assert_eq!(code(world.predict(&vineyard, "triage", example("breast-cancer-ask.json")).await), "not_found");
    let permit = world.allow::<LedgerRead>(&clinic, "").await;
    let filter = Filter { act: Some("Predict".to_owned()), ..Filter::default() };
    let found = permit.ledger().search(&filter, 1).unwrap().entries.remove(0).entry.unwrap();
    let permit_model = world.allow::<ModelRead>(&clinic, "screening").await;
    let model = world.platform.model_version_get(&permit_model, found.detail["model_version"].parse().unwrap()).await.unwrap();
    assert_eq!(found.detail["model_sha256"], model.onnx.expect("ONNX").sha256, "what was run");
    // SHA-256 of examples/breast-cancer-ask.json, as sha256sum says.
    assert_eq!(found.detail["input_sha256"], "f6394e962c779a14ce4fb7a50dc999f2c5721ced3222ab66a0330cf5aa6352d8", "on what");
    assert_eq!(found.detail["output_sha256"].len(), 64, "with what result");
    let _ = (permit.finish().unwrap(), permit_model.finish().unwrap());
    // A model in use stays; then everything can go.
    let permit = world.allow::<ModelDelete>(&clinic, "screening").await;
    assert_eq!(code(world.platform.model_delete(&permit).await), "conflict");
    let _ = permit.failed("conflict").unwrap();
    let permit = world.allow::<DatasetDelete>(&clinic, "patients").await;
    world.platform.dataset_delete(&permit).await.unwrap();
    let _ = permit.finish().unwrap();
    let permit = world.allow::<DatasetRead>(&clinic, "patients").await;
    assert_eq!(code(world.platform.dataset_get(&permit).await), "not_found");
    let _ = permit.finish().unwrap();

    // Cells' CPU time went to the account of their tenant.
    let permit = world.allow::<QuotaRead>(&clinic, "").await;
    assert!(permit.quota_use().usage.cpu_micros > 1000, "{:?}", permit.quota_use().usage);
    assert_eq!(permit.quota_use().used["objects"], 2, "two models are left");
    let _ = permit.finish().unwrap();
    let stats = world.platform.stats();
    assert_eq!((stats.cold_starts, stats.trainings_succeeded, stats.cells_serving.total(), stats.cells_hostile), (1, 3, 1, 0), "{stats:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rows_name_their_place_and_leave_nothing() {
    let Some(world) = World::start(|config| config.upload_bytes_max = 1 << 20).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    let error = world.upload(&key, "rows", "a,b\n1,2\n3\n4,5\n").await.unwrap_err();
    assert_eq!(error.code(), "invalid_input");
    assert!(error.to_string().starts_with("line 3"), "{error}");
    assert_eq!(code(world.upload(&key, "rows", "").await), "invalid");
    assert_eq!(code(world.upload(&key, "rows", vec![b'x'; (1 << 20) + 1]).await), "too_large");
    let permit = world.allow::<DatasetWrite>(&key, "rows").await;
    let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"a,b\n1,2\n")), Err(std::io::Error::other("the client left"))]);
    let result = world.platform.dataset_upload(&permit, None, broken).await;
    assert_eq!(code(close(permit, result)), "upload_interrupted");
    let permit = world.allow::<DatasetRead>(&key, "rows").await;
    assert_eq!(code(world.platform.dataset_get(&permit).await), "not_found");
    let _ = permit.finish().unwrap();
    let permit = world.allow::<QuotaRead>(&key, "").await;
    let used = permit.quota_use().used;
    assert_eq!((used["objects"], used["storage_bytes"]), (0, 0), "nothing is left behind");
    let _ = permit.finish().unwrap();

    assert_eq!(world.upload(&key, "rows", "a,b\n1,2\n").await.unwrap().version, 1);
    assert_eq!(code(world.upload(&key, "rows", "a,b\n1\n").await), "invalid_input");
    assert_eq!(world.upload(&key, "rows", "a,b\n1,2\n3,4\n").await.unwrap().version, 2, "no number is lost to a failed upload");

    assert_eq!(code(world.model(&key, "junk", b"not a model".to_vec()).await), "model_refused");
    let no_column = json!({"name": "m", "dataset": "rows", "target": "c", "task": "regression"});
    assert!(world.train(&key, no_column).await.unwrap_err().to_string().contains("no column `c`"));
    // What only the cell can know fails the job, with the reason.
    let wrong = json!({"name": "m", "dataset": "rows", "target": "b", "task": "regression", "parameters": {"colour": 3}});
    let training = world.train(&key, wrong).await.unwrap();
    let failed = world.training_until(&key, &training.id, |training| training.state.is_final()).await;
    assert_eq!((failed.state, failed.error.as_ref().unwrap().code.as_str()), (TrainingState::Failed, "invalid_input"));
    assert!(failed.error.unwrap().message.contains("colour"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prediction_with_bad_input_is_refused() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    world.serve(&key, "twice", times(2.0)).await;
    assert_eq!(number_of(&world.predict(&key, "twice", ask_times(21.0)).await.unwrap()), 42.0);
    let shape =
        |shape: serde_json::Value| json!({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": [1.0]}]}).to_string();
    for body in [
        "".to_owned(),
        "{".to_owned(),
        "[]".to_owned(),
        shape(json!([2])),
        shape(json!([2_147_483_648u64, 2_147_483_648u64])),
        shape(json!([-1])),
    ] {
        let result = world.predict(&key, "twice", body.clone()).await;
        assert_eq!(code(result), "invalid_input", "{body}");
    }
    let permit = world.allow::<Predict>(&key, "twice").await;
    let result = world.platform.predict(&permit, Some("2"), Bytes::from(ask_times(1.0))).await;
    assert_eq!(code(close(permit, result)), "not_found");
    let pid = world.pid(&key, "twice").await.unwrap();
    assert_eq!(number_of(&world.predict(&key, "twice", ask_times(2.0)).await.unwrap()), 4.0);
    assert_eq!(world.pid(&key, "twice").await, Some(pid), "bad input does not cost the cell");
    world.stop().await;
}

/// Rows that keep a cell busy for a while.
fn many_rows(rows: u32) -> Vec<u8> {
    let mut csv = String::from("a,b,c,d,e,f,y\n");
    for row in 0..rows {
        let noise = |salt: u32| f64::from(row.wrapping_mul(2_654_435_761).wrapping_add(salt.wrapping_mul(40_503)) >> 8) / 16_777_216.0;
        csv.push_str(&format!("{},{},{},{},{},{},{}\n", noise(1), noise(2), noise(3), noise(4), noise(5), noise(6), noise(1) + noise(7)));
    }
    csv.into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_is_cancelled_queued_or_running() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    world.upload(&key, "rows", many_rows(60_000)).await.unwrap();
    let ask = json!({"name": "m", "dataset": "rows", "target": "y", "task": "regression"});
    let (running, queued) = (world.train(&key, ask.clone()).await.unwrap(), world.train(&key, ask).await.unwrap());
    world.training_until(&key, &running.id, |training| training.progress.is_some()).await;
    assert_eq!(world.training(&key, &queued.id).await.state, TrainingState::Queued, "one at a time");
    for id in [&queued.id, &running.id] {
        let permit = world.allow::<TrainingCancel>(&key, id).await;
        let cancelled = world.platform.training_cancel(&permit).await;
        assert_eq!(close(permit, cancelled).unwrap().state, TrainingState::Cancelled);
    }
    until("the cell's end", async || (world.platform.stats().cells_working.total() == 0).then_some(())).await;
    for id in [&queued.id, &running.id] {
        assert_eq!(world.training(&key, id).await.state, TrainingState::Cancelled);
    }
    let permit = world.allow::<TrainingCancel>(&key, &running.id).await;
    let again = world.platform.training_cancel(&permit).await;
    assert_eq!(code(close(permit, again)), "conflict");
    let permit = world.allow::<ModelRead>(&key, "m").await;
    assert_eq!(code(world.platform.model_get(&permit).await), "not_found");
    let _ = permit.finish().unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_whose_cell_dies_fails_and_says_so() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    world.upload(&key, "rows", many_rows(60_000)).await.unwrap();
    let ask = json!({"name": "m", "dataset": "rows", "target": "y", "task": "regression"});
    let training = world.train(&key, ask).await.unwrap();
    world.training_until(&key, &training.id, |training| training.progress.is_some()).await;
    let permit = world.allow::<TrainingRead>(&key, &training.id).await;
    let pids = world.platform.working_pids(&permit);
    let _ = permit.finish().unwrap();
    assert_eq!(pids.len(), 1);
    crate::cells::kill(pids[0]);
    let failed = world.training_until(&key, &training.id, |training| training.state.is_final()).await;
    let error = failed.error.unwrap();
    assert_eq!((failed.state, error.code.as_str()), (TrainingState::Failed, "cell_failed"));
    assert!(error.message.contains("signal 9"), "{}", error.message);
    assert_eq!(world.platform.stats().cells_failed, 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_cut_by_a_graceful_stop_is_run_again() {
    let Some(world) = World::start(|_| {}).await else { return };
    let key = world.tenant("clinic", |_| {}).await;
    world.upload(&key, "rows", many_rows(60_000)).await.unwrap();
    let ask = json!({"name": "m", "dataset": "rows", "target": "y", "task": "regression"});
    let training = world.train(&key, ask).await.unwrap();
    world.training_until(&key, &training.id, |training| training.progress.is_some()).await;
    let world = world.restart(|_| {}).await;
    let done = world.training_until(&key, &training.id, |training| training.state.is_final()).await;
    assert_eq!((done.state, done.attempts), (TrainingState::Succeeded, 1), "the cut attempt does not count: {:?}", done.error);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_queue_does_not_hold_up_another() {
    let Some(world) = World::start(|config| config.jobs_running_max = 1).await else { return };
    let (busy, late) = (world.tenant("busy", |limits| limits.jobs_running = 4).await, world.tenant("late", |_| {}).await);
    world.upload(&busy, "rows", many_rows(20_000)).await.unwrap();
    world.upload(&late, "wines", example("wine.csv")).await.unwrap();
    let long = json!({"name": "m", "dataset": "rows", "target": "y", "task": "regression"});
    let short = json!({"name": "m", "dataset": "wines", "target": "cultivar", "task": "classification"});
    let mut queued = vec![];
    for _ in 0..6 {
        queued.push(world.train(&busy, long.clone()).await.unwrap());
    }
    let mine = world.train(&late, short).await.unwrap();
    let mine = world.training_until(&late, &mine.id, |training| training.state.is_final()).await;
    let mut before = 0;
    for training in &queued {
        let done = world.training_until(&busy, &training.id, |training| training.state.is_final()).await;
        before += u32::from(done.started_at < mine.started_at);
    }
    // One that ran, one that was claimed already; a queue in order of arrival would have been six.
    assert!(before <= 3, "{before} of 6 ran before the late one");
    world.stop().await;
}
