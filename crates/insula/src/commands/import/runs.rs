//! Experiments and runs. A run keeps its id, so whatever names it stays right: its children, versions, files, links in reports.
//!
//! What is there is never changed and never removed: what is missing is added, and what differs is told. So an import that was cut off
//! goes on where it stopped, and one that is finished writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::api::{Answer, Api, Page, TRIES_MAX, Trouble, found, made};
use super::files::{Holder, Origin};
use super::forms::{Experiment, Link, Metric, OneExperiment, OneRun, Point, Run, Texts};
use super::report::Kind;
use super::{IMPORTED, Import};
use crate::failure::{Class, Failure, Result};
use crate::progress;

/// Experiments in one page.
const EXPERIMENTS_PAGE: u32 = 1000;
/// Runs in one page.
const RUNS_PAGE: u32 = 200;
/// Runs that are worked on at once.
const RUNS_AT_ONCE: usize = 4;
/// Points in one page of a history.
const POINTS_PAGE: &str = "25000";
/// Longest history of one metric that is held in memory, in points.
const POINTS_MAX: usize = 10_000_000;
/// Most points, or other things, of one request; and most params, and tags.
const BATCH_ITEMS_MAX: usize = 1000;
const BATCH_TEXTS_MAX: usize = 100;
/// Metrics whose points are sent together.
const METRICS_TOGETHER_MAX: usize = 100;
/// Largest body of a request, in bytes: half of what is taken.
const BODY_BYTES_MAX: usize = 512 << 10;
/// The name of a run is a tag too.
const NAME_TAG: &str = "mlflow.runName";

/// An experiment on both sides.
pub(crate) struct Moved {
    pub(crate) source: Experiment,
    /// Its id in the target; none in a dry run, or where it was refused.
    pub(crate) target: Option<String>,
    /// Whether an import made it there.
    ours: bool,
    /// Whether it is deleted there.
    closed: bool,
}

