import kserve
from kserve import InferOutput, InferResponse

from session import PORT, Engine

TYPES = {"int64": "INT64", "float32": "FP32"}


class Model(kserve.Model):
    def __init__(self):
        super().__init__("m")
        self.engine = Engine()
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        outputs = []
        for name, value in self.engine.run(payload.inputs[0].as_numpy()).items():
            outputs.append(InferOutput(name, list(value.shape), TYPES[str(value.dtype)], value.flatten().tolist()))
        return InferResponse(payload.id or "1", "m", outputs)


if __name__ == "__main__":
    kserve.ModelServer(http_port=PORT, enable_grpc=False, workers=1, enable_docs_url=False).start([Model()])
