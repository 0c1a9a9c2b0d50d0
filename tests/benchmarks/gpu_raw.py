"""ONNX Runtime on a GPU without any server: images/s of the ways to run one model, each next to the others.

    python -m tests.benchmarks.gpu_raw BUNDLE RESULTS --precision fp16 [--provider cuda] [--seconds 0.4] [--short]

A line of JSON for each way as soon as it is known, so that whatever comes what was measured is kept. A way that fails
says so in its line. Nothing of the trainer is loaded.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from service.bundle import Bundle, Parity, read_bundle
from service.session import CUDA_OPTIONS, EXECUTION_PROVIDERS, Provider

OUTPUTS = ("factual_logits", "counterfactual_logits", "confounder_cosine")
BATCH = 32
LARGER = (64, 128)
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "as served": {},
    "nhwc": {"prefer_nhwc": "1"},
    "heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "nhwc heuristic": {"prefer_nhwc": "1", "cudnn_conv_algo_search": "HEURISTIC"},
}
"""What of the CUDA provider's options is compared."""
_WHOLLY = ("as served", "nhwc", "heuristic")
"""With which all ways are compared."""

_WARM = 2.0
"""Seconds after which a device is at its pace: some tenths of a second give less, the first ways most of all."""

Once = Callable[[], object]


class Raw:
    """A session on one device, and the ways to run it.

    Args:
        bundle: whose model runs.
        precision: fp32 or fp16.
        provider: cuda, or cpu to try the script where there is no GPU.
        options: of the CUDA provider, beside those of the service.
    """

    def __init__(self, bundle: Bundle, precision: str, provider: Provider, options: Mapping[str, str]) -> None:
        path = bundle.model_path("fp16" if precision == "fp16" else "fp32")
        assert path is not None, f"the bundle has a model in {precision}"
        chosen: list[Any] = [EXECUTION_PROVIDERS[provider]]
        if provider == "cuda":
            onnxruntime.preload_dlls()
            chosen = [(EXECUTION_PROVIDERS[provider], {**CUDA_OPTIONS, **options})]
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        begin = time.perf_counter()
        self.session = onnxruntime.InferenceSession(path, settings, providers=chosen)
        if self.session.get_providers()[0] != EXECUTION_PROVIDERS[provider]:
            raise RuntimeError(f"{provider} was asked for, and {self.session.get_providers()[0]} runs")
        self.seconds_to_load = time.perf_counter() - begin
        self.device, self._parity = provider, bundle.parity()

    def inputs(self, size: int) -> dict[str, NDArray[Any]]:
        """Return a batch that begins with the parity samples; the rest is noise."""
        images = np.random.default_rng(0).integers(0, 256, (size, *self._parity.images.shape[1:]), dtype=np.uint8)
        known = self._parity.images[:size]
        images[: len(known)] = known
        return {"image": images, "alpha": np.zeros(size, np.float32), "prior_strength": np.zeros(size, np.float32)}

    def gap(self, outputs: Sequence[NDArray[np.float32]]) -> float:
        """Return by how much outputs of such a batch differ from those expected of the parity samples at most."""
        count = min(len(self._parity.images), len(outputs[0]))
        return max(_gap(self._parity, name, output, count) for name, output in zip(OUTPUTS, outputs, strict=True))

    def feeds(self, size: int) -> Once:
        """Arrays in, arrays out."""
        inputs = self.inputs(size)
        return lambda: self.session.run(OUTPUTS, inputs)

    def bound(self, size: int) -> Once:
        """A new binding each time, which copies in and out, as the service does."""
        inputs = self.inputs(size)

        def once() -> object:
            binding = self.session.io_binding()
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            for name in OUTPUTS:
                binding.bind_output(name)
            self.session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()

        return once

    def on_device(self, size: int) -> Once:
        """Everything stays on the device: what no server can reach."""
        binding, _, _ = self._fixed(size)

        def once() -> object:
            self.session.run_with_iobinding(binding)
            return None

        return once

    def copied(self, size: int) -> Once:
        """Into buffers that stay on the device, and out of them; what a CUDA graph needs."""
        binding, there, found = self._fixed(size)
        inputs = self.inputs(size)

        def once() -> object:
            for name, array in inputs.items():
                there[name].update_inplace(array)
            self.session.run_with_iobinding(binding)
            return [output.numpy() for output in found]

        return once

    def _fixed(self, size: int) -> tuple[Any, dict[str, OrtValue], list[OrtValue]]:
        binding = self.session.io_binding()
        there = {name: OrtValue.ortvalue_from_numpy(array, self.device, 0) for name, array in self.inputs(size).items()}
        shapes = {value.name: [size, *value.shape[1:]] for value in self.session.get_outputs()}
        found = [OrtValue.ortvalue_from_shape_and_type(shapes[name], np.float32, self.device, 0) for name in OUTPUTS]
        for name, value in there.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(OUTPUTS, found, strict=True):
            binding.bind_ortvalue_output(name, value)
        return binding, there, found


