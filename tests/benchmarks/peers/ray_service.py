"""Ray Serve with one replica, on a cluster of this machine alone."""

import os
import time

import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
class Classifier:
    def __init__(self) -> None:
        from classify import classify

        self.classify = classify

    async def __call__(self, request: Request) -> dict:
        return self.classify(await request.body(), float(request.query_params.get("alpha", 1.5)))


os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's name; else 15, behind all that runs, the load too
ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
serve.run(Classifier.bind(), route_prefix="/predict")
while True:
    time.sleep(3600)
