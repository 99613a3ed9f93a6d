import os
import sys

if __name__ == "__main__":
    from session import PORT

    # Served by its own command, which imports this file again.
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_peer:Peer", "--host", "127.0.0.1", "--port", str(PORT), "--working-dir", here]
    os.execv(sys.executable, command)

import bentoml

from session import Engine


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Peer:
    def __init__(self):
        self.engine = Engine()

    @bentoml.api
    def predict(self, data: list[float]) -> dict:
        return {name: value.tolist() for name, value in self.engine.run(data).items()}
