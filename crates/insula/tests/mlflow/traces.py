"""Traces by the stock client: decorated functions, spans, search, tags, assessments, links, delete; nothing of it crosses to another tenant."""

import gzip
import os
import time

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, SpanType
from mlflow.exceptions import MlflowException
from mlflow.tracing.constant import TraceTagKey

URL = os.environ["MLFLOW_TRACKING_URI"]
CERT = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
MINE = os.environ["MLFLOW_TRACKING_TOKEN"]
OTHER = os.environ["INSULA_OTHER_TOKEN"]

os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"


def ask(method, path, token=MINE, **more):
    headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
    return requests.request(method, URL + path, headers=headers, verify=CERT, timeout=30, **more)


def refused(answer, status, code):
    assert (answer.status_code, answer.json().get("error_code")) == (status, code), (answer.status_code, answer.text)


def fails(call, part):
    try:
        call()
    except MlflowException as error:
        assert part in str(error), error
    else:
        raise AssertionError(f"no failure with {part!r}")


# What was recorded comes back.
experiment = mlflow.set_experiment("chat").experiment_id
client = MlflowClient()


@mlflow.trace(span_type=SpanType.RETRIEVER, attributes={"index": "docs", "k": 3})
def search(question):
    return [{"page": 1, "text": f"about {question}"}]


@mlflow.trace(name="answer", span_type=SpanType.CHAIN)
def answer(question, fail=False):
    mlflow.update_current_trace(tags={"team": "core"}, metadata={"mlflow.trace.session": "s1"})
    found = search(question)
    with mlflow.start_span("generate", span_type=SpanType.LLM) as span:
        span.set_inputs({"documents": found, "temperature": 0.5})
        span.set_attribute("flag", True)
        span.set_attribute("nested", {"a": [1, 2.5, "x", None, {"b": False}]})
        if fail:
            raise ValueError("no idea")
        span.set_outputs("42")
    return {"text": "42", "found": len(found)}


assert answer("life") == {"text": "42", "found": 1}
first = mlflow.get_last_active_trace_id()
time.sleep(0.01)
try:
    answer("death", fail=True)
except ValueError:
    pass
second = mlflow.get_last_active_trace_id()
assert first != second

trace = mlflow.get_trace(first)
assert trace.info.tags[TraceTagKey.SPANS_LOCATION] == "TRACKING_STORE", trace.info.tags
assert trace.info.experiment_id == experiment and trace.info.state == "OK", trace.info
assert trace.info.tags["team"] == "core" and trace.info.tags["mlflow.traceName"] == "answer", trace.info.tags
assert trace.info.execution_duration is not None and trace.info.request_time > 1_600_000_000_000
assert '"life"' in trace.info.request_preview and "42" in trace.info.response_preview, trace.info
spans = {span.name: span for span in trace.data.spans}
assert list(spans) == ["answer", "search", "generate"], list(spans)
root = spans["answer"]
assert root.parent_id is None and spans["search"].parent_id == root.span_id == spans["generate"].parent_id
assert root.inputs == {"question": "life", "fail": False} and root.outputs == {"text": "42", "found": 1}, root
assert spans["search"].span_type == "RETRIEVER" and spans["search"].attributes["k"] == 3 and spans["search"].attributes["index"] == "docs"
assert spans["search"].outputs == [{"page": 1, "text": "about life"}]
assert spans["generate"].inputs == {"documents": [{"page": 1, "text": "about life"}], "temperature": 0.5}
assert spans["generate"].attributes["flag"] is True
assert spans["generate"].attributes["nested"] == {"a": [1, 2.5, "x", None, {"b": False}]}, spans["generate"].attributes
assert all(span.trace_id == first and span.status.status_code == "OK" for span in trace.data.spans)

failed = mlflow.get_trace(second)
assert failed.info.state == "ERROR", failed.info
generate = next(span for span in failed.data.spans if span.name == "generate")
assert generate.status.status_code == "ERROR" and generate.events[0].name == "exception", generate
assert generate.events[0].attributes["exception.message"] == "no idea", generate.events


