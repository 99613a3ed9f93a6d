//! Logged models of MLflow 3: each keeps its id, which its files and versions name.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use super::api::{Answer, Api, Page, found, made};
use super::files::{Holder, Origin};
use super::forms::{LoggedModel, Metric, OneLoggedModel, Texts};
use super::report::Kind;
use super::runs::{Moved, with, without};
use super::{IMPORTED, Import};
use crate::failure::Result;
use crate::progress;

/// Logged models in one page.
const PAGE: u32 = 50;
/// Points of one request.
const POINTS_TOGETHER_MAX: usize = 500;
/// The service keeps it itself, from the versions that are registered.
const VERSIONS_TAG: &str = "mlflow.modelVersions";

impl Import<'_> {
    /// All logged models of an experiment; its runs are here already.
    pub(crate) async fn logged_models(&self, moved: &Moved) -> Result<()> {
        let bar = progress::steps(self.output, &format!("{}, models", moved.source.name));
        let mut token = None;
        loop {
            let mut asked = json!({"experiment_ids": [moved.source.experiment_id], "max_results": PAGE});
            with(&mut asked, "page_token", token);
            // Servers before 3 have none.
            let page: Option<Page<LoggedModel>> = self.must(found(self.source.api.page("logged-models/search", "models", &asked).await))?;
            let Some(page) = page else { return Ok(()) };
            bar.inc_length(page.items.len() as u64);
            for model in page.items {
                self.logged_model(&model, moved).await?;
                bar.inc(1);
            }
            token = page.next;
            if token.is_none() {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }

    async fn logged_model(&self, source: &LoggedModel, moved: &Moved) -> Result<()> {
        let (info, id) = (&source.info, source.info.model_id.as_str());
        let of = format!("logged model {id}");
        self.report.borrow_mut().source(Kind::LoggedModel, 1);
        let from = self.source.path(&info.artifact_uri).map_or_else(|| Origin::Model(id.to_owned()), Origin::Path);
        if self.dry {
            {
                let mut report = self.report.borrow_mut();
                report.source(Kind::LoggedModelText, source.data.params.len() + tags_of(source).len());
                report.source(Kind::LoggedModelPoint, source.data.metrics.len());
            }
            return self.files(&from, &Holder::Model { experiment: String::new(), id: id.to_owned() }, true, false).await.map(drop);
        }
        let Some(experiment) = &moved.target else {
            self.differs(Kind::LoggedModel, &of, "", "its experiment is not here");
            return Ok(());
        };
        let there = self.settled(Kind::LoggedModel, &of, "", model_of(self.target, id).await)?.flatten();
        let fresh = there.is_none();
        let mut wrote = fresh;
        if fresh {
            let note = json!({"creation_timestamp_ms": info.creation_timestamp_ms}).to_string();
            let mut asked =
                json!({"model_id": id, "experiment_id": experiment, "name": info.name, "tags": [{"key": IMPORTED, "value": note}]});
            let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            with(&mut asked, "model_type", text(&info.model_type));
            with(&mut asked, "source_run_id", text(&info.source_run_id));
            if self.settled(Kind::LoggedModel, &of, "", made(self.target.post("logged-models", &asked).await))?.is_none() {
                return Ok(());
            }
            self.report.borrow_mut().written(Kind::LoggedModel, 1);
        }
        let before = match there {
            Some(model) => model,
            None => match self.settled(Kind::LoggedModel, &of, "", model_of(self.target, id).await)?.flatten() {
                Some(model) => model,
                None => return Ok(()),
            },
        };
        wrote |= self.logged_texts(source, &before).await?;
        wrote |= self.logged_points(source, &before).await?;
        let files =
            self.files(&from, &Holder::Model { experiment: before.info.experiment_id.clone(), id: id.to_owned() }, fresh, true).await?;
        if files == 0 && info.status == "LOGGED_MODEL_READY" {
            self.differs(Kind::Artifact, &of, "", "complete, and without a file in the source: were its artifacts moved?");
        }
        if before.info.status == "LOGGED_MODEL_PENDING" && info.status != before.info.status && !info.status.is_empty() {
            let asked = json!({"status": info.status});
            let done = self.target.send::<Value>(Method::PATCH, &format!("logged-models/{id}"), &asked).await;
            self.settled(Kind::LoggedModel, &of, "status", done)?;
            wrote = true;
        }
        let after = match wrote {
            true => self.settled(Kind::LoggedModel, &of, "", model_of(self.target, id).await)?.flatten(),
            false => Some(before),
        };
        if let Some(after) = after {
            self.logged_compared(source, &after, experiment);
        }
        Ok(())
    }

    async fn logged_texts(&self, source: &LoggedModel, there: &LoggedModel) -> Result<bool> {
        let id = &source.info.model_id;
        let mut wrote = false;
        let tags = tags_of(source);
        for (field, method, source, there) in
            [("params", Method::POST, &source.data.params, &there.data.params), ("tags", Method::PATCH, &tags, &there.info.tags)]
        {
            for (key, value) in source.iter().filter(|(key, _)| !there.contains_key(*key)) {
                let asked = json!({field: [{"key": key, "value": value}]});
                let sent = self.target.send::<Value>(method.clone(), &format!("logged-models/{id}/{field}"), &asked).await;
                let sent = self.settled(Kind::LoggedModelText, &format!("logged model {id}"), key, sent)?;
                self.report.borrow_mut().written(Kind::LoggedModelText, usize::from(sent.is_some()));
                wrote = true;
            }
        }
        Ok(wrote)
    }

    /// What was measured of a model is logged by a run; the run has the points already, and takes them as the same.
    async fn logged_points(&self, source: &LoggedModel, there: &LoggedModel) -> Result<bool> {
        let id = &source.info.model_id;
        let there = measured(there);
        let missing = source.data.metrics.iter().filter(|metric| !there.contains_key(&point_key(metric)));
        let mut by_run: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for metric in missing {
            let mut point = metric.point().json(&metric.key);
            with(&mut point, "model_id", Some(id.clone()));
            let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            with(&mut point, "dataset_name", text(&metric.dataset_name));
            with(&mut point, "dataset_digest", text(&metric.dataset_digest));
            by_run.entry(&metric.run_id).or_default().push(point);
        }
        let wrote = !by_run.is_empty();
        for (run, points) in by_run {
            for portion in points.chunks(POINTS_TOGETHER_MAX) {
                let sent = self.target.post("runs/log-batch", &json!({"run_id": run, "metrics": portion})).await;
                let sent = self.settled(Kind::LoggedModelPoint, &format!("logged model {id}"), run, sent)?;
                self.report.borrow_mut().written(Kind::LoggedModelPoint, if sent.is_some() { portion.len() } else { 0 });
            }
        }
        Ok(wrote)
    }

    fn logged_compared(&self, source: &LoggedModel, there: &LoggedModel, experiment: &str) {
        let of = format!("logged model {}", source.info.model_id);
        let mut report = self.report.borrow_mut();
        report.target(Kind::LoggedModel, 1);
        let (a, b) = (&source.info, &there.info);
        for (name, a, b) in [
            ("experiment", experiment, b.experiment_id.as_str()),
            ("name", &a.name, &b.name),
            ("type", &a.model_type, &b.model_type),
            ("run", &a.source_run_id, &b.source_run_id),
            ("status", &a.status, &b.status),
        ] {
            report.same(Kind::LoggedModel, &of, name, a, b);
        }
        report.texts(Kind::LoggedModelText, &of, &source.data.params, &there.data.params);
        report.texts(Kind::LoggedModelText, &of, &tags_of(source), &tags_of(there));
        report.texts(Kind::LoggedModelPoint, &of, &measured(source), &measured(there));
    }
}

pub(crate) async fn model_of(api: &Api, id: &str) -> Answer<Option<LoggedModel>> {
    let answer = api.get::<OneLoggedModel>(&format!("logged-models/{id}"), &[("allow_deleted", "true")]).await;
    Ok(found(answer)?.map(|one| one.model))
}

fn tags_of(model: &LoggedModel) -> Texts {
    without(without(model.info.tags.clone(), VERSIONS_TAG), IMPORTED)
}

fn point_key(metric: &Metric) -> String {
    format!("{} of run {} on {} {}: {}", metric.key, metric.run_id, metric.dataset_name, metric.dataset_digest, metric.point())
}

/// What was measured, each once.
fn measured(model: &LoggedModel) -> Texts {
    model.data.metrics.iter().map(|metric| (point_key(metric), String::new())).collect()
}
