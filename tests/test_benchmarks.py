"""The table and the files of a made-up run; nothing is measured here."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from service.bundle import InputSpec
from service.cores import available_cores
from tests.benchmarks import __main__ as command
from tests.benchmarks import gpu, overload, report
from tests.benchmarks.decoding_alone import decode_alone
from tests.benchmarks.result import Figure, at_least, at_most
from tests.benchmarks.rounds import median_ratio, median_within, take_turns
from tests.benchmarks.servers import ROOT
from tests.operations import arrivals
from tests.operations.arrivals import at_a_rate
from tests.operations.client import Answer

FIGURES = [
    Figure("Tiny model", "throughput, evenkeel / FastAPI", 2.5, goal=at_least(2), note="from [a] to [b]"),
    Figure("Tiny model", "p99, evenkeel / FastAPI", 0.75, goal=at_most(0.5)),
    Figure("GPU", "skipped", None, goal=at_least(0.9), note="there is none"),
    Figure("Cold start", "tiny model", 1234.5, "s"),
]


def test_a_goal_is_met_missed_or_not_measured() -> None:
    assert [figure.verdict for figure in FIGURES] == ["pass", "MISS", "not measured", ""]
    assert [figure.shown for figure in FIGURES] == ["2.50", "0.75", "–", "1,234 s"]
    assert [str(figure.goal or "") for figure in FIGURES] == ["≥ 2", "≤ 0.5", "≥ 0.9", ""]


def test_the_table_shows_every_figure_with_its_goal() -> None:
    sink = io.StringIO()
    report.show(Console(file=sink, width=200), FIGURES)
    for text in ("2.50", "≥ 2", "pass", "MISS", "not measured", "there is none", "[a]"):
        assert text in sink.getvalue()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    runs = {"Tiny model": "commit abc, `make bench`"}
    report.write(FIGURES, {"Tiny model": "What it is."}, runs, tmp_path)
    assert report.read(tmp_path) == FIGURES
    assert report.read_runs(tmp_path) == runs
    assert json.loads((tmp_path / "results.json").read_text())["figures"][1]["verdict"] == "MISS"
    page = (tmp_path / "RESULTS.md").read_text()
    for line in (
        "## Tiny model",
        "What it is.",
        "Measured at commit abc, `make bench`.",
        "| p99, evenkeel / FastAPI | 0.75 | ≤ 0.5 | **MISS** |  |",
    ):
        assert line in page


def test_ratios_are_taken_within_a_round() -> None:
    turns: list[str] = []

    def turn(name: str, value: float) -> float:
        turns.append(name)
        return value

    found = take_turns({"a": lambda: turn("a", 2.0), "b": lambda: turn("b", 1.0)}, 3)
    assert turns == ["a", "b"] * 3
    assert median_ratio(found["a"], found["b"]) == 2.0


def test_a_median_lies_within_what_is_said_of_it_about_as_often() -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(40):
        low, high = median_within(draw.normal(0.98, 0.05, 100).tolist())
        assert 0.005 < high - low < 0.05
        held += low < 0.98 < high
    assert held > 34


def test_every_part_has_a_title_and_says_what_it_measures() -> None:
    titles = [command._title(name) for name in command.PARTS]
    assert len(set(titles)) == len(titles)
    assert all(command._remark(name) for name in command.PARTS)


def test_an_unknown_part_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["tyni_model"])
    assert "there is no part tyni_model; the parts are tiny_model" in capsys.readouterr().err


def test_a_run_of_one_part_leaves_the_others_to_the_runs_that_found_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = {"GPU": "commit abc, `make bench`", "Envelopes": "commit abc, `make bench`"}
    written = {}

    def write(figures: object, remarks: object, runs: dict[str, str]) -> None:
        written.update(runs)

    skipped = Figure("GPU", command.SKIPPED, None, note="there is no GPU")
    monkeypatch.setattr(report, "write", write)
    monkeypatch.setattr(report, "read_runs", lambda: dict(before))
    monkeypatch.setattr(
        command, "_measure", lambda name, _: [skipped if name == "gpu" else Figure("Envelopes", "x", 1)]
    )
    command.main(["gpu", "envelopes"])
    assert written["GPU"] == before["GPU"]
    assert "`python -m tests.benchmarks gpu envelopes`" in written["Envelopes"]
    assert f"{available_cores()} cores" in written["Envelopes"]


def test_a_part_that_cannot_be_measured_here_keeps_what_another_machine_found(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Figure("GPU", "raw", 3000.0, "images/s")
    older, elsewhere = Figure("GPU", "raw", 2000.0), Figure("GPU", "raw on an A100", 1000.0, elsewhere=True)
    skipped = Figure("GPU", command.SKIPPED, None, note="there is no GPU")
    failed = Figure("GPU", command.FAILED, None, note="RuntimeError: the device is lost")
    for kept, now, expected in (
        ([measured], {"gpu": [skipped]}, [measured]),
        ([measured], {}, [measured]),
        ([skipped], {"gpu": [measured]}, [measured]),
        ([], {"gpu": [skipped]}, [skipped]),
        ([older, elsewhere], {"gpu": [measured]}, [measured, elsewhere]),
        ([older, elsewhere], {"gpu": [skipped]}, [older, elsewhere]),
        ([older, elsewhere], {"gpu": [failed]}, [failed, older, elsewhere]),
        ([failed, older], {"gpu": [measured]}, [measured]),
        ([failed, older], {"gpu": [skipped]}, [older]),
        ([failed, older], {}, [failed, older]),
    ):
        monkeypatch.setattr(report, "read", lambda kept=kept: kept)
        assert command._with_those_kept(now) == expected


def test_accepted_work_waits_for_what_is_answered_from_its_sending_to_its_answer() -> None:
    answers = [
        Answer(200, seconds=2.0, sent=10.0),
        Answer(429, seconds=0.1, sent=10.5),
        Answer(200, seconds=3.0, sent=11.0),  # until 14: behind the first and the next
        Answer(200, seconds=1.0, sent=12.5),
        Answer(200, seconds=1.0, sent=14.5),
    ]
    assert overload._ahead(answers) == [1, 3, 1, 1]


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (Figure("Envelopes", "x", 1, goal=at_least(2)), "Envelopes: x: MISS"),
        (Figure("Envelopes", command.FAILED, None, note="RuntimeError: no"), "Envelopes: failed: RuntimeError: no"),
        (Figure("Envelopes", "x", 3, goal=at_least(2)), None),
    ],
)
def test_a_missed_goal_and_a_failure_are_the_commands_too(
    monkeypatch: pytest.MonkeyPatch, figure: Figure, said: str | None
) -> None:
    monkeypatch.setattr(command, "_measure", lambda *_: [figure])
    monkeypatch.setattr(report, "write", lambda *_: None)
    if said is None:
        command.main(["envelopes"])
        return
    with pytest.raises(SystemExit, match=said):
        command.main(["envelopes"])


def test_raw_is_the_fastest_way_with_copies_as_the_model_is_served() -> None:
    rates = {
        "as served: bound, 32": 3.0,
        "as served: bound, 32, 2 threads": 4.0,
        "as served: cuda graph, copied, 32, 2 threads": 5.0,
        "as served: on device, 32": 9.0,
        "nhwc: feeds, 32": 8.0,
    }
    assert gpu.raw_rate([{"what": what, "images/s": rate} for what, rate in rates.items()]) == 5
    assert gpu.raw_rate([{"what": "as served: start", "failed": "no such kernel"}]) == 0


def test_every_line_of_a_run_without_a_server_becomes_a_figure() -> None:
    lines = {
        "2.00 s": {"load": 0.5, "first run": 1.5, "gap": 1e-4},
        "3,000 images/s": {"images/s": 3000.0, "size": 32},
        "1.80 ms": {"ms": 1.8},
        "200 ms": {"ms alone": {"1": 2.0, "32": 8.0}, "ms in turn": {"1": 190.0, "32": 200.0}},
        "–": {"failed": "no such kernel"},
    }
    for shown, line in lines.items():
        assert gpu.raw_figure("it", line).shown == shown
    assert "190.0 (size 1), 200.0 (size 32)" in gpu.raw_figure("it", lines["200 ms"]).note
    assert gpu.raw_figure("it", lines["–"]).note == "no such kernel"


@pytest.mark.parametrize(("options", "surveyed"), [([], ["survey fp16", "survey fp32"]), (["--no-survey"], [])])
def test_a_survey_comes_last_and_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], surveyed: list[str]
) -> None:
    class Elsewhere:
        def bundle(self, *_: object, half: bool) -> None:
            assert half

    parts: list[str] = []

    def part(name: str, _: object) -> list[Figure]:
        parts.append(name)
        return []

    monkeypatch.setattr(gpu, "Workplace", Elsewhere)
    monkeypatch.setattr(gpu, "_part", part)
    gpu.main([str(tmp_path), *options])
    assert parts[:3] == ["raw fp16", "batches", "single JPEGs"]
    assert [name for name in parts if name.startswith("survey")] == surveyed == parts[9:]
    assert json.loads((tmp_path / "figures.json").read_text())[0]["what"] == "measured on"


def test_decoding_alone_counts_pictures_a_second_and_the_processors_time_of_each(tmp_path: Path) -> None:
    spec = InputSpec(height=8, width=8, resize="exact", mean=(0, 0, 0), std=(1, 1, 1))
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(good)
    broken.write_bytes(good.read_bytes()[:60])
    found = decode_alone(spec, [good], processes=2, seconds=2)
    assert 0 < found.images * found.seconds < 2.2  # of two cores, and a little for the picture that came too late
    with pytest.raises(RuntimeError, match=r"a process of tests\.benchmarks\.decoding_alone has ended"):
        decode_alone(spec, [broken], processes=1, seconds=0.5)


INTERRUPTED = """
import sys, time
from pathlib import Path
from tests.benchmarks.servers import free_port, running, stop_servers_when_terminated

