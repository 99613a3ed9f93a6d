//! Traces: spans over OTLP, what ends a trace, reading, searching, tags, links, assessments. In the forms of MLflow's protobuf messages.

use std::collections::BTreeMap;

use http::Method;
use http::header::{CONTENT_ENCODING, HeaderName};
use platform::tenancy::Permit;
use platform::tenancy::act::{TraceDelete, TraceRead, TraceWrite};
use platform::{Assessment, AssessmentUpdate, SPANS_BYTES_MAX, Trace, TraceDeletion, TraceSearch, TraceState, Verdict};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::otlp;
use super::wire::{self, Int, Texts};
use crate::api::{Api, Ask, Reply};
use crate::error::{Fail, Result};
use crate::openapi::Doc;

/// Where spans are sent.
pub(crate) const EXPORT_PATH: &str = "/v1/traces";
const EXPERIMENT_HEADER: HeaderName = HeaderName::from_static("x-mlflow-experiment-id");
const RUN_HEADER: HeaderName = HeaderName::from_static("x-mlflow-run-id");
const PROTOBUF: &str = "application/x-protobuf";

pub(crate) fn register(api: &mut Api) {
    let doc = Doc::new("otlp_traces", "Record spans").takes_raw(PROTOBUF, "OTLP ExportTraceServiceRequest, plain or gzip");
    api.tenant_route(Method::POST, EXPORT_PATH, doc.answers_raw(PROTOBUF, "ExportTraceServiceResponse"), export);

    let doc = Doc::new;
    let traces = "/api/3.0/mlflow/traces";
    api.mlflow_route(Method::POST, traces, doc("mlflow_trace_start", "Record a trace that has ended"), "", start);
    api.mlflow_route(Method::GET, "/api/3.0/mlflow/traces/get", doc("mlflow_trace_get", "A trace with its spans"), "trace_id", get);
    api.mlflow_route(Method::GET, "/api/3.0/mlflow/traces/batchGet", doc("mlflow_traces_get", "Traces with their spans"), "", batch_get);
    let infos = "/api/3.0/mlflow/traces/batchGetInfos";
    api.mlflow_route(Method::POST, infos, doc("mlflow_trace_infos_get", "Traces without their spans"), "", batch_get_infos);
    api.mlflow_route(Method::POST, "/api/3.0/mlflow/traces/search", doc("mlflow_traces_search", "Search traces"), "", search);
    let delete_2 = "/api/2.0/mlflow/traces/delete-traces";
    api.mlflow_route(Method::POST, delete_2, doc("mlflow_traces_delete", "Delete traces"), "", delete);
    let delete_3 = "/api/3.0/mlflow/traces/delete-traces";
    api.mlflow_route(Method::POST, delete_3, doc("mlflow_traces_delete_v3", "Delete traces"), "", delete);
    let link_run = "/api/2.0/mlflow/traces/link-to-run";
    api.mlflow_route(Method::POST, link_run, doc("mlflow_traces_link", "Link traces to a run"), "", link_run_to);
    let link_prompts = "/api/2.0/mlflow/traces/link-prompts";
    api.mlflow_route(Method::POST, link_prompts, doc("mlflow_trace_link_prompts", "Link prompts to a trace"), "trace_id", link_prompts_to);
    one(api);
    assessments(api);
}

/// Addresses with the trace in their path. Clients name it in the query once more.
fn one(api: &mut Api) {
    let info = Doc::new("mlflow_trace_info", "A trace without its spans").query("trace_id", "string", "the same");
    api.tenant_route(Method::GET, "/api/3.0/mlflow/traces/{trace_id}", info, get_info);
    let tags_2 = "/api/2.0/mlflow/traces/{trace_id}/tags";
    let tags_3 = "/api/3.0/mlflow/traces/{trace_id}/tags";
    api.tenant_route(Method::PATCH, tags_2, Doc::new("mlflow_trace_tag_set", "Set a tag of a trace"), tag_set);
    api.tenant_route(Method::PATCH, tags_3, Doc::new("mlflow_trace_tag_set_v3", "Set a tag of a trace"), tag_set);
    api.tenant_route(Method::DELETE, tags_2, Doc::new("mlflow_trace_tag_delete", "Remove a tag of a trace"), tag_delete);
    api.tenant_route(Method::DELETE, tags_3, Doc::new("mlflow_trace_tag_delete_v3", "Remove a tag of a trace"), tag_delete);
}

