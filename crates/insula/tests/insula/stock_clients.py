"""Clients that know nothing of us: the inference client of another server, and the engine itself with the downloaded model.

Arguments: address (host:port), certificate authority, deployment, ONNX file, request of the Open Inference Protocol. The key is in the
environment. Prints what was seen as JSON.
"""

import http.client
import json
import os
import ssl
import sys

import numpy as np
import onnxruntime
import tritonclient.http as client
from tritonclient.utils import InferenceServerException

address, authority, deployment, model, ask = sys.argv[1:]
headers = {"Authorization": "Bearer " + os.environ["INSULA_TOKEN"]}
with open(ask, encoding="utf-8") as file:
    tensors = json.load(file)["inputs"]
arrays = {t["name"]: np.array(t["data"], dtype=object if t["datatype"] == "BYTES" else np.float32).reshape(t["shape"]) for t in tensors}

server = client.InferenceServerClient(address, ssl=True, ssl_options={"ca_certs": authority})
assert server.is_server_live() and server.is_server_ready()
assert server.is_model_ready(deployment, headers=headers)
assert not server.is_model_ready("nothing", headers=headers)
metadata = server.get_model_metadata(deployment, headers=headers)
assert [i["name"] for i in metadata["inputs"]] == list(arrays), metadata

inputs = []
for tensor in tensors:
    one = client.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
    one.set_data_from_numpy(arrays[tensor["name"]], binary_data=False)
    inputs.append(one)
outputs = [client.InferRequestedOutput(o["name"], binary_data=False) for o in metadata["outputs"]]
answer = server.infer(deployment, inputs, outputs=outputs, headers=headers)

# The same in binary form, which is what this client sends and asks for when nobody tells it otherwise.
for one in inputs:
    one.set_data_from_numpy(arrays[one.name()])
binary = server.infer(deployment, inputs, headers=headers)
for name in (o["name"] for o in metadata["outputs"]):
    text = lambda value: value.decode() if isinstance(value, bytes) else value
    assert [text(v) for v in binary.as_numpy(name).ravel()] == [text(v) for v in answer.as_numpy(name).ravel()], name

refusals = {}
for name, attempt in {
    "no credential": lambda: server.infer(deployment, inputs, outputs=outputs),
    "no such deployment": lambda: server.infer("nothing", inputs, outputs=outputs, headers=headers),
}.items():
    try:
        attempt()
        refusals[name] = "went through"
    except InferenceServerException as error:
        refusals[name] = str(error)

# A client that reads nothing before it has sent everything still gets the reason for a refusal.
eager = http.client.HTTPSConnection(address, context=ssl.create_default_context(cafile=authority))
for path, key, status in [("/v1/datasets/d", "wrong", 401), ("/v1/datasets/a%20b", os.environ["INSULA_TOKEN"], 400)]:
    eager.request("PUT", path, body=b"x" * 20_000_000, headers={"Authorization": "Bearer " + key})
    told = eager.getresponse()
    assert told.status == status and json.loads(told.read())["code"], told.status

session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
assert names == [o["name"] for o in metadata["outputs"]], names
difference = 0.0
for name, expected in zip(names, session.run(names, arrays)):
    served = answer.as_numpy(name)
    assert served.shape == expected.shape, (name, served.shape, expected.shape)
    if expected.dtype == np.float32:
        difference = max(difference, float(np.abs(served - expected).max()))
    else:
        assert [str(v) for v in served.ravel()] == [str(v) for v in expected.ravel()], name
print(json.dumps({"rows": tensors[0]["shape"][0], "outputs": names, "difference": difference, "refusals": refusals}))
