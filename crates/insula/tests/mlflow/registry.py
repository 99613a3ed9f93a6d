"""From a scikit-learn model to an endpoint, and the registry around it, with the stock client."""

import os
import warnings

warnings.filterwarnings("ignore")

import mlflow
import mlflow.onnx
import mlflow.sklearn
import numpy as np
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

URL = os.environ["MLFLOW_TRACKING_URI"]
CERT = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
MINE = os.environ["MLFLOW_TRACKING_TOKEN"]
OTHER = os.environ["INSULA_OTHER_TOKEN"]


def ask(method, path, token=MINE, **rest):
    return requests.request(method, URL + path, headers={"Authorization": f"Bearer {token}"}, verify=CERT, timeout=120, **rest)


def ok(answer):
    assert answer.status_code < 300, (answer.status_code, answer.text)
    return answer.json() if answer.text else {}


def fails(code, call):
    try:
        call()
    except MlflowException as error:
        assert error.error_code == code, (error.error_code, str(error))
        return str(error)
    raise SystemExit(f"{code} was expected")


client = MlflowClient()
mlflow.set_experiment("iris")
data = load_iris(as_frame=True)
features, target = data.data, data.target
classifier = LogisticRegression(max_iter=1000).fit(features, target)
rows = features.iloc[[0, 60, 120, 149]]
expected, chances = classifier.predict(rows.to_numpy()), classifier.predict_proba(rows.to_numpy())

# A pickle alone is kept, never loaded, and the answer to deploying it says what to do.
with mlflow.start_run() as run:
    mlflow.log_metric("accuracy", float(classifier.score(features, target)))
    info = mlflow.sklearn.log_model(classifier, name="model", registered_model_name="iris", input_example=rows)
first = client.get_model_version("iris", "1")
assert first.run_id == run.info.run_id and first.status == "READY", first
assert first.source == f"models:/{info.model_id}", first.source
assert client.get_model_version_download_uri("iris", "1").startswith("mlflow-artifacts:/"), first
refused = ask("PUT", "/v1/deployments/iris", json={"model": "iris", "version": 1})
assert refused.status_code == 422 and refused.json()["code"] == "not_deployable", refused.text
assert "mlflow.onnx.log_model" in refused.json()["detail"], refused.text
loaded = mlflow.sklearn.load_model("models:/iris/1")
assert (loaded.predict(rows) == expected).all(), "the client loads its own pickle"

# ONNX is deployable at once.
onnx_model = to_onnx(classifier, features.to_numpy()[:1].astype(np.float32), options={"zipmap": False})
with mlflow.start_run() as run:
    mlflow.log_metric("accuracy", float(classifier.score(features, target)))
    mlflow.onnx.log_model(onnx_model, name="model", registered_model_name="iris")
second = ok(ask("GET", "/v1/models/iris/versions/2"))
assert second["sha256"] and second["inputs"][0]["datatype"] == "FP32" and second["lineage"]["source"] == "logged", second
ok(ask("PUT", "/v1/deployments/iris", json={"model": "iris", "version": 2}))

matrix = rows.to_numpy().tolist()
oip = ok(ask("POST", "/v2/models/iris/infer", json={"inputs": [{"name": "X", "shape": [4, 4], "datatype": "FP32", "data": matrix}]}))
by_name = {one["name"]: one["data"] for one in oip["outputs"]}
label, probability = [one["name"] for one in oip["outputs"]]
assert by_name[label] == expected.tolist(), by_name
assert np.allclose(np.array(by_name[probability]).reshape(4, 3), chances, atol=1e-5)

frame = rows.reset_index(drop=True)
split = {"dataframe_split": frame.to_dict(orient="split")}
records = {"dataframe_records": frame.to_dict(orient="records")}
for where in ["/v2/models/iris/invocations", "/v1/deployments/iris/invocations"]:
    for body in [split, records]:
        got = ok(ask("POST", where, json=body))["predictions"]
        assert [one[label] for one in got] == by_name[label], got
        assert [number for one in got for number in one[probability]] == by_name[probability], "digit by digit what OIP says"
    for body in [{"inputs": matrix}, {"instances": matrix}, {"inputs": {"X": matrix}}, {"instances": [{"X": row} for row in matrix]}]:
        got = ok(ask("POST", where, json=body))["predictions"]
        assert got[label] == by_name[label] and np.array(got[probability]).reshape(-1).tolist() == by_name[probability], got
    shuffled = [dict(reversed(list(row.items()))) if at else row for at, row in enumerate(records["dataframe_records"])]
    got = ok(ask("POST", where, json={"dataframe_records": shuffled}))["predictions"]
    assert [one[label] for one in got] == by_name[label], "columns are known by name"
for body, word in [
    ({"dataframe_split": {"columns": ["a"], "data": [[1.0]]}}, "shape"),
    ({"dataframe_records": [{"a": 1}, {"b": 1}]}, "record"),
    ({"inputs": matrix, "instances": matrix}, "give one of"),
    ({"rows": matrix}, "unknown field"),
    ({"inputs": [[1, 2, 3, 4], [1, 2]]}, "elements"),
    ({"inputs": [["x", 2, 3, 4]]}, "number"),
    ({"inputs": {"nope": matrix}}, "no input"),
    ({}, "nothing to predict"),
]:
    answer = ask("POST", "/v1/deployments/iris/invocations", json=body)
    assert answer.status_code == 400 and word in answer.json()["detail"], (body, answer.text)
