"""On a GPU: what HTTP leaves of the images/s of ONNX Runtime's CUDA provider, and how many processes JPEGs take.

ResNeXt-50 32x4d in fp16. Batched requests are 32 pictures as a UINT8 tensor through `/v2/.../infer`; single pictures
are JPEGs of about 500x375 through `/predict`, held against decoding alone on all cores too. Raw is the same model
without a server, with pictures copied to the GPU and logits back, in the fastest of several ways, of which some run two
batches at once as the service does, before the batched requests or after them; on device is without the copies. Clients
are processes of their own. What counts most comes first: a survey of the provider's options comes last.

python -m tests.benchmarks.gpu FOLDER                          # this part by itself, with its log on stderr
python -m tests.benchmarks.gpu FOLDER --provider cpu --small   # whether it runs at all
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from service.bundle import Bundle
from service.cores import available_cores
from service.model import OnnxModel
from service.session import LANES, Provider, ProviderUnavailable
from tests.benchmarks.decoding_alone import decode_alone
from tests.benchmarks.gpu_load import Rate, Requests, batched, load
from tests.benchmarks.gpu_raw import BATCH, LARGER
from tests.benchmarks.gpu_reload import reload_under_load
from tests.benchmarks.gpu_services import PROCESSES, Plan, card, decoding_threads, metrics, services
from tests.benchmarks.models import CIFAR, HEAVY
from tests.benchmarks.pictures import jpegs
from tests.benchmarks.result import Figure, Goal, at_least
from tests.benchmarks.servers import ROOT, Server, stop_servers_when_terminated
from tests.benchmarks.workplace import Skipped, Workplace

PART = "GPU"
CLIENTS, CONNECTIONS_EACH = 6, 64
Lines = list[dict[str, Any]]


def run(workplace: Workplace) -> list[Figure]:
    """Measure everything.

    Raises:
        Skipped: there is no GPU that ONNX Runtime can use.
    """
    _refuse_without_gpu(workplace)
    return measure(workplace, Plan(seconds=workplace.seconds(5), patience=180), workplace.place("run-gpu"))


def measure(workplace: Workplace, plan: Plan, results: Path) -> list[Figure]:
    """Measure one thing after the other; a part that fails is a figure that says so."""
    where = f"{card()}, ONNX Runtime {onnxruntime.__version__}, provider {plan.provider}"
    _say(where)
    heavy, small = workplace.bundle(plan.model, half=True), workplace.bundle(CIFAR, half=True)
    lines = results / "raw.jsonl"
    for old in (lines, results / "survey.jsonl"):
        old.unlink(missing_ok=True)
    figures = [Figure(PART, "measured on", None, note=where)]

    def add(name: str, found: Callable[[], list[Figure]]) -> None:
        figures.extend(_part(name, found))  # and kept at once: whoever lends a GPU may want it back
        (results / "figures.json").write_text(json.dumps([figure.to_json() for figure in figures], indent=1))

    _part("raw fp16", lambda: _raw(heavy, "fp16", plan, lines, short=True))
    add("batches", lambda: _batches(heavy, plan, workplace, lines))
    raw = raw_rate(_read(lines))
    _say(f"raw {raw:,.0f} images/s")
    add("single JPEGs", lambda: _jpegs(heavy, plan, workplace, raw))
    add("a reload", lambda: reload_under_load(PART, heavy, _tensors(heavy), plan, workplace))
    add("without CUDA graphs", lambda: _without_graphs(heavy, plan, workplace, raw))
    add("runs at once", lambda: _runs_at_once(heavy, plan, workplace, raw))
    add("larger batches", lambda: _larger(heavy, plan, workplace))
    add("parity and sizes", lambda: _parity(heavy, plan))
    add("a small model", lambda: _small(small, plan))
    for precision in ("fp16", "fp32") if plan.survey else ():
        add(f"survey {precision}", partial(_raw, heavy, precision, plan, results / "survey.jsonl"))
    return figures


def _part(name: str, found: Callable[[], list[Figure]]) -> list[Figure]:
    begin = time.perf_counter()
    try:
        figures = found()
    except Exception as fault:  # the other parts are worth having all the same
        figures = [Figure(PART, f"{name}: failed", None, note=f"{type(fault).__name__}: {fault}"[-600:])]
    for figure in figures:
        _say(f"{figure.what}: {figure.shown} {figure.verdict} {figure.note}")
    _say(f"-- {name}: {time.perf_counter() - begin:.1f} s")
    return figures


def _raw(bundle: Bundle, precision: str, plan: Plan, lines: Path, *, short: bool = False) -> list[Figure]:
    """Have another process compare the ways to run the model; what it wrote counts though it does not end."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu_raw", str(bundle.path), str(lines)]
    command += ["--precision", precision, "--provider", plan.provider, "--seconds", str(plan.stretch)]
    command += ["--short"] if short else []
    try:
        subprocess.run(command, cwd=ROOT, check=True, timeout=plan.patience)
        problem = ""
    except subprocess.SubprocessError as error:
        problem = f" ({error})"
    found = [line for line in _read(lines) if line["precision"] == precision]
    kind = "raw" if short else "survey"
    again = [line["what"] in {other["what"] for other in found[:place]} for place, line in enumerate(found)]
    figures = [
        raw_figure(f"{kind} {precision}, {line['what']}{', again' * twice}", line)
        for line, twice in zip(found, again, strict=True)
    ]
    return figures if figures else [Figure(PART, f"{kind} {precision}", None, note=f"nothing was measured{problem}")]