stop_servers_when_terminated()
port = free_port()
command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
with running(command, folder=Path(sys.argv[1]), ready="/", environment={}, port=port) as server:
    print(server.process.pid, flush=True)
    time.sleep(60)
"""


def test_a_benchmark_that_is_terminated_stops_its_servers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout
        server = int(benchmark.stdout.readline())
        os.kill(server, 0)
        benchmark.terminate()
        assert benchmark.wait(30) == 128 + 15
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Give the port of a server that answers each request so, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(("answer", "status"), [(WHOLE, 200), (WHOLE[:-1], 0), (b"HTTP/1.1 429 Too Many\r\n\r\n", 429)])
def test_what_comes_of_requests_at_a_rate_is_told_for_each(answer: bytes, status: int) -> None:
    with answering(answer) as port:
        answers = at_a_rate(port, [b"GET / HTTP/1.1\r\n\r\n"], rate=1000, count=20)
    assert [one.status for one in answers] == [status] * 20
    assert all(one.seconds < 10 for one in answers)


def test_requests_at_a_rate_that_nobody_takes_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        answers = at_a_rate(nobody.getsockname()[1], [b"x"], rate=1000, count=3)
        assert [one.status for one in answers] == [0] * 3
        nobody.listen(1)
        monkeypatch.setattr(arrivals, "_PATIENCE", 0.1)
        answers = at_a_rate(nobody.getsockname()[1], [b"x"], rate=1000, count=9)
    assert [one.status for one in answers] == [0] * 9