# Search: the filter and order grammar, and pages.
def found(text=None, **more):
    return [trace.info.trace_id for trace in mlflow.search_traces(locations=[experiment], filter_string=text, return_type="list", **more)]


assert found() == [second, first], found()
assert found("trace.status = 'OK'") == [first]
assert found("trace.status = 'ERROR' AND tag.team = 'core'") == [second]
assert found("trace.name LIKE 'ans%'", order_by=["timestamp_ms ASC"]) == [first, second]
assert found(f"trace.timestamp_ms > {trace.info.request_time}") == [second]
assert found("metadata.`mlflow.trace.session` = 's1' AND tag.none IS NULL", max_results=1) == [second]
assert found("span.name = 'search' AND span.attributes.index = 'docs'") == [second, first]
assert found("span.name RLIKE '^se.rch$' AND span.attributes.index RLIKE 'o.s'") == [second, first]
assert found("span.name RLIKE '^SEARCH'") == [] and found("trace.status RLIKE '^O'") == found("trace.status = 'OK'") != []
fails(lambda: found("span.name RLIKE '('"), "Invalid regular expression")
assert found("span.status = 'ERROR'") == [second]
assert found("trace.text LIKE '%about death%'") == [second]
assert found("span.type = 'TOOL'") == []
fails(lambda: found("trace.nothing = 'x'"), "Invalid attribute key")
fails(lambda: found(order_by=["nothing"]), "Invalid")

# An experiment's id is taken whole: half a key of another record finds nothing.
half = f"{experiment}/{2**63 - 1 - trace.info.request_time:016x}"
location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": half}}
assert ask("POST", "/api/3.0/mlflow/traces/search", json={"locations": [location]}).json() == {"traces": []}

tokens, seen = None, []
for _ in range(3):
    page = client.search_traces(locations=[experiment], max_results=1, page_token=tokens)
    seen += [trace.info.trace_id for trace in page]
    tokens = page.token
    if not tokens:
        break
assert seen == [second, first] and not tokens, (seen, tokens)
token = client.search_traces(locations=[experiment], max_results=1).token
assert first not in token and second not in token and experiment != token
fails(lambda: client.search_traces(locations=[experiment], filter_string="trace.status = 'OK'", page_token=token), "another query")
by_name = client.search_traces(locations=[experiment], max_results=1, order_by=["execution_time DESC"])
rest = client.search_traces(locations=[experiment], max_results=1, order_by=["execution_time DESC"], page_token=by_name.token)
assert {by_name[0].info.trace_id, rest[0].info.trace_id} == {first, second} and not rest.token

# Tags.
client.set_trace_tag(first, "stage", "checked")
assert found("tags.stage = 'checked'") == [first]
client.delete_trace_tag(first, "stage")
assert found("tags.stage = 'checked'") == []
moved = {"key": "mlflow.artifactLocation", "value": "s3://elsewhere"}
refused(ask("PATCH", f"/api/2.0/mlflow/traces/{first}/tags", json=moved), 400, "INVALID_PARAMETER_VALUE")
fails(lambda: client.delete_trace_tag(first, "stage"), "RESOURCE_DOES_NOT_EXIST")
fails(lambda: client.set_trace_tag("tr-" + "0" * 32, "stage", "x"), "RESOURCE_DOES_NOT_EXIST")

# Assessments.
human = AssessmentSource(source_type="HUMAN", source_id="ada")
good = mlflow.log_feedback(trace_id=first, name="good", value=True, rationale="it is", source=human, metadata={"a": "b"})
mlflow.log_feedback(trace_id=first, name="score", value=0.7, span_id=root.span_id)
mlflow.log_feedback(trace_id=second, name="good", error=ValueError("judge failed"))
wanted = mlflow.log_expectation(trace_id=first, name="facts", value={"answer": "42", "numbers": [1, 2]}, source=human)
read = mlflow.get_assessment(first, good.assessment_id)
assert (read.name, read.value, read.rationale, read.source.source_id, read.metadata) == ("good", True, "it is", "ada", {"a": "b"}), read
assert mlflow.get_assessment(first, wanted.assessment_id).value == {"answer": "42", "numbers": [1, 2]}
assert sorted(one.name for one in mlflow.get_trace(first).info.assessments) == ["facts", "good", "score"]
assert mlflow.get_trace(second).info.assessments[0].error.error_message == "judge failed"
assert found("feedback.good = 'true'") == [first]
assert found("feedback.score > 0.5") == [first] and found("feedback.score > 0.8") == []
assert found("expectation.facts IS NOT NULL") == [first]

