"""A long session of tracking with the stock client: experiments, runs, metrics, search, delete and restore. Of two tenants with
crossed names; nothing crosses. What is expected here was seen on MLflow's own server."""

import math
import os
import time

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

URL = os.environ["MLFLOW_TRACKING_URI"]
CERT = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
TOKEN = os.environ["MLFLOW_TRACKING_TOKEN"]
OTHER = os.environ["INSULA_OTHER_TOKEN"]
client = MlflowClient()


def ask(method, path, token=TOKEN, **fields):
    where = {"params": fields} if method == "GET" else {"json": fields}
    return requests.request(method, URL + path, headers={"Authorization": f"Bearer {token}"}, verify=CERT, timeout=30, **where)


def refused(code, call, *args, says="", **kwargs):
    try:
        call(*args, **kwargs)
    except MlflowException as error:
        assert error.error_code == code, (code, error.error_code, str(error))
        assert says in str(error), (says, str(error))
        return
    raise AssertionError(f"{call} was not refused")


def ids(runs):
    return [run.info.run_id for run in runs]


# --- the server
assert requests.get(f"{URL}/version", verify=CERT, timeout=30).text == "3.18.0"
assert requests.get(f"{URL}/health", verify=CERT, timeout=30).text == "OK"
info = requests.get(f"{URL}/api/3.0/mlflow/server-info", verify=CERT, timeout=30).json()
assert info["workspaces_enabled"] is True and info["artifact_serving_enabled"] is True, info
assert ask("GET", "/api/3.0/mlflow/workspaces").json() == {"workspaces": [{"name": "left"}]}
assert ask("GET", "/api/3.0/mlflow/workspaces/left").json()["workspace"]["name"] == "left"
assert ask("GET", "/api/3.0/mlflow/workspaces/right").status_code == 404

# --- experiments
default = client.get_experiment("0")
assert (default.name, default.lifecycle_stage, default.artifact_location) == ("Default", "active", "mlflow-artifacts:/0"), default
assert client.get_experiment_by_name("Default").experiment_id == "0"
assert client.get_experiment_by_name("nowhere") is None
with mlflow.start_run() as run:
    assert run.info.experiment_id == "0"

first = client.create_experiment("crossed", tags={"team": "core", "stage": "one"})
assert client.get_experiment(first).artifact_location == f"mlflow-artifacts:/{first}"
refused("RESOURCE_ALREADY_EXISTS", client.create_experiment, "crossed")
refused("RESOURCE_ALREADY_EXISTS", client.create_experiment, "Default")
refused("INVALID_PARAMETER_VALUE", client.create_experiment, "x" * 501, says="'name' exceeds the maximum length of 500 characters")
refused("RESOURCE_DOES_NOT_EXIST", client.get_experiment, "4711")
refused("INVALID_PARAMETER_VALUE", client.get_experiment, "abc")
client.set_experiment_tag(first, "note", "größe ✓")
client.set_experiment_tag(first, "stage", "two")
client.delete_experiment_tag(first, "team")
refused("RESOURCE_DOES_NOT_EXIST", client.delete_experiment_tag, first, "team")
assert client.get_experiment(first).tags == {"note": "größe ✓", "stage": "two"}
client.rename_experiment(first, "crossed again")
assert client.get_experiment_by_name("crossed") is None
assert client.get_experiment_by_name("crossed again").experiment_id == first
client.rename_experiment(first, "crossed")

named = [client.create_experiment(f"exp-{at}", tags={"n": str(at)}) for at in range(5)]
found = client.search_experiments()
assert [one.name for one in found] == ["exp-4", "exp-3", "exp-2", "exp-1", "exp-0", "crossed", "Default"], found
by_tag = client.search_experiments(filter_string="tags.n != '3' AND name LIKE 'exp-%'", order_by=["name DESC"])
assert [one.name for one in by_tag] == ["exp-4", "exp-2", "exp-1", "exp-0"]
assert [one.name for one in client.search_experiments(filter_string="tags.n IS NULL", order_by=["name"])] == ["Default", "crossed"]
assert [one.name for one in client.search_experiments(filter_string=f"experiment_id IN ('{named[0]}', '{named[1]}')")] == ["exp-1", "exp-0"]
page = client.search_experiments(max_results=3)
assert len(page) == 3 and page.token
rest = client.search_experiments(max_results=10, page_token=page.token)
assert [one.name for one in rest] == ["exp-1", "exp-0", "crossed", "Default"] and not rest.token
refused("INVALID_PARAMETER_VALUE", client.search_experiments, order_by=["name"], page_token=page.token)
refused("INVALID_PARAMETER_VALUE", client.search_experiments, page_token="abc")
refused("INVALID_PARAMETER_VALUE", client.search_experiments, filter_string="colour = 'x'", says="Invalid attribute key 'colour'")

