import sys

from session import FOLDER, MODEL, PORT, Engine

# It reads its own arguments from the same place.
sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", str(PORT), "--path", FOLDER + "/mosec"]
from mosec import Server, Worker


class Model(Worker):
    def __init__(self):
        self.engine = Engine(MODEL)

    def forward(self, data):
        return {name: value.tolist() for name, value in self.engine.run(data["data"]).items()}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1)
    server.run()