fn assessments(api: &mut Api) {
    let all = "/api/3.0/mlflow/traces/{trace_id}/assessments";
    let one = "/api/3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}";
    let named = |doc: Doc| doc.query("trace_id", "string", "the same").query("assessment_id", "string", "the same");
    api.tenant_route(Method::POST, all, Doc::new("mlflow_assessment_create", "Assess a trace"), assess);
    api.tenant_route(Method::GET, one, named(Doc::new("mlflow_assessment_get", "An assessment")), assessment_get);
    api.tenant_route(Method::PATCH, one, Doc::new("mlflow_assessment_update", "Change an assessment"), assessment_update);
    api.tenant_route(Method::DELETE, one, Doc::new("mlflow_assessment_delete", "Remove an assessment"), assessment_delete);
}

async fn export(permit: &Permit<TraceWrite>, mut ask: Ask) -> Result<Reply> {
    if ask.media_type().as_deref() != Some(PROTOBUF) {
        return Err(Fail::new(
            "media_type_unsupported",
            format!("send spans as `{PROTOBUF}`: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        ));
    }
    let header =
        |name: HeaderName| ask.headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty()).map(str::to_owned);
    let experiment = header(EXPERIMENT_HEADER);
    let experiment = experiment.ok_or_else(|| Fail::new("invalid", format!("name the experiment in the header `{EXPERIMENT_HEADER}`")))?;
    let run = header(RUN_HEADER);
    let zipped = ask.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"gzip"));
    let body = ask.body.take().small(otlp::EXPORT_BYTES_MAX).await?;
    let decoded = tokio::task::spawn_blocking(move || otlp::spans(&if zipped { otlp::unzipped(&body)? } else { body }));
    let spans = decoded.await.map_err(Fail::internal)??;
    ask.service.platform.spans_log(permit, &experiment, run.as_deref(), spans).await?;
    // An answer without fields has no bytes.
    Ok(Reply::bytes(PROTOBUF, bytes::Bytes::new()))
}

async fn start(permit: &Permit<TraceWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        trace: TraceForm,
    }
    #[derive(Deserialize)]
    struct TraceForm {
        trace_info: Info,
    }
    let request: Request = ask.fields()?;
    let trace = ask.service.platform.trace_start(permit, request.trace.trace_info.trace()?).await?;
    Reply::json(&json!({"trace": {"trace_info": info(&trace)}}))
}

async fn get_info(permit: &Permit<TraceRead>, ask: Ask) -> Result<Reply> {
    let trace = ask.service.platform.trace_get(permit).await?;
    Reply::json(&json!({"trace": {"trace_info": info(&trace)}}))
}

async fn get(permit: &Permit<TraceRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        #[serde(default)]
        allow_partial: Value,
    }
    let request: Request = ask.fields()?;
    let partial = request.allow_partial == true || request.allow_partial.as_str().is_some_and(|word| word.eq_ignore_ascii_case("true"));
    let trace = ask.service.platform.trace_get(permit).await?;
    let spans = ask.service.platform.trace_spans(permit, &trace, partial).await?;
    let missing = || Fail::new("not_found", format!("Trace with ID {} is not fully exported yet, please try again later.", trace.id));
    Reply::json(&json!({"trace": {"trace_info": info(&trace), "spans": spans.ok_or_else(missing)?}}))
}

#[derive(Deserialize)]
struct Batch {
    trace_ids: Texts,
    experiment_ids: Option<Texts>,
}

