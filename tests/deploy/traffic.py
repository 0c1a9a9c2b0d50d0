"""Traffic as a service meets it: several clients with knobs of their own, labels, and requests that are refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests import plain_http
from tests.deploy.prometheus import wait_until

ADMIN = {"Authorization": "Bearer operator"}
CLIENTS: dict[str, dict[str, float]] = {
    "album": {"alpha": 0, "alpha_max": 0.5},
    "rescue": {"alpha": 0.5},
    "survey": {"alpha": 2.5, "prior_strength": 0.5},
    "intern": {"images_per_second": 1},
}


@dataclass
class Traffic:
    """What clients send to a service, whose admin key is 'operator'.

    Attributes:
        url: the service's.
        pictures, labels: what may be sent, and its true classes.
    """

    url: str
    pictures: Sequence[bytes]
    labels: Sequence[int]
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    keys: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """Add the clients, and wait until their keys are known."""
        for name, policy in CLIENTS.items():
            answer = plain_http.post(f"{self.url}/clients", json={"name": name} | policy, headers=ADMIN, timeout=30)
            assert answer.status_code == 201, answer.text
            self.keys[name] = answer.json()["key"]
        wait_until(lambda: all(self.send(name, 1) != 401 for name in CLIENTS), "the keys are known", seconds=5)

    def send(self, client: str | None, count: int, *, labelled: float = 0.0, **options: Any) -> int:
        """Send pictures in one request and the true classes of a share of them; return the status."""
        headers = {"Authorization": f"Bearer {self.keys[client]}"} if client else {}
        rows = self.generator.integers(0, len(self.pictures), count).tolist()
        files = [("image", (f"{row}.png", self.pictures[row], "image/png")) for row in rows]
        answer = plain_http.post(f"{self.url}/predict", files=files, params=options, headers=headers, timeout=60)
        if answer.status_code == 200:
            chosen = [
                {"prediction_id": image["prediction_id"], "label": int(self.labels[row])}
                for image, row in zip(answer.json()["images"], rows, strict=True)
                if self.generator.random() < labelled
            ]
            if chosen:
                receipt = plain_http.post(f"{self.url}/feedback", json=chosen, headers=headers or ADMIN, timeout=60)
                assert receipt.json()["accepted"] == len(chosen), receipt.text
        return answer.status_code

    def round(self, busy: float = 1.0) -> None:
        """Let everyone send something once, `busy` times as much as usual."""
        for client, images, labelled in (("album", 4, 0.2), ("rescue", 8, 0.5), ("survey", 6, 0.2)):
            assert self.send(client, 1 + round(busy * images * self.generator.random()), labelled=labelled) == 200
        assert self.send("rescue", 1, alpha=float(self.generator.uniform(0, 3))) == 200
        assert self.send(None, 1 + round(4 * busy), alpha=1.0, prior_strength=0.25) == 200
        assert self.send("intern", 1) in {200, 429}
        if self.generator.random() < 0.2:
            assert self.send("album", 1, alpha=3.0) == 422