assert ask("POST", "/v1/deployments/iris/invocations", data="a,b\n1,2", token=MINE).status_code in (400, 415)
assert ask("POST", "/v1/deployments/iris/invocations", token=OTHER, json=split).status_code == 404

# With ZipMap, as skl2onnx makes it unasked: a class and its chance each.
with mlflow.start_run():
    mlflow.onnx.log_model(to_onnx(classifier, features.to_numpy()[:1].astype(np.float32)), name="model", registered_model_name="zipped")
ok(ask("PUT", "/v1/deployments/zipped", json={"model": "zipped", "version": 1}))
got = ok(ask("POST", "/v2/models/zipped/invocations", json=split))["predictions"]
keys = list(got[0])
assert [one[keys[0]] for one in got] == expected.tolist() and np.allclose([list(one[keys[1]].values()) for one in got], chances, atol=1e-5), got

# The registry.
fails("RESOURCE_ALREADY_EXISTS", lambda: client.create_registered_model("iris"))
fails("RESOURCE_DOES_NOT_EXIST", lambda: client.get_registered_model("nobody"))
fails("INVALID_PARAMETER_VALUE", lambda: client.create_registered_model("a/b"))
odd = client.create_registered_model("größe (v2) #1", tags={"team": "core"}, description="words")
assert client.get_registered_model("größe (v2) #1").description == "words"
client.update_registered_model("größe (v2) #1", description="other words")
client.set_registered_model_tag("größe (v2) #1", "k", "v" * 9000)
client.delete_registered_model_tag("größe (v2) #1", "team")
assert set(client.get_registered_model("größe (v2) #1").tags) == {"k"}
client.rename_registered_model("größe (v2) #1", "renamed")
fails("RESOURCE_DOES_NOT_EXIST", lambda: client.get_registered_model("größe (v2) #1"))
assert client.get_registered_model("renamed").tags["k"] == "v" * 9000
client.delete_registered_model("renamed")

client.set_model_version_tag("iris", "2", "checked", "yes")
client.update_model_version("iris", "2", description="the second")
client.set_registered_model_alias("iris", "champion", "2")
got = client.get_model_version_by_alias("iris", "champion")
assert got.version in (2, "2") and got.tags == {"checked": "yes"} and got.description == "the second" and got.aliases == ["champion"], got
client.delete_model_version_tag("iris", "2", "checked")
fails("INVALID_PARAMETER_VALUE", lambda: client.get_model_version_by_alias("iris", "nobody"))
fails("INVALID_PARAMETER_VALUE", lambda: client.set_registered_model_alias("iris", "latest", "1"))
fails("RESOURCE_DOES_NOT_EXIST", lambda: client.set_registered_model_alias("iris", "other", "99"))
client.transition_model_version_stage("iris", "1", "Production")
client.transition_model_version_stage("iris", "2", "production", archive_existing_versions=True)
assert {one.current_stage: str(one.version) for one in client.get_latest_versions("iris")} == {"Archived": "1", "Production": "2"}
assert [str(one.version) for one in client.get_latest_versions("iris", ["Production"])] == ["2"]
fails("INVALID_PARAMETER_VALUE", lambda: client.transition_model_version_stage("iris", "1", "nowhere"))

# A copy is deployable like its original.
copied = client.copy_model_version("models:/iris@champion", "copied")
assert str(copied.version) == "1" and copied.source == "models:/iris/2", copied
ok(ask("PUT", "/v1/deployments/copied", json={"model": "copied", "version": 1}))
assert ok(ask("POST", "/v2/models/copied/invocations", json={"inputs": matrix}))["predictions"][label] == by_name[label]
assert client.get_model_version_download_uri("copied", "1") == client.get_model_version_download_uri("iris", "2")

assert [one.name for one in client.search_registered_models(order_by=["name DESC"])] == ["zipped", "iris", "copied"]
assert [one.name for one in client.search_registered_models(filter_string="name ILIKE 'I%'")] == ["iris"]
page = client.search_registered_models(max_results=2)
assert [one.name for one in page] == ["copied", "iris"] and page.token
assert [one.name for one in client.search_registered_models(max_results=2, page_token=page.token)] == ["zipped"]
fails("INVALID_PARAMETER_VALUE", lambda: client.search_registered_models(filter_string="name ILIKE 'I%'", page_token=page.token))
assert [str(one.version) for one in client.search_model_versions("name = 'iris'")] == ["2", "1"]
assert [str(one.version) for one in client.search_model_versions(f"run_id = '{first.run_id}'")] == ["1"]
assert [str(one.version) for one in client.search_model_versions("name = 'iris' AND version_number > 1")] == ["2"]
ours = mlflow.search_model_versions(filter_string="name LIKE 'i%'", order_by=["version_number ASC"])
assert [str(one.version) for one in ours] == ["1", "2"], ours
assert '"version": 1' in str(client.get_logged_model(info.model_id).tags).replace("'", '"').replace('\\"', '"'), client.get_logged_model(info.model_id).tags

