"""The Open Inference Protocol with the stock Triton client: REST and gRPC, every datatype, every refusal, two tenants, streams.

Arguments: address (host:port), certificate authority. Keys are in the environment: INSULA_TOKEN of the tenant that is served,
INSULA_OTHER_TOKEN of one that has a deployment of the same name, INSULA_INVOKER_TOKEN, INSULA_AUDITOR_TOKEN and
INSULA_VIEWER_TOKEN of members of the first.
"""

import asyncio
import base64
import hashlib
import json
import os
import queue
import ssl
import struct
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import ml_dtypes
import numpy as np
import onnx
import tritonclient.grpc as rpc
import tritonclient.grpc.aio as rpc_aio
import tritonclient.http as rest
import tritonclient.http.aio as rest_aio
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

ADDRESS, AUTHORITY = sys.argv[1:]
URL = f"https://{ADDRESS}"
MINE, OTHER = os.environ["INSULA_TOKEN"], os.environ["INSULA_OTHER_TOKEN"]
INVOKER, AUDITOR, VIEWER = (os.environ[f"INSULA_{role}_TOKEN"] for role in ("INVOKER", "AUDITOR", "VIEWER"))
CONTEXT = ssl.create_default_context(cafile=AUTHORITY)


def ask(method, path, token=MINE, data=None, headers=()):
    """One plain request: status, headers and body."""
    request = urllib.request.Request(URL + path, data=data, method=method, headers={"Authorization": f"Bearer {token}", **dict(headers)})
    try:
        answer = urllib.request.urlopen(request, context=CONTEXT, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, dict(answer.headers.items()), answer.read()


def ok(answer):
    status, _, body = answer
    assert status < 300, answer
    return json.loads(body) if body else None


def fails(call, *words, status=None):
    """The call fails with these words in its message."""
    try:
        call()
    except InferenceServerException as error:
        told = f"{error.status()} {error.message()}"
        assert all(word in told for word in words), (words, told)
        assert status is None or str(status) in str(error.status()), (status, told)
        return error
    raise AssertionError(f"{words or status} was expected")


# ---- models

NUMPY = {
    "BOOL": (TensorProto.BOOL, np.bool_), "UINT8": (TensorProto.UINT8, np.uint8), "UINT16": (TensorProto.UINT16, np.uint16),
    "UINT32": (TensorProto.UINT32, np.uint32), "UINT64": (TensorProto.UINT64, np.uint64), "INT8": (TensorProto.INT8, np.int8),
    "INT16": (TensorProto.INT16, np.int16), "INT32": (TensorProto.INT32, np.int32), "INT64": (TensorProto.INT64, np.int64),
    "FP16": (TensorProto.FLOAT16, np.float16), "BF16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16), "FP32": (TensorProto.FLOAT, np.float32),
    "FP64": (TensorProto.DOUBLE, np.float64), "BYTES": (TensorProto.STRING, np.object_),
}


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def identity(kind):
    return model([helper.make_node("Identity", ["x"], ["y"])], [value("x", kind, ["rows", "columns"])], [value("y", kind, ["rows", "columns"])])


def deploy(name, onnx_bytes, token=MINE):
    version = ok(ask("POST", f"/v1/models/{name}/versions", token, onnx_bytes, {"Content-Type": "application/octet-stream"}))["version"]
    target = json.dumps({"model": name, "version": version}).encode()
    ok(ask("PUT", f"/v1/deployments/{name}", token, target, {"Content-Type": "application/json"}))
    return version


for datatype, (kind, _) in NUMPY.items():
    deploy(f"same-{datatype.lower()}", identity(kind))
FLOAT = TensorProto.FLOAT
deploy("mixed", model(
    [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Identity", ["t"], ["text"])],
    [value("a", FLOAT, ["n"]), value("b", FLOAT, ["n"]), value("t", TensorProto.STRING, ["m"])],
    [value("sum", FLOAT, ["n"]), value("text", TensorProto.STRING, ["m"])],
))
# The same name in two tenants: the other's answers with ten times the number.
ONE = [value("x", FLOAT, ["n"])], [value("y", FLOAT, ["n"])]
factor = lambda by: model([helper.make_node("Mul", ["x", "f"], ["y"])], *ONE, [helper.make_tensor("f", FLOAT, [], [float(by)])])
deploy("twin", factor(1))
deploy("twin", factor(10), OTHER)
deploy("theirs", factor(7), OTHER)
BODY = helper.make_graph(
    [helper.make_node("Identity", ["more"], ["more_out"]), helper.make_node("Identity", ["v"], ["v_out"])], "body",
    [value("i", TensorProto.INT64, []), value("more", TensorProto.BOOL, []), value("v", FLOAT, ["n"])],
    [value("more_out", TensorProto.BOOL, []), value("v_out", FLOAT, ["n"])],
)
deploy("slow", model(
    [helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=BODY)],
    [value("times", TensorProto.INT64, []), value("x", FLOAT, ["n"])], [value("y", FLOAT, ["n"])],
    [helper.make_tensor("yes", TensorProto.BOOL, [], [True])],
), OTHER)
deploy("fixed", model([helper.make_node("Identity", ["x"], ["y"])], [value("x", FLOAT, [2, 3])], [value("y", FLOAT, [2, 3])]))
deploy("logs", model([helper.make_node("Log", ["x"], ["y"])], *ONE))

# ---- clients

creds = grpc.ssl_channel_credentials(open(AUTHORITY, "rb").read())
bearer = lambda token: {"Authorization": f"Bearer {token}"}
meta = lambda token: {"authorization": f"Bearer {token}"}
http = rest.InferenceServerClient(ADDRESS, ssl=True, ssl_options={"ca_certs": AUTHORITY})
client = rpc.InferenceServerClient(ADDRESS, ssl=True, creds=creds)
channel = grpc.secure_channel(ADDRESS, creds, options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)])
stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
metadata = lambda token=MINE: (("authorization", f"Bearer {token}"),)


