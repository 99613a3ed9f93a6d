import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from session import PORT, Engine

if __name__ == "__main__":
    engine = Engine()
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    shape = lambda output: tuple(size if isinstance(size, int) else -1 for size in output.shape[1:]) or (1,)
    outputs = [Tensor(name=output.name, dtype=types[output.type], shape=shape(output)) for output in engine.session.get_outputs()]

    @batch
    def infer(input):
        rows = len(input)
        return {name: value.reshape(rows, -1) for name, value in engine.run(input).items()}

    config = TritonConfig(http_address="127.0.0.1", http_port=PORT, grpc_address="127.0.0.1", grpc_port=PORT + 1,
                          metrics_address="127.0.0.1", metrics_port=PORT + 2, log_verbose=0)
    with Triton(config=config) as triton:
        triton.bind("m", infer_func=infer, inputs=[Tensor(name="input", dtype=np.float32, shape=(30,))], outputs=outputs,
                    config=ModelConfig(max_batch_size=1))
        triton.serve()
