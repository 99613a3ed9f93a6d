//! Spans: the steps of a trace. They are kept as the client reads them back, and looked into only for what lists and searches need.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenancy::act::{ResourceKind, TraceRead, TraceWrite};
use tenancy::{BlobId, Permit, Record, StoredUpload, Tx};

use super::{
    METADATA_SESSION, METADATA_USER, PREVIEW_CHARS_MAX, READ_ITEMS, SPANS_BYTES_MAX, SPANS_HERE, SPANS_MAX, TAG_SPANS, TAGS_OWN, Trace,
    TraceState, experiment_of, id_checked, label_key_checked, put, same_experiment,
};
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::tracking::check::{TAG_CHARS_MAX, truncated};
use crate::tracking::experiment;

/// Largest span in bytes, in the form that clients read.
pub const SPAN_BYTES_MAX: u64 = 16 << 20;
/// Spans up to this size lie in their records, in bytes.
const INLINE_BYTES_MAX: usize = 384 << 10;
/// Piece of an object that is read at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;

const ATTRIBUTE_INPUTS: &str = "mlflow.spanInputs";
const ATTRIBUTE_OUTPUTS: &str = "mlflow.spanOutputs";
const ATTRIBUTE_TYPE: &str = "mlflow.spanType";
/// Attributes of a root span that become tags.
const ATTRIBUTE_TAG: &str = "mlflow.traceTag.";

/// One step of a trace.
#[derive(Debug, Clone)]
pub struct Span {
    /// The trace it belongs to.
    pub trace_id: String,
    /// Unique within the trace.
    pub id: String,
    /// Whether it has no parent.
    pub root: bool,
    /// Whether it ended with an error.
    pub failed: bool,
    /// When it began, in nanoseconds since 1970.
    pub start_ns: u64,
    /// When it ended, in nanoseconds since 1970.
    pub end_ns: Option<u64>,
    /// Its attributes as plain JSON.
    pub attributes: BTreeMap<String, Value>,
    /// The whole span as clients read it: an OpenTelemetry span in protobuf's JSON form.
    pub body: Value,
    /// Attributes of what sent it, which become tags of the trace.
    pub resource: Arc<BTreeMap<String, Value>>,
}

/// A span as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredSpan {
    trace_id: String,
    id: String,
    root: bool,
    start_ns: u64,
    bytes: u64,
    body: Body,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body {
    Here(Value),
    Object(BlobId),
}

impl Record for StoredSpan {
    const KIND: &'static str = "trace_span";
    fn key(&self) -> String {
        format!("{}/{}", self.trace_id, self.id)
    }
}

/// A span ready to be written, with the object that holds it when it is large.
struct Written {
    stored: StoredSpan,
    object: Option<StoredUpload>,
}