impl Import<'_> {
    /// All experiments, made where they are missing.
    pub(crate) async fn experiments(&self) -> Result<Vec<Moved>> {
        let mut all: Vec<Experiment> = Vec::new();
        let mut token = None::<String>;
        loop {
            let mut asked = json!({"view_type": "ALL", "max_results": EXPERIMENTS_PAGE});
            with(&mut asked, "page_token", token.take());
            let page: Page<Experiment> = self.must(self.source.api.page("experiments/search", "experiments", &asked).await)?;
            all.extend(page.items);
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        // In the order in which they were made, so that new numbers are in that order too.
        all.sort_by_key(|experiment| experiment.experiment_id.parse::<u64>().unwrap_or(u64::MAX));
        let bar = progress::steps(self.output, "experiments");
        bar.set_length(all.len() as u64);
        let mut moved = Vec::with_capacity(all.len());
        for source in all {
            moved.push(self.experiment(source).await?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(moved)
    }

    async fn experiment(&self, source: Experiment) -> Result<Moved> {
        self.report.borrow_mut().source(Kind::Experiment, 1);
        if self.dry {
            self.report.borrow_mut().source(Kind::ExperimentTag, source.tags.len());
            return Ok(Moved { source, target: None, ours: false, closed: false });
        }
        let name = source.name.clone();
        let mut there = self.experiment_there(&name).await;
        if matches!(there, Ok(None)) {
            let note = json!({"experiment_id": source.experiment_id, "creation_time": source.creation_time}).to_string();
            let asked = json!({"name": name, "tags": [{"key": IMPORTED, "value": note}]});
            there = match made(self.target.post("experiments/create", &asked).await) {
                Ok(()) => {
                    self.report.borrow_mut().written(Kind::Experiment, 1);
                    self.experiment_there(&name).await
                }
                Err(trouble) => Err(trouble),
            };
        }
        let Some(Some(target)) = self.settled(Kind::Experiment, "experiment", &name, there)? else {
            return Ok(Moved { source, target: None, ours: false, closed: false });
        };
        let (id, ours, closed) = (target.experiment_id.clone(), target.tags.contains_key(IMPORTED), target.deleted());
        let of = format!("experiment {name}");
        let missing: Vec<_> = source.tags.iter().filter(|(key, _)| !closed && !target.tags.contains_key(*key)).collect();
        for (key, value) in &missing {
            let asked = json!({"experiment_id": id, "key": key, "value": value});
            let set = self.target.post("experiments/set-experiment-tag", &asked).await;
            if self.settled(Kind::ExperimentTag, &of, key, set)?.is_some() {
                self.report.borrow_mut().written(Kind::ExperimentTag, 1);
            }
        }
        let target = match missing.is_empty() {
            true => Some(target),
            false => self.settled(Kind::Experiment, "experiment", &name, self.experiment_there(&name).await)?.flatten(),
        };
        if let Some(target) = target {
            let mut report = self.report.borrow_mut();
            report.target(Kind::Experiment, 1);
            report.texts(Kind::ExperimentTag, &of, &source.tags, &without(target.tags, IMPORTED));
        }
        Ok(Moved { source, target: Some(id), ours, closed })
    }

    async fn experiment_there(&self, name: &str) -> Answer<Option<Experiment>> {
        let answer = self.target.get::<OneExperiment>("experiments/get-by-name", &[("experiment_name", name)]).await;
        Ok(found(answer)?.map(|one| one.experiment))
    }

    /// All runs of an experiment.
    pub(crate) async fn runs(&self, moved: &Moved) -> Result<()> {
        let bar = progress::steps(self.output, &moved.source.name);
        let mut token = None;
        loop {
            let (ids, next) = self.run_ids(moved, "ALL", token).await?;
            bar.inc_length(ids.len() as u64);
            let mut working =
                futures_util::stream::iter(ids).map(|id| async move { self.run(&id, moved).await }).buffer_unordered(RUNS_AT_ONCE);
            while let Some(done) = working.next().await {
                done?;
                bar.inc(1);
            }
            token = next;
            if token.is_none() {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }

    /// A page of the runs of an experiment, oldest first: what begins meanwhile comes at the end.
    async fn run_ids(&self, moved: &Moved, view: &str, token: Option<String>) -> Result<(Vec<String>, Option<String>)> {
        let mut asked = json!({
            "experiment_ids": [moved.source.experiment_id], "run_view_type": view, "max_results": RUNS_PAGE,
            "order_by": ["attributes.start_time ASC"],
        });
        with(&mut asked, "page_token", token);
        let page: Page<Run> = self.must(self.source.api.page("runs/search", "runs", &asked).await)?;
        Ok((page.items.into_iter().map(|run| run.info.run_id).collect(), page.next))
    }

    async fn run(&self, id: &str, moved: &Moved) -> Result<()> {
        let of = format!("run {id}");
        self.report.borrow_mut().source(Kind::Run, 1);
        let Some(source) = self.settled(Kind::Run, &of, "", run_of(&self.source.api, id).await)?.flatten() else { return Ok(()) };
        if self.dry {
            return self.run_counted(&source).await;
        }
        let Some(experiment) = &moved.target else {
            self.differs(Kind::Run, &of, "", "its experiment is not here");
            return Ok(());
        };
        let there = self.settled(Kind::Run, &of, "", run_of(self.target, id).await)?.flatten();
        let fresh = there.is_none();
        let Some(before) = (match there {
            Some(run) => Some(run),
            None if moved.closed => None,
            None => self.run_create(&source, experiment).await?,
        }) else {
            self.differs(Kind::Run, &of, "", "missing here");
            return Ok(());
        };
        self.report.borrow_mut().same(Kind::Run, &of, "experiment", experiment, &before.info.experiment_id);
        let open = !before.deleted();
        let (names, tags) = (&source.data.metrics, name_settled(&source));
        let mut wrote = fresh;
        if open {
            wrote |= self.run_texts(id, "params", Kind::Param, &source.data.params, &before.data.params).await?;
            wrote |= self.run_texts(id, "tags", Kind::Tag, &tags, &before.data.tags).await?;
            wrote |= self.run_links(id, &source, &before).await?;
        }
        let known: BTreeSet<&str> = before.data.metrics.iter().map(|metric| metric.key.as_str()).collect();
        for metrics in names.chunks(METRICS_TOGETHER_MAX) {
            self.histories(id, metrics, &known, open).await?;
        }
        for metric in &before.data.metrics {
            if !names.iter().any(|known| known.key == metric.key) {
                self.differs(Kind::Point, &of, &metric.key, "not in the source");
            }
        }
        let from = self.source.path(&source.info.artifact_uri).map_or_else(|| Origin::Run(id.to_owned()), Origin::Path);
        let to = Holder::Run { experiment: before.info.experiment_id.clone(), id: id.to_owned() };
        self.files(&from, &to, fresh, open).await?;
        if open {
            wrote |= self.run_ended(&source, &before).await?;
        }
        let after = match wrote {
            true => self.settled(Kind::Run, &of, "", run_of(self.target, id).await)?.flatten(),
            false => Some(before),
        };
        if let Some(after) = after {
            self.run_compared(&source, &after, moved);
        }
        Ok(())
    }

    async fn run_create(&self, source: &Run, experiment: &str) -> Result<Option<Run>> {
        let info = &source.info;
        let mut asked = json!({"run_id": info.run_id, "experiment_id": experiment});
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        with(&mut asked, "run_name", text(&info.run_name));
        with(&mut asked, "user_id", text(&info.user_id));
        if let (Some(start), Some(asked)) = (info.start_time, asked.as_object_mut()) {
            asked.insert("start_time".to_owned(), start.into());
        }
        let of = format!("run {}", info.run_id);
        if self.settled(Kind::Run, &of, "", made(self.target.post("runs/create", &asked).await))?.is_none() {
            return Ok(None);
        }
        self.report.borrow_mut().written(Kind::Run, 1);
        Ok(self.settled(Kind::Run, &of, "", run_of(self.target, &info.run_id).await)?.flatten())
    }

    /// Params or tags that are missing. Whether any was written.
    async fn run_texts(&self, id: &str, field: &str, kind: Kind, source: &Texts, there: &Texts) -> Result<bool> {
        let missing = source.iter().filter(|(key, _)| !there.contains_key(*key));
        let mut wrote = false;
        for portion in portions(missing.map(|(key, value)| json!({"key": key, "value": value})), BATCH_TEXTS_MAX) {
            let count = portion.len();
            let sent = self.target.post("runs/log-batch", &json!({"run_id": id, field: &portion})).await;
            let sent = match (sent, count) {
                (Err(Trouble::Refused(_)), 2..) => {
                    // One of them is not taken: the others are.
                    for one in &portion {
                        let sent = self.target.post("runs/log-batch", &json!({"run_id": id, field: [one]})).await;
                        let key = one.get("key").and_then(Value::as_str).unwrap_or_default();
                        let sent = self.settled(kind, &format!("run {id}"), key, sent)?;
                        self.report.borrow_mut().written(kind, usize::from(sent.is_some()));
                    }
                    None
                }
                (sent, _) => self.settled(kind, &format!("run {id}"), field, sent)?,
            };
            self.report.borrow_mut().written(kind, if sent.is_some() { count } else { 0 });
            wrote = true;
        }
        Ok(wrote)
    }

    async fn run_links(&self, id: &str, source: &Run, there: &Run) -> Result<bool> {
        let there = there.linked();
        let missing: Vec<_> = source.linked().into_iter().filter(|(key, _)| !there.contains_key(key)).collect();
        let wrote = !missing.is_empty();
        for (link, path, field) in [
            (Link::Dataset, "runs/log-inputs", "datasets"),
            (Link::ModelIn, "runs/log-inputs", "models"),
            (Link::ModelOut, "runs/outputs", "models"),
        ] {
            let of_kind = missing.iter().filter(|((kind, _), _)| *kind == link).map(|(_, value)| value.clone());
            for portion in portions(of_kind, BATCH_ITEMS_MAX) {
                let sent = self.target.post(path, &json!({"run_id": id, field: &portion})).await;
                let sent = self.settled(Kind::Link, &format!("run {id}"), field, sent)?;
                self.report.borrow_mut().written(Kind::Link, if sent.is_some() { portion.len() } else { 0 });
            }
        }
        Ok(wrote)
    }

    /// The histories of some metrics of a run: sent where points are missing, read back, compared.
    async fn histories(&self, id: &str, metrics: &[Metric], known: &BTreeSet<&str>, open: bool) -> Result<()> {
        let of = format!("run {id}");
        let mut waiting: Vec<Value> = Vec::new();
        let mut sent: Vec<(&str, Vec<Point>)> = Vec::new();
        for metric in metrics {
            let key = metric.key.as_str();
            let Some(source) = self.settled(Kind::Point, &of, key, history(&self.source.api, id, key).await)? else { continue };
            let there = match known.contains(key) {
                true => self.settled(Kind::Point, &of, key, history(self.target, id, key).await)?,
                false => Some(Vec::new()),
            };
            let Some(there) = there else { continue };
            let missing = missing(&source, &there);
            if missing.is_empty() || !open {
                self.history_compared(&of, key, &source, &there);
                continue;
            }
            waiting.extend(missing.iter().map(|point| point.json(key)));
            sent.push((key, source));
            if waiting.len() >= BATCH_ITEMS_MAX {
                self.points_settled(id, &mut waiting, &mut sent).await?;
            }
        }
        self.points_settled(id, &mut waiting, &mut sent).await
    }

    /// Sends what waits. Whether every answer came.
    async fn points(&self, id: &str, waiting: &mut Vec<Value>) -> Result<bool> {
        let mut answered = true;
        for portion in portions(waiting.drain(..), BATCH_ITEMS_MAX) {
            let sent = self.target.post_once("runs/log-batch", &json!({"run_id": id, "metrics": &portion})).await;
            let sent = self.settled(Kind::Point, &format!("run {id}"), "", sent)?;
            answered &= sent != Some(false);
            self.report.borrow_mut().written(Kind::Point, if sent == Some(true) { portion.len() } else { 0 });
        }
        Ok(answered)
    }

    /// Sends what waits, reads the histories back and compares them. Where an answer was lost, what was read says what to send again:
    /// a point is not sent twice on suspicion.
    async fn points_settled(&self, id: &str, waiting: &mut Vec<Value>, sent: &mut Vec<(&str, Vec<Point>)>) -> Result<()> {
        let of = format!("run {id}");
        let all_answered = self.points(id, waiting).await?;
        for (key, source) in sent.drain(..) {
            let (mut answered, mut tries) = (all_answered, 1);
            let there = loop {
                let Some(there) = self.settled(Kind::Point, &of, key, history(self.target, id, key).await)? else { break None };
                let lacking = missing(&source, &there);
                if answered || lacking.is_empty() || tries >= TRIES_MAX {
                    break Some(there);
                }
                answered = self.points(id, &mut lacking.iter().map(|point| point.json(key)).collect()).await?;
                tries += 1;
            };
            if let Some(there) = there {
                self.history_compared(&of, key, &source, &there);
            }
        }
        Ok(())
    }

    fn history_compared(&self, of: &str, key: &str, source: &[Point], there: &[Point]) {
        let mut report = self.report.borrow_mut();
        report.source(Kind::Point, source.len());
        report.target(Kind::Point, there.len());
        for (points, what) in [(missing(source, there), "missing here"), (missing(there, source), "not in the source")] {
            if let Some(first) = points.first() {
                report.differs(Kind::Point, of, key, format!("{} points {what}, the first of them {first}", points.len()));
            }
        }
    }

    /// Status and end come last: a run that is not `RUNNING` here has everything else.
    async fn run_ended(&self, source: &Run, there: &Run) -> Result<bool> {
        let (source, there) = (&source.info, &there.info);
        let status = (there.status == "RUNNING" && source.status != "RUNNING").then(|| source.status.clone());
        let end = source.end_time.filter(|_| there.end_time.is_none());
        if status.is_none() && end.is_none() {
            return Ok(false);
        }
        let mut asked = json!({"run_id": source.run_id});
        with(&mut asked, "status", status);
        if let (Some(end), Some(asked)) = (end, asked.as_object_mut()) {
            asked.insert("end_time".to_owned(), end.into());
        }
        let updated = self.target.post("runs/update", &asked).await;
        self.settled(Kind::Run, &format!("run {}", source.run_id), "status", updated)?;
        Ok(true)
    }

    fn run_compared(&self, source: &Run, there: &Run, moved: &Moved) {
        let of = format!("run {}", source.info.run_id);
        let mut report = self.report.borrow_mut();
        report.target(Kind::Run, 1);
        let (a, b) = (&source.info, &there.info);
        let time = |time: Option<i64>| time.map(|time| time.to_string()).unwrap_or_default();
        for (name, a, b) in [
            ("name", a.run_name.clone(), b.run_name.clone()),
            ("user", a.user_id.clone(), b.user_id.clone()),
            ("start", time(a.start_time), time(b.start_time)),
            ("end", time(a.end_time), time(b.end_time)),
            ("status", a.status.clone(), b.status.clone()),
        ] {
            // What the source does not say, the target had to make up.
            if !a.is_empty() || name == "end" {
                report.same(Kind::Run, &of, name, &a, &b);
            }
        }
        if there.deleted() && !source.deleted() && !moved.source.deleted() {
            report.differs(Kind::Run, &of, "", "deleted here");
        }
        report.texts(Kind::Param, &of, &source.data.params, &there.data.params);
        let tags = name_settled(source);
        let known = if tags.contains_key(NAME_TAG) { there.data.tags.clone() } else { without(there.data.tags.clone(), NAME_TAG) };
        report.texts(Kind::Tag, &of, &tags, &known);
        let (source, there) = (source.linked(), there.linked());
        let texts = |linked: BTreeMap<(Link, String), Value>| {
            linked.into_iter().map(|((kind, key), value)| (format!("{kind:?} {key}"), value.to_string()))
        };
        report.texts(Kind::Link, &of, &texts(source).collect(), &texts(there).collect());
    }

    /// What a dry run tells of a run.
    async fn run_counted(&self, run: &Run) -> Result<()> {
        let of = format!("run {}", run.info.run_id);
        for metric in &run.data.metrics {
            if let Some(points) =
                self.settled(Kind::Point, &of, &metric.key, history(&self.source.api, &run.info.run_id, &metric.key).await)?
            {
                self.report.borrow_mut().source(Kind::Point, points.len());
            }
        }
        {
            let mut report = self.report.borrow_mut();
            report.source(Kind::Param, run.data.params.len());
            report.source(Kind::Tag, run.data.tags.len());
            report.source(Kind::Link, run.linked().len());
        }
        let id = run.info.run_id.clone();
        let from = self.source.path(&run.info.artifact_uri).map_or_else(|| Origin::Run(id.clone()), Origin::Path);
        self.files(&from, &Holder::Run { experiment: String::new(), id }, true, false).await.map(drop)
    }

    /// What is deleted in the source is deleted here too, when everything else has come over.
    pub(crate) async fn deletions(&self, moved: &Moved) -> Result<()> {
        let Some(target) = &moved.target else { return Ok(()) };
        let mut token = None;
        loop {
            let (ids, next) = self.run_ids(moved, "DELETED_ONLY", token).await?;
            for id in ids {
                // Deleted with its experiment: restoring that restores it.
                if moved.closed || moved.ours && moved.source.deleted() {
                    continue;
                }
                let of = format!("run {id}");
                let there = self.settled(Kind::Run, &of, "", run_of(self.target, &id).await)?.flatten();
                if there.is_some_and(|run| !run.deleted()) {
                    let deleted = self.target.post("runs/delete", &json!({"run_id": id})).await;
                    self.settled(Kind::Run, &of, "deletion", deleted)?;
                    let there = self.settled(Kind::Run, &of, "", run_of(self.target, &id).await)?.flatten();
                    if there.is_none_or(|run| !run.deleted()) {
                        self.differs(Kind::Run, &of, "", "deleted in the source and not here");
                    }
                }
            }
            token = next;
            if token.is_none() {
                break;
            }
        }
        let (name, deleted) = (&moved.source.name, moved.source.deleted());
        if deleted && moved.ours && !moved.closed {
            let asked = json!({"experiment_id": target});
            self.settled(Kind::Experiment, "experiment", name, self.target.post("experiments/delete", &asked).await)?;
        }
        let there = self.settled(Kind::Experiment, "experiment", name, self.experiment_there(name).await)?.flatten();
        match there.map(|there| there.deleted()) {
            Some(there) if there != deleted => {
                let what = if deleted { "deleted in the source and not here" } else { "deleted here" };
                self.differs(Kind::Experiment, "experiment", name, what);
            }
            _ => {}
        }
        Ok(())
    }
}

pub(crate) async fn run_of(api: &Api, id: &str) -> Answer<Option<Run>> {
    Ok(found(api.get::<OneRun>("runs/get", &[("run_id", id)]).await)?.map(|one| one.run))
}

/// A whole history in its order, each point once.
async fn history(api: &Api, id: &str, key: &str) -> Answer<Vec<Point>> {
    let (mut points, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut asked = vec![("run_id", id), ("metric_key", key), ("max_results", POINTS_PAGE)];
        asked.extend(token.as_deref().map(|token| ("page_token", token)));
        let page: Page<Metric> = api.page_get("metrics/get-history", "metrics", &asked).await?;
        points.extend(page.items.iter().map(Metric::point));
        if points.len() > POINTS_MAX {
            return Err(Failure::new(Class::Failed, format!("the metric `{key}` of run {id} has more than {POINTS_MAX} points")).into());
        }
        token = page.next;
        if token.is_none() {
            points.sort_by(Point::order);
            points.dedup_by(|a, b| a.order(b).is_eq());
            return Ok(points);
        }
    }
}

/// Points of one history that are not in the other.
fn missing(of: &[Point], from: &[Point]) -> Vec<Point> {
    of.iter().filter(|point| from.binary_search_by(|known| known.order(point)).is_err()).copied().collect()
}

/// Tags without the one that only repeats the name, or contradicts it: the name is the run's own.
fn name_settled(run: &Run) -> Texts {
    let mut tags = run.data.tags.clone();
    if let (false, Some(name)) = (run.info.run_name.is_empty(), tags.get_mut(NAME_TAG)) {
        name.clone_from(&run.info.run_name);
    }
    tags
}

pub(crate) fn without(mut texts: Texts, key: &str) -> Texts {
    texts.remove(key);
    texts
}

/// Sets a text that is there.
pub(crate) fn with(value: &mut Value, key: &str, text: Option<String>) {
    if let (Some(object), Some(text)) = (value.as_object_mut(), text) {
        object.insert(key.to_owned(), text.into());
    }
}

/// In portions that a request takes.
fn portions(items: impl IntoIterator<Item = Value>, most: usize) -> Vec<Vec<Value>> {
    let (mut portions, mut portion, mut bytes) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let more = item.to_string().len();
        if !portion.is_empty() && (portion.len() >= most || bytes + more > BODY_BYTES_MAX) {
            portions.push(std::mem::take(&mut portion));
            bytes = 0;
        }
        bytes += more;
        portion.push(item);
    }
    if !portion.is_empty() {
        portions.push(portion);
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_bounded_in_number_and_size() {
        let lengths = |items: Vec<Value>, most| portions(items, most).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(vec![json!(1); 250], 100), [100, 100, 50]);
        assert_eq!(lengths(vec![json!("x".repeat(BODY_BYTES_MAX / 2)); 3], 100), [1, 1, 1]);
        assert!(portions(Vec::new(), 100).is_empty());
    }

    #[test]
    fn points_that_are_missing_are_found() {
        let points = |text: &str| {
            let metrics: Vec<Metric> = serde_json::from_str(text).unwrap();
            metrics.iter().map(Metric::point).collect::<Vec<_>>()
        };
        let source = points(r#"[{"value":1,"timestamp":1},{"value":"NaN","timestamp":2},{"value":3,"timestamp":3}]"#);
        let there = points(r#"[{"value":"NaN","timestamp":2},{"value":4,"timestamp":3}]"#);
        let shown = |points: Vec<Point>| points.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(missing(&source, &there)), ["1 at step 0, time 1", "3 at step 0, time 3"]);
        assert_eq!(shown(missing(&there, &source)), ["4 at step 0, time 3"]);
    }
}