def sample(datatype):
    kind = NUMPY[datatype][1]
    if datatype == "BYTES":
        return np.array([[b"one", "zwölf".encode(), b""], [b"x" * 300, "日本".encode(), b"\\ \" \n"]], dtype=object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype in ("FP16", "BF16", "FP32", "FP64"):
        return np.array([[0.1, -1.5, 3e4], [-0.0, 65504 if datatype == "FP16" else 1e30, 2**-14]]).astype(kind)
    limits = np.iinfo(kind)
    return np.array([[limits.min, limits.max, 1], [0, 7, limits.max // 3]], dtype=kind)


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, (a.shape, b.shape)
    if a.dtype == np.object_:
        text = lambda one: one.encode() if isinstance(one, str) else bytes(one)
        assert [text(one) for one in a.ravel()] == [text(one) for one in b.ravel()], (a, b)
    else:
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), (a, b)


def rest_input(name, array, datatype, binary=True):
    one = rest.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array, binary_data=binary)
    return one


def rpc_input(name, array, datatype):
    one = rpc.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array)
    return one


# ---- server and metadata

assert http.is_server_live() and http.is_server_ready() and client.is_server_live() and client.is_server_ready()
for told in (http.get_server_metadata(), client.get_server_metadata(as_json=True)):
    assert told["name"] == "insula" and "binary_tensor_data" in told["extensions"] and "statistics" in told["extensions"], told
assert http.is_model_ready("twin", headers=bearer(MINE)) and client.is_model_ready("twin", headers=meta(MINE))
assert http.is_model_ready("twin", "1", headers=bearer(MINE)) and not http.is_model_ready("twin", "2", headers=bearer(MINE))
assert client.is_model_ready("twin", "1", headers=meta(MINE)) and not client.is_model_ready("twin", "2", headers=meta(MINE))
for name in ("nothing", "theirs"):
    assert not http.is_model_ready(name, headers=bearer(MINE)) and not client.is_model_ready(name, headers=meta(MINE))
for datatype in NUMPY:
    name = f"same-{datatype.lower()}"
    over_rest = http.get_model_metadata(name, headers=bearer(MINE))
    assert over_rest["inputs"] == [{"name": "x", "datatype": datatype, "shape": [-1, -1]}], over_rest
    over_rpc = client.get_model_metadata(name, headers=meta(MINE))
    assert (over_rpc.name, list(over_rpc.versions), over_rpc.platform) == (name, ["1"], "onnxruntime_onnx"), over_rpc
    assert (over_rpc.inputs[0].datatype, list(over_rpc.inputs[0].shape)) == (datatype, [-1, -1]), over_rpc
    config = http.get_model_config(name, headers=bearer(MINE))
    kind = "TYPE_" + ("STRING" if datatype == "BYTES" else datatype)
    assert config["input"] == [{"name": "x", "data_type": kind, "dims": [-1, -1]}] and config["max_batch_size"] == 0, config
    config = client.get_model_config(name, headers=meta(MINE), as_json=True)["config"]
    assert config["input"][0]["data_type"] == kind and config["backend"] == "onnxruntime", config
    assert config["version_policy"] == {"specific": {"versions": ["1"]}} and config["output"][0]["dims"] == ["-1", "-1"], config

# ---- every datatype, in every form

for datatype in NUMPY:
    name, array = f"same-{datatype.lower()}", sample(datatype)
    wanted = {"binary": rest.InferRequestedOutput("y", binary_data=True), "json": rest.InferRequestedOutput("y", binary_data=False)}
    # A client that reads JSON into its own types cannot make BF16 of it.
    for into in ("binary", "json", "unsaid"):
        for out in ("binary", "json", "unsaid"):
            if datatype == "BF16" and "json" in (into, out) or datatype == "FP16" and "json" in (into, out):
                continue
            inputs = [rest_input("x", array, datatype, into != "json")]
            outputs = [wanted[out]] if out in wanted else None
            answer = http.infer(name, inputs, outputs=outputs, request_id="r-1", headers=bearer(MINE))
            same(answer.as_numpy("y"), array)
            told = answer.get_response()
            assert (told["id"], told["model_name"], told["model_version"]) == ("r-1", name, "1"), told
    answer = client.infer(name, [rpc_input("x", array, datatype)], request_id="r-2", headers=meta(MINE))
    same(answer.as_numpy("y"), array)
    told = answer.get_response()
    assert (told.id, told.model_name, told.model_version, told.outputs[0].datatype) == ("r-2", name, "1", datatype), told
    assert len(told.raw_output_contents) == 1 and not told.outputs[0].HasField("contents")
    same(client.infer(name, [rpc_input("x", array, datatype)], model_version="1", headers=meta(MINE)).as_numpy("y"), array)
    empty = np.zeros((0, 3), dtype=NUMPY[datatype][1])
    assert http.infer(name, [rest_input("x", empty, datatype)], headers=bearer(MINE)).as_numpy("y").shape == (0, 3)
    if datatype != "BYTES":  # its client has nothing to send for none
        assert client.infer(name, [rpc_input("x", empty, datatype)], headers=meta(MINE)).as_numpy("y").shape == (0, 3)

# Typed contents, as other clients send them.
FIELD = {"BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
         "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents",
         "FP64": "fp64_contents", "BYTES": "bytes_contents"}


def typed(name, datatype, array, field=None, **more):
    request = service_pb2.ModelInferRequest(model_name=name, **more)
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    getattr(tensor.contents, field or FIELD[datatype]).extend(array.ravel().tolist())
    return request


for datatype in FIELD:
    name, array = f"same-{datatype.lower()}", sample(datatype)
    told = stub.ModelInfer(typed(name, datatype, array), metadata=metadata())
    same(rpc.InferResult(told).as_numpy("y"), array)

# Numbers that JSON has no word for go through in binary form, and are refused in JSON.
odd = np.array([np.nan, np.inf, -np.inf], dtype=np.float32)
one = [rest_input("x", odd, "FP32")]
same(http.infer("twin", one, headers=bearer(MINE)).as_numpy("y"), odd)
fails(lambda: http.infer("twin", one, outputs=[rest.InferRequestedOutput("y", binary_data=False)], headers=bearer(MINE)), "finite", status=422)
same(client.infer("twin", [rpc_input("x", odd, "FP32")], headers=meta(MINE)).as_numpy("y"), odd)

# Binary and JSON mixed, in any order, and only some outputs.
a, b, t = np.arange(4, dtype=np.float32), np.ones(4, dtype=np.float32), np.array(["é", "b"], dtype=object)
for binaries in [(x, y, z) for x in (True, False) for y in (True, False) for z in (True, False)]:
    tensors = [("a", a, "FP32"), ("t", t, "BYTES"), ("b", b, "FP32")]
    inputs = [rest_input(*tensor, binary) for tensor, binary in zip(tensors, binaries)]
    for outs in [("sum", "text"), ("text",), ("text", "sum")]:
        outputs = [rest.InferRequestedOutput(out, binary_data=binary) for out, binary in zip(outs, binaries)]
        answer = http.infer("mixed", inputs, outputs=outputs, headers=bearer(MINE))
        assert [out["name"] for out in answer.get_response()["outputs"]] == list(outs)
        if "sum" in outs:
            same(answer.as_numpy("sum"), a + b)
        same(answer.as_numpy("text"), np.array(["é".encode(), b"b"], dtype=object))
answer = client.infer("mixed", [rpc_input(*x) for x in tensors], outputs=[rpc.InferRequestedOutput("text")], headers=meta(MINE))
assert answer.as_numpy("sum") is None
same(answer.as_numpy("text"), np.array(["é".encode(), b"b"], dtype=object))
large = np.random.default_rng(1).random((1500, 2000), dtype=np.float32)  # 12 MB
same(http.infer("same-fp32", [rest_input("x", large, "FP32")], headers=bearer(MINE)).as_numpy("y"), large)
big = rpc.InferenceServerClient(ADDRESS, ssl=True, creds=creds)
same(big.infer("same-fp32", [rpc_input("x", large, "FP32")], headers=meta(MINE)).as_numpy("y"), large)

# The best classes of each row.
scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], dtype=np.float32)
expected = [[b"0.700000:1", b"0.200000:2"], [b"0.500000:0", b"0.250000:1"]]
for binary in (True, False):
    out = [rest.InferRequestedOutput("y", binary_data=binary, class_count=2)]
    answer = http.infer("same-fp32", [rest_input("x", scores, "FP32")], outputs=out, headers=bearer(MINE))
    same(answer.as_numpy("y"), np.array(expected, dtype=object))
