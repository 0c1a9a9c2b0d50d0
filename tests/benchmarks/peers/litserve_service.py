"""LitServe with one worker. A raw body is none of its forms: the picture comes as base64 in JSON."""

import base64
import os

import litserve


class Api(litserve.LitAPI):
    def setup(self, device):
        from classify import classify

        self.classify = classify

    def decode_request(self, request):
        return base64.b64decode(request["image"]), request["alpha"]

    def predict(self, picture):
        return self.classify(*picture)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(port=int(os.environ["PORT"]), num_api_servers=1, log_level="warning", generate_client_file=False)