async fn batch_get(permit: &Permit<TraceRead>, mut ask: Ask) -> Result<Reply> {
    let batch: Batch = ask.fields()?;
    let within = batch.experiment_ids.map(|ids| ids.0);
    let found = ask.service.platform.traces_get(permit, &batch.trace_ids.0, within.as_deref()).await?;
    if found.iter().map(|trace| trace.span_bytes).sum::<u64>() > SPANS_BYTES_MAX {
        return Err(Fail::new(
            "too_large",
            format!("the spans of these traces are larger than {SPANS_BYTES_MAX} bytes: ask for fewer at once"),
        ));
    }
    let mut traces = Vec::new();
    for trace in found {
        // One whose spans are still on their way is left out, as if it were not there yet.
        if let Some(spans) = ask.service.platform.trace_spans(permit, &trace, false).await? {
            traces.push(json!({"trace_info": info(&trace), "spans": spans}));
        }
    }
    Reply::json(&json!({"traces": traces}))
}

async fn batch_get_infos(permit: &Permit<TraceRead>, mut ask: Ask) -> Result<Reply> {
    let batch: Batch = ask.fields()?;
    let within = batch.experiment_ids.map(|ids| ids.0);
    let traces = ask.service.platform.traces_get(permit, &batch.trace_ids.0, within.as_deref()).await?;
    Reply::json(&json!({"trace_infos": traces.iter().map(info).collect::<Vec<_>>()}))
}

async fn search(permit: &Permit<TraceRead>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        locations: Vec<Location>,
        #[serde(default)]
        filter: String,
        max_results: Option<Int>,
        #[serde(default)]
        order_by: Vec<String>,
        page_token: Option<String>,
    }
    let request: Request = ask.fields()?;
    let search = TraceSearch {
        experiment_ids: request.locations.into_iter().filter_map(Location::experiment).collect(),
        filter: request.filter,
        order_by: request.order_by,
        limit: request.max_results.map(|most| u32::try_from(most.0).unwrap_or(0)),
        page_token: request.page_token,
    };
    let (traces, token) = ask.service.platform.trace_search(permit, &search).await?;
    let mut answer = json!({"traces": traces.iter().map(info).collect::<Vec<_>>()});
    put(&mut answer, "next_page_token", token);
    Reply::json(&answer)
}

async fn delete(permit: &Permit<TraceDelete>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        experiment_id: String,
        max_timestamp_millis: Option<Int>,
        max_traces: Option<Int>,
        #[serde(default)]
        request_ids: Vec<String>,
    }
    let request: Request = ask.fields()?;
    let deletion = TraceDeletion {
        experiment_id: request.experiment_id,
        request_ms_max: request.max_timestamp_millis.map(|most| most.0),
        traces_max: request.max_traces.map(|most| usize::try_from(most.0).unwrap_or(0)),
        ids: request.request_ids,
    };
    let deleted = ask.service.platform.traces_delete(permit, &deletion).await?;
    Reply::json(&json!({"traces_deleted": deleted}))
}

async fn link_run_to(permit: &Permit<TraceWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        trace_ids: Vec<String>,
        run_id: String,
    }
    let request: Request = ask.fields()?;
    ask.service.platform.traces_link(permit, &request.run_id, &request.trace_ids).await?;
    Reply::json(&json!({}))
}

async fn link_prompts_to(permit: &Permit<TraceWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        #[serde(default)]
        prompt_versions: Vec<Prompt>,
    }
    #[derive(Deserialize)]
    struct Prompt {
        name: String,
        version: String,
    }
    let request: Request = ask.fields()?;
    let prompts: Vec<_> = request.prompt_versions.into_iter().map(|prompt| (prompt.name, prompt.version)).collect();
    ask.service.platform.trace_prompts_link(permit, &prompts).await?;
    Reply::json(&json!({}))
}

#[derive(Deserialize)]
struct TagForm {
    key: String,
    #[serde(default)]
    value: String,
}