# A version that is in use stays.
fails("RESOURCE_ALREADY_EXISTS", lambda: client.delete_model_version("copied", "1"))
ok(ask("DELETE", "/v1/deployments/copied"))
client.delete_model_version("copied", "1")
fails("RESOURCE_DOES_NOT_EXIST", lambda: client.get_model_version("copied", "1"))
client.copy_model_version("models:/iris/2", "copied")
assert [str(one.version) for one in client.search_model_versions("name = 'copied'")] == ["2"], "a number is given once"

# History, and a gate: a threshold that the run does not reach, and an author who cannot approve herself.
history = ok(ask("GET", "/v1/models/iris/history"))["items"]
assert [(one["what"], one["by"]) for one in history] == [("alias", "ada"), ("stage", "ada"), ("stage", "ada"), ("stage", "ada")], history
assert [(one["from"], one["to"]) for one in history[1:]] == [("None", "Production"), ("Production", "Archived"), ("None", "Production")]
ok(ask("PUT", "/v1/members/dora", json={"roles": ["data_scientist"]}))
dora = ok(ask("POST", "/v1/keys", json={"name": "dora", "member": "dora"}))["secret"]
gate = {"aliases": ["champion"], "stages": ["Staging"], "thresholds": [{"metric": "accuracy", "at_least": 0.999}], "approval": True}
assert ask("PUT", "/v1/models/iris/gate", token=dora, json=gate).status_code == 403, "an administrator sets it"
ok(ask("PUT", "/v1/models/iris/gate", json=gate))
said = fails("PERMISSION_DENIED", lambda: client.set_registered_model_alias("iris", "champion", "1"))
assert "accuracy" in said and "below 0.999" in said and "approved" in said, said
client.set_registered_model_alias("iris", "free", "1")
said = ask("PUT", "/v1/models/iris/aliases/champion", json={"version": 1})
assert said.status_code == 403 and said.json()["code"] == "gate_closed", said.text
ok(ask("PUT", "/v1/models/iris/gate", json={**gate, "thresholds": [{"metric": "accuracy", "at_least": 0.5}]}))
said = fails("PERMISSION_DENIED", lambda: client.transition_model_version_stage("iris", "1", "Staging"))
assert "accuracy" not in said and "approved" in said, said
assert ask("PUT", "/v1/models/iris/versions/1/approval").status_code == 400, "the author"
ok(ask("PUT", "/v1/models/iris/versions/1/approval", token=dora))
client.transition_model_version_stage("iris", "1", "Staging")
client.set_registered_model_alias("iris", "champion", "1")
assert [one["by"] for one in ok(ask("GET", "/v1/models/iris/versions/1/approval"))] == ["dora"]

# Prompts are registered models that are not shown among them.
prompt = mlflow.genai.register_prompt("greeting", "Hello {{name}}!", commit_message="first", tags={"lang": "en"})
assert prompt.version == 1 and mlflow.genai.load_prompt("prompts:/greeting/1").format(name="Ada") == "Hello Ada!"
mlflow.genai.register_prompt("greeting", "Good day {{name}}!")
mlflow.genai.set_prompt_alias("greeting", alias="production", version=2)
assert mlflow.genai.load_prompt("prompts:/greeting@production").template == "Good day {{name}}!"
assert [one.name for one in mlflow.genai.search_prompts()] == ["greeting"]
assert "greeting" not in [one.name for one in client.search_registered_models()]

# The other tenant has nothing of it, under the same names.
for path, params in [
    ("/api/2.0/mlflow/registered-models/get", {"name": "iris"}),
    ("/api/2.0/mlflow/model-versions/get", {"name": "iris", "version": "1"}),
    ("/api/2.0/mlflow/registered-models/alias", {"name": "iris", "alias": "champion"}),
]:
    assert ask("GET", path, token=OTHER, params=params).status_code == 404, path
assert ok(ask("GET", "/api/2.0/mlflow/registered-models/search", token=OTHER)).get("registered_models", []) == []
stolen = {"name": "mine", "source": first.source, "model_id": info.model_id}
ok(ask("POST", "/api/2.0/mlflow/registered-models/create", token=OTHER, json={"name": "mine"}))
assert ask("POST", "/api/2.0/mlflow/model-versions/create", token=OTHER, json=stolen).status_code == 404
bare = {"name": "iris", "source": first.source}
answer = ask("POST", "/api/2.0/mlflow/model-versions/create", json={**bare, "run_id": run.info.run_id})
assert answer.status_code == 400 and "run_id" in answer.json()["message"], "another run cannot lend its metrics"
for source in ["/etc/passwd", "file:///etc/passwd", "mlflow-artifacts:/0/../x", "models:/iris/../x"]:
    answer = ask("POST", "/api/2.0/mlflow/model-versions/create", token=OTHER, json={**stolen, "source": source})
    assert answer.status_code in (400, 404), (source, answer.text)
print("from run to endpoint")