client.delete_experiment(named[0])
assert client.get_experiment(named[0]).lifecycle_stage == "deleted"
refused("RESOURCE_DOES_NOT_EXIST", client.delete_experiment, named[0])
refused("INVALID_STATE", client.rename_experiment, named[0], "other")
refused("INVALID_PARAMETER_VALUE", client.set_experiment_tag, named[0], "a", "b", says="must be in the 'active' state")
refused("INVALID_PARAMETER_VALUE", client.create_run, named[0], says="must be in the 'active' state")
refused("RESOURCE_ALREADY_EXISTS", client.create_experiment, "exp-0")
assert [one.name for one in client.search_experiments(view_type=ViewType.DELETED_ONLY)] == ["exp-0"]
assert len(client.search_experiments(view_type=ViewType.ALL)) == 7
client.restore_experiment(named[0])
refused("RESOURCE_DOES_NOT_EXIST", client.restore_experiment, named[0])

# --- runs
mlflow.set_experiment("crossed")
with mlflow.start_run(run_name="first", tags={"team": "core"}, description="a note") as active:
    run_id = active.info.run_id
    mlflow.log_param("depth", 3)
    mlflow.log_params({"rate": 0.1, "long": "x" * 7000})
    mlflow.log_metric("loss", 1.0, step=0)
    mlflow.log_metrics({"loss": 0.5, "acc": 0.9}, step=1)
    mlflow.set_tag("mlflow.note.content", "changed")
    with mlflow.start_run(nested=True) as child:
        pass
run = client.get_run(run_id)
assert (run.info.status, run.info.run_name, run.info.lifecycle_stage) == ("FINISHED", "first", "active"), run.info
assert run.info.artifact_uri == f"mlflow-artifacts:/{first}/{run_id}/artifacts"
assert run.info.end_time >= run.info.start_time > 0
assert run.data.params == {"depth": "3", "rate": "0.1", "long": "x" * 6000}
assert run.data.metrics == {"loss": 0.5, "acc": 0.9}
assert run.data.tags["team"] == "core" and run.data.tags["mlflow.runName"] == "first" and run.data.tags["mlflow.note.content"] == "changed"
assert client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"] == run_id
assert ids(client.search_runs([first], f"tags.mlflow.parentRunId = '{run_id}'")) == [child.info.run_id]

client.log_param(run_id, "depth", 3)
refused("INVALID_PARAMETER_VALUE", client.log_param, run_id, "depth", 4, says="Changing param values is not allowed. Param with key='depth' was already logged with value='3'")
refused("INVALID_PARAMETER_VALUE", client.log_batch, run_id, params=[Param("depth", "5"), Param("fresh", "1")], says="Changing param values is not allowed")
assert "fresh" not in client.get_run(run_id).data.params, "all of a batch or nothing"
refused("INVALID_PARAMETER_VALUE", client.log_param, run_id, "a//b", 1)
refused("INVALID_PARAMETER_VALUE", client.log_param, run_id, "a%b", 1)
refused("INVALID_PARAMETER_VALUE", client.log_metric, run_id, "m" * 251, 1)
refused("RESOURCE_DOES_NOT_EXIST", client.get_run, "0" * 32)
refused("RESOURCE_DOES_NOT_EXIST", client.log_metric, "0" * 32, "m", 1)
for name in ["größe", "a b", "val/acc", "x:y", ".dot", "a-b_c.d"]:
    client.log_metric(run_id, name, 1.5)
    client.log_param(run_id, name, "v")
    client.set_tag(run_id, name, "t")
run = client.get_run(run_id)
assert all(run.data.metrics[name] == 1.5 and run.data.params[name] == "v" for name in ["größe", "a b", "val/acc", "x:y"])
client.delete_tag(run_id, "team")
refused("RESOURCE_DOES_NOT_EXIST", client.delete_tag, run_id, "team")
client.set_tag(run_id, "mlflow.runName", "renamed")
assert client.get_run(run_id).info.run_name == "renamed"
client.update_run(run_id, status="FAILED", name="again")
run = client.get_run(run_id)
assert (run.info.status, run.info.run_name, run.data.tags["mlflow.runName"]) == ("FAILED", "again", "again")
client.set_terminated(run_id, "KILLED", end_time=12345)
assert (client.get_run(run_id).info.status, client.get_run(run_id).info.end_time) == ("KILLED", 12345)
anonymous = client.create_run(first)
assert anonymous.info.run_name.count("-") == 2 and anonymous.info.status == "RUNNING"
refused("INVALID_PARAMETER_VALUE", client.create_run, first, tags={"mlflow.runName": "a"}, run_name="b", says="Both 'run_name' argument and 'mlflow.runName' tag")

