"""MLflow's permission routes, by plain REST as its AuthServiceClient asks, and what they change for a member."""

import os

import requests

URL = os.environ["MLFLOW_TRACKING_URI"]
CERT = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
ADMIN = os.environ["MLFLOW_TRACKING_TOKEN"]
OTHER = os.environ["INSULA_OTHER_TOKEN"]


def ask(method, path, token=ADMIN, **fields):
    where = {"params": fields} if method == "GET" else {"json": fields}
    return requests.request(method, URL + path, headers={"Authorization": f"Bearer {token}"}, verify=CERT, timeout=30, **where)


def ok(answer):
    assert answer.status_code < 300, (answer.status_code, answer.text)
    return answer.json() if answer.text else {}


def refused(answer, status, code):
    assert (answer.status_code, answer.json().get("error_code")) == (status, code), (answer.status_code, answer.text)


ok(ask("PUT", "/v1/members/dora", roles=["data_scientist"]))
dora = ok(ask("POST", "/v1/keys", name="dora", member="dora"))["secret"]

first = ok(ask("POST", "/api/2.0/mlflow/experiments/create", name="first"))["experiment_id"]
second = ok(ask("POST", "/api/2.0/mlflow/experiments/create", name="second"))["experiment_id"]
run = ok(ask("POST", "/api/2.0/mlflow/runs/create", experiment_id=first))["run"]["info"]["run_id"]
ok(ask("POST", "/api/2.0/mlflow/runs/set-tag", token=dora, run_id=run, key="a", value="b"))

permissions = "/api/2.0/mlflow/experiments/permissions"
refused(ask("GET", f"{permissions}/get", experiment_id=first, username="dora"), 404, "RESOURCE_DOES_NOT_EXIST")
made = ok(ask("POST", f"{permissions}/create", experiment_id=first, username="dora", permission="READ"))
assert made["experiment_permission"] == {"experiment_id": first, "user_id": "dora", "permission": "READ"}, made
refused(ask("POST", f"{permissions}/create", experiment_id=first, username="dora", permission="READ"), 400, "RESOURCE_ALREADY_EXISTS")
refused(ask("POST", f"{permissions}/create", experiment_id=second, username="dora", permission="ALL"), 400, "INVALID_PARAMETER_VALUE")
refused(ask("POST", f"{permissions}/create", experiment_id=first, username="nobody", permission="READ"), 404, "RESOURCE_DOES_NOT_EXIST")
refused(ask("POST", f"{permissions}/create", token=dora, experiment_id=second, username="dora", permission="MANAGE"), 404, "RESOURCE_DOES_NOT_EXIST")

# READ: seen, not changed.
assert ok(ask("GET", "/api/2.0/mlflow/runs/get", token=dora, run_id=run))["run"]["info"]["run_id"] == run
refused(ask("POST", "/api/2.0/mlflow/runs/set-tag", token=dora, run_id=run, key="a", value="c"), 403, "PERMISSION_DENIED")
refused(ask("POST", "/api/2.0/mlflow/runs/create", token=dora, experiment_id=first), 403, "PERMISSION_DENIED")
ok(ask("POST", "/api/2.0/mlflow/runs/create", token=dora, experiment_id=second))

# NO_PERMISSIONS: not there at all, not even in lists.
ok(ask("PATCH", f"{permissions}/update", experiment_id=first, username="dora", permission="NO_PERMISSIONS"))
refused(ask("GET", "/api/2.0/mlflow/runs/get", token=dora, run_id=run), 404, "RESOURCE_DOES_NOT_EXIST")
refused(ask("GET", "/api/2.0/mlflow/experiments/get", token=dora, experiment_id=first), 404, "RESOURCE_DOES_NOT_EXIST")
listed = ok(ask("POST", "/api/2.0/mlflow/experiments/search", token=dora, max_results=100))["experiments"]
assert "second" in [one["name"] for one in listed] and "first" not in [one["name"] for one in listed], listed
found = ok(ask("POST", "/api/2.0/mlflow/runs/search", token=dora, experiment_ids=[first, second])).get("runs", [])
assert run not in [one["info"]["run_id"] for one in found] and len(found) == 1, found

# The administrator is not locked out, and the other tenant sees none of it.
ok(ask("POST", f"{permissions}/create", experiment_id=first, username="ada", permission="NO_PERMISSIONS"))
ok(ask("GET", "/api/2.0/mlflow/runs/get", run_id=run))
refused(ask("GET", "/api/2.0/mlflow/runs/get", token=OTHER, run_id=run), 404, "RESOURCE_DOES_NOT_EXIST")
refused(ask("GET", f"{permissions}/get", token=OTHER, experiment_id=first, username="dora"), 404, "RESOURCE_DOES_NOT_EXIST")

ok(ask("DELETE", f"{permissions}/delete", experiment_id=first, username="dora"))
ok(ask("POST", "/api/2.0/mlflow/runs/set-tag", token=dora, run_id=run, key="a", value="c"))

# A workspace is a tenant, and one is only ever in one's own.
for name, expected in [("left", 200), ("right", 404), ("nowhere", 404)]:
    answer = requests.get(
        f"{URL}/api/2.0/mlflow/runs/get", params={"run_id": run}, verify=CERT, timeout=30,
        headers={"Authorization": f"Bearer {ADMIN}", "X-MLFLOW-WORKSPACE": name},
    )
    assert answer.status_code == expected, (name, answer.text)
print("permissions hold")
