//! Traces: what an application did to answer one request, as a tree of spans, with what people and judges said about it.
//!
//! A trace is one small record with everything that lists show; each span is a record of its own, so that spans can come one by one, in
//! any order and more than once. A span that is large lies in a sealed object. A third record, the [`Slot`], orders an experiment's traces
//! by time, so that the newest are found without reading the others.
//!
//! ```text
//! trace        tr-7c…            experiment, times, state, previews, tags, metadata, assessments
//! trace_span   tr-7c…/00f1…      one span as the client reads it back, or the object that holds it
//! trace_slot   3/7ffe…/tr-7c…    newest first
//! ```
//! Spans usually arrive before [`Platform::trace_start`], which, in spite of its name in the protocol, ends a trace: what it says wins over
//! what was made of the spans.

mod assessment;
mod search;
mod span;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tenancy::act::{ResourceKind, TraceDelete, TraceRead, TraceWrite};
use tenancy::{Permit, Record, Tx};

pub use assessment::{Assessment, AssessmentUpdate, Verdict};
pub use search::TraceSearch;
pub use span::{SPAN_BYTES_MAX, Span};

use super::artifact;
use super::check::{KEY_CHARS_MAX, TAG_CHARS_MAX, truncated};
use super::experiment;
use super::item::{Balance, RECORD_BYTES};
use super::run::TrackedRun;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// Spans of a trace at most.
pub const SPANS_MAX: u64 = 20_000;
/// All spans of a trace together, and of all traces that are read at once, in bytes.
pub const SPANS_BYTES_MAX: u64 = 32 << 20;
/// Traces in one request that names them at most.
pub const TRACES_PER_REQUEST_MAX: usize = 100;
/// The record of a trace in bytes: tags, metadata, previews and assessments together.
const TRACE_BYTES_MAX: usize = 768 << 10;
/// Tags, and pieces of metadata, of a trace.
const LABELS_MAX: usize = 500;
const ID_BYTES_MAX: usize = 128;
/// Runs that a trace is linked to.
const RUNS_MAX: usize = 100;
/// A preview made of a span.
const PREVIEW_CHARS_MAX: usize = 1000;
/// Traces deleted in one transaction.
const DELETE_BATCH: usize = 50;
/// Records read at once.
const READ_ITEMS: u32 = 500;

/// Tags that only the service sets.
const TAG_ARTIFACTS: &str = "mlflow.artifactLocation";
const TAG_SPANS: &str = "mlflow.trace.spansLocation";
const TAGS_OWN: [&str; 4] = [TAG_ARTIFACTS, TAG_SPANS, "mlflow.trace.archiveLocation", "mlflow.trace.archivalFailure"];
/// Where spans lie, for clients: with the service.
const SPANS_HERE: &str = "TRACKING_STORE";
/// The name of a trace is a tag.
const TAG_NAME: &str = "mlflow.traceName";
const TAG_PROMPTS: &str = "mlflow.linkedPrompts";
const METADATA_RUN: &str = "mlflow.sourceRun";
const METADATA_SIZES: &str = "mlflow.trace.sizeStats";
const METADATA_FINAL: &str = "mlflow.trace.infoFinalized";
const METADATA_SESSION: &str = "mlflow.trace.session";
const METADATA_USER: &str = "mlflow.trace.user";

/// How a trace ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TraceState {
    /// Nobody said.
    #[default]
    StateUnspecified,
    /// Well.
    Ok,
    /// With an error.
    Error,
    /// It has not ended.
    InProgress,
}

impl TraceState {
    /// The word in the protocol.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::StateUnspecified => "STATE_UNSPECIFIED",
            Self::Ok => "OK",
            Self::Error => "ERROR",
            Self::InProgress => "IN_PROGRESS",
        }
    }
}

