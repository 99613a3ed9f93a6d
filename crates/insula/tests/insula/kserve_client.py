"""KServe's own inference client over REST and gRPC. Arguments: address (host:port), certificate authority; the key is in the environment."""

import asyncio
import json
import os
import ssl
import sys
import urllib.request
import warnings

warnings.filterwarnings("ignore")

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from onnx import TensorProto, helper

ADDRESS, AUTHORITY = sys.argv[1:]
URL, TOKEN = f"https://{ADDRESS}", os.environ["INSULA_TOKEN"]
CONTEXT = ssl.create_default_context(cafile=AUTHORITY)
BEARER = {"authorization": f"Bearer {TOKEN}"}


def put(method, path, data, media):
    request = urllib.request.Request(URL + path, data=data, method=method, headers={"Content-Type": media, **BEARER})
    with urllib.request.urlopen(request, context=CONTEXT, timeout=120) as answer:
        return json.loads(answer.read())


value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value("x")], [value("y")])
onnx_bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
put("POST", "/v1/models/negative/versions", onnx_bytes, "application/octet-stream")
put("PUT", "/v1/deployments/negative", b'{"model": "negative", "version": 1}', "application/json")
array = np.array([[1, -2], [3.5, 0]], dtype=np.float32)


def request(binary=True):
    one = InferInput("x", list(array.shape), "FP32")
    one.set_data_from_numpy(array, binary_data=binary)
    return InferRequest("negative", [one], request_id="k-1")


async def main():
    rest = InferenceRESTClient(RESTConfig(protocol="v2", verify=CONTEXT, retries=0))
    assert await rest.is_server_live(URL) is True and await rest.is_server_ready(URL) is True
    assert await rest.is_model_ready(URL, "negative", headers=BEARER) and not await rest.is_model_ready(URL, "nothing", headers=BEARER)
    for binary in (True, False):
        answer = await rest.infer(URL, request(binary), model_name="negative", headers=dict(BEARER))
        assert answer.id == "k-1" and np.array_equal(answer.outputs[0].as_numpy(), -array), answer
    try:
        await rest.infer(URL, request(), model_name="nothing", headers=dict(BEARER))
        raise SystemExit("a deployment that is not there answered")
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == 404 and "deployment" in str(error), error
    await rest.close()
    rpc = InferenceGRPCClient(ADDRESS, use_ssl=True, root_certificates=AUTHORITY)
    headers = list(BEARER.items())
    assert await rpc.is_server_live() and await rpc.is_server_ready() and await rpc.is_model_ready("negative", headers=headers)
    for binary in (True, False):
        answer = await rpc.infer(request(binary), headers=headers)
        assert answer.id == "k-1" and np.array_equal(answer.outputs[0].as_numpy(), -array), answer
    try:
        await rpc.infer(InferRequest("nothing", request().inputs), headers=headers)
        raise SystemExit("a deployment that is not there answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    await rpc.close()


asyncio.run(main())
print("{}")
