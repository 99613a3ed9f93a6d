"""Compares a source (argument 1) with a tenant (MLFLOW_TRACKING_URI), both read with the stock client, field by field."""

import hashlib
import os
import pathlib
import sys
import urllib.parse
import warnings

warnings.filterwarnings("ignore")

import requests
from mlflow import MlflowClient
from mlflow.entities import ViewType

TARGET = os.environ["MLFLOW_TRACKING_URI"]
left, right = MlflowClient(sys.argv[1], sys.argv[1]), MlflowClient(TARGET, TARGET)


def ours(tags):
    return {key: value for key, value in tags.items() if key != "insula.imported"}


def everything(page):
    found, token = [], None
    while True:
        some = page(token)
        found += some
        token = some.token
        if not token:
            return found


def same(what, a, b):
    if a != b:
        raise SystemExit(f"{what}\n  source: {str(a)[:1500]}\n  target: {str(b)[:1500]}")


def point(metric):
    return (metric.timestamp, metric.step, repr(float(metric.value)))


def target_file(path):
    """The stock client does not encode what it asks for."""
    url = f"{TARGET}/api/2.0/mlflow-artifacts/artifacts/" + urllib.parse.quote(path)
    headers = {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"]}
    answer = requests.get(url, headers=headers, verify=os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"], timeout=60)
    assert answer.status_code == 200, (path, answer.text)
    return hashlib.sha256(answer.content).hexdigest()


def files_of(client, run, folder=None):
    found = {}
    for file in client.list_artifacts(run.info.run_id, folder):
        if file.is_dir:
            found |= files_of(client, run, file.path)
        elif client is right:
            root = run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
            found[file.path] = target_file(f"{root}/{file.path}")
        else:
            with open(client.download_artifacts(run.info.run_id, file.path), "rb") as bytes_:
                found[file.path] = hashlib.sha256(bytes_.read()).hexdigest()
    return found


def files_on_disk(root):
    root = pathlib.Path(root.removeprefix("file://"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def target_files(run, folder=""):
    """The same without the stock client, which refuses some names in a listing."""
    headers = {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"]}
    asked = {"run_id": run.info.run_id, "path": folder}
    cert = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
    answer = requests.get(f"{TARGET}/api/2.0/mlflow/artifacts/list", params=asked, headers=headers, verify=cert, timeout=60).json()
    found = {}
    for file in answer["files"]:
        if file["is_dir"]:
            found |= target_files(run, file["path"])
        else:
            found[file["path"]] = target_file(run.info.artifact_uri.removeprefix("mlflow-artifacts:/") + "/" + file["path"])
    return found


def facts(run):
    info = run.info
    return (info.run_name, info.status, info.start_time, info.end_time, info.user_id, info.lifecycle_stage)


def inputs(run):
    shown = []
    for given in run.inputs.dataset_inputs:
        data = given.dataset
        tags = sorted((tag.key, tag.value) for tag in given.tags)
        shown.append((data.name, data.digest, data.source_type, data.source, data.schema, data.profile, tags))
    return sorted(shown)


def outputs(run):
    return sorted((model.model_id, model.step) for model in run.outputs.model_outputs)


counts = {"runs": 0, "points": 0, "files": 0, "versions": 0}
experiments = [{e.name: e for e in everything(lambda token: c.search_experiments(ViewType.ALL, page_token=token))} for c in (left, right)]
same("experiments", sorted(experiments[0]), sorted(experiments[1]))
for name, source in experiments[0].items():
    target = experiments[1][name]
    same(f"tags of {name}", source.tags, ours(target.tags))
    same(f"life of {name}", source.lifecycle_stage, target.lifecycle_stage)
    runs = [
        {run.info.run_id: run for run in everything(lambda token: c.search_runs([e.experiment_id], "", ViewType.ALL, 100, page_token=token))}
        for c, e in ((left, source), (right, target))
    ]
    same(f"runs of {name}", sorted(runs[0]), sorted(runs[1]))
    for run_id in runs[0]:
        a, b = left.get_run(run_id), right.get_run(run_id)
        counts["runs"] += 1
        same(f"facts of {run_id}", facts(a), facts(b))
        same(f"params of {run_id}", a.data.params, b.data.params)
        same(f"tags of {run_id}", a.data.tags, b.data.tags)
        same(f"inputs of {run_id}", inputs(a), inputs(b))
        same(f"outputs of {run_id}", outputs(a), outputs(b))
        same(f"latest of {run_id}", {k: repr(v) for k, v in a.data.metrics.items()}, {k: repr(v) for k, v in b.data.metrics.items()})
        for key in a.data.metrics:
            one, two = (sorted(map(point, c.get_metric_history(run_id, key))) for c in (left, right))
            same(f"{key} of {run_id}", one, two)
            counts["points"] += len(one)
        if b.info.lifecycle_stage == "active" or sys.argv[2:]:
            one = files_on_disk(a.info.artifact_uri) if sys.argv[2:] else files_of(left, a)
            same(f"artifacts of {run_id}", one, target_files(b) if sys.argv[2:] else files_of(right, b))
            counts["files"] += len(one)


def logged(client, experiments):
    found = {}
    for model in everything(lambda token: client.search_logged_models([e.experiment_id for e in experiments.values()], page_token=token)):
        tags = {key: value for key, value in ours(model.tags).items() if key != "mlflow.modelVersions"}
        metrics = sorted((m.key, m.value, m.step, m.timestamp, m.run_id) for m in model.metrics or [])
        found[model.model_id] = (model.name, model.model_type or "", model.source_run_id, str(model.status), tags, model.params, metrics)
    return found


def registry(client):
    found = {}
    for filter_ in (None, "tags.`mlflow.prompt.is_prompt` = 'true'"):
        for model in everything(lambda token: client.search_registered_models(filter_, page_token=token)):
            # Aliases come whole with one model alone.
            model = model if filter_ else client.get_registered_model(model.name)
            quoted = f"name=\"{model.name}\"" if "'" in model.name else f"name='{model.name}'"
            versions, quoted = {}, f"{quoted} AND {filter_}" if filter_ else quoted
            for version in everything(lambda token: client.search_model_versions(quoted, page_token=token)):
                shown = (version.description or "", version.current_stage, ours(version.tags), version.run_id or "")
                versions[int(version.version)] = shown
                counts["versions"] += client is right
            tags = ours(model.tags)
            if numbers := tags.get("_mlflow_experiment_ids"):
                # By name: the numbers are others.
                tags["_mlflow_experiment_ids"] = [client.get_experiment(number).name for number in numbers.strip(",").split(",")]
            found[model.name] = (model.description or "", tags, {a: int(v) for a, v in model.aliases.items()}, versions)
    return found


loose = {model_id for model_id, facts_ in logged(right, experiments[1]).items() if facts_[0] == "elsewhere-1"}
target_models = {model_id: facts_ for model_id, facts_ in logged(right, experiments[1]).items() if model_id not in loose}
same("logged models", logged(left, experiments[0]), target_models)
if loose:
    uri = right.get_model_version_download_uri("elsewhere", "1").removeprefix("mlflow-artifacts:/")
    same("files of no run", hashlib.sha256(b"loose").hexdigest(), target_file(f"{uri}/weights.bin"))
same("registered models", registry(left), registry(right))
assert counts["runs"] and counts["points"], counts
assert bool(loose) == ("elsewhere" in registry(left)), loose
print(counts)
