"""On a GPU: what HTTP leaves of the images/s of ONNX Runtime's CUDA provider, with batched binary requests.

ResNeXt-50 32x4d, 32 pictures a request as a UINT8 tensor through `/v2/.../infer`, against the same session without a
server.
"""

import statistics
import sys
import threading
import time

import numpy as np
import onnxruntime

from service.model import OnnxModel
from service.session import ProviderUnavailable
from tests.benchmarks.models import HEAVY
from tests.benchmarks.result import Figure, at_least
from tests.benchmarks.servers import free_port, running
from tests.benchmarks.workplace import Skipped, Workplace

PART = "GPU"
BATCH, CLIENTS = 32, 4


def run(workplace: Workplace) -> list[Figure]:
    """Compare raw batches with batched requests over HTTP.

    Raises:
        Skipped: there is no GPU that ONNX Runtime can use.
    """
    bundle = workplace.bundle(HEAVY)
    try:
        model = OnnxModel(bundle, provider="cuda", max_batch_size=BATCH)
    except ProviderUnavailable as problem:
        raise Skipped(str(problem)) from problem
    spec = bundle.manifest.input
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, spec.height, spec.width, 3), dtype=np.uint8)
    raw = statistics.median(_raw(model, pixels, workplace.seconds(5)) for _ in range(3))
    del model
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", str(bundle.path), "--port", str(port), "--provider", "cuda"]
    folder = workplace.place("run-gpu")
    environment = {"EVENKEEL_DATABASE_URL": f"sqlite:///{folder / 'state.sqlite'}"}
    with running(command, folder=folder, ready="/readyz", environment=environment, port=port) as server:
        over_http = _requests(server.port, bundle.manifest.name, pixels, workplace.seconds(15))
    note = f"{over_http:,.0f} and {raw:,.0f} images/s, ONNX Runtime {onnxruntime.__version__}, {CLIENTS} clients"
    return [
        Figure(PART, "images/s, binary batches over HTTP / raw CUDA", over_http / raw, goal=at_least(0.9), note=note)
    ]


def _raw(model: OnnxModel, pixels: np.ndarray, seconds: float) -> float:
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        model.branches(pixels)
        done += len(pixels)
    return done / (time.perf_counter() - begin)


def _requests(port: int, name: str, pixels: np.ndarray, seconds: float) -> float:
    """Return images/s of some clients, each a process's thread with a connection of its own."""
    from tritonclient import http

    counts, until = [0] * CLIENTS, time.perf_counter() + seconds

    def ask(number: int) -> None:
        client = http.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=60)
        image = http.InferInput("image", pixels.shape, "UINT8")
        image.set_data_from_numpy(pixels)
        while time.perf_counter() < until:
            client.infer(name, [image], outputs=[http.InferRequestedOutput("logits")])
            counts[number] += len(pixels)

    begin = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)