/// Everything about a trace but its spans.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Trace {
    /// Usually `tr-` and the 32 hex digits of the OpenTelemetry trace.
    pub id: String,
    /// The experiment it belongs to.
    pub experiment_id: String,
    /// The application's own name for the request.
    pub client_request_id: Option<String>,
    /// When it began, in milliseconds since 1970.
    pub request_ms: i64,
    /// How long it took, in milliseconds.
    pub duration_ms: Option<i64>,
    /// How it ended.
    pub state: TraceState,
    /// The beginning of what was asked, as JSON text.
    pub request_preview: Option<String>,
    /// The beginning of what was answered, as JSON text.
    pub response_preview: Option<String>,
    /// Texts that do not change any more.
    pub metadata: BTreeMap<String, String>,
    /// Texts that may change.
    pub tags: BTreeMap<String, String>,
    /// What was said about it.
    pub assessments: Vec<Assessment>,
    /// Runs it was linked to afterwards.
    #[serde(default)]
    pub runs: BTreeSet<String>,
    /// How many spans have come.
    #[serde(default)]
    pub spans: u64,
    /// All spans together, in bytes.
    #[serde(default)]
    pub span_bytes: u64,
    /// Of these, what lies in records; objects are counted by themselves.
    #[serde(default)]
    pub inline_bytes: u64,
}

impl Record for Trace {
    const KIND: &'static str = "trace";
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// A trace's place in its experiment: newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    experiment_id: String,
    request_ms: i64,
    trace_id: String,
}

impl Record for Slot {
    const KIND: &'static str = "trace_slot";
    fn key(&self) -> String {
        Self::key_of(&self.experiment_id, self.request_ms, &self.trace_id)
    }
}

impl Slot {
    fn key_of(experiment_id: &str, request_ms: i64, trace_id: &str) -> String {
        // Later times are smaller texts.
        let order = i64::MAX.abs_diff(request_ms);
        format!("{experiment_id}/{order:016x}/{trace_id}")
    }
}

/// Which traces of an experiment go.
#[derive(Debug, Clone, Default)]
pub struct TraceDeletion {
    /// The experiment.
    pub experiment_id: String,
    /// Only those that began at this time or before, in milliseconds since 1970.
    pub request_ms_max: Option<i64>,
    /// The oldest ones, at most so many.
    pub traces_max: Option<usize>,
    /// Only these.
    pub ids: Vec<String>,
}

impl Trace {
    fn new(id: &str, experiment_id: &str) -> Self {
        let location = format!("mlflow-artifacts:/{}", artifact::trace_root(experiment_id, id));
        let tags = BTreeMap::from([(TAG_ARTIFACTS.to_owned(), location)]);
        Self { id: id.to_owned(), experiment_id: experiment_id.to_owned(), tags, ..Self::default() }
    }

    fn slot(&self) -> Slot {
        Slot { experiment_id: self.experiment_id.clone(), request_ms: self.request_ms, trace_id: self.id.clone() }
    }

    fn is_final(&self) -> bool {
        self.metadata.contains_key(METADATA_FINAL)
    }

    /// Whether all spans are there that the client says it sent.
    fn is_complete(&self) -> bool {
        let sizes = self.metadata.get(METADATA_SIZES).and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let expected = sizes.and_then(|sizes| sizes.get("num_spans")?.as_u64()).unwrap_or(0);
        self.spans > 0 && self.spans >= expected
    }

    fn record_bytes(&self) -> Result<u64> {
        Ok(serde_json::to_vec(self).map_err(tenancy::Error::internal)?.len() as u64)
    }

    /// What the tenant is charged for, in bytes: the trace and its spans, but not their objects.
    fn stored_bytes(&self) -> Result<u64> {
        Ok(self.record_bytes()? + self.inline_bytes + RECORD_BYTES * (1 + self.spans))
    }

    /// # Errors
    /// What is over its bounds.
    fn checked(&self) -> Result<()> {
        for (what, labels) in [("tags", &self.tags), ("pieces of metadata", &self.metadata)] {
            if labels.len() > LABELS_MAX {
                return Err(Error::invalid(format!("a trace has at most {LABELS_MAX} {what}")));
            }
            labels.keys().try_for_each(|key| label_key_checked(key))?;
        }
        if self.record_bytes()? > TRACE_BYTES_MAX as u64 {
            return Err(Error::invalid(format!(
                "the tags, metadata, previews and assessments of a trace take at most {TRACE_BYTES_MAX} bytes together"
            )));
        }
        Ok(())
    }