from mlflow.entities import Expectation, Feedback  # noqa: E402

changed = mlflow.update_assessment(first, good.assessment_id, Feedback(name="good", value=False, rationale="it is not"))
assert (changed.value, changed.rationale, changed.assessment_id) == (False, "it is not", good.assessment_id), changed
assert changed.last_update_time_ms >= read.last_update_time_ms and changed.source.source_id == "ada"
fails(lambda: mlflow.update_assessment(first, good.assessment_id, Expectation(name="good", value=1)), "Cannot update expectation value")
better = mlflow.override_feedback(trace_id=first, assessment_id=good.assessment_id, value="yes", rationale="after all")
assert mlflow.get_assessment(first, good.assessment_id).valid is False and better.overrides == good.assessment_id
mlflow.delete_assessment(first, better.assessment_id)
assert mlflow.get_assessment(first, good.assessment_id).valid is True
mlflow.delete_assessment(first, good.assessment_id)
fails(lambda: mlflow.get_assessment(first, good.assessment_id), "RESOURCE_DOES_NOT_EXIST")

# Runs: what is traced inside of one, and what is linked to it later.
with mlflow.start_run() as run:
    answer("inside")
    inside = mlflow.get_last_active_trace_id()
assert found(run_id=run.info.run_id) == [inside]
client.link_traces_to_run([first], run.info.run_id)
assert found(run_id=run.info.run_id) == [inside, first]
fails(lambda: client.link_traces_to_run([first], "0" * 32), "RESOURCE_DOES_NOT_EXIST")

# A large span lies in an object, and reads back the same.
with mlflow.start_span("large") as span:
    span.set_inputs({"text": "x" * 2_000_000})
large = mlflow.get_last_active_trace_id()
assert mlflow.get_trace(large).data.spans[0].inputs == {"text": "x" * 2_000_000}

# Other senders: plain OTLP, also gzipped.
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: E402


def export(body, token=MINE, to=experiment, **headers):
    given = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": to, **headers}
    return ask("POST", "/v1/traces", token, data=body, headers=given)


request = ExportTraceServiceRequest()
resource = request.resource_spans.add()
attribute = resource.resource.attributes.add()
attribute.key, attribute.value.string_value = "service.name", "shop"
otel = resource.scope_spans.add().spans.add()
otel.trace_id, otel.span_id, otel.name = b"\x01" * 16, b"\x02" * 8, "order"
otel.start_time_unix_nano, otel.end_time_unix_nano = 1_700_000_000_000_000_000, 1_700_000_001_500_000_000
body = request.SerializeToString()
done = export(gzip.compress(body), **{"Content-Encoding": "gzip"})
assert (done.status_code, done.content, done.headers["Content-Type"]) == (200, b"", "application/x-protobuf"), done.text
outside = "tr-" + "01" * 16
told = mlflow.get_trace(outside)
assert told.info.tags["service.name"] == "shop" and told.info.execution_duration == 1500 and told.info.state == "OK", told.info
assert export(body).status_code == 200 and len(mlflow.get_trace(outside).data.spans) == 1, "a span that comes twice is one"
refused(export(b"\xff\xff"), 400, "INVALID_PARAMETER_VALUE")
refused(export(body, **{"Content-Encoding": "br"}), 400, "INVALID_PARAMETER_VALUE")
refused(export(body, to=""), 400, "INVALID_PARAMETER_VALUE")
refused(export(body, to="999"), 404, "RESOURCE_DOES_NOT_EXIST")
elsewhere = mlflow.create_experiment("elsewhere")
assert "already exists in another experiment" in export(body, to=elsewhere).text
refused(ask("POST", "/api/3.0/mlflow/traces/search", headers={"Content-Encoding": "gzip"}, data=b""), 400, "INVALID_PARAMETER_VALUE")