def raw_figure(what: str, line: Mapping[str, Any]) -> Figure:
    """Return what a line of `gpu_raw` says as a figure."""
    if "images/s" in line:
        return Figure(PART, what, line["images/s"], "images/s")
    if "ms" in line:
        return Figure(PART, what, line["ms"], "ms")
    if "ms in turn" in line:
        sizes = ", ".join(f"{took:.1f} (size {size})" for size, took in line["ms in turn"].items())
        alone = ", ".join(f"{took:.1f}" for took in line["ms alone"].values())
        note = f"median ms in turn: {sizes}; the same size again and again: {alone}"
        return Figure(PART, what, max(line["ms in turn"].values()), "ms", note=note)
    if "load" in line:
        note = f"load {line['load']:.2f} s, first run {line['first run']:.2f}; parity gap {line['gap']:.1e}"
        return Figure(PART, what, line["load"] + line["first run"], "s", note=note)
    return Figure(PART, what, None, note=str(line.get("failed", "")))


def raw_rate(lines: Lines) -> float:
    """Return the images/s of the fastest way to run the model as it is served, copies and all; 0: none ran."""
    ways = ("bound", "feeds", "copied", "cuda graph, copied")
    threads = ("", ", 2 threads")
    return max(_rate_of(lines, f"as served: {way}, {BATCH}{each}") for way in ways for each in threads)


def _rate_of(lines: Lines, what: str) -> float:
    return max((float(line.get("images/s", 0)) for line in lines if line["what"] == what), default=0.0)


