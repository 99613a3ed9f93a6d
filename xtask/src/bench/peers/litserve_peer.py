import litserve as ls

from session import PORT, Engine


class Api(ls.LitAPI):
    def setup(self, device):
        self.engine = Engine()

    def decode_request(self, request):
        return request["data"]

    def predict(self, data):
        return self.engine.run(data)

    def encode_response(self, output):
        return {name: value.tolist() for name, value in output.items()}


if __name__ == "__main__":
    server = ls.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