async fn tag_set(permit: &Permit<TraceWrite>, mut ask: Ask) -> Result<Reply> {
    let tag: TagForm = wire::Fields::of(&mut ask).await?.read()?;
    ask.service.platform.trace_tag_set(permit, &tag.key, &tag.value).await?;
    Reply::json(&json!({}))
}

async fn tag_delete(permit: &Permit<TraceWrite>, mut ask: Ask) -> Result<Reply> {
    let tag: TagForm = wire::Fields::of(&mut ask).await?.read()?;
    ask.service.platform.trace_tag_delete(permit, &tag.key).await?;
    Reply::json(&json!({}))
}

async fn assess(permit: &Permit<TraceWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        assessment: AssessmentForm,
    }
    let request: Request = wire::Fields::of(&mut ask).await?.read()?;
    let assessment = ask.service.platform.assessment_create(permit, request.assessment.assessment()?).await?;
    Reply::json(&json!({"assessment": assessed(permit.resource(), &assessment)}))
}

async fn assessment_get(permit: &Permit<TraceRead>, ask: Ask) -> Result<Reply> {
    let assessment = ask.service.platform.assessment_get(permit, ask.parameter("assessment_id")).await?;
    Reply::json(&json!({"assessment": assessed(permit.resource(), &assessment)}))
}

async fn assessment_update(permit: &Permit<TraceWrite>, mut ask: Ask) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Request {
        assessment: Changes,
        update_mask: String,
    }
    #[derive(Deserialize)]
    struct Changes {
        assessment_name: Option<String>,
        #[serde(flatten)]
        said: Said,
        rationale: Option<String>,
        metadata: Option<BTreeMap<String, String>>,
        valid: Option<bool>,
    }
    let Request { assessment: given, update_mask } = wire::Fields::of(&mut ask).await?.read()?;
    let mut update = AssessmentUpdate::default();
    let verdict = given.said.verdict()?;
    // The mask is a text of names as JSON writes them.
    for field in update_mask.split(',') {
        match field {
            "assessmentName" | "assessment_name" => update.name = Some(given.assessment_name.clone().unwrap_or_default()),
            "feedback" | "expectation" | "issue" => update.verdict.clone_from(&verdict),
            "rationale" => update.rationale = Some(given.rationale.clone().unwrap_or_default()),
            "metadata" => update.metadata = given.metadata.clone().unwrap_or_default(),
            "valid" => update.valid = given.valid,
            _ => {}
        }
    }
    let changed = ask.service.platform.assessment_update(permit, ask.parameter("assessment_id"), update).await?;
    Reply::json(&json!({"assessment": assessed(permit.resource(), &changed)}))
}

async fn assessment_delete(permit: &Permit<TraceWrite>, ask: Ask) -> Result<Reply> {
    ask.service.platform.assessment_delete(permit, ask.parameter("assessment_id")).await?;
    Reply::json(&json!({}))
}

#[derive(Deserialize)]
struct Location {
    mlflow_experiment: Option<ExperimentLocation>,
}

#[derive(Deserialize)]
struct ExperimentLocation {
    experiment_id: String,
}

impl Location {
    fn experiment(self) -> Option<String> {
        self.mlflow_experiment.map(|location| location.experiment_id)
    }
}

/// `TraceInfoV3` as it comes.
#[derive(Deserialize)]
struct Info {
    trace_id: String,
    client_request_id: Option<String>,
    trace_location: Location,
    request_preview: Option<String>,
    response_preview: Option<String>,
    request_time: Option<String>,
    execution_duration: Option<String>,
    #[serde(default)]
    state: TraceState,
    #[serde(default)]
    trace_metadata: BTreeMap<String, String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    assessments: Vec<AssessmentForm>,
}

