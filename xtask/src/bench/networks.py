"""Networks of which loading takes time: `networks.py small OUT.onnx` (a convolutional one of 2 MB), `networks.py large OUT.onnx` (a transformer
of 58 MB: six layers of width 384, its products in dynamic int8, the table of its 30,522 words in fp32).

The weights are random: only their number and kind matter here.
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(7)


class Network:
    def __init__(self) -> None:
        self.nodes, self.weights = [], []

    def weight(self, value) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def random(self, *shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.05).astype(np.float32)

    def node(self, operator: str, inputs: list[str], outputs: int = 1, **attributes):
        names = [f"v{len(self.nodes)}_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def save(self, path: str, taken, given: str, shape: list) -> None:
        output = helper.make_tensor_value_info(given, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "network", [taken], [output], self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        made.ir_version = 8
        onnx.checker.check_model(made)
        onnx.save(made, path)


def small(path: str, blocks: int = 24, width: int = 96) -> None:
    n = Network()
    x = n.node("Conv", ["input", n.weight(n.random(width, 3, 3, 3)), n.weight(n.random(width))], pads=[1] * 4, strides=[2, 2])
    for _ in range(blocks):
        y = n.node("Conv", [x, n.weight(n.random(width, width, 1, 1)), n.weight(n.random(width))])
        y = n.node("HardSwish", [y])
        y = n.node("Conv", [y, n.weight(n.random(width, 1, 3, 3)), n.weight(n.random(width))], pads=[1] * 4, group=width)
        y = n.node("Conv", [n.node("Relu", [y]), n.weight(n.random(width, width, 1, 1)), n.weight(n.random(width))])
        x = n.node("Add", [x, y])
    y = n.node("Flatten", [n.node("GlobalAveragePool", [x])])
    n.save(path, helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 32, 32]), y, [1, width])


def large(path: str, words: int = 30522, width: int = 384, inner: int = 1536, heads: int = 12) -> None:
    n = Network()

    def linear(x: str, rows: int, columns: int) -> str:
        weight = n.random(rows, columns)
        scale = np.abs(weight).max() / 127
        quantized, input_scale, zero = n.node("DynamicQuantizeLinear", [x], 3)
        whole = n.weight(np.round(weight / scale).astype(np.int8))
        y = n.node("Cast", [n.node("MatMulInteger", [quantized, whole, zero])], to=TensorProto.FLOAT)
        y = n.node("Mul", [y, n.node("Mul", [input_scale, n.weight(np.float32(scale))])])
        return n.node("Add", [y, n.weight(n.random(columns))])

    def normal(x: str) -> str:
        return n.node("LayerNormalization", [x, n.weight(np.ones(width, np.float32)), n.weight(np.zeros(width, np.float32))])

    x = normal(n.node("Gather", [n.weight(n.random(words, width)), "input"]))
    split, joined = n.weight(np.array([0, 0, heads, width // heads])), n.weight(np.array([0, 0, width]))
    for _ in range(6):
        q, k, v = (n.node("Transpose", [n.node("Reshape", [linear(x, width, width), split])], perm=[0, 2, 1, 3]) for _ in range(3))
        a = n.node("MatMul", [q, n.node("Transpose", [k], perm=[0, 1, 3, 2])])
        a = n.node("Softmax", [n.node("Div", [a, n.weight(np.float32((width / heads) ** 0.5))])])
        a = n.node("Reshape", [n.node("Transpose", [n.node("MatMul", [a, v])], perm=[0, 2, 1, 3]), joined])
        x = normal(n.node("Add", [x, linear(a, width, width)]))
        y = n.node("Relu", [linear(x, width, inner)])
        x = normal(n.node("Add", [x, linear(y, inner, width)]))
    y = n.node("ReduceMean", [x], axes=[1], keepdims=0)
    n.save(path, helper.make_tensor_value_info("input", TensorProto.INT64, [1, "words"]), y, [1, width])


{"small": small, "large": large}[sys.argv[1]](sys.argv[2])