# --- numbers that are none, and what is latest
odd = client.create_run(first).info.run_id
for at, value in enumerate([math.nan, math.inf, -math.inf, -0.0, 1e308, 5e-324]):
    client.log_metric(odd, f"v{at}", value, timestamp=1, step=0)
got = client.get_run(odd).data.metrics
assert math.isnan(got["v0"]) and (got["v1"], got["v2"], got["v4"], got["v5"]) == (math.inf, -math.inf, 1e308, 5e-324), got
assert math.isnan(client.get_metric_history(odd, "v0")[0].value)
client.log_metric(odd, "late", 1.0, timestamp=10, step=5)
client.log_metric(odd, "late", 2.0, timestamp=20, step=4)
assert client.get_run(odd).data.metrics["late"] == 1.0
client.log_metric(odd, "late", 3.0, timestamp=11, step=5)
assert client.get_run(odd).data.metrics["late"] == 3.0

# --- histories
history = client.create_run(first).info.run_id
points = [Metric("m", float(at), 1000 + at, at) for at in range(3000)]
for at in range(0, 3000, 1000):
    client.log_batch(history, metrics=points[at : at + 1000])
client.log_batch(history, metrics=points[:500])
client.log_metric(history, "m", 0.0, timestamp=1000, step=0)
read = client.get_metric_history(history, "m")
assert [(one.value, one.timestamp, one.step) for one in read] == [(one.value, one.timestamp, one.step) for one in points], len(read)
assert client.get_run(history).data.metrics["m"] == 2999.0
assert client.get_metric_history(history, "nothing") == []
paged, token = [], None
for _ in range(100):
    answer = ask("GET", "/api/2.0/mlflow/metrics/get-history", run_id=history, metric_key="m", max_results=700, **({"page_token": token} if token else {})).json()
    paged += [one["value"] for one in answer["metrics"]]
    token = answer.get("next_page_token")
    if not token:
        break
assert paged == [float(at) for at in range(3000)]
straight = client.create_run(first).info.run_id
client.log_batch(straight, metrics=points[:200])
client.log_batch(straight, metrics=[Metric("m", 7.0, 5000, at) for at in range(200, 300)])
first_page = ask("GET", "/api/2.0/mlflow/metrics/get-history", run_id=straight, metric_key="m", max_results=130).json()
second_page = ask("GET", "/api/2.0/mlflow/metrics/get-history", run_id=straight, metric_key="m", max_results=1000, page_token=first_page["next_page_token"]).json()
assert [one["step"] for one in first_page["metrics"] + second_page["metrics"]] == list(range(300)) and "next_page_token" not in second_page
assert ask("GET", "/api/2.0/mlflow/metrics/get-history", run_id=straight, metric_key="x", page_token=first_page["next_page_token"]).status_code == 400
bulk = ask("GET", "/api/2.0/mlflow/metrics/get-history-bulk", run_id=[history, straight], metric_key="m", max_results=3100).json()["metrics"]
assert len(bulk) == 3100 and {one["run_id"] for one in bulk} == {history, straight}
chart = ask("GET", "/api/2.0/mlflow/metrics/get-history-bulk-interval", run_ids=[history, straight], metric_key="m", max_results=100).json()["metrics"]
of_history = [one["step"] for one in chart if one["run_id"] == history]
assert len(of_history) == 100 and of_history[0] == 0 and of_history[-1] == 2999 and of_history == sorted(of_history)
window = ask("GET", "/api/2.0/mlflow/metrics/get-history-bulk-interval", run_ids=history, metric_key="m", start_step=10, end_step=19).json()["metrics"]
assert [one["step"] for one in window] == list(range(10, 20))

# as many runs at once as MLflow's own server takes, and not one more
crowd = [client.create_run(first).info.run_id for _ in range(98)]
for at, one in enumerate(crowd):
    client.log_metric(one, "m", float(at), timestamp=1, step=0)