out = [rpc.InferRequestedOutput("y", class_count=2)]
same(client.infer("same-fp32", [rpc_input("x", scores, "FP32")], outputs=out, headers=meta(MINE)).as_numpy("y"), np.array(expected, dtype=object))
out = [rpc.InferRequestedOutput("y", class_count=9)]
same(client.infer("same-int8", [rpc_input("x", np.array([[3, 9]], np.int8), "INT8")], outputs=out, headers=meta(MINE)).as_numpy("y"),
     np.array([[b"9:1", b"3:0"]], dtype=object))
fails(lambda: client.infer("same-bytes", [rpc_input("x", sample("BYTES"), "BYTES")], outputs=out, headers=meta(MINE)), "INVALID_ARGUMENT", "ranked")

# ---- refusals

x = np.array([1, 2], dtype=np.float32)
x_rest, x_rpc = [rest_input("x", x, "FP32")], [rpc_input("x", x, "FP32")]
fails(lambda: http.infer("nothing", x_rest, headers=bearer(MINE)), "deployment", status=404)
fails(lambda: client.infer("nothing", x_rpc, headers=meta(MINE)), "deployment", status="NOT_FOUND")
fails(lambda: client.infer("twin", x_rpc, model_version="9", headers=meta(MINE)), "version", status="NOT_FOUND")
fails(lambda: http.infer("twin", x_rest), "credential", status=401)
fails(lambda: client.infer("twin", x_rpc), "credential", status="UNAUTHENTICATED")
fails(lambda: client.infer("twin", x_rpc, headers=meta("wrong")), "credential", status="UNAUTHENTICATED")
same(client.infer("twin", x_rpc, headers=meta(INVOKER)).as_numpy("y"), x)
for name in ("twin", "nothing"):
    fails(lambda: client.infer(name, x_rpc, headers=meta(VIEWER)), status="PERMISSION_DENIED")
    fails(lambda: client.infer(name, x_rpc, headers=meta(AUDITOR)), status="NOT_FOUND")
