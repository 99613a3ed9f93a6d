"""What every peer runs: ONNX Runtime with one thread, asked for everything the model gives.

A peer is started as `NAME_peer.py MODEL.onnx PORT FOLDER`. Many start programs of their own, which read other arguments: so ours travel in the
environment from then on.
"""

import os
import sys

import numpy as np
import onnxruntime as ort

MODEL, PORT, FOLDER = os.environ.setdefault("PEER", "\n".join(sys.argv[1:4])).split("\n")
PORT = int(PORT)


class Engine:
    def __init__(self, path=MODEL):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, rows):
        """Arrays by the outputs' names; `rows` is anything that becomes rows of numbers."""
        rows = np.asarray(rows, np.float32).reshape(-1, 30)
        return dict(zip(self.outputs, self.session.run(None, {"input": rows}), strict=True))
