import json
import os
import sys

if __name__ == "__main__":
    from session import FOLDER, MODEL, PORT

    here = os.path.dirname(os.path.abspath(__file__))
    folder = os.path.join(FOLDER, "mlserver")
    os.makedirs(folder, exist_ok=True)
    settings = {"host": "127.0.0.1", "http_port": PORT, "grpc_port": PORT + 1, "metrics_port": PORT + 2, "parallel_workers": 0, "debug": False}
    with open(os.path.join(folder, "settings.json"), "w") as file:
        json.dump(settings, file)
    with open(os.path.join(folder, "model-settings.json"), "w") as file:
        json.dump({"name": "m", "implementation": "mlserver_peer.Model", "parameters": {"uri": MODEL}}, file)
    os.environ["PYTHONPATH"] = here
    os.execv(sys.executable, [sys.executable, "-m", "mlserver.cli.main", "start", folder])

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

from session import Engine


class Model(MLModel):
    async def load(self):
        self.engine = Engine()
        return True

    async def predict(self, payload):
        found = self.engine.run(NumpyCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output(name, value) for name, value in found.items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)