fails(lambda: client.infer("logs", [rpc_input("z", x, "FP32")], headers=meta(MINE)), "no input `z`", status="INVALID_ARGUMENT")
zeros = [rpc_input("x", np.zeros(5000, np.float32), "FP32")]  # what is too small is sent as it is
fails(lambda: client.infer("twin", zeros, compression_algorithm="gzip", headers=meta(MINE)), "uncompressed", status="UNIMPLEMENTED")


def raw(name="same-fp32", shape=(1, 2), datatype="FP32", contents=(struct.pack("<2f", 1, 2),), tensor="x", **more):
    request = service_pb2.ModelInferRequest(model_name=name, raw_input_contents=list(contents), **more)
    request.inputs.add(name=tensor, datatype=datatype, shape=shape)
    return request


def rpc_fails(request, code, words, more=()):
    try:
        stub.ModelInfer(request, metadata=(*metadata(), *more))
    except grpc.RpcError as error:
        assert error.code() == code and words in error.details(), (code, words, error)
        return
    raise SystemExit(f"{words} was expected")


INVALID = grpc.StatusCode.INVALID_ARGUMENT
for request, words in [
    (raw(shape=(2**31, 2**31)), "more than"),
    (raw(shape=(2**62, 8)), "overflows"),
    (raw(shape=(-1, 2)), "negative"),
    (raw(shape=(4000, 4000)), "the whole body has"),
    (raw(shape=(2,)), "expected shape [-1, -1]"),
    (raw(shape=(1,) * 17), "more than 16 dimensions"),
    (raw(shape=(1, 3)), "8 bytes of binary data where its shape asks for 12"),
    (raw(shape=(1, 1)), "8 bytes of binary data where its shape asks for 4"),
    (raw(datatype="FP64"), "expected datatype FP32"),
    (raw(datatype=""), "expected datatype FP32"),
    (raw(contents=[]), "0 elements where its shape asks for 2"),
    (raw(contents=[b"", b""]), "2 `raw_input_contents` for 1 inputs"),
    (raw("same-bool", (1, 2), "BOOL", [b"\x01\x02"]), "0 or 1"),
    (raw("same-bytes", (1, 2), "BYTES", [struct.pack("<I", 1) + b"a"]), "cannot hold 2 strings"),
    (raw("same-bytes", (1, 1), "BYTES", [struct.pack("<I", 4_000_000_000) + b"a"]), "past the end"),
    (raw("same-bytes", (1, 1), "BYTES", [struct.pack("<I", 1) + b"ab"]), "1 bytes of binary data are left"),
    (raw("same-bytes", (1, 1), "BYTES", [struct.pack("<I", 2) + b"\xff\xfe"]), "not UTF-8"),
    (raw("same-bytes", (1, 1), "BYTES", [struct.pack("<I", 3) + b"a\x00b"]), "NUL"),
    (raw("fixed", (3, 2)), "expected shape [2, 3]"),
    (typed("same-int8", "INT8", np.array([[1, 200]])), "out of its range"),
    (typed("same-fp32", "FP32", np.array([[1, 2]]), "fp64_contents"), "another type"),
    (typed("same-fp16", "FP16", np.array([[1.0]]), "fp32_contents"), "raw_input_contents"),
    (typed("same-fp32", "FP32", np.array([[1.0]]), raw_input_contents=[b"\0\0\0\0"]), "give one"),
]:
    rpc_fails(request, INVALID, words)
twice = raw()
twice.inputs.add(name="x", datatype="FP32", shape=[1, 2])
twice.raw_input_contents.append(b"\0" * 8)
rpc_fails(twice, INVALID, "given twice")
unknown = raw()
unknown.outputs.add(name="z")
rpc_fails(unknown, INVALID, "no output `z`")
shared = raw(contents=[])
shared.inputs[0].parameters["shared_memory_region"].string_param = "region"
rpc_fails(shared, grpc.StatusCode.UNIMPLEMENTED, "shared memory")
rpc_fails(raw("logs", (2,), contents=[struct.pack("<2f", 1, 2)] * 2), INVALID, "raw_input_contents")
rpc_fails(service_pb2.ModelInferRequest(model_name="same-fp32"), INVALID, "input `x` is missing")
rpc_fails(service_pb2.ModelInferRequest(), grpc.StatusCode.NOT_FOUND, "deployment")
rpc_fails(service_pb2.ModelInferRequest(model_name="x" * 300), INVALID, "longer than 256")
rpc_fails(raw(contents=[b"\0" * (33 << 20)]), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than")

# Bytes that are no message, or not all of one.
call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
good = raw().SerializeToString()
assert service_pb2.ModelInferResponse.FromString(call(good, metadata=metadata())).raw_output_contents == [struct.pack("<2f", 1, 2)]
for cut in range(len(good)):
    try:
        call(good[:cut], metadata=metadata())
        raise SystemExit(f"{cut} bytes of {len(good)} went through")
    except grpc.RpcError as error:
        assert error.code() in (INVALID, grpc.StatusCode.NOT_FOUND), (cut, error)
for bytes_ in (b"\xff" * 40, b"\x0b", good + good, good + b"\x0a\x04twin", b"\x12\x011" + good):
    try:
        call(bytes_, metadata=metadata())
        raise SystemExit("no message went through")
    except grpc.RpcError as error:
        assert error.code() == INVALID, error

# The same over REST, where the length of the JSON says what is what.
def binary(header, tail, length=None, name="same-fp32"):
    text = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(text) if length is None else length)}
    status, _, body = ask("POST", f"/v2/models/{name}/infer", data=text + tail, headers=headers)
    return status, json.loads(body)["error"] if status != 200 else body