def _read(lines: Path) -> Lines:
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def _batches(bundle: Bundle, plan: Plan, workplace: Workplace, lines: Path) -> list[Figure]:
    """Send batched requests to one process of the service, then to two; raw is what was faster, before or after.

    What has the goal is measured at the beginning, amid the others and at the end: the median counts.
    """
    loads: list[tuple[str, Rate]] = []
    whole: list[Rate] = []
    with services(bundle.path, 2, plan, workplace) as servers:
        ports = [server.port for server in servers]
        for count, clients in ((1, 4), (1, 3), (1, 4), (1, 6), (2, 8), (1, 4)):
            found = load(ports[:count], _tensors(bundle), processes=clients, connections=clients, seconds=plan.seconds)
            if (count, clients) == (1, 4):
                whole.append(found)
            else:
                loads.append((f"binary batches, {count} process{'es' * (count > 1)}, {clients} clients", found))
        _say(_busy(servers[0]))
        lone = _lone(servers[0], bundle, plan, "as served")
    figures = _raw(bundle, "fp16", plan, lines, short=True)  # all lines of the file: before, and now again
    raw = raw_rate(_read(lines))
    middle = sorted(whole, key=lambda found: found.images)[len(whole) // 2]
    goal = _over_http("binary batches, 1 process, 4 clients", middle, raw, at_least(0.9))
    rates = ", ".join(f"{found.images:,.0f}" for found in whole)
    goal = replace(goal, note=f"{goal.note}; the median of {rates} images/s")
    return [*figures, goal, *(_over_http(what, found, raw, None) for what, found in loads), lone]


def _without_graphs(bundle: Bundle, plan: Plan, workplace: Workplace, raw: float) -> list[Figure]:
    """Have the service launch kernels one by one: what graphs are worth."""
    figures = []
    with services(bundle.path, 1, plan, workplace, COMPARED_WITHOUT_GRAPHS="1") as [server]:
        what = "process start to ready, without CUDA graphs"
        figures.append(Figure(PART, what, server.seconds_to_ready, "s", note=_stages(server)))
        for clients in (4, 6):
            what = f"binary batches, without CUDA graphs, {clients} clients"
            figures.append(_over_http(what, _send(server, bundle, plan, clients), raw, None))
        figures.append(_lone(server, bundle, plan, "without CUDA graphs"))
    return figures


def _runs_at_once(bundle: Bundle, plan: Plan, workplace: Workplace, raw: float) -> list[Figure]:
    """Start a service by itself, and have it run fewer batches at once: what each is worth."""
    figures = []
    for count in (1, LANES, LANES + 1):
        with services(bundle.path, 1, plan, workplace, COMPARED_RUNS_AT_ONCE=str(count)) as [server]:
            if count == 1:
                figures.append(
                    Figure(PART, "process start to ready", server.seconds_to_ready, "s", note=_stages(server))
                )
            what = f"binary batches, {count} run{'s' * (count > 1)} at once, 4 clients"
            figures.append(_over_http(what, _send(server, bundle, plan, 4), raw, None))
    return figures


def _send(server: Server, bundle: Bundle, plan: Plan, clients: int) -> Rate:
    return load([server.port], _tensors(bundle), processes=clients, connections=clients, seconds=plan.seconds)


def _lone(server: Server, bundle: Bundle, plan: Plan, how: str) -> Figure:
    """Ask for one picture after the other, without any other request."""
    found = load([server.port], _tensors(bundle, images=1), processes=1, connections=1, seconds=plan.seconds)
    stages = f"inference {found.stages.get('inference-time', 0):.2f} ms, p99 {found.p99 * 1e3:.2f}; {found.fault}"
    return Figure(PART, f"a lone picture over HTTP, {how}", found.p50 * 1e3, "ms", note=stages.removesuffix("; "))


def _larger(bundle: Bundle, plan: Plan, workplace: Workplace) -> list[Figure]:
    """Have the service put several batched requests together."""
    batch, clients = LARGER[-1], 12
    with services(bundle.path, 1, plan, workplace, EVENKEEL_MAX_BATCH_SIZE=str(batch)) as [server]:
        found = load([server.port], _tensors(bundle), processes=clients, connections=clients, seconds=plan.seconds)
        _say(_busy(server))
    if found.fault:
        raise RuntimeError(found.fault)
    note = f"up to {batch} at once (`EVENKEEL_MAX_BATCH_SIZE`); a request {found.p50 * 1e3:.0f} ms, p99 "
    what = f"binary batches in batches of {batch}, 1 process, {clients} clients"
    return [Figure(PART, what, found.images, "images/s", note=f"{note}{found.p99 * 1e3:.0f}")]


def _jpegs(bundle: Bundle, plan: Plan, workplace: Workplace, raw: float) -> list[Figure]:
    """Send single pictures to ever more processes of the service, which share the cores for decoding."""
    files, cores = jpegs(workplace.place("pictures")).files, available_cores()
    single = Requests("/predict", [file.read_bytes() for file in files], {"Content-Type": "image/jpeg"})
    alone = decode_alone(bundle.manifest.input, files, processes=cores, seconds=plan.seconds)
    note = f"{cores} processes without a server or a model; {1e3 * alone.seconds:.1f} ms of a core each"
    figures = [Figure(PART, "single JPEGs, decoding alone", alone.images, "images/s", note=note)]
    for count in plan.processes:
        what = f"single JPEGs, {count} process{'es' * (count > 1)} with {decoding_threads(count)} decoding threads each"
        with services(bundle.path, count, plan, workplace) as servers:
            ports, at_once = [server.port for server in servers], min(CONNECTIONS_EACH * count, 512)
            before = _spent(servers)
            found = load(ports, single, processes=CLIENTS, connections=at_once, seconds=plan.seconds)
            images, seconds = (after - former for after, former in zip(_spent(servers), before, strict=True))
            figures.append(_over_http(what, found, raw, None))
            what = f"single JPEGs, {count} process{'es' * (count > 1)} / decoding alone"
            note = f"{1e3 * seconds / max(images, 1):.1f} ms of the services' cores each"
            figures.append(Figure(PART, what, found.images / alone.images, note=note))
            _say(_busy(servers[0]))
        slowest = max(server.seconds_to_ready for server in servers)
    return [*figures, Figure(PART, f"{count} processes at once, start to ready", slowest, "s")]


def _spent(servers: Sequence[Server]) -> tuple[float, float]:
    """Return how many pictures the services have run so far, and the seconds of the processor that they took."""
    images = [re.search(r"^evenkeel_batch_size_sum (\S+)", metrics(server), re.MULTILINE) for server in servers]
    return sum(float(found[1]) for found in images if found), sum(server.processor_seconds() for server in servers)


def _over_http(what: str, found: Rate, raw: float, goal: Goal | None) -> Figure:
    stages = ", ".join(f"{name.removesuffix('-time')} {value:.1f}" for name, value in found.stages.items())
    note = f"{found.images:,.0f} of {raw:,.0f} images/s; request {found.p50 * 1e3:.1f} ms, p99 {found.p99 * 1e3:.1f}; "
    note += f"by stage, ms: {stages}" + (f"; {found.refused} refused, {found.fault}" if found.fault else "")
    _say(f"{what}: {note}")  # at once: what comes later may not end
    return Figure(PART, f"{what} / raw", found.images / raw if raw else None, goal=goal, note=note)


def _tensors(bundle: Bundle, images: int = BATCH) -> Requests:
    spec = bundle.manifest.input
    return batched(bundle.manifest.name, spec.height, spec.width, images)


def _stages(server: Server) -> str:
    """Return what the service says of how long its start took."""
    found = re.search(r"runs on .*", server.log.read_text(errors="replace"))
    return found[0] if found else ""


def _busy(server: Server) -> str:
    """Return what the service counted of its batches."""
    said = metrics(server)
    wanted = ("evenkeel_batch_size_sum", "evenkeel_batch_size_count", "evenkeel_inference_seconds_sum")
    return ", ".join(line for line in said.splitlines() if line.startswith(wanted))


def _parity(bundle: Bundle, plan: Plan) -> list[Figure]:
    """Compare batches that are padded with one that is full, and say how long each of the sizes takes to warm."""
    model = OnnxModel(bundle, provider=plan.provider, max_batch_size=BATCH)
    spec = bundle.manifest.input
    images = np.random.default_rng(1).integers(0, 256, (BATCH, spec.height, spec.width, 3), dtype=np.uint8)
    full = model.branches(images)
    gaps = [
        float(np.abs(part - whole[:count]).max())
        for count in (1, 3, 5, 17, 31)
        for part, whole in zip(model.branches(images[:count]), full, strict=True)
    ]
    what = f"largest gap of padded batches from a full one, {model.precision} on {model.provider}"
    return [Figure(PART, what, max(gaps), note="the service's own check of its parity samples passed")]


def _small(bundle: Bundle, plan: Plan) -> list[Figure]:
    """Run a lone small picture through ResNet-32 on the GPU and on the CPU, without a server."""
    figures = []
    providers: tuple[Provider, ...] = ("cpu", plan.provider) if plan.provider != "cpu" else ("cpu",)
    for provider in providers:
        model = OnnxModel(bundle, provider=provider, max_batch_size=BATCH)
        image = np.zeros((1, 32, 32, 3), np.uint8)
        seconds = []
        for _ in range(200):
            begin = time.perf_counter()
            model.branches(image)
            seconds.append(time.perf_counter() - begin)
        what = f"ResNet-32, a lone picture on {provider}, {model.precision}"
        figures.append(Figure(PART, what, statistics.median(seconds) * 1e3, "ms"))
    return figures


def _refuse_without_gpu(workplace: Workplace) -> None:
    try:
        OnnxModel(workplace.bundle(CIFAR, half=True), provider="cuda", max_batch_size=1)
    except ProviderUnavailable as problem:
        raise Skipped(str(problem)) from problem


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure this part alone; figures go to a file, and a line for each to the log."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu")
    parser.add_argument("results", type=Path, help="folder for the figures")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", dest="model", action="store_const", const=CIFAR, default=HEAVY)
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES))
    parser.add_argument("--seconds", type=float, default=Plan.seconds)
    parser.add_argument("--stretch", type=float, default=Plan.stretch)
    parser.add_argument("--patience", type=float, default=Plan.patience)
    parser.add_argument("--no-survey", dest="survey", action="store_false", help="leave the provider's options out")
    asked = vars(parser.parse_args(arguments))
    results: Path = asked.pop("results")
    results.mkdir(parents=True, exist_ok=True)
    for figure in measure(Workplace(), Plan(**asked), results):
        print(f"{figure.what:<64} {figure.shown:>16} {figure.goal or ''} {figure.verdict}")


if __name__ == "__main__":
    stop_servers_when_terminated()
    main()