hundred = [history, straight, *crowd]
for path, field, more in [("get-history-bulk", "run_id", {"max_results": 25000}), ("get-history-bulk-interval", "run_ids", {"max_results": 10})]:
    found = ask("GET", f"/api/2.0/mlflow/metrics/{path}", metric_key="m", **{field: hundred}, **more)
    assert found.status_code == 200 and {one["run_id"] for one in found.json()["metrics"]} == set(hundred), (path, found.text[:300])
    over = ask("GET", f"/api/2.0/mlflow/metrics/{path}", metric_key="m", **{field: [*hundred, odd]})
    assert over.status_code == 400 and "100" in over.json()["message"], over.text
flood = ask("GET", "/api/2.0/mlflow/metrics/get-history-bulk", metric_key="m", run_id=["0"] * 400)
assert flood.status_code in (400, 414, 431), flood.status_code

# --- batches
refused("INVALID_PARAMETER_VALUE", client._tracking_client.store.log_batch, odd, [], [Param("a", "1"), Param("a", "2")], [], says="Duplicate parameter keys")
many = [Param(f"p{at}", "v") for at in range(101)]
refused("INVALID_PARAMETER_VALUE", client._tracking_client.store.log_batch, odd, [], many, [], says="A batch logging request can contain at most 100 params. Got 101 params.")
client.log_batch(odd, metrics=[Metric("b", 1, 1, 1)], params=[Param("b", "2")], tags=[RunTag("b", "3"), RunTag("b", "4")])
run = client.get_run(odd)
assert (run.data.metrics["b"], run.data.params["b"], run.data.tags["b"]) == (1.0, "2", "4")