def tensor(size=8, shape=(1, 2), datatype="FP32", **more):
    return {"inputs": [{"name": "x", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}, **more}]}


eight = struct.pack("<2f", 1, 2)
assert binary(tensor(), eight)[0] == 200
for got, words in [
    (binary(tensor(), eight[:7]), "7 bytes are left"),
    (binary(tensor(), eight + b"x"), "belong to no input"),
    (binary(tensor(4), eight[:4]), "4 bytes of binary data where its shape asks for 8"),
    (binary(tensor(2**32), eight), "give a count"),
    (binary(tensor(-8), eight), "give a count"),
    (binary(tensor("8"), eight), "binary_data_size"),
    (binary(tensor(shape=(2**31, 2**31)), eight), "elements"),
    (binary(tensor(shape=(2**62, 8)), eight), "overflows"),
    (binary(tensor(data=[1, 2]), eight), "both `data` and `binary_data_size`"),
    (binary(tensor(), eight, 10**6), "the body has"),
    (binary(tensor(), eight, "abc"), "not a length"),
    (binary(tensor(), eight, -1), "not a length"),
    (binary(tensor(), eight, 5), "no end"),
    (binary({"inputs": []}, b""), "input `x` is missing"),
    (binary(tensor(5, (1, 1), "BYTES"), struct.pack("<I", 9) + b"a", name="same-bytes"), "past the end"),
]:
    assert got[0] == 400 and words in got[1], (words, got)
region = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}}]}
assert binary(region, b"")[0] == 415
status, _, body = ask("POST", "/v2/models/twin/infer", data=b"{", headers={"Content-Type": "application/json"})
assert status == 400 and set(json.loads(body)) == {"error", "code"}, body

# What is not there says so, in the words of each protocol.
for attempt in (
    lambda: http.load_model("twin", headers=bearer(MINE)), lambda: http.unload_model("twin", headers=bearer(MINE)),
    lambda: http.get_system_shared_memory_status(headers=bearer(MINE)), lambda: http.get_cuda_shared_memory_status(headers=bearer(MINE)),
    lambda: http.register_system_shared_memory("r", "/r", 8, headers=bearer(MINE)), lambda: http.unregister_system_shared_memory(headers=bearer(MINE)),
    lambda: http.get_trace_settings(headers=bearer(MINE)), lambda: http.get_log_settings(headers=bearer(MINE)),
):
    fails(attempt, status=501)
for attempt in (
    lambda: client.load_model("twin", headers=meta(MINE)), lambda: client.unload_model("twin", headers=meta(MINE)),
    lambda: client.get_system_shared_memory_status(headers=meta(MINE)), lambda: client.get_cuda_shared_memory_status(headers=meta(MINE)),
    lambda: client.register_system_shared_memory("r", "/r", 8, headers=meta(MINE)), lambda: client.get_trace_settings(headers=meta(MINE)),
    lambda: client.get_log_settings(headers=meta(MINE)),
):
    fails(attempt, status="UNIMPLEMENTED")
