"""Webhooks by the stock client, told by a real HTTP server: signatures, events, secrets that are not shown, addresses that are refused."""

import base64
import hashlib
import hmac
import json
import os
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookEvent, WebhookStatus
from mlflow.exceptions import MlflowException

URL = os.environ["MLFLOW_TRACKING_URI"]
CERT = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
MINE = os.environ["MLFLOW_TRACKING_TOKEN"]
OTHER = os.environ["INSULA_OTHER_TOKEN"]
# The operator allows this address; no other inner one.
HOST = "127.0.0.9"
SECRET = "a secret for signatures"

told = queue.Queue()
answers = {"status": 200, "body": b"thanks", "location": None}


class Listener(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told.put((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(answers["status"])
        if answers["location"]:
            self.send_header("Location", answers["location"])
        self.send_header("Content-Length", str(len(answers["body"])))
        self.end_headers()
        self.wfile.write(answers["body"])

    def log_message(self, *_):
        pass


def listen(host):
    server = ThreadingHTTPServer((host, 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def ask(method, path, token=MINE, **more):
    return requests.request(method, URL + path, headers={"Authorization": f"Bearer {token}"}, verify=CERT, timeout=30, **more)


def fails(call, part):
    try:
        call()
    except MlflowException as error:
        assert part in str(error), error
    else:
        raise AssertionError(f"no failure with {part!r}")


port = listen(HOST)
here = f"http://{HOST}:{port}"
client = MlflowClient()

# Made, seen, changed; the secret is in no answer.
hook = client.create_webhook("hook", f"{here}/a", ["registered_model.created", "model_version_tag.set"], "for tests", secret=SECRET)
assert (hook.name, hook.url, hook.description, hook.status) == ("hook", f"{here}/a", "for tests", WebhookStatus.ACTIVE), hook
assert [str(event) for event in client.get_webhook(hook.webhook_id).events] == ["registered_model.created", "model_version_tag.set"]
quiet = client.create_webhook("quiet", f"{here}/quiet", ["registered_model.created"], status="DISABLED")
assert [one.name for one in client.list_webhooks()] == ["quiet", "hook"]
page = client.list_webhooks(max_results=1)
assert [one.name for one in page] == ["quiet"] and [one.name for one in client.list_webhooks(page_token=page.token)] == ["hook"]
for path in ["/api/2.0/mlflow/webhooks", f"/api/2.0/mlflow/webhooks/{hook.webhook_id}"]:
    shown = ask("GET", path).text
    assert "hook" in shown and SECRET not in shown and "secret" not in shown, shown
changed = client.update_webhook(hook.webhook_id, description="changed")
assert (changed.description, changed.url) == ("changed", hook.url)

# Tried out: what comes there, and what comes back.
result = client.test_webhook(hook.webhook_id)
assert (result.success, result.response_status, result.response_body) == (True, 200, "thanks"), result
path, headers, body = told.get(timeout=10)
assert path == "/a" and headers["content-type"] == "application/json"


def check_signature(headers, body):
    signed = f"{headers['x-mlflow-delivery-id']}.{headers['x-mlflow-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["x-mlflow-signature"] == f"v1,{expected}", headers


check_signature(headers, body)
message = json.loads(body)
assert (message["entity"], message["action"], message["data"]["name"]) == ("registered_model", "created", "example_model"), message
client.test_webhook(hook.webhook_id, event="model_version_tag.set")
assert json.loads(told.get(timeout=10)[2])["data"]["key"] == "example_key"

# What happens in the registry is told, in the background, to who asked for it, and by this tenant's own acts alone.
ask("POST", "/api/2.0/mlflow/registered-models/create", OTHER, json={"name": "fence"})
client.create_registered_model("fence", tags={"a": "b"}, description="a fence")
path, headers, body = told.get(timeout=20)
check_signature(headers, body)
message = json.loads(body)
assert (path, message["entity"], message["action"], message["workspace"]) == ("/a", "registered_model", "created", "left"), message
assert message["data"] == {"name": "fence", "tags": {"a": "b"}, "description": "a fence"}, message
client.set_registered_model_tag("fence", "c", "d")
client.delete_registered_model_tag("fence", "c")
# It is tried again when the listener fails.
answers.update(status=503)
client.create_registered_model("gate")
first = told.get(timeout=20)
answers.update(status=200)
again = told.get(timeout=20)
assert json.loads(first[2])["data"]["name"] == "gate" and first[2] == again[2], (first, again)
assert first[1]["x-mlflow-delivery-id"] == again[1]["x-mlflow-delivery-id"]

# What comes in by /v1 is told too, and what a training registers, which no request waits for.
client.update_webhook(hook.webhook_id, status="DISABLED")
trained = client.create_webhook("trained", f"{here}/trained", ["registered_model.created", "model_version.created"])
assert ask("PUT", "/v1/models/plain", json={"description": "by hand"}).status_code == 200
path, _, body = told.get(timeout=20)
assert (path, json.loads(body)["data"]) == ("/trained", {"name": "plain", "tags": {}, "description": "by hand"}), body
assert ask("PUT", "/v1/models/plain", json={"description": "changed, not made"}).status_code == 200
rows = "x,y,label\n" + "".join(f"{at % 12},{at // 12},{'up' if at % 12 > at // 12 else 'down'}\n" for at in range(120))
assert ask("PUT", "/v1/datasets/rows", data=rows.encode()).status_code == 201
begun = ask("POST", "/v1/trainings", json={"name": "tree", "dataset": "rows", "target": "label", "task": "classification"})
assert begun.status_code == 202, begun.text
said = sorted((json.loads(told.get(timeout=90)[2]) for _ in range(2)), key=lambda one: one["entity"])
assert [(one["entity"], one["action"]) for one in said] == [("model_version", "created"), ("registered_model", "created")], said
version = said[0]["data"]
assert (version["name"], version["version"], version["source"], len(version["run_id"]) > 8) == ("tree", "1", "models:/tree/1", True), said
assert said[1]["data"] == {"name": "tree", "tags": {}, "description": ""}, said
assert told.empty(), told.get()
client.delete_webhook(trained.webhook_id)
client.update_webhook(hook.webhook_id, status="ACTIVE")
# A prompt is no model.
client.register_prompt("text", "Bye")
prompts = client.create_webhook("prompts", f"{here}/prompts", ["prompt.created", "prompt_version.created"])
client.register_prompt("greeting", "Hello {{name}}!")
messages = [told.get(timeout=20) for _ in range(2)]
assert {path for path, _, _ in messages} == {"/prompts"}, messages
both = {message["entity"]: message["data"] for message in (json.loads(body) for _, _, body in messages)}
assert both["prompt"]["name"] == "greeting" and both["prompt_version"]["template"] == "Hello {{name}}!", both
assert both["prompt_version"]["version"] == "1" and not any(key.startswith("mlflow.prompt") for key in both["prompt_version"]["tags"]), both
client.delete_webhook(prompts.webhook_id)
assert told.empty(), told.get()

# No redirect is followed, and a failure is told.
answers.update(status=302, location=f"{here}/elsewhere")
assert client.test_webhook(hook.webhook_id).response_status == 302
assert told.get(timeout=10)[0] == "/a"
answers.update(status=500, location=None)
assert client.test_webhook(hook.webhook_id).success is False
told.get(timeout=10)
answers.update(status=200)

# Addresses inside are refused, in any spelling, when they are named and when they are asked.
inside = listen("127.0.0.1")
for url in [
    f"http://127.0.0.1:{inside}/",
    f"http://127.1:{inside}/",
    f"http://2130706433:{inside}/",
    f"http://[::ffff:127.0.0.1]:{inside}/",
    "http://169.254.169.254/latest/meta-data",
    "http://10.0.0.1/",
    "http://[fd00:ec2::254]/",
    "file:///etc/passwd",
    "gopher://127.0.0.9/",
    f"http://user:word@{HOST}:{port}/",
]:
    fails(lambda: client.create_webhook("bad", url, ["registered_model.created"]), "Invalid webhook URL")
    fails(lambda: client.update_webhook(hook.webhook_id, url=url), "Invalid webhook URL")
# A name is looked up when it is asked.
named = client.create_webhook("named", f"http://localhost:{inside}/", ["registered_model.created"])
result = client.test_webhook(named.webhook_id)
assert result.success is False and "cannot be reached" in result.error_message and "127.0.0.1" not in result.error_message, result
assert told.empty(), "nothing was sent inside"
client.delete_webhook(named.webhook_id)

fails(lambda: client.create_webhook("bad name", f"{here}/", ["registered_model.created"]), "INVALID_PARAMETER_VALUE")
refused = ask("POST", "/api/2.0/mlflow/webhooks", json={"name": "bad", "url": f"{here}/", "events": [{"entity": "PROMPT", "action": "UPDATED"}]})
assert refused.status_code == 400, refused.text

# The other tenant sees and tries none of it.
assert ask("GET", "/api/2.0/mlflow/webhooks", OTHER).json() == {"webhooks": []}
for method, path in [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test")]:
    foreign = ask(method, f"/api/2.0/mlflow/webhooks/{hook.webhook_id}{path}", OTHER, json={} if method != "GET" else None)
    assert (foreign.status_code, foreign.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST"), (method, foreign.text)
assert told.empty()

client.delete_webhook(hook.webhook_id)
fails(lambda: client.get_webhook(hook.webhook_id), "RESOURCE_DOES_NOT_EXIST")
client.delete_webhook(quiet.webhook_id)
assert list(client.list_webhooks()) == []