impl Platform {
    /// Records spans of an experiment's traces; a span that is sent again replaces itself. Traces that are not there yet begin with it.
    /// With a run, traces whose root came are linked to it. Nothing is recorded unless all is.
    ///
    /// # Errors
    /// No such experiment or run; a trace of another experiment; anything over its bounds.
    pub async fn spans_log(&self, permit: &Permit<TraceWrite>, experiment_id: &str, run_id: Option<&str>, spans: Vec<Span>) -> Result<()> {
        permit.within(ResourceKind::Experiment, experiment_id)?;
        permit.detail("experiment", experiment_id);
        permit.detail("spans", spans.len());
        let mut by_trace: BTreeMap<String, Vec<Span>> = BTreeMap::new();
        for span in spans {
            id_checked(&span.trace_id)?;
            id_checked(&span.id)?;
            by_trace.entry(span.trace_id.clone()).or_default().push(span);
        }
        let mut written = HashMap::new();
        for span in by_trace.values().flatten() {
            let one = self.span_seal(permit, span).await?;
            written.insert(one.stored.key(), one);
        }
        let mut tx = permit.tx().await?;
        experiment::require(&mut tx, experiment_id).await?.active()?;
        if let Some(run_id) = run_id {
            experiment_of(&mut tx, run_id).await?;
        }
        for (id, spans) in &by_trace {
            let before = tx.get::<Trace>(id).await?;
            let mut trace = match &before {
                Some(known) => known.clone(),
                None => Trace::new(id, experiment_id),
            };
            same_experiment(&trace, experiment_id)?;
            trace.learn(spans, before.is_none());
            if let Some(run_id) = run_id.filter(|_| spans.iter().any(|span| span.root)) {
                trace.runs.insert(run_id.to_owned());
            }
            let keys: BTreeSet<String> = spans.iter().map(|span| format!("{id}/{}", span.id)).collect();
            let own = keys.iter().filter_map(|key| written.remove(key)).collect();
            replace(&mut tx, &mut trace, own).await?;
            put(&mut tx, before.as_ref(), &trace).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The spans of a trace as clients read them, the root first and then by time. None while some that were announced have not come,
    /// unless `partial`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn trace_spans(&self, permit: &Permit<TraceRead>, trace: &Trace, partial: bool) -> Result<Option<Vec<Value>>> {
        permit.within(ResourceKind::Experiment, &trace.experiment_id)?;
        if !partial && !trace.is_complete() {
            return Ok(None);
        }
        let mut all = Vec::new();
        let prefix = format!("{}/", trace.id);
        let mut after: Option<String> = None;
        loop {
            let page = permit.rows().list::<StoredSpan>(after.as_deref(), READ_ITEMS, Some(&prefix)).await?;
            all.extend(page.records);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        all.sort_by_key(|span| (!span.root, span.start_ns));
        let mut bodies = Vec::with_capacity(all.len());
        for span in all {
            bodies.push(span.read(permit).await?);
        }
        Ok(Some(bodies))
    }

    /// Seals the object of a large span.
    async fn span_seal(&self, permit: &Permit<TraceWrite>, span: &Span) -> Result<Written> {
        let bytes = serde_json::to_vec(&span.body).map_err(tenancy::Error::internal)?;
        let (length, large) = (bytes.len() as u64, bytes.len() > INLINE_BYTES_MAX);
        if length > SPAN_BYTES_MAX {
            return Err(Error::TooLarge { what: "span", bytes_max: SPAN_BYTES_MAX });
        }
        let object = match large {
            true => Some(self.receive(permit, stream::iter([Ok(Bytes::from(bytes))]), "span", SPAN_BYTES_MAX).await?),
            false => None,
        };
        let body = object.as_ref().map_or_else(|| Body::Here(span.body.clone()), |object| Body::Object(object.id()));
        let stored = StoredSpan {
            trace_id: span.trace_id.clone(),
            id: span.id.clone(),
            root: span.root,
            start_ns: span.start_ns,
            bytes: length,
            body,
        };
        Ok(Written { stored, object })
    }
}

impl StoredSpan {
    async fn read(self, permit: &Permit<TraceRead>) -> Result<Value> {
        let id = match self.body {
            Body::Here(body) => return Ok(body),
            Body::Object(id) => id,
        };
        let reader = permit.blobs().open(id).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(reader.bytes()).unwrap_or(0));
        while (bytes.len() as u64) < reader.bytes() {
            let piece = reader.read_at(bytes.len() as u64, PIECE_BYTES).await?;
            if piece.is_empty() {
                return Err(tenancy::Error::internal("a span's object ends early").into());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(serde_json::from_slice(&bytes).map_err(tenancy::Error::internal)?)
    }
}

/// Puts spans of one trace in the place of what was there, and counts them.
async fn replace(tx: &mut Tx<'_>, trace: &mut Trace, written: Vec<Written>) -> Result<()> {
    let keys: Vec<String> = written.iter().map(|one| one.stored.key()).collect();
    for old in tx.get_all::<StoredSpan>(&keys).await?.into_iter().flatten() {
        trace.spans = trace.spans.saturating_sub(1);
        trace.span_bytes = trace.span_bytes.saturating_sub(old.bytes);
        match old.body {
            Body::Object(id) => tx.detach(id).await?,
            Body::Here(_) => trace.inline_bytes = trace.inline_bytes.saturating_sub(old.bytes),
        }
    }
    let mut records = Vec::with_capacity(written.len());
    for Written { stored, object } in written {
        trace.spans += 1;
        trace.span_bytes += stored.bytes;
        if object.is_none() {
            trace.inline_bytes += stored.bytes;
        }
        records.push(stored);
        if let Some(object) = object {
            tx.attach(object).await?;
        }
    }
    if trace.spans > SPANS_MAX {
        return Err(Error::invalid(format!("a trace has at most {SPANS_MAX} spans")));
    }
    if trace.span_bytes > SPANS_BYTES_MAX {
        return Err(Error::TooLarge { what: "trace", bytes_max: SPANS_BYTES_MAX });
    }
    tx.put_all(&records).await?;
    Ok(())
}

/// Removes at most so many spans of a trace. How many there were: less than `most` when none are left.
pub(super) async fn remove_some(tx: &mut Tx<'_>, trace_id: &str, most: u32) -> Result<u32> {
    let (prefix, mut removed) = (format!("{trace_id}/"), 0);
    while removed < most {
        let page = tx.list::<StoredSpan>(None, (most - removed).min(READ_ITEMS), Some(&prefix)).await?;
        for span in page.records {
            tx.delete::<StoredSpan>(&span.key()).await?;
            if let Body::Object(id) = span.body {
                tx.detach(id).await?;
            }
            removed += 1;
        }
        if page.next.is_none() {
            break;
        }
    }
    Ok(removed)
}

impl Trace {
    /// Takes from spans what the trace does not know yet. What its end said stays.
    fn learn(&mut self, spans: &[Span], new: bool) {
        let begins = spans.iter().map(|span| millis(span.start_ns)).min().unwrap_or(0);
        let ends = spans.iter().filter_map(|span| span.end_ns).map(millis).max();
        if !self.is_final() {
            let ended = self.duration_ms.map(|duration| self.request_ms + duration).max(ends);
            self.request_ms = if new { begins } else { self.request_ms.min(begins) };
            self.duration_ms = ended.map(|ended| ended.saturating_sub(self.request_ms).max(0));
        }
        let root = spans.iter().find(|span| span.root);
        if matches!(self.state, TraceState::StateUnspecified | TraceState::InProgress) {
            self.state = match root {
                Some(root) if root.failed => TraceState::Error,
                Some(_) => TraceState::Ok,
                None => TraceState::InProgress,
            };
        }
        for (key, attribute) in [(METADATA_SESSION, "session.id"), (METADATA_USER, "user.id")] {
            let said = spans.iter().find_map(|span| span.attributes.get(attribute)).map(text);
            if let Some(said) = said.filter(|_| !self.metadata.contains_key(key)) {
                self.metadata.insert(key.to_owned(), truncated(said, PREVIEW_CHARS_MAX));
            }
        }
        if let Some(root) = root {
            let preview = |key: &str| root.attributes.get(key).map(|value| truncated(value.to_string(), PREVIEW_CHARS_MAX));
            self.request_preview = self.request_preview.take().or_else(|| preview(ATTRIBUTE_INPUTS));
            self.response_preview = self.response_preview.take().or_else(|| preview(ATTRIBUTE_OUTPUTS));
        }
        self.learn_tags(spans, root);
    }

    /// Attributes of the sender become tags, and those of the root that are meant to; the latter win.
    fn learn_tags(&mut self, spans: &[Span], root: Option<&Span>) {
        let resource = spans.iter().map(|span| &span.resource).find(|resource| !resource.is_empty());
        let of_resource = resource.into_iter().flat_map(|resource| resource.iter()).map(|(key, value)| (key.as_str(), value));
        let of_resource = of_resource.filter(|(key, _)| !key.starts_with("telemetry.sdk.") && !key.starts_with("mlflow."));
        let of_root =
            root.into_iter().flat_map(|root| &root.attributes).filter_map(|(key, value)| Some((key.strip_prefix(ATTRIBUTE_TAG)?, value)));
        for (key, value) in of_resource.chain(of_root) {
            if label_key_checked(key).is_ok() && !TAGS_OWN.contains(&key) {
                self.tags.insert(key.to_owned(), truncated(text(value), TAG_CHARS_MAX));
            }
        }
        self.tags.insert(TAG_SPANS.to_owned(), SPANS_HERE.to_owned());
    }
}

/// A text as it is, anything else as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn millis(nanos: u64) -> i64 {
    i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)
}

/// What a search looks at, of a span as clients read it.
pub(super) struct Seen<'a>(pub(super) &'a Value);