try:
    channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    raise SystemExit("a method that is not there answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

# ---- two tenants

theirs = x * 10
same(http.infer("twin", x_rest, headers=bearer(OTHER)).as_numpy("y"), theirs)
same(client.infer("twin", x_rpc, headers=meta(OTHER)).as_numpy("y"), theirs)
same(client.infer("twin", x_rpc, headers=meta(MINE)).as_numpy("y"), x)


def whole(method, message, token):
    """Everything that a client can see of a failure, but what names the request or counts."""
    try:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(message, metadata=metadata(token))
        raise SystemExit(f"{method} went through")
    except grpc.RpcError as error:
        seen = [(k, v) for k, v in (*error.initial_metadata(), *error.trailing_metadata()) if k not in ("x-request-id", "date", "ratelimit")]
        return error.code(), error.details(), sorted(seen)


for method, kind in [("ModelMetadata", service_pb2.ModelMetadataRequest), ("ModelConfig", service_pb2.ModelConfigRequest),
                     ("ModelStatistics", service_pb2.ModelStatisticsRequest)]:
    for token in (MINE, INVOKER, AUDITOR):
        foreign = whole(method, kind(name="theirs").SerializeToString(), token)
        assert foreign == whole(method, kind(name="nobody").SerializeToString(), token), (method, foreign)
for token in (MINE, INVOKER, AUDITOR):
    foreign = whole("ModelInfer", raw("theirs", (2,)).SerializeToString(), token)
    assert foreign == whole("ModelInfer", raw("nobody", (2,)).SerializeToString(), token), foreign
index = http.get_model_repository_index(headers=bearer(MINE))
names = {entry["name"] for entry in index}
assert "twin" in names and "theirs" not in names and all(entry["state"] == "READY" for entry in index), index
assert {entry.name for entry in client.get_model_repository_index(headers=meta(MINE)).models} == names
assert {entry.name for entry in client.get_model_repository_index(headers=meta(OTHER)).models} == {"twin", "theirs", "slow"}
assert ok(ask("POST", "/v2/repository/index", data=b'{"ready": true}')) == index
before = client.get_inference_statistics("twin", headers=meta(OTHER)).model_stats[0]
assert (before.inference_stats.success.count, before.inference_stats.fail.count) == (2, 0), before
stats = http.get_inference_statistics("twin", headers=bearer(MINE))["model_stats"][0]
assert stats["inference_stats"]["success"]["count"] > 2 and stats["inference_stats"]["success"]["ns"] > 0 and stats["last_inference"] > 0, stats
assert {one["name"] for one in http.get_inference_statistics(headers=bearer(MINE))["model_stats"]} == names
assert http.get_inference_statistics("twin", "1", headers=bearer(MINE))["model_stats"][0]["version"] == "1"
fails(lambda: http.get_inference_statistics("twin", "5", headers=bearer(MINE)), status=404)

# ---- requests that wait together, in the words of Triton's configuration and statistics

# Each run takes some milliseconds, so that others come meanwhile.
PAIRS = helper.make_graph(
    [helper.make_node("Identity", ["more"], ["more_out"]), helper.make_node("Identity", ["v"], ["v_out"])], "pairs",
    [value("i", TensorProto.INT64, []), value("more", TensorProto.BOOL, []), value("v", FLOAT, ["rows", 3])],
    [value("more_out", TensorProto.BOOL, []), value("v_out", FLOAT, ["rows", 3])],
)
deploy("joined", model(
    [helper.make_node("Loop", ["times", "yes", "x"], ["late"], body=PAIRS), helper.make_node("Mul", ["late", "k"], ["y"]),
     helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0)],
    [value("x", FLOAT, ["rows", 3])], [value("y", FLOAT, ["rows", 3]), value("sum", FLOAT, ["rows"])],
    [helper.make_tensor("times", TensorProto.INT64, [], [20_000]), helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
     helper.make_tensor("k", FLOAT, [], [5.0]), helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
))
before = http.get_model_config("joined", headers=bearer(MINE))
assert before["max_batch_size"] == 0 and "dynamic_batching" not in before and before["input"][0]["dims"] == [-1, 3], before
target = json.dumps({"model": "joined", "version": 1, "batching": {"max_size": 8, "window_us": 500}}).encode()
ok(ask("PUT", "/v1/deployments/joined", MINE, target, {"Content-Type": "application/json"}))
config = http.get_model_config("joined", headers=bearer(MINE))
assert config["dynamic_batching"] == {"preferred_batch_size": [8], "max_queue_delay_microseconds": 500}, config
assert config["max_batch_size"] == 8 and config["input"][0]["dims"] == [3] and "reshape" not in config["input"][0], config
assert config["output"][1]["dims"] == [1] and config["output"][1]["reshape"] == {"shape": []}, config
config = client.get_model_config("joined", headers=meta(MINE)).config
assert (config.max_batch_size, list(config.input[0].dims), config.input[0].HasField("reshape")) == (8, [3], False), config
assert (list(config.output[1].dims), config.output[1].HasField("reshape"), list(config.output[1].reshape.shape)) == ([1], True, []), config
assert (list(config.dynamic_batching.preferred_batch_size), config.dynamic_batching.max_queue_delay_microseconds) == ([8], 500), config
assert http.get_model_metadata("joined", headers=bearer(MINE))["inputs"][0]["shape"] == [-1, 3]
several = np.arange(6, dtype=np.float32).reshape(2, 3)
earlier = http.get_inference_statistics("joined", headers=bearer(MINE))["model_stats"][0]


def own(number):
    array = several[: 1 + number % 2] + number
    if number % 3:
        answer = client.infer("joined", [rpc_input("x", array, "FP32")], headers=meta(MINE))
        same(answer.as_numpy("y"), array * np.float32(5))
        same(answer.as_numpy("sum"), array.sum(axis=1))
    else:
        body = {"inputs": [{"name": "x", "shape": array.shape, "datatype": "FP32", "data": array.tolist()}], "outputs": [{"name": "sum"}]}
        answer = ok(ask("POST", "/v2/models/joined/infer", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}))
        assert answer["outputs"][0]["data"] == array.sum(axis=1).tolist(), answer
    return len(array)


with ThreadPoolExecutor(16) as pool:
    rows = sum(pool.map(own, range(200)))
