"""Every address of the installed MLflow server is one of ours, or is named in docs/mlflow.md as not supported; and nothing is named there that is."""

import os
import re
import sys

import requests
from mlflow.server import handlers

document = open(os.path.join(os.path.dirname(__file__), "../../../../docs/mlflow.md"), encoding="utf-8").read()
described = requests.get(os.environ["MLFLOW_TRACKING_URI"] + "/openapi.json", verify=os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"], timeout=30).json()


def plain(path):
    """A path whose parameters have no names; the rest of a path is one."""
    path = re.sub(r"<[^>]*>|\{[^}]*\}", "*", path.replace("2.0mlflow", "2.0/mlflow"))
    # An artifact's path begins with its experiment, which is a parameter of its own here.
    return re.sub(r"^(/api/2.0/mlflow-artifacts/[a-z/]+)/\*/\*$", r"\1/*", path)


theirs = {
    (method, plain(path))
    for path, _, methods in handlers.get_endpoints()
    for method in methods
    if path.startswith(("/api/", "/v1/"))
}
ours = {(method.upper(), plain(path)) for path, methods in described["paths"].items() for method in methods}
section = document.split("## Not supported", 1)[1].split("\n## ", 1)[0]
named = [(method, plain(path)) for cell in re.findall(r"`([A-Z, ]+ /[^`]*)`", section) for methods, path in [cell.rsplit(" ", 1)] for method in methods.split(", ")]


def is_named(method, path):
    return any(m == method and (p == path or (p.endswith("…") and path.startswith(p[:-1]))) for m, p in named)


missing = sorted(f"{method} {path}" for method, path in theirs - ours if not is_named(method, path))
wrong = sorted(f"{method} {path}" for method, path in theirs & ours if is_named(method, path))
print(f"{len(theirs)} of MLflow, {len(theirs & ours)} here")
if missing or wrong:
    print("neither supported nor named:", *missing, "named though supported:", *wrong, sep="\n  ", file=sys.stderr)
    sys.exit(1)
