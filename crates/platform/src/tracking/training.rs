//! A training of the service is a run like any other: the same id, in the experiment `trainings`, for every MLflow client to see.

use serde::Serialize;
use tenancy::Tx;

use super::experiment;
use super::item::{Balance, DatasetInfo, DatasetInput, Part, RunItem, Text};
use super::lifecycle::Lifecycle;
use super::metric::{Metric, Point};
use super::run::{NAME_TAG, RUN_BYTES, RunStatus, TrackedRun};
use crate::error::Result;
use crate::training::Run;

/// The experiment that trainings are recorded in.
const EXPERIMENT: &str = "trainings";
/// Longest digest of a data set that MLflow shows, in characters.
const DIGEST_CHARS: usize = 36;

/// Records a finished training as part of the transaction that registers its model.
pub(crate) async fn record(tx: &mut Tx<'_>, run: &Run) -> Result<()> {
    let experiment = experiment::named_or_new(tx, EXPERIMENT).await?;
    let tracked = TrackedRun {
        id: run.id.clone(),
        name: run.model.to_string(),
        user: run.created_by.clone(),
        status: RunStatus::Finished,
        start_ms: run.started_at.millis(),
        end_ms: Some(run.finished_at.millis()),
        artifact_uri: format!("{}/{}/artifacts", experiment.artifact_location.trim_end_matches('/'), run.id),
        lifecycle: Lifecycle::now(experiment.lifecycle.deleted, &[experiment.lifecycle]),
        experiment_id: experiment.id,
        journal: None,
    };
    tx.insert(&tracked).await?;
    let items: Vec<_> = parts(run).into_iter().map(|part| RunItem::new(&run.id, part)).collect();
    let mut balance = Balance { added: RUN_BYTES, removed: 0 };
    balance.put(tx, &items, []).await?;
    balance.settle(tx).await
}

fn parts(run: &Run) -> Vec<Part<Metric>> {
    let (recipe, text) = (&run.recipe, |key: &str, value: String| Text { key: key.to_owned(), value });
    let params = [
        text("algorithm", word(&recipe.algorithm)),
        text("task", word(&recipe.task)),
        text("target", recipe.target.clone()),
        text("test_share", recipe.test_share.to_string()),
        text("seed", recipe.seed.to_string()),
    ];
    let tags = [
        text(NAME_TAG, run.model.to_string()),
        text("mlflow.user", run.created_by.clone()),
        text("mlflow.source.type", "JOB".to_owned()),
        text("mlflow.source.name", format!("training {}", run.training)),
        text("insula.model", run.model.to_string()),
        text("insula.model_version", run.model_version.to_string()),
        text("insula.rows_train", run.rows_train.to_string()),
        text("insula.rows_test", run.rows_test.to_string()),
    ];
    let at = |value| Point { value, timestamp: run.finished_at.millis(), step: 0 };
    let dataset = DatasetInfo {
        name: run.dataset.to_string(),
        digest: run.dataset_sha256.chars().take(DIGEST_CHARS).collect(),
        source_type: "insula".to_owned(),
        source: format!("/v1/datasets/{}/versions/{}", run.dataset, run.dataset_version),
        schema: None,
        profile: None,
    };
    let context = text("mlflow.data.context", "training".to_owned());
    let mut parts = vec![Part::Dataset(DatasetInput { dataset, tags: vec![context], cut: false })];
    parts.extend(params.into_iter().map(Part::Param));
    parts.extend(recipe.parameters.iter().map(|(name, value)| Part::Param(text(name, value.to_string()))));
    parts.extend(tags.into_iter().map(Part::Tag));
    parts.extend(run.metrics.iter().map(|(name, value)| Part::Metric(Metric::new(name.clone(), at(*value)))));
    parts
}

/// A word of an enumeration as JSON has it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