stats = http.get_inference_statistics("joined", headers=bearer(MINE))["model_stats"][0]
assert stats["inference_count"] - earlier["inference_count"] == rows == 300, stats
assert stats["inference_stats"]["success"]["count"] - earlier["inference_stats"]["success"]["count"] == 200, stats
batches = {one["batch_size"]: one["compute_infer"] for one in stats["batch_stats"]}
assert sum(size * of["count"] for size, of in batches.items()) == 300 and max(batches) <= 8 and all(of["ns"] for of in batches.values()), stats
assert sum(of["count"] for of in batches.values()) == stats["execution_count"] - earlier["execution_count"], stats
assert max(batches) > 2 and stats["execution_count"] - earlier["execution_count"] < 200, stats
over_rpc = client.get_inference_statistics("joined", headers=meta(MINE)).model_stats[0]
assert (over_rpc.inference_count, over_rpc.execution_count) == (stats["inference_count"], stats["execution_count"]), over_rpc
assert {one.batch_size: one.compute_infer.count for one in over_rpc.batch_stats} == {size: of["count"] for size, of in batches.items()}, over_rpc

# ---- streams

answers = queue.Queue()
stream = rpc.InferenceServerClient(ADDRESS, ssl=True, creds=creds)
stream.start_stream(lambda result, error: answers.put((result, error)), headers=meta(MINE))
for number in range(1000):
    array = np.array([number], dtype=np.float32)
    # Every hundredth is broken in its own way, and ends itself alone.
    name = ("nothing", "theirs")[number // 100 % 2] if number % 100 == 50 else "twin"
    tensor_ = rpc_input("z" if number % 100 == 70 else "x", array, "FP32")
    stream.async_stream_infer(name, [tensor_], request_id=str(number))
for number in range(1000):
    result, error = answers.get(timeout=60)
    if number % 100 in (50, 70):
        words = "deployment" if number % 100 == 50 else "no input `z`"
        assert result is None and words in error.message(), (number, error)
    else:
        assert error is None and result.get_response().id == str(number), (number, error)
        same(result.as_numpy("y"), np.array([number], dtype=np.float32))
stream.stop_stream()
assert answers.empty()


def converse(messages, token=MINE, **more):
    """Raw messages into a stream: what came back, and how it ended."""
    seen, method = [], channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    try:
        for answer in method(iter(messages), metadata=metadata(token) if token else (), **more):
            seen.append(service_pb2.ModelStreamInferResponse.FromString(answer))
        return seen, grpc.StatusCode.OK
    except grpc.RpcError as error:
        return seen, error.code()


seen, end = converse([good, good[:20], b"\xff\xff", typed("same-fp32", "FP32", np.array([[5.0]]), id="nine").SerializeToString(), good])
assert end == grpc.StatusCode.OK and [bool(one.error_message) for one in seen] == [False, True, True, False, False], (seen, end)
assert seen[3].infer_response.id == "nine"
failed = raw("nobody")
failed.id = "known again"
seen, _ = converse([failed.SerializeToString()])
assert seen[0].error_message and seen[0].infer_response.id == "known again", seen
assert converse([good], None)[1] == grpc.StatusCode.UNAUTHENTICATED
assert converse([]) == ([], grpc.StatusCode.OK)
foreign, absent = (converse([raw(name, (2,)).SerializeToString()])[0][0].SerializeToString() for name in ("theirs", "nobody"))
assert foreign == absent
squeezed = raw(shape=(1, 5000), contents=[b"\0" * 20_000]).SerializeToString()
seen, end = converse([squeezed], compression=grpc.Compression.Gzip)
assert end == grpc.StatusCode.UNIMPLEMENTED, (seen, end)
large_one = raw("same-fp32", (1500, 2000), contents=[large.tobytes()]).SerializeToString()
seen, end = converse([large_one, good, large_one])
assert end == grpc.StatusCode.OK and [len(one.infer_response.raw_output_contents[0]) for one in seen] == [12_000_000, 8, 12_000_000]
seen, end = converse([good, raw(contents=[b"\0" * (33 << 20)]).SerializeToString(), good])
assert end == grpc.StatusCode.RESOURCE_EXHAUSTED and len(seen) == 1, (len(seen), end)

# A credential that is withdrawn in the middle gets no further answer.
made = ok(ask("POST", "/v1/keys", data=json.dumps({"name": "brief", "member": "ada"}).encode(), headers={"Content-Type": "application/json"}))


def until_withdrawn():
    yield good
    first.get(timeout=60)
    ok(ask("DELETE", f"/v1/keys/{made['key']['id']}"))
    yield good


first, came = queue.Queue(), 0
try:
    method = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    for answer in method(until_withdrawn(), metadata=metadata(made["secret"])):
        came += 1
        first.put(answer)
    raise SystemExit("a withdrawn key was served")
except grpc.RpcError as error:
    assert came == 1 and error.code() == grpc.StatusCode.UNAUTHENTICATED, (came, error)


# ---- the asynchronous clients

async def asynchronous():
    over_rest = rest_aio.InferenceServerClient(ADDRESS, ssl=True, ssl_context=CONTEXT)
    answers = await asyncio.gather(*(over_rest.infer("twin", x_rest, request_id=str(n), headers=bearer(MINE)) for n in range(50)))
    assert [answer.get_response()["id"] for answer in answers] == [str(n) for n in range(50)]
    await over_rest.close()
    over_rpc = rpc_aio.InferenceServerClient(ADDRESS, ssl=True, creds=creds)
    answers = await asyncio.gather(*(over_rpc.infer("twin", x_rpc, request_id=str(n), headers=meta(MINE)) for n in range(50)))
    assert [answer.get_response().id for answer in answers] == [str(n) for n in range(50)]

    async def requests():
        for number in range(20):
            yield {"model_name": "twin", "inputs": x_rpc, "request_id": str(number)}

    ids = [result.get_response().id async for result, error in over_rpc.stream_infer(requests(), headers=meta(MINE)) if not error]
    assert ids == [str(n) for n in range(20)], ids
    await over_rpc.close()


asyncio.run(asynchronous())

# ---- the ledger: an entry for each prediction, with digests, whatever it came over

def entry_of(request):
    found = [item["entry"] for item in ok(ask("GET", f"/v1/ledger?text={request}&act=Predict&limit=500"))["items"]]
    return [entry for entry in found if entry["request"] == request]


digest = lambda data: hashlib.sha256(data).hexdigest()
text = json.dumps(tensor()).encode()
_, _, body = ask("POST", "/v2/models/same-fp32/infer", data=text + eight,
                 headers={"Inference-Header-Content-Length": str(len(text)), "X-Request-Id": "by-rest"})
answer = call(good, metadata=(*metadata(), ("x-request-id", "by-grpc")))
list(channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
    iter([good, good, b"\xff"]), metadata=(*metadata(), ("x-request-id", "by-stream"))))
