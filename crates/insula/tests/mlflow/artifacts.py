"""Artifacts and logged models with the stock client: odd names, folders, big files, deletion, and nobody else's."""

import os
import random
import tempfile
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

URL = os.environ["MLFLOW_TRACKING_URI"]
CERT = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
MINE = os.environ["MLFLOW_TRACKING_TOKEN"]
OTHER = os.environ["INSULA_OTHER_TOKEN"]
ARTIFACTS = f"{URL}/api/2.0/mlflow-artifacts/artifacts"


def ask(method, url, token=MINE, **rest):
    return requests.request(method, url, headers={"Authorization": f"Bearer {token}"}, verify=CERT, timeout=60, **rest)


client = MlflowClient()
experiment = client.create_experiment("files")
run = client.create_run(experiment)
run_id, root = run.info.run_id, run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
assert root == f"{experiment}/{run_id}/artifacts", run.info.artifact_uri

# Names as people give them. `#` and `%` are for the raw address: the client itself does not encode them.
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    names = ["plain.txt", "two words.txt", "größe.txt", "日本.csv", "a+b=c&d;e.txt", "(1) [2] {3}.txt", "empty"]
    contents = {name: b"" if name == "empty" else f"inside {name}".encode() for name in names}
    (folder / "deep" / "er").mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        (folder / "deep" / "er" / name).write_bytes(content)
    client.log_artifacts(run_id, str(folder))
    client.log_artifacts(run_id, str(folder), "ünter/folder")
listed = {one.path: one for one in client.list_artifacts(run_id)}
assert set(listed) == {*names, "deep", "ünter"}, listed
assert listed["deep"].is_dir and listed["empty"].file_size == 0
assert listed["größe.txt"].file_size == len(contents["größe.txt"])
assert {one.path for one in client.list_artifacts(run_id, "ünter/folder/deep/er")} == {f"ünter/folder/deep/er/{name}" for name in names}
assert client.list_artifacts(run_id, "plain.txt") == [] and client.list_artifacts(run_id, "not/there") == []
with tempfile.TemporaryDirectory() as folder:
    got = Path(client.download_artifacts(run_id, "", folder))
    for name, content in contents.items():
        assert (got / name).read_bytes() == content, name
        assert (got / "ünter" / "folder" / "deep" / "er" / name).read_bytes() == content, name
rest = ask("GET", f"{URL}/api/2.0/mlflow/artifacts/list", params={"run_id": run_id, "path": "deep"}).json()
assert rest["root_uri"] == run.info.artifact_uri and [one["path"] for one in rest["files"]] == ["deep/er"], rest

for name, quoted in [("#1.txt", "%231.txt"), ("50%.txt", "50%25.txt"), ("a?b", "a%3Fb"), ("a%20b", "a%2520b")]:
    folder = "hash" if "#" in name else "odd"
    assert ask("PUT", f"{ARTIFACTS}/{root}/{folder}/{quoted}", data=name.encode()).status_code == 200, name
    assert ask("GET", f"{ARTIFACTS}/{root}/{folder}/{quoted}").content == name.encode(), name
assert {"odd/50%.txt", "odd/a?b"} < {one.path for one in client.list_artifacts(run_id, "odd")}
# The client itself decodes a name once more, and takes no `#`; the address shows what is there.
plain = {folder: [one["path"] for one in ask("GET", ARTIFACTS, params={"path": f"{root}/{folder}"}).json()["files"]] for folder in ["odd", "hash"]}
assert plain == {"odd": ["50%.txt", "a%20b", "a?b"], "hash": ["#1.txt"]}, plain

# Replaced is replaced, and a file is no folder.
client.log_text(run_id, "first", "note.txt")
client.log_text(run_id, "second", "note.txt")
assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt") == "second"
client.log_dict(run_id, {"a": [1, 2]}, "data/dict.json")
assert mlflow.artifacts.load_dict(f"runs:/{run_id}/data/dict.json") == {"a": [1, 2]}
assert ask("PUT", f"{ARTIFACTS}/{root}/note.txt/under", data=b"x").status_code == 400
assert ask("PUT", f"{ARTIFACTS}/{root}/data", data=b"x").status_code == 400

# Nothing leads out, however it is written.
for path in ["../x", "%2e%2e/x", "a/../../x", "a/%2e%2e/%2e%2e/x", "a%2f..%2fx", "a\\..\\x", "a%5c..%5cx", "a%00b", "%252e%252e%2f/x", "%252e%252e/x", "a//b"]:
    # As bytes on the wire: the library would tidy dots up before it sends them.
    prepared = requests.Request("PUT", ARTIFACTS, data=b"x", headers={"Authorization": f"Bearer {MINE}"}).prepare()
    prepared.url = f"{ARTIFACTS}/{root}/{path}"
    answer = requests.Session().send(prepared, verify=CERT, timeout=30)
    assert answer.status_code in (400, 404), (path, answer.status_code, answer.text)
for path in ["..", f"{experiment}/../x", f"{root}/../..", f"{root}/%2e%2e/..", "/", "etc/passwd", f"{experiment}"]:
    answer = ask("GET", ARTIFACTS, params={"path": path})
    assert answer.status_code in (400, 404), (path, answer.status_code, answer.text)
assert ask("PUT", f"{ARTIFACTS}/{experiment}/{'0' * 32}/artifacts/x", data=b"x").status_code == 404, "a file of a run that is not there"
assert ask("PUT", f"{ARTIFACTS}/0/{run_id}/artifacts/x", data=b"x").status_code == 404, "a run of another experiment"