impl Info {
    fn trace(self) -> Result<Trace> {
        let experiment_id = self.trace_location.experiment();
        let experiment_id =
            experiment_id.ok_or_else(|| Fail::new("invalid", "traces are kept in experiments: give `trace_location.mlflow_experiment`"))?;
        Ok(Trace {
            id: self.trace_id,
            experiment_id,
            client_request_id: self.client_request_id,
            request_ms: self.request_time.map_or_else(|| Ok(now_ms()), |text| time_ms(&text))?,
            duration_ms: self.execution_duration.as_deref().map(duration_ms).transpose()?,
            state: self.state,
            request_preview: self.request_preview,
            response_preview: self.response_preview,
            metadata: self.trace_metadata,
            tags: self.tags,
            assessments: self.assessments.into_iter().map(AssessmentForm::assessment).collect::<Result<_>>()?,
            ..Trace::default()
        })
    }
}

/// `TraceInfoV3` as it goes.
fn info(trace: &Trace) -> Value {
    let mut info = json!({
        "trace_id": trace.id,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": trace.experiment_id}},
        "request_time": time_text(trace.request_ms),
        "state": trace.state.word(),
        "trace_metadata": trace.metadata,
        "tags": trace.tags,
        "assessments": trace.assessments.iter().map(|assessment| assessed(&trace.id, assessment)).collect::<Vec<_>>(),
    });
    put(&mut info, "client_request_id", trace.client_request_id.as_deref());
    put(&mut info, "request_preview", trace.request_preview.as_deref());
    put(&mut info, "response_preview", trace.response_preview.as_deref());
    put(&mut info, "execution_duration", trace.duration_ms.map(duration_text));
    info
}

/// `Assessment` as it comes.
#[derive(Deserialize)]
struct AssessmentForm {
    assessment_id: Option<String>,
    assessment_name: String,
    span_id: Option<String>,
    #[serde(default)]
    source: Value,
    create_time: Option<String>,
    last_update_time: Option<String>,
    #[serde(flatten)]
    said: Said,
    rationale: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    overrides: Option<String>,
    valid: Option<bool>,
}

/// What an assessment says; one of them.
#[derive(Deserialize)]
struct Said {
    feedback: Option<Map<String, Value>>,
    expectation: Option<Map<String, Value>>,
    issue: Option<Map<String, Value>>,
}

impl Said {
    fn verdict(self) -> Result<Option<Verdict>> {
        match (self.feedback, self.expectation, self.issue) {
            (None, None, None) => Ok(None),
            (Some(said), None, None) => Ok(Some(Verdict::Feedback(Value::Object(said)))),
            (None, Some(said), None) => Ok(Some(Verdict::Expectation(Value::Object(said)))),
            (None, None, Some(said)) => Ok(Some(Verdict::Issue(Value::Object(said)))),
            _ => Err(Fail::new("invalid", "Exactly one of `expectation`, `feedback`, or `issue` should be specified.")),
        }
    }
}

impl AssessmentForm {
    fn assessment(self) -> Result<Assessment> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let none = || Fail::new("invalid", "Exactly one of `expectation`, `feedback`, or `issue` should be specified.");
        let created_ms = self.create_time.map_or_else(|| Ok(now_ms()), |text| time_ms(&text))?;
        Ok(Assessment {
            id: given(self.assessment_id).map_or_else(Assessment::new_id, Ok)?,
            name: self.assessment_name,
            span_id: given(self.span_id),
            source: self.source,
            created_ms,
            updated_ms: self.last_update_time.map_or(Ok(created_ms), |text| time_ms(&text))?,
            verdict: self.said.verdict()?.ok_or_else(none)?,
            rationale: given(self.rationale),
            metadata: self.metadata,
            overrides: given(self.overrides),
            valid: self.valid.unwrap_or(true),
        })
    }
}

