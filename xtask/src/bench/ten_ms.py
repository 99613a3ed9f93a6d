"""A model of about ten milliseconds of compute on one thread, from thirty numbers: `ten_ms.py OUT.onnx`.

Its weights are few and used again and again, so that it is arithmetic that takes the time and not memory. The number of layers is chosen on
this machine.
"""

import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTH = 192
WANTED_SECONDS = 0.010


def model(layers: int) -> bytes:
    random = np.random.default_rng(7)
    weights = {
        "in": random.normal(0, 0.1, (30, WIDTH)),
        "spread": random.normal(0, 1, (1, WIDTH)),
        "mix": random.normal(0, 1 / WIDTH**0.5, (WIDTH, WIDTH)),
        "out": random.normal(0, 1 / WIDTH, (WIDTH, 1)),
    }
    node = helper.make_node
    nodes = [node("MatMul", ["input", "in"], ["wide"]), node("Transpose", ["wide"], ["column"]), node("MatMul", ["column", "spread"], ["h0"])]
    for at in range(layers):
        nodes += [node("MatMul", [f"h{at}", "mix"], [f"m{at}"]), node("Tanh", [f"m{at}"], [f"h{at + 1}"])]
    nodes += [node("MatMul", [f"h{layers}", "out"], ["each"]), node("Transpose", ["each"], ["row"]), node("ReduceMean", ["row"], ["score"], keepdims=1)]
    graph = helper.make_graph(
        nodes,
        "ten_ms",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 30])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 10
    onnx.checker.check_model(made)
    return made.SerializeToString()


def seconds(made: bytes) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    row, times = {"input": np.zeros((1, 30), np.float32)}, []
    for _ in range(12):
        began = time.perf_counter()
        session.run(None, row)
        times.append(time.perf_counter() - began)
    # The least: others may be at work on this machine.
    return min(times)


layers = 8
for _ in range(3):
    layers = max(1, round(layers * WANTED_SECONDS / seconds(model(layers))))
made = model(layers)
with open(sys.argv[1], "wb") as file:
    file.write(made)
print(f'{{"layers": {layers}, "ms": {seconds(made) * 1e3:.2f}, "bytes": {len(made)}}}')