# A large file goes in one piece, also for a client that would rather send parts.
os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] = "true"
os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] = "true"
os.environ["MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE"] = str(5 << 20)
used = ask("GET", f"{URL}/v1/quota").json()
big = random.Random(7).randbytes(24 << 20)
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "big.bin").write_bytes(big)
    client.log_artifact(run_id, f"{folder}/big.bin", "large")
    got = client.download_artifacts(run_id, "large/big.bin", folder)
    assert Path(got).read_bytes() == big
mpu = ask("POST", f"{URL}/api/2.0/mlflow-artifacts/mpu/create/{root}", json={"path": "x", "num_parts": 2})
assert (mpu.status_code, mpu.json()["error_code"]) == (501, "NOT_IMPLEMENTED"), mpu.text

# Deleted is deleted, and the space is back.
assert ask("DELETE", f"{ARTIFACTS}/{root}/large").status_code == 200
assert ask("GET", f"{ARTIFACTS}/{root}/large/big.bin").status_code == 404
assert ask("DELETE", f"{ARTIFACTS}/{root}/large").status_code == 404
assert ask("GET", f"{URL}/v1/quota").json() == used, "space and objects are given back"
assert ask("DELETE", f"{ARTIFACTS}/{root}/ünter").status_code == 200
assert "ünter" not in {one.path for one in client.list_artifacts(run_id)}

# The other tenant: the same addresses, nothing there.
for path in ["plain.txt", "deep", "note.txt"]:
    assert ask("GET", f"{ARTIFACTS}/{root}/{path}", token=OTHER).status_code == 404, path
    assert ask("DELETE", f"{ARTIFACTS}/{root}/{path}", token=OTHER).status_code == 404, path
assert ask("PUT", f"{ARTIFACTS}/{root}/plain.txt", token=OTHER, data=b"x").status_code == 404
assert ask("GET", ARTIFACTS, token=OTHER, params={"path": root}).json() == {"files": []}
assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/plain.txt") == "inside plain.txt"

# The ledger knows the bytes.
log = ask("GET", f"{URL}/v1/audit/entries", params={"act": "ArtifactWrite", "limit": 500})
if log.status_code == 200:
    assert any(entry.get("detail", {}).get("artifact") == "note.txt" for entry in log.json()["items"]), log.text[:500]

# Logged models.
model = client.create_logged_model(experiment, name="elastic", source_run_id=run_id, params={"alpha": "0.5"}, tags={"team": "core"}, model_type="net")
assert model.model_id.startswith("m-") and len(model.model_id) == 34, model.model_id
assert model.artifact_location == f"mlflow-artifacts:/{experiment}/models/{model.model_id}/artifacts", model.artifact_location
assert str(model.status) == "PENDING", model.status
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "weights 1.bin").write_bytes(b"w")
    (Path(folder) / "MLmodel").write_text("flavors: {}")
    (Path(folder) / "sub").mkdir()
    (Path(folder) / "sub" / "x").write_bytes(b"y")
    client.log_model_artifacts(model.model_id, folder)
assert {one.path for one in client.list_logged_model_artifacts(model.model_id)} == {"weights 1.bin", "MLmodel", "sub"}
assert [one.path for one in client.list_logged_model_artifacts(model.model_id, "sub")] == ["sub/x"]
model = client.finalize_logged_model(model.model_id, "READY")
assert str(model.status) == "READY", model.status
client.set_logged_model_tags(model.model_id, {"stage": "try", "a/b": "c"})
client.delete_logged_model_tag(model.model_id, "team")
client.delete_logged_model_tag(model.model_id, "a/b")
client.log_model_params(model.model_id, {"beta": "1"})
got = client.get_logged_model(model.model_id)
assert got.tags.get("stage") == "try" and "team" not in got.tags and got.params["alpha"] == "0.5", got
for at in range(5):
    client.create_logged_model(experiment, name=f"many-{at}", params={"at": str(at)})
page = client.search_logged_models([experiment], filter_string="name LIKE 'many-%'", max_results=2, order_by=[{"field_name": "name", "ascending": False}])
assert [one.name for one in page] == ["many-4", "many-3"] and page.token, page
page = client.search_logged_models(
    [experiment], filter_string="name LIKE 'many-%'", max_results=10, order_by=[{"field_name": "name", "ascending": False}], page_token=page.token
)
assert [one.name for one in page] == ["many-2", "many-1", "many-0"] and not page.token, page
assert [one.name for one in client.search_logged_models([experiment], filter_string="params.alpha = '0.5' AND status = 'READY'")] == ["elastic"]
try:
    client.search_logged_models([experiment], filter_string="name ~ 'x'")
    raise SystemExit("a filter that is none was taken")
except MlflowException as error:
    assert error.error_code == "INVALID_PARAMETER_VALUE", error
for call in (lambda: client.create_logged_model("12345", name="x"), lambda: client.get_logged_model("m-" + "0" * 32)):
    try:
        call()
        raise SystemExit("that is not there")
    except MlflowException as error:
        assert error.error_code == "RESOURCE_DOES_NOT_EXIST", error
assert ask("GET", f"{URL}/api/2.0/mlflow/logged-models/{model.model_id}", token=OTHER).status_code == 404
client.delete_logged_model(model.model_id)
assert "elastic" not in [one.name for one in client.search_logged_models([experiment])]
print("artifacts and logged models hold")