# --- inputs
dataset = Dataset("iris", "abc", "local", "/iris", schema="s" * 5000, profile="{}")
client.log_inputs(odd, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")]), DatasetInput(dataset, [])])
client.log_inputs(odd, [DatasetInput(dataset, [InputTag("mlflow.data.context", "never")])])
inputs = client.get_run(odd).inputs.dataset_inputs
assert len(inputs) == 1 and inputs[0].dataset.schema == "s" * 5000 and inputs[0].tags[0].value == "training", inputs
for filter_string in ["dataset.name = 'iris'", "dataset.context IN ('training', 'x')", "datasets.digest LIKE 'ab%'"]:
    (only,) = client.search_runs([first], filter_string)
    assert only.info.run_id == odd and only.inputs.dataset_inputs[0].dataset.schema == "s" * 5000
assert ids(client.search_runs([first], "dataset.context = 'never'")) == []
client.log_inputs(history, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")]), DatasetInput(Dataset("plain", "d", "local", "/p"), [])])
used = ask("POST", "/api/2.0/mlflow/experiments/search-datasets", experiment_ids=[first, first, "4711"]).json()["dataset_summaries"]
assert sorted(used, key=lambda one: one["name"]) == [
    {"experiment_id": first, "name": "iris", "digest": "abc", "context": "training"},
    {"experiment_id": first, "name": "plain", "digest": "d"},
], used
for ids_asked, says in [([], "must specify at least one experiment_id"), ([first] * 21, "cannot specify more than 20 experiment_ids")]:
    none = ask("POST", "/api/2.0/mlflow/experiments/search-datasets", experiment_ids=ids_asked)
    assert none.status_code == 400 and says in none.json()["message"], none.text
assert ask("POST", "/api/2.0/mlflow/experiments/search-datasets", token=OTHER, experiment_ids=[first]).json() == {"dataset_summaries": []}

# --- search
grid = client.create_experiment("grid")
made = []
for at in range(20):
    one = client.create_run(grid, start_time=1000 + at, run_name=f"run-{at:02}", tags={"even": str(at % 2 == 0)} if at < 18 else {})
    client.log_batch(one.info.run_id, metrics=[Metric("m", math.nan if at == 7 else at / 10, 1, 1)] if at != 11 else [], params=[Param("p", str(at))])
    made.append(one.info.run_id)
assert ids(client.search_runs([grid])) == made[::-1]
for filter_string, expected in [
    ("metrics.m > 1.5", [19, 18, 17, 16]),
    ("metrics.m != 0.5", [at for at in range(19, -1, -1) if at not in (5, 11)]),
    ("metrics.m >= 0 AND metrics.m < 0.3", [2, 1, 0]),
    ("params.p = '3'", [3]),
    ("params.p LIKE '1_'", list(range(19, 9, -1))),
    ("params.p ILIKE '%9'", [19, 9]),
    ("tags.even IS NULL", [19, 18]),
    ("tags.even = 'True' AND params.p != '0' AND metrics.m <= 0.4", [4, 2]),
    ("attributes.start_time >= 1018", [19, 18]),
    ("start_time < 1002", [1, 0]),
    ("attributes.run_name = 'run-05'", [5]),
    ("run_name LIKE 'run-1%' and tags.even='False'", [17, 15, 13, 11]),
    (f"run_id IN ('{made[1]}', '{made[2]}')", [2, 1]),
    (f"run_id NOT IN ('{made[1]}') AND start_time < 1003", [2, 0]),
    ("status = 'RUNNING' AND params.p = '1'", [1]),
    ("status = 'FINISHED'", []),
    ("end_time > 0", []),
    ("tags.`mlflow.runName` = 'run-03'", [3]),
    ('params."p" = "12"', [12]),
]:
    assert ids(client.search_runs([grid], filter_string)) == [made[at] for at in expected], filter_string
for order, expected in [
    (["metrics.m ASC"], [0, 1, 2, 3, 4, 5, 6, 8]),
    (["metrics.m DESC"], [19, 18, 17, 16, 15, 14, 13, 12]),
    (["params.p"], [0, 1, 10, 11, 12, 13, 14, 15]),
    (["tags.even DESC", "start_time ASC"], [0, 2, 4, 6, 8, 10, 12, 14]),
    (["attributes.start_time ASC"], [0, 1, 2, 3, 4, 5, 6, 7]),
    (["run_name DESC"], [19, 18, 17, 16, 15, 14, 13, 12]),
]:
    assert ids(client.search_runs([grid], order_by=order, max_results=8)) == [made[at] for at in expected], order
assert ids(client.search_runs([grid], order_by=["metrics.m DESC"]))[-2:] == [made[7], made[11]], "NaN and absent last"
assert ids(client.search_runs([grid], order_by=["metrics.m ASC"]))[-2:] == [made[7], made[11]], "NaN and absent last"
pages, token = [], None
while True:
    page = client.search_runs([grid], order_by=["params.p"], max_results=6, page_token=token)
    pages += ids(page)
    token = page.token
    if not token:
        break
assert sorted(pages) == sorted(made) and len(pages) == 20
for filter_string in ["metrics.m > 'x'", "params.p > '3'", "metrics.m = 1 OR metrics.m = 2", "colour = 'x'", "params.p = 3", "metrics.m >", "run_name IN ('a')"]:
    refused("INVALID_PARAMETER_VALUE", client.search_runs, [grid], filter_string)
refused("INVALID_PARAMETER_VALUE", client.search_runs, [grid], order_by=["metrics.m up"])
refused("INVALID_PARAMETER_VALUE", client.search_runs, [grid], max_results=50001)
frame = mlflow.search_runs([grid], "metrics.m > 1.7")
assert list(frame["params.p"]) == ["19", "18"] and list(frame["metrics.m"]) == [1.9, 1.8]
client.log_metric(made[0], "m", 99.0, step=2)
assert ids(client.search_runs([grid], "metrics.m > 50")) == [made[0]], "what was acknowledged is found"

# --- delete and restore
client.delete_run(made[0])
assert client.get_run(made[0]).info.lifecycle_stage == "deleted"
refused("INVALID_PARAMETER_VALUE", client.log_metric, made[0], "m", 1, says="must be in the 'active' state")
refused("INVALID_PARAMETER_VALUE", client.set_tag, made[0], "m", 1)
assert made[0] not in ids(client.search_runs([grid]))
assert ids(client.search_runs([grid], run_view_type=ViewType.DELETED_ONLY)) == [made[0]]
assert len(client.search_runs([grid], run_view_type=ViewType.ALL)) == 20
client.restore_run(made[0])
client.log_metric(made[0], "m", 100.0, step=3)
assert made[0] in ids(client.search_runs([grid]))
client.delete_run(made[1])
client.delete_experiment(grid)
assert client.get_run(made[2]).info.lifecycle_stage == "deleted"
assert client.search_runs([grid]) == [] and len(client.search_runs([grid], run_view_type=ViewType.DELETED_ONLY)) == 20
refused("INVALID_PARAMETER_VALUE", client.log_metric, made[2], "m", 1)
client.restore_experiment(grid)
assert len(client.search_runs([grid])) == 20 and client.get_run(made[1]).info.lifecycle_stage == "active"

# --- retention: what is past it goes for good by itself
def holds(condition, what):
    for _ in range(900):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"not in 90 s: {what}")


def is_gone(call, *args):
    try:
        call(*args)
    except MlflowException as error:
        assert error.error_code == "RESOURCE_DOES_NOT_EXIST", error
        return True
    return False


assert ask("GET", "/v1/tracking").json() == {"retention_days": 30}
client.delete_run(made[3])
client.delete_experiment(named[1])
client.delete_run(history)
assert ask("PUT", "/v1/tracking", retention_days=0).status_code == 200
holds(lambda: is_gone(client.get_run, made[3]), "the run goes")
holds(lambda: is_gone(client.get_experiment, named[1]), "the experiment goes")
holds(lambda: is_gone(client.get_metric_history, history, "m"), "the long history goes")
refused("RESOURCE_DOES_NOT_EXIST", client.restore_run, made[3])
holds(lambda: made[3] not in ids(client.search_runs([grid], run_view_type=ViewType.ALL)), "the search forgets it")
client.create_experiment("exp-1")
assert ask("PUT", "/v1/tracking", retention_days=30).status_code == 200
assert ask("PUT", "/v1/tracking", retention_days=4000).status_code == 400

# --- the client's own ways: autologging, system metrics, parallel runs, asynchronous logging
mlflow.set_experiment("grid")
with mlflow.start_run(log_system_metrics=False) as active:
    for at in range(50):
        mlflow.log_metric("async", at, step=at, synchronous=False)
    mlflow.flush_async_logging()
    mlflow.log_input(mlflow.data.from_dict({"a": [1]}) if hasattr(mlflow.data, "from_dict") else mlflow.data.meta_dataset.MetaDataset(mlflow.data.http_dataset_source.HTTPDatasetSource("http://x/y")), context="eval")
assert client.get_run(active.info.run_id).data.metrics["async"] == 49.0
assert len(client.get_metric_history(active.info.run_id, "async")) == 50
assert client.get_run(active.info.run_id).inputs.dataset_inputs[0].tags[0].value == "eval"

# --- the other tenant: the same names, none of the content
for path, fields in [
    ("/api/2.0/mlflow/runs/get", {"run_id": run_id}),
    ("/api/2.0/mlflow/experiments/get", {"experiment_id": grid}),
    ("/api/2.0/mlflow/experiments/get-by-name", {"experiment_name": "crossed"}),
    ("/api/2.0/mlflow/metrics/get-history", {"run_id": straight, "metric_key": "m"}),
]:
    answer, absent = ask("GET", path, token=OTHER, **fields), ask("GET", path, token=OTHER, **{**fields, list(fields)[0]: "9" * 32})
    assert answer.status_code == 404 and answer.content == absent.content, (path, answer.text, absent.text)
for path, fields in [
    ("/api/2.0/mlflow/runs/log-metric", {"key": "m", "value": 1, "timestamp": 1}),
    ("/api/2.0/mlflow/runs/set-tag", {"key": "m", "value": "1"}),
    ("/api/2.0/mlflow/runs/delete", {}),
    ("/api/2.0/mlflow/runs/update", {"run_name": "x"}),
    ("/api/2.0/mlflow/runs/log-batch", {}),
]:
    assert ask("POST", path, token=OTHER, run_id=run_id, **fields).status_code == 404, path
every = [str(at) for at in range(20)]
assert ask("POST", "/api/2.0/mlflow/runs/search", token=OTHER, experiment_ids=every).json()["runs"] == []
theirs = ask("POST", "/api/2.0/mlflow/experiments/create", token=OTHER, name="crossed").json()["experiment_id"]
their_run = ask("POST", "/api/2.0/mlflow/runs/create", token=OTHER, experiment_id=theirs, tags=[{"key": "team", "value": "theirs"}]).json()["run"]
assert their_run["info"]["user_id"] == "bob"
assert client.search_runs([first, theirs], "tags.team = 'theirs'") == []
mine = ask("POST", "/api/2.0/mlflow/runs/search", experiment_ids=[first], max_results=1).json()["next_page_token"]
crossed = ask("POST", "/api/2.0/mlflow/runs/search", token=OTHER, experiment_ids=[first], max_results=1, page_token=mine)
assert crossed.status_code == 400, "a page token of another tenant opens nothing"
assert run_id not in mine and len({mine, *[ask("POST", "/api/2.0/mlflow/runs/search", experiment_ids=[first], max_results=1).json()["next_page_token"] for _ in range(3)]}) == 4, "sealed anew each time"
print("tracking holds")