# The other tenant has an experiment of the same name and number, and the same trace of its own.
made = ask("POST", "/api/2.0/mlflow/experiments/create", OTHER, json={"name": "chat"}).json()
assert made["experiment_id"] == experiment, made
for path in [f"/api/3.0/mlflow/traces/{first}", f"/api/3.0/mlflow/traces/get?trace_id={first}"]:
    refused(ask("GET", path, OTHER), 404, "RESOURCE_DOES_NOT_EXIST")
refused(ask("PATCH", f"/api/2.0/mlflow/traces/{first}/tags", OTHER, json={"key": "a", "value": "b"}), 404, "RESOURCE_DOES_NOT_EXIST")
given = {"assessment": {"assessment_name": "a", "feedback": {"value": 1}, "source": {"source_type": "HUMAN"}}}
refused(ask("POST", f"/api/3.0/mlflow/traces/{first}/assessments", OTHER, json=given), 404, "RESOURCE_DOES_NOT_EXIST")
refused(ask("GET", f"/api/3.0/mlflow/traces/{first}/assessments/{wanted.assessment_id}", OTHER), 404, "RESOURCE_DOES_NOT_EXIST")
assert ask("GET", f"/api/3.0/mlflow/traces/batchGet?trace_ids={first}&trace_ids={outside}", OTHER).json() == {"traces": []}
where = {"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}]}
assert ask("POST", "/api/3.0/mlflow/traces/search", OTHER, json=where).json() == {"traces": []}
refused(ask("POST", "/api/3.0/mlflow/traces/search", OTHER, json={**where, "page_token": token}), 400, "INVALID_PARAMETER_VALUE")
otel.name = "theirs"
assert export(request.SerializeToString(), OTHER).status_code == 200
assert mlflow.get_trace(outside).data.spans[0].name == "order"
theirs = ask("GET", f"/api/3.0/mlflow/traces/batchGet?trace_ids={outside}", OTHER).json()["traces"]
assert theirs[0]["spans"][0]["name"] == "theirs", theirs
gone = ask("POST", "/api/2.0/mlflow/traces/delete-traces", OTHER, json={"experiment_id": experiment, "request_ids": [first, outside]})
assert gone.json() == {"traces_deleted": 1}, gone.text
assert mlflow.get_trace(first) is not None and mlflow.get_trace(outside) is not None

# Delete.
assert client.delete_traces(experiment, trace_ids=[large, "tr-" + "f" * 32]) == 1
fails(lambda: client.get_trace(large, display=False), "RESOURCE_DOES_NOT_EXIST")
assert client.delete_traces(experiment, max_timestamp_millis=told.info.request_time) == 1
assert found() == [inside, second, first]
assert client.delete_traces(experiment, max_timestamp_millis=int(time.time() * 1000), max_traces=1) == 1
assert found() == [inside, second], "the oldest goes first"
fails(lambda: client.delete_traces(experiment), "must be specified")
assert client.delete_traces(experiment, max_timestamp_millis=int(time.time() * 1000)) == 2
assert found() == []

# What a tenant is charged for goes with the traces.
def stored():
    used = ask("GET", "/v1/quota").json()["used"]
    return used["storage_bytes"], used["objects"]


before = stored()
with mlflow.start_span("large") as span:
    span.set_inputs({"text": "x" * 1_000_000})
with mlflow.start_span("small") as span:
    span.set_inputs({"text": "x" * 10_000})
small = mlflow.get_last_active_trace_id()
client.set_trace_tag(small, "note", "y" * 1000)
mlflow.log_feedback(trace_id=small, name="good", value=True)
during = stored()
assert during[0] - before[0] > 1_011_000 and during[1] == before[1] + 1, (before, during)
assert client.delete_traces(experiment, max_timestamp_millis=int(time.time() * 1000)) == 2
assert stored() == before, (before, stored())