def _gap(parity: Parity, name: str, output: NDArray[np.float32], count: int) -> float:
    return float(np.abs(output[:count] - getattr(parity, name)[:count]).max())


def rate(way: Callable[[int], Once], size: int, seconds: float, threads: int = 1) -> float:
    """Return images/s of so many threads, each with buffers of its own: the median of three stretches, once warm."""
    ways = [way(size) for _ in range(threads)]
    for once in ways:
        once(), once()
    return statistics.median(_stretch(ways, size, seconds) for _ in range(3))


def _stretch(ways: Sequence[Once], size: int, seconds: float) -> float:
    begin = time.perf_counter()

    def work(once: Once) -> int:
        done = 0
        while time.perf_counter() - begin < seconds:
            once()
            done += size
        return done

    if len(ways) == 1:
        return work(ways[0]) / (time.perf_counter() - begin)
    with ThreadPoolExecutor(len(ways)) as pool:
        images = sum(pool.map(work, ways))
    return images / (time.perf_counter() - begin)


class Book:
    """Where the lines go."""

    def __init__(self, file: Path, **common: object) -> None:
        self._file, self._common = file, common

    def note(self, what: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Write what was measured, or why nothing was."""
        begin = time.perf_counter()
        try:
            found = measure()
        except Exception as problem:  # the other ways are worth having all the same
            found = {"failed": f"{type(problem).__name__}: {problem}"[:500]}
        line = {**self._common, "what": what, **found, "took": round(time.perf_counter() - begin, 2)}
        with self._file.open("a") as sink:
            sink.write(json.dumps(line) + "\n")
        print(line, file=sys.stderr, flush=True)


def measure(bundle: Bundle, book: Book, precision: str, provider: Provider, seconds: float, *, short: bool) -> None:
    """Compare the ways to run the model with each of the options, then CUDA graphs, as the service has them.

    Short: with the service's options and in its largest batches alone.
    """
    compared = {name: OPTIONS[name] for name in OPTIONS if precision == "fp16" or name in _WHOLLY}
    if short:
        compared = {"as served": OPTIONS["as served"]}
    for name, options in compared.items():
        raw: Raw | None = None

        def opened(options: Mapping[str, str] = options) -> dict[str, Any]:
            nonlocal raw
            raw = Raw(bundle, precision, provider, options)
            begin = time.perf_counter()
            found: Any = raw.bound(BATCH)()
            first = time.perf_counter() - begin
            _stretch([raw.bound(BATCH)], BATCH, _WARM)
            return {"load": raw.seconds_to_load, "first run": first, "gap": raw.gap(found)}

        book.note(f"{name}: start", opened)
        if raw is not None:
            if short or (precision == "fp16" and name in _WHOLLY):
                _ways(raw, book, name, seconds)
            if not short:
                _sizes(raw, book, name, seconds, everything=precision == "fp16" and name in _WHOLLY)
            del raw
    for name in ("as served",) if short else ("as served", "nhwc"):
        capturing = partial(Raw, bundle, precision, provider, {**OPTIONS[name], "enable_cuda_graph": "1"})
        for size, threads in ((BATCH, 1), (BATCH, 2), (1, 1)):
            graph = partial(_graph, capturing, seconds, size, threads)
            book.note(f"{name}: cuda graph, copied, {size}{', 2 threads' * (threads > 1)}", graph)


def _ways(raw: Raw, book: Book, name: str, seconds: float) -> None:
    """Compare the ways at the service's largest batch, and see what a lone picture takes."""
    ways = {"on device": raw.on_device, "bound": raw.bound, "feeds": raw.feeds, "copied": raw.copied}
    for what, way in ways.items():
        book.note(f"{name}: {what}, {BATCH}", partial(_images, way, BATCH, seconds))
    for what in ("bound", "copied"):
        book.note(f"{name}: {what}, {BATCH}, 2 threads", partial(_images, ways[what], BATCH, seconds, 2))
    book.note(f"{name}: lone, 1", lambda: {"ms": 1e3 / rate(raw.bound, 1, seconds)})


def _sizes(raw: Raw, book: Book, name: str, seconds: float, *, everything: bool) -> None:
    """Compare the sizes of batches."""
    if everything:
        book.note(f"{name}: sizes in turn", lambda: _in_turn(raw, seconds))
    else:
        book.note(f"{name}: bound, {BATCH}", partial(_images, raw.bound, BATCH, seconds))
    for size in LARGER if everything else LARGER[-1:]:
        book.note(f"{name}: on device, {size}", partial(_images, raw.on_device, size, seconds))
        book.note(f"{name}: bound, {size}", partial(_images, raw.bound, size, seconds))


def _images(way: Callable[[int], Once], size: int, seconds: float, threads: int = 1) -> dict[str, Any]:
    return {"images/s": rate(way, size, seconds, threads), "size": size}


def _in_turn(raw: Raw, seconds: float) -> dict[str, Any]:
    """Tell what a change of the batch's size costs beside the runs themselves."""
    ways = {size: raw.bound(size) for size in (1, BATCH // 2, BATCH)}
    alone = {size: size / rate(raw.bound, size, seconds) for size in ways}
    found = []
    for _, size in zip(range(24), cycle(ways), strict=False):
        begin = time.perf_counter()
        ways[size]()
        found.append((size, time.perf_counter() - begin))
    turned = {size: statistics.median(took for each, took in found if each == size) for size in ways}
    return {
        "ms alone": {size: round(took * 1e3, 2) for size, took in alone.items()},
        "ms in turn": {size: round(took * 1e3, 2) for size, took in turned.items()},
    }


def _graph(open_session: Callable[[], Raw], seconds: float, size: int, threads: int) -> dict[str, Any]:
    """Capture a graph in each thread, one after the other, for a session of its own; then all run.

    Two threads are never in one session, and nothing else runs while a graph is captured: ONNX Runtime asks for both.
    """
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(threads)]
        ways: list[Once] = []
        gap = 0.0
        for pool in pools:
            raw = open_session()
            once = raw.copied(size)
            for _ in range(2):
                pool.submit(once).result()
            found: Any = pool.submit(once).result()
            gap = max(gap, raw.gap(found))
            ways.append(once)
        for pool, once in zip(pools, ways, strict=True):
            pool.submit(_stretch, [once], size, _WARM / threads).result()
        rates = []
        for _ in range(3):
            running = [pool.submit(_stretch, [once], size, seconds) for pool, once in zip(pools, ways, strict=True)]
            rates.append(sum(each.result() for each in running))
    middle = statistics.median(rates)
    found = {"images/s": middle} if size > 1 else {"ms": 1e3 * threads / middle}
    return {**found, "size": size, "gap": gap}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one bundle in one precision."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_raw")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--short", action="store_true", help="the service's options and largest batch alone")
    asked = parser.parse_args(arguments)
    bundle = read_bundle(asked.bundle)
    book = Book(asked.results, precision=asked.precision, model=bundle.manifest.name)
    measure(bundle, book, asked.precision, asked.provider, asked.seconds, short=asked.short)


if __name__ == "__main__":
    main()