/// `Assessment` as it goes.
fn assessed(trace_id: &str, assessment: &Assessment) -> Value {
    let (kind, said) = match &assessment.verdict {
        Verdict::Feedback(said) => ("feedback", said),
        Verdict::Expectation(said) => ("expectation", said),
        Verdict::Issue(said) => ("issue", said),
    };
    let mut form = json!({
        "assessment_id": assessment.id,
        "assessment_name": assessment.name,
        "trace_id": trace_id,
        "source": assessment.source,
        "create_time": time_text(assessment.created_ms),
        "last_update_time": time_text(assessment.updated_ms),
        kind: said,
        "metadata": assessment.metadata,
        "valid": assessment.valid,
    });
    put(&mut form, "span_id", assessment.span_id.as_deref());
    put(&mut form, "rationale", assessment.rationale.as_deref());
    put(&mut form, "overrides", assessment.overrides.as_deref());
    form
}

/// A field that is left out when there is nothing to say.
fn put(form: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let (Value::Object(form), Some(value)) = (form, value) {
        form.insert(key.to_owned(), value.into());
    }
}

fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// `google.protobuf.Timestamp` in JSON.
fn time_ms(text: &str) -> Result<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| Fail::new("invalid", "a time is not RFC 3339, as in `2026-01-31T12:00:00.5Z`"))?;
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).map_err(Fail::internal)
}

fn time_text(ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok().filter(|time| time.year() > 0);
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

/// `google.protobuf.Duration` in JSON: seconds and an `s`.
fn duration_ms(text: &str) -> Result<i64> {
    let wrong = || Fail::new("invalid", "a duration is not seconds, as in `1.5s`");
    let (negative, plain) = text.strip_prefix('-').map_or((false, text), |plain| (true, plain));
    let plain = plain.strip_suffix('s').ok_or_else(wrong)?;
    let (whole, part) = plain.split_once('.').unwrap_or((plain, ""));
    if part.len() > 9 || !whole.bytes().chain(part.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: i64 = whole.parse().map_err(|_| wrong())?;
    let part: i64 = format!("{part:0<3}").get(..3).and_then(|part| part.parse().ok()).ok_or_else(wrong)?;
    let ms = whole.checked_mul(1000).and_then(|ms| ms.checked_add(part)).ok_or_else(wrong)?;
    Ok(if negative { -ms } else { ms })
}

fn duration_text(ms: i64) -> String {
    let sign = if ms < 0 { "-" } else { "" };
    let ms = ms.unsigned_abs();
    format!("{sign}{}.{:03}s", ms / 1000, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations() {
        for (text, ms) in
            [("1970-01-01T00:00:00Z", 0), ("2026-01-31T12:00:00.123Z", 1_769_860_800_123), ("1970-01-01T01:00:00.5+01:00", 500)]
        {
            assert_eq!(time_ms(text).unwrap(), ms, "{text}");
            assert_eq!(time_ms(&time_text(ms)).unwrap(), ms);
        }
        assert!(time_ms("yesterday").is_err());
        assert_eq!(time_text(i64::MAX), "1970-01-01T00:00:00Z");
        for (text, ms) in [("1.5s", 1500), ("0s", 0), ("-2.25s", -2250), ("3.000999s", 3000), ("12.01s", 12010)] {
            assert_eq!(duration_ms(text).unwrap(), ms, "{text}");
            assert_eq!(duration_ms(&duration_text(ms)).unwrap(), ms);
        }
        for bad in ["1.5", "s", "1.s.", "a1s", "99999999999999999999s", "1.0000000000s"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_assessment_says_one_thing() {
        let form = |more: Value| {
            let mut form = json!({"assessment_name": "good", "source": {"source_type": "HUMAN"}});
            form.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<AssessmentForm>(form).map(AssessmentForm::assessment)
        };
        let good = form(json!({"feedback": {"value": true}, "create_time": "1970-01-01T00:00:01Z"})).unwrap().unwrap();
        assert_eq!((good.created_ms, good.updated_ms, good.valid), (1000, 1000, true));
        assert!(good.id.starts_with("a-"));
        assert!(form(json!({})).unwrap().is_err());
        assert!(form(json!({"feedback": {}, "expectation": {}})).unwrap().is_err());
        assert!(form(json!({"feedback": "text"})).is_err());
    }
}
