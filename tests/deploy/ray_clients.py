"""Clients of a running service, plain or on Ray: what it answers and counts, alone and under load."""

import http.client
import json
import math
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.service.fakes import picture

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.5)
PICTURES = (0, 1, 2)
START = re.compile(r"^evenkeel_stalls_created (\S+)$", re.MULTILINE)
"""When a replica made its metrics, to the microsecond: processes may well start in the same hundredth of a second."""
COUNT = re.compile(r'^evenkeel_requests_total\{route="/predict",status="200"\} (\S+)$', re.MULTILINE)


def ask(port: int, alpha: float, seed: int) -> tuple[int, Any]:
    """Predict once; return status and answer."""
    opened = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        opened.request("POST", f"/predict?alpha={alpha}&lines=true", picture(seed), {"Content-Type": "image/png"})
        response = opened.getresponse()
        return response.status, json.loads(response.read())
    finally:
        opened.close()


def without_id(answer: Any) -> Any:
    """Drop what differs each time."""
    for image in answer["images"]:
        del image["prediction_id"]
    return answer


def same(left: Any, right: Any) -> bool:
    """Compare answers; numbers up to what the size of a batch changes in single precision."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-5)
    return bool(left == right)


def get(port: int, path: str) -> str:
    """Get a page's text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def answers(port: int) -> dict[str, Any]:
    """Return the answer to every picture at every alpha; each twice, all at once, so that replicas and batches mix."""
    wanted = [(alpha, seed) for seed in PICTURES for alpha in ALPHAS] * 2
    with ThreadPoolExecutor(len(wanted)) as clients:
        replies = list(clients.map(lambda one: ask(port, *one), wanted))
    seen: dict[str, Any] = {}
    for (alpha, seed), (status, answer) in zip(wanted, replies, strict=True):
        assert status == 200, answer
        assert same(seen.setdefault(f"{seed} {alpha}", without_id(answer)), answer), "replicas disagree"
    return seen


def metrics(port: int) -> dict[str, Any]:
    """Return the names of all metrics, how many predictions each replica counts, and when each began.

    Asked many times at once: one after the other may all come to the same replica.
    """
    names, counts, starts = set[str](), set[float](), set[str]()
    with ThreadPoolExecutor(20) as clients:
        texts = list(clients.map(lambda _: get(port, "/metrics"), range(20)))
    for text in texts:
        names |= set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        counts |= {float(count) for count in COUNT.findall(text)}
        starts |= set(START.findall(text))
    return {"names": sorted(names), "counts": sorted(counts), "starts": sorted(starts)}


class Load:
    """Clients that ask again on 503, and count every status."""

    def __init__(self, port: int, expected: dict[str, Any], clients: int = 8) -> None:
        self.port, self.expected, self.statuses = port, expected, Counter[str]()
        self.codes, self.wrong, self.lost, self.ends = Counter[str](), 0, 0, threading.Event()
        self.threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    def burst(self, requests: int = 16) -> None:
        """Send more requests, all at once."""
        more = [threading.Thread(target=self._until_answered, args=(ALPHAS[0], PICTURES[0])) for _ in range(requests)]
        self.threads += more
        for thread in more:
            thread.start()

    def end(self) -> dict[str, Any]:
        """Stop asking, wait, and return what was seen."""
        self.ends.set()
        for thread in self.threads:
            thread.join(60)
        return {"statuses": self.statuses, "codes": self.codes, "wrong": self.wrong, "lost": self.lost}

    def _client(self, number: int) -> None:
        turn = number
        while not self.ends.is_set():
            self._until_answered(ALPHAS[turn % len(ALPHAS)], PICTURES[turn % len(PICTURES)])
            turn += 1

    def _until_answered(self, alpha: float, seed: int) -> None:
        for _ in range(20):
            try:
                status, answer = ask(self.port, alpha, seed)
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                break
            self.statuses[str(status)] += 1
            if status == 200:
                self.wrong += not same(without_id(answer), self.expected[f"{seed} {alpha}"])
                return
            self.codes[answer["code"]] += 1
            if status != 503:
                break
            time.sleep(0.5)
        self.lost += 1
