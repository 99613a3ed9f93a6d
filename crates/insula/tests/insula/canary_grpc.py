"""Calls every method of the inference service that Triton's protocol has, about one deployment, and tells what came back: bytes in hex, by method.

Arguments: address (host:port), certificate authority, deployment, a request as JSON of REST has it; the key is in the environment.
"""

import json
import os
import sys

import grpc
import numpy as np
import tritonclient.grpc as rpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

ADDRESS, AUTHORITY, GATE, REQUEST = sys.argv[1:]
METADATA = [("authorization", "Bearer " + os.environ["INSULA_TOKEN"])]
DATATYPES = {"FP32": np.float32, "BYTES": np.object_}

stub = service_pb2_grpc.GRPCInferenceServiceStub(
    grpc.secure_channel(ADDRESS, grpc.ssl_channel_credentials(open(AUTHORITY, "rb").read()))
)


def prediction():
    request = service_pb2.ModelInferRequest(model_name=GATE)
    for tensor in json.loads(REQUEST)["inputs"]:
        given = rpc.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
        given.set_data_from_numpy(np.array([tensor["data"]], DATATYPES[tensor["datatype"]]))
        request.inputs.append(given._get_tensor())
        request.raw_input_contents.append(given._get_content())
    return request


def asked(method):
    """The request of a method, with the deployment in every text that it has."""
    kind = getattr(service_pb2, method.input_type.name)
    if kind is service_pb2.ModelInferRequest:
        return prediction()
    request = kind()
    for field in method.input_type.fields:
        single = not field.is_repeated and field.type == field.TYPE_STRING
        if single and "version" not in field.name:
            setattr(request, field.name, GATE)
    return request


told = {}
for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
    call = getattr(stub, method.name)
    try:
        if method.client_streaming:
            answer = b"".join(part.SerializeToString() for part in call(iter([asked(method)]), metadata=METADATA, timeout=60))
        else:
            answer = call(asked(method), metadata=METADATA, timeout=60).SerializeToString()
    except grpc.RpcError as error:
        trailers = repr(error.trailing_metadata())
        answer = f"{error.code().name}: {error.details()} {trailers}".encode()
    told[method.name] = answer.hex()
print(json.dumps(told))