    /// What the end of a trace says wins over what was made of its spans.
    fn ended_as(&mut self, end: Self) {
        self.client_request_id = end.client_request_id;
        self.request_ms = end.request_ms;
        self.duration_ms = end.duration_ms;
        self.state = end.state;
        self.request_preview = end.request_preview.or(self.request_preview.take());
        self.response_preview = end.response_preview.or(self.response_preview.take());
        self.metadata.extend(end.metadata);
        self.metadata.insert(METADATA_FINAL.to_owned(), "true".to_owned());
        self.tags.extend(labels(end.tags));
        for assessment in end.assessments {
            self.assessments.retain(|known| known.id != assessment.id);
            self.assessments.push(assessment);
        }
    }
}

impl Platform {
    /// Records a trace that has ended; with what came of its spans before.
    ///
    /// # Errors
    /// No such experiment, or a deleted one; a trace of this id in another experiment; anything over its bounds.
    pub async fn trace_start(&self, permit: &Permit<TraceWrite>, mut end: Trace) -> Result<Trace> {
        id_checked(&end.id)?;
        permit.within(ResourceKind::Experiment, &end.experiment_id)?;
        permit.detail("trace", &end.id);
        end.tags.retain(|key, _| !TAGS_OWN.contains(&key.as_str()));
        end.assessments.iter().try_for_each(Assessment::checked)?;
        let mut tx = permit.tx().await?;
        experiment::require(&mut tx, &end.experiment_id).await?.active()?;
        let before = tx.get::<Trace>(&end.id).await?;
        let mut trace = match &before {
            Some(known) => known.clone(),
            None => Trace::new(&end.id, &end.experiment_id),
        };
        same_experiment(&trace, &end.experiment_id)?;
        trace.ended_as(end);
        put(&mut tx, before.as_ref(), &trace).await?;
        tx.commit().await?;
        Ok(trace)
    }

    /// The trace that the permit is about.
    ///
    /// # Errors
    /// Not found.
    pub async fn trace_get(&self, permit: &Permit<TraceRead>) -> Result<Trace> {
        let trace = permit.rows().get::<Trace>(permit.resource()).await?.ok_or(Error::not_found("trace"))?;
        permit.within(ResourceKind::Experiment, &trace.experiment_id)?;
        Ok(trace)
    }

    /// Traces by their ids, in that order, without those that are not there or may not be seen; of some experiments only, if given.
    ///
    /// # Errors
    /// More than [`TRACES_PER_REQUEST_MAX`] of them.
    pub async fn traces_get(&self, permit: &Permit<TraceRead>, ids: &[String], within: Option<&[String]>) -> Result<Vec<Trace>> {
        let mut seen = BTreeSet::new();
        let ids: Vec<String> = ids.iter().filter(|id| seen.insert(id.as_str())).cloned().collect();
        count_checked("trace_ids", ids.len(), TRACES_PER_REQUEST_MAX)?;
        let shown = |trace: &Trace| {
            within.is_none_or(|within| within.contains(&trace.experiment_id)) && permit.may(ResourceKind::Experiment, &trace.experiment_id)
        };
        let (rows, mut ids, mut found, mut bytes) = (permit.rows(), ids.as_slice(), Vec::new(), 0);
        while !ids.is_empty() {
            let got = rows.get_page::<Trace>(ids).await?;
            bytes += got.bytes;
            if bytes as u64 > SPANS_BYTES_MAX {
                return Err(Error::TooLarge { what: "answer", bytes_max: SPANS_BYTES_MAX });
            }
            ids = ids.get(got.records.len()..).unwrap_or_default();
            found.extend(got.records.into_iter().flatten().filter(|trace| shown(trace)));
        }
        Ok(found)
    }

