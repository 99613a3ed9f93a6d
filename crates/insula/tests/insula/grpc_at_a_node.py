"""Triton's gRPC client against one node of several, which may not be the one that serves the tenant.

Arguments: address (host:port), certificate authority; the key is in the environment. The deployment `gate` takes `x` and `y`.
"""

import os
import queue
import sys

import grpc
import numpy as np
import tritonclient.grpc as rpc
from tritonclient.utils import InferenceServerException

ADDRESS, AUTHORITY = sys.argv[1:]
headers = {"authorization": "Bearer " + os.environ["INSULA_TOKEN"]}
client = rpc.InferenceServerClient(ADDRESS, ssl=True, creds=grpc.ssl_channel_credentials(open(AUTHORITY, "rb").read()))
metadata = client.get_model_metadata("gate", headers=headers)
inputs = []
for tensor in metadata.inputs:
    shape = [abs(size) for size in tensor.shape]
    one = rpc.InferInput(tensor.name, shape, tensor.datatype)
    one.set_data_from_numpy(np.full(shape, 3, np.float32))
    inputs.append(one)
output = metadata.outputs[0].name
expected = client.infer("gate", inputs, request_id="a", headers=headers)
assert expected.get_response().id == "a"
try:
    client.infer("nothing", inputs, headers=headers)
    raise SystemExit("a deployment that is not there answered")
except InferenceServerException as error:
    assert "NOT_FOUND" in error.status() and "deployment" in error.message(), error

answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
for number in range(5):
    # Each is sent only when the one before is answered: neither half of the conversation may wait for the end of the other.
    client.async_stream_infer("nothing" if number == 2 else "gate", inputs, request_id=str(number))
    result, error = answers.get(timeout=30)
    if number == 2:
        assert "deployment" in error.message(), error
    else:
        assert error is None and result.get_response().id == str(number), (number, error)
        assert result.as_numpy(output).tolist() == expected.as_numpy(output).tolist()
client.stop_stream()
assert answers.empty()