for request, question, told in [("by-rest", text + eight, body), ("by-grpc", good, answer)]:
    (entry,) = entry_of(request)
    assert entry["outcome"] == "allowed" and entry["resource"] == "deployment:same-fp32", entry
    assert entry["detail"]["input_sha256"] == digest(question) and entry["detail"]["output_sha256"] == digest(told), entry
    assert entry["detail"]["model_version"] == "1" and len(entry["detail"]["model_sha256"]) == 64, entry
of_stream = entry_of("by-stream")
assert sorted(entry["outcome"] for entry in of_stream) == ["allowed", "allowed", "failed"], of_stream
for entry in of_stream:
    if entry["outcome"] == "allowed":
        assert entry["detail"]["input_sha256"] == digest(good) and entry["detail"]["output_sha256"] == digest(answer), entry

# ---- receipts and manners, over both

def receipted(note):
    """What a receipt says."""
    return dict(line.split(" ", 1) for line in base64.b64decode(note).decode().split("\n\n")[0].splitlines()[1:])


method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
answer, told = method.with_call(good, metadata=(*metadata(), ("insula-receipt", "sign"), ("insula-priority", "high"), ("insula-timeout-ms", "30000")))
over_rpc = receipted(dict(told.initial_metadata())["insula-receipt"])
_, told, body = ask("POST", "/v2/models/same-fp32/infer", data=text + eight,
                    headers={"Inference-Header-Content-Length": str(len(text)), "Insula-Receipt": "sign", "Insula-Timeout-Ms": "30000"})
over_rest = receipted({name.lower(): value for name, value in told.items()}["insula-receipt"])
for receipt, question, told in [(over_rpc, good, answer), (over_rest, text + eight, body)]:
    assert receipt["input"] == digest(question) and receipt["output"] == digest(told) and receipt["deployment"] == "same-fp32", receipt
for header in [("insula-receipt", "please"), ("insula-priority", "urgent"), ("insula-timeout-ms", "0")]:
    rpc_fails(raw(contents=[eight]), INVALID, header[0].title(), [header])
for header in [("insula-receipt", "sign"), ("insula-priority", "urgent"), ("insula-timeout-ms", "-1")]:
    try:
        list(channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([good]), metadata=(*metadata(), header)))
        raise SystemExit(f"a stream with {header} was served")
    except grpc.RpcError as error:
        assert error.code() == INVALID, error

# ---- a deadline of the caller's, on a model that takes its time

slow = lambda times: [rpc_input("times", np.array(times, np.int64), "INT64"), x_rpc[0]]
same(client.infer("slow", slow(3), headers=meta(OTHER)).as_numpy("y"), x)

def slow_raw(times):
    request = service_pb2.ModelInferRequest(model_name="slow", raw_input_contents=[struct.pack("<q", times), x.tobytes()])
    request.inputs.add(name="times", datatype="INT64", shape=[])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return request.SerializeToString()


# Of a stream's messages each has its own time: the one that takes too long is answered so, and the stream goes on.
hurried = (*metadata(OTHER), ("insula-timeout-ms", "700"))
streamed = [service_pb2.ModelStreamInferResponse.FromString(one) for one in channel.stream_stream(
    "/inference.GRPCInferenceService/ModelStreamInfer")(iter([slow_raw(3), slow_raw(20_000_000)]), metadata=hurried)]
assert [one.error_message for one in streamed][0] == "" and "time that the request gave" in streamed[1].error_message, streamed
late = {**meta(OTHER), "x-request-id": "too-late"}
fails(lambda: client.infer("slow", slow(20_000_000), client_timeout=0.5, headers=late), status="DEADLINE_EXCEEDED")
# The client gives up by its own clock: the service may be a moment behind.
found, began = [], time.monotonic()
while not found and time.monotonic() - began < 30:
    found = [item["entry"] for item in ok(ask("GET", "/v1/ledger?text=too-late&act=Predict", OTHER))["items"]]
(entry,) = found
assert entry["outcome"] == "failed" and entry["reason"] in ("deadline_exceeded", "abandoned"), entry
print(json.dumps({"datatypes": len(NUMPY), "streamed": 1000}))