    /// Sets a tag.
    ///
    /// # Errors
    /// Not found; one of the service's own tags; over its bounds.
    pub async fn trace_tag_set(&self, permit: &Permit<TraceWrite>, key: &str, value: &str) -> Result<()> {
        tag_changeable(key, "set")?;
        label_key_checked(key)?;
        self.trace_change(permit, |trace| {
            trace.tags.insert(key.to_owned(), truncated(value.to_owned(), TAG_CHARS_MAX));
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Removes a tag.
    ///
    /// # Errors
    /// Not found; one of the service's own tags.
    pub async fn trace_tag_delete(&self, permit: &Permit<TraceWrite>, key: &str) -> Result<()> {
        tag_changeable(key, "deleted")?;
        self.trace_change(permit, |trace| trace.tags.remove(key).map(drop).ok_or(Error::not_found("tag"))).await?;
        Ok(())
    }

    /// Links prompt versions (name, version) to the trace that the permit is about: they are a tag, as clients read them.
    ///
    /// # Errors
    /// Not found; over its bounds.
    pub async fn trace_prompts_link(&self, permit: &Permit<TraceWrite>, prompts: &[(String, String)]) -> Result<()> {
        self.trace_change(permit, |trace| {
            let known = trace.tags.get(TAG_PROMPTS).and_then(|text| serde_json::from_str::<Vec<serde_json::Value>>(text).ok());
            let mut all = known.unwrap_or_default();
            for (name, version) in prompts {
                let prompt = serde_json::json!({"name": name, "version": version});
                if !all.contains(&prompt) {
                    all.push(prompt);
                }
            }
            let text = serde_json::to_string(&all).map_err(tenancy::Error::internal)?;
            if text.len() > TAG_CHARS_MAX {
                return Err(Error::invalid("too many prompts are linked to the trace"));
            }
            trace.tags.insert(TAG_PROMPTS.to_owned(), text);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Links traces to a run: a search for the run finds them. Traces that are not there are passed over.
    ///
    /// # Errors
    /// No such run; too many of them.
    pub async fn traces_link(&self, permit: &Permit<TraceWrite>, run_id: &str, ids: &[String]) -> Result<()> {
        if ids.len() > TRACES_PER_REQUEST_MAX {
            return Err(Error::invalid(format!(
                "Cannot link more than {TRACES_PER_REQUEST_MAX} traces to a run in a single request. Provided {} traces.",
                ids.len()
            )));
        }
        let mut tx = permit.tx().await?;
        let experiment_id = experiment_of(&mut tx, run_id).await?;
        permit.within(ResourceKind::Experiment, &experiment_id)?;
        for id in ids.iter().collect::<BTreeSet<_>>() {
            let Some(mut trace) = tx.get::<Trace>(id).await? else { continue };
            permit.within(ResourceKind::Experiment, &trace.experiment_id)?;
            let before = trace.clone();
            trace.runs.insert(run_id.to_owned());
            if trace.runs.len() > RUNS_MAX {
                return Err(Error::invalid(format!("a trace is linked to at most {RUNS_MAX} runs")));
            }
            put(&mut tx, Some(&before), &trace).await?;
        }
        permit.detail("run", run_id);
        tx.commit().await?;
        Ok(())
    }

    /// Deletes traces with their spans. How many there were.
    ///
    /// # Errors
    /// No right on the experiment.
    pub async fn traces_delete(&self, permit: &Permit<TraceDelete>, deletion: &TraceDeletion) -> Result<usize> {
        let experiment_id = deletion.experiment_id.as_str();
        match (deletion.request_ms_max, deletion.ids.is_empty(), deletion.traces_max) {
            (None, true, _) => return Err(Error::invalid("Either `max_timestamp_millis` or `trace_ids` must be specified.")),
            (Some(_), false, _) => return Err(Error::invalid("Only one of `max_timestamp_millis` and `trace_ids` can be specified.")),
            (_, false, Some(_)) => return Err(Error::invalid("`max_traces` can't be specified if `trace_ids` is specified.")),
            (_, _, Some(0)) => return Err(Error::invalid("`max_traces` must be a positive integer, received 0.")),
            _ => {}
        }
        permit.within(ResourceKind::Experiment, experiment_id)?;
        permit.detail("experiment", experiment_id);
        let ids = match deletion.ids.is_empty() {
            true => search::older(permit, experiment_id, deletion.request_ms_max.unwrap_or(i64::MAX), deletion.traces_max).await?,
            false => deletion.ids.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect(),
        };
        let mut deleted = 0;
        for batch in ids.chunks(DELETE_BATCH) {
            let mut tx = permit.tx().await?;
            for id in batch {
                if let Some(trace) = tx.get::<Trace>(id).await?.filter(|trace| trace.experiment_id == experiment_id) {
                    remove(&mut tx, &trace).await?;
                    deleted += 1;
                }
            }
            tx.commit().await?;
        }
        Ok(deleted)
    }

    /// Changes the trace that the permit is about.
    async fn trace_change<T>(&self, permit: &Permit<TraceWrite>, change: impl FnOnce(&mut Trace) -> Result<T>) -> Result<T> {
        let mut tx = permit.tx().await?;
        let mut trace = tx.get::<Trace>(permit.resource()).await?.ok_or(Error::not_found("trace"))?;
        permit.within(ResourceKind::Experiment, &trace.experiment_id)?;
        let before = trace.clone();
        let made = change(&mut trace)?;
        put(&mut tx, Some(&before), &trace).await?;
        tx.commit().await?;
        Ok(made)
    }
}

/// Removes traces of an experiment that is deleted for good, about `most` records of them. How many there were: less than `most` when none
/// are left.
pub(crate) async fn remove_some(tx: &mut Tx<'_>, experiment_id: &str, most: u32) -> Result<u32> {
    let prefix = format!("{experiment_id}/");
    let mut removed = 0;
    while removed < most {
        let Some(slot) = tx.list::<Slot>(None, 1, Some(&prefix)).await?.records.pop() else { break };
        removed += span::remove_some(tx, &slot.trace_id, most - removed).await?;
        if removed < most {
            removed += artifact::remove_some(tx, &artifact::trace_root(experiment_id, &slot.trace_id), most - removed).await?;
        }
        if removed < most {
            if let Some(trace) = tx.get::<Trace>(&slot.trace_id).await? {
                remove(tx, &trace).await?;
            }
            tx.delete::<Slot>(&slot.key()).await?;
            removed += 2;
        }
    }
    Ok(removed)
}

/// The experiment of a run.
async fn experiment_of(tx: &mut Tx<'_>, run_id: &str) -> Result<String> {
    let run = tx.get::<TrackedRun>(run_id).await?.ok_or(Error::not_found("run"))?;
    Ok(run.experiment_id)
}

/// Writes a trace, keeps its slot where its time is, and counts its bytes.
async fn put(tx: &mut Tx<'_>, before: Option<&Trace>, trace: &Trace) -> Result<()> {
    trace.checked()?;
    let slot = trace.slot();
    let moved = before.map(Trace::slot).filter(|old| *old != slot);
    if let Some(old) = &moved {
        tx.delete::<Slot>(&old.key()).await?;
    }
    if moved.is_some() || before.is_none() {
        tx.put(&slot).await?;
    }
    tx.put(trace).await?;
    let removed = before.map_or(Ok(0), Trace::stored_bytes)?;
    Balance { added: trace.stored_bytes()?, removed }.settle(tx).await
}

/// Removes a trace with its spans and artifacts.
async fn remove(tx: &mut Tx<'_>, trace: &Trace) -> Result<()> {
    while span::remove_some(tx, &trace.id, READ_ITEMS).await? == READ_ITEMS {}
    artifact::remove_all(tx, &artifact::trace_root(&trace.experiment_id, &trace.id)).await?;
    tx.delete::<Slot>(&trace.slot().key()).await?;
    tx.delete::<Trace>(&trace.id).await?;
    Balance { added: 0, removed: trace.stored_bytes()? }.settle(tx).await
}

fn same_experiment(trace: &Trace, experiment_id: &str) -> Result<()> {
    if trace.experiment_id == experiment_id {
        return Ok(());
    }
    Err(Error::invalid(format!("Trace with ID '{}' already exists in another experiment.", trace.id)))
}

/// Ids are parts of keys.
fn id_checked(id: &str) -> Result<()> {
    let fits = (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    match fits {
        true => Ok(()),
        false => Err(Error::invalid(format!("a trace's id has 1 to {ID_BYTES_MAX} letters, digits, `-`, `_` and `.`"))),
    }
}

fn label_key_checked(key: &str) -> Result<()> {
    if key.is_empty() || key.chars().count() > KEY_CHARS_MAX || key.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "the key of a tag or of metadata has 1 to {KEY_CHARS_MAX} characters, and no control characters"
        )));
    }
    Ok(())
}

/// Labels with their values cut to what is kept of them.
fn labels(labels: BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> {
    labels.into_iter().map(|(key, value)| (key, truncated(value, TAG_CHARS_MAX)))
}

fn tag_changeable(key: &str, what: &str) -> Result<()> {
    if TAGS_OWN.contains(&key) {
        return Err(Error::invalid(format!("Tag '{key}' is immutable and cannot be {what} on a trace.")));
    }
    Ok(())
}

fn count_checked(what: &str, count: usize, most: usize) -> Result<()> {
    if count > most {
        return Err(Error::invalid(format!("`{what}` has at most {most} items in one request, there are {count}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_order_newest_first() {
        let keys = [i64::MAX, 1_700_000_000_001, 1_700_000_000_000, 0, -5].map(|ms| Slot::key_of("3", ms, "tr-1"));
        assert!(keys.is_sorted(), "{keys:?}");
        assert!(Slot::key_of("3", 7, "tr-1") < Slot::key_of("3", 7, "tr-2"));
    }

    #[test]
    fn ids_are_parts_of_keys() {
        for (id, good) in [("tr-00ff", true), ("a.b_c", true), ("", false), ("a/b", false), ("a b", false), ("ü", false)] {
            assert_eq!(id_checked(id).is_ok(), good, "{id}");
        }
        assert!(id_checked(&"a".repeat(ID_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn the_end_wins_and_keeps_what_it_does_not_say() {
        let mut trace = Trace::new("tr-1", "3");
        trace.request_preview = Some("asked".to_owned());
        trace.tags.insert("kept".to_owned(), "1".to_owned());
        let end = Trace { state: TraceState::Error, request_ms: 7, response_preview: Some("said".to_owned()), ..Trace::default() };
        trace.ended_as(end);
        assert_eq!((trace.state, trace.request_ms, trace.is_final()), (TraceState::Error, 7, true));
        assert_eq!((trace.request_preview.as_deref(), trace.response_preview.as_deref()), (Some("asked"), Some("said")));
        assert_eq!(trace.tags.len(), 2, "{:?}", trace.tags);
    }

    #[test]
    fn a_trace_is_complete_with_all_its_spans() {
        let mut trace = Trace::new("tr-1", "3");
        assert!(!trace.is_complete());
        trace.spans = 2;
        assert!(trace.is_complete());
        trace.metadata.insert(METADATA_SIZES.to_owned(), r#"{"num_spans": 3}"#.to_owned());
        assert!(!trace.is_complete());
    }

    #[test]
    fn a_record_stays_small() {
        let mut trace = Trace::new("tr-1", "3");
        trace.response_preview = Some("x".repeat(TRACE_BYTES_MAX));
        assert!(trace.checked().is_err());
        trace.response_preview = None;
        trace.tags.extend((0..LABELS_MAX).map(|at| (at.to_string(), String::new())));
        assert!(trace.checked().is_err());
    }
}
