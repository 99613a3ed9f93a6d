"""A real MLflow tracking server on loopback, one worker, SQLite, as `mlflow server` starts it: CPU and latency of each kind of request.

    mlflow_peer.py FOLDER none|basic REQUESTS RUNS

Prints one JSON object. CPU is that of the server's processes alone, per request; search goes over RUNS runs.
"""

import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time

import requests

folder, auth, count, runs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.makedirs(folder, exist_ok=True)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
url = f"http://127.0.0.1:{port}"
password = secrets.token_hex(8)
environment = dict(os.environ, MLFLOW_DISABLE_TELEMETRY="true", GIT_PYTHON_REFRESH="quiet", MLFLOW_FLASK_SERVER_SECRET_KEY=secrets.token_hex(8))
command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
           "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
if auth == "basic":
    with open(f"{folder}/auth.ini", "w") as config:
        config.write(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
                     f"admin_password = {password}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n")
    environment["MLFLOW_AUTH_CONFIG_PATH"] = f"{folder}/auth.ini"
    command += ["--app-name", "basic-auth"]
log = open(f"{folder}/mlflow.log", "w")
began = time.perf_counter()
server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)


def family():
    """The server and everything it started."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            parents[int(name)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        except OSError:
            pass
    found, grown = {server.pid}, True
    while grown:
        more = {pid for pid, (parent, _) in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return {pid: parents[pid][1] for pid in found if pid in parents}


session = requests.Session()
session.trust_env = False
if auth == "basic":
    session.auth = ("admin", password)


def ask(method, path, **fields):
    where = {"params": fields} if method == "GET" else {"json": fields}
    answer = session.request(method, f"{url}/api/2.0/mlflow/{path}", timeout=120, **where)
    answer.raise_for_status()
    return answer.json()


def measure(times, work):
    """Milliseconds of CPU of the server a request, and the median latency in microseconds."""
    work(-1)
    before, micros = sum(family().values()), []
    for number in range(times):
        start = time.perf_counter()
        work(number)
        micros.append((time.perf_counter() - start) * 1e6)
    return {"cpu_ms": (sum(family().values()) - before) * 1e3 / times, "p50_us": statistics.median(micros)}


try:
    while True:
        try:
            if session.get(f"{url}/health", timeout=5).status_code == 200:
                break
        except requests.ConnectionError:
            pass
        if server.poll() is not None or time.perf_counter() - began > 180:
            raise SystemExit(f"the server did not start: {open(f'{folder}/mlflow.log').read()[-2000:]}")
        time.sleep(0.1)
    told = {"start_seconds": time.perf_counter() - began}
    experiment = ask("POST", "experiments/create", name="bench")["experiment_id"]
    run = ask("POST", "runs/create", experiment_id=experiment, start_time=1)["run"]["info"]["run_id"]
    told["log_metric"] = measure(count, lambda n: ask("POST", "runs/log-metric", run_id=run, key="loss", value=0.5, timestamp=n + 1, step=n))
    told["runs_get"] = measure(count, lambda n: ask("GET", "runs/get", run_id=run))
    batch = [{"key": f"m{n}", "value": 0.5, "timestamp": 1, "step": 0} for n in range(100)]
    told["log_batch"] = measure(max(count // 4, 10), lambda n: ask(
        "POST", "runs/log-batch", run_id=run, metrics=[dict(one, step=n, timestamp=n + 1) for one in batch]))
    for number in range(runs):
        made = ask("POST", "runs/create", experiment_id=experiment, start_time=number)["run"]["info"]["run_id"]
        ask("POST", "runs/log-metric", run_id=made, key="accuracy", value=number / runs, timestamp=1, step=0)
    told["search"] = measure(5, lambda n: ask(
        "POST", "runs/search", experiment_ids=[experiment], filter="metrics.accuracy > 0.9", max_results=100, order_by=["metrics.accuracy DESC"]))
    told["runs"] = runs
    print(json.dumps(told))
finally:
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