impl Seen<'_> {
    /// `name`, `status`, `type`, or `attributes.` and a key. None for what is not there.
    pub(super) fn field(&self, key: &str) -> Option<String> {
        match key {
            "name" => self.0.get("name")?.as_str().map(str::to_owned),
            "status" => {
                let code = self.0.get("status").and_then(|status| status.get("code")).and_then(Value::as_str).unwrap_or_default();
                Some(code.strip_prefix("STATUS_CODE_").unwrap_or("UNSET").to_owned())
            }
            "type" => Some(self.attribute(ATTRIBUTE_TYPE).unwrap_or_else(|| "UNKNOWN".to_owned())),
            key => self.attribute(key.strip_prefix("attributes.")?),
        }
    }

    fn attribute(&self, key: &str) -> Option<String> {
        let attributes = self.0.get("attributes")?.as_array()?;
        let value = attributes.iter().find(|attribute| attribute.get("key").and_then(Value::as_str) == Some(key))?.get("value")?;
        let (_, value) = value.as_object()?.iter().next()?;
        Some(text(value))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn span(id: &str, root: bool, start_ms: u64, end_ms: u64) -> Span {
        let attributes = BTreeMap::from([
            (ATTRIBUTE_INPUTS.to_owned(), json!({"q": "x".repeat(2000)})),
            ("mlflow.traceTag.team".to_owned(), json!("core")),
            ("mlflow.traceTag.mlflow.artifactLocation".to_owned(), json!("s3://elsewhere")),
            ("session.id".to_owned(), json!("s1")),
        ]);
        let resource = Arc::new(BTreeMap::from([("service.name".to_owned(), json!("shop")), ("mlflow.x".to_owned(), json!("no"))]));
        let (start_ns, end_ns) = (start_ms * 1_000_000, Some(end_ms * 1_000_000));
        Span {
            trace_id: "tr-1".to_owned(),
            id: id.to_owned(),
            root,
            failed: root,
            start_ns,
            end_ns,
            attributes,
            body: Value::Null,
            resource,
        }
    }

    #[test]
    fn a_trace_learns_from_its_spans() {
        let mut trace = Trace::new("tr-1", "3");
        trace.learn(&[span("b", false, 20, 30)], true);
        assert_eq!((trace.request_ms, trace.duration_ms, trace.state), (20, Some(10), TraceState::InProgress));
        trace.learn(&[span("a", true, 10, 25)], false);
        assert_eq!((trace.request_ms, trace.duration_ms, trace.state), (10, Some(20), TraceState::Error));
        assert_eq!(trace.request_preview.as_ref().map(String::len), Some(PREVIEW_CHARS_MAX));
        assert_eq!(trace.tags["team"], "core");
        assert_eq!(trace.tags["service.name"], "shop");
        assert!(!trace.tags.contains_key("mlflow.x"));
        assert!(trace.tags["mlflow.artifactLocation"].starts_with("mlflow-artifacts:/3/"), "a client cannot move the artifacts");
        assert_eq!(trace.metadata[METADATA_SESSION], "s1");

        trace.ended_as(Trace { request_ms: 11, duration_ms: Some(3), state: TraceState::Ok, ..Trace::default() });
        trace.learn(&[span("c", true, 1, 99)], false);
        assert_eq!((trace.request_ms, trace.duration_ms, trace.state), (11, Some(3), TraceState::Ok), "the end's word stays");
    }

    #[test]
    fn a_search_sees_fields_and_attributes() {
        let body = json!({
            "name": "step",
            "status": {"code": "STATUS_CODE_ERROR"},
            "attributes": [
                {"key": "mlflow.spanType", "value": {"string_value": "LLM"}},
                {"key": "n", "value": {"int_value": 7}},
                {"key": "empty", "value": {}},
            ],
        });
        let seen = Seen(&body);
        let table = [
            ("name", Some("step")),
            ("status", Some("ERROR")),
            ("type", Some("LLM")),
            ("attributes.n", Some("7")),
            ("attributes.empty", None),
            ("attributes.none", None),
            ("other", None),
        ];
        for (key, expected) in table {
            assert_eq!(seen.field(key).as_deref(), expected, "{key}");
        }
        assert_eq!(Seen(&json!({})).field("status").as_deref(), Some("UNSET"));
    }
}
