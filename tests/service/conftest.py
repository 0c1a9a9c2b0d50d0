import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import (
    AlphaSpec,
    Bundle,
    ClassInfo,
    InputSpec,
    ManifestDraft,
    Parity,
    TdeSpec,
    write_bundle,
)
from tests.service.fake_cuda import SessionOnTheCpu, sessions_on_cuda

CLASSES = 5
HEADS = 2
COUNTS = (500, 120, 60, 15, 5)


def make_draft(**changes: Any) -> ManifestDraft:
    fields: dict[str, Any] = {
        "name": "tiny",
        "classes": [ClassInfo.of(f"class {index}", count) for index, count in enumerate(COUNTS)],
        "input": InputSpec(height=8, width=8, resize="exact", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        "tde": TdeSpec(num_heads=HEADS, tau=16.0, gamma=0.03125, direction="ema", direction_cosine=0.9),
        "alpha": AlphaSpec(default=1.0, chosen_by="validation", minimum=0.0, maximum=3.0),
        "provenance": {"recipe": "none"},
    }
    return ManifestDraft(**(fields | changes))


def make_parity(samples: int = 3, *, size: int = 8, classes: int = CLASSES) -> Parity:
    generator = np.random.default_rng(0)

    def floats(*shape: int) -> Any:
        return generator.normal(size=shape).astype(np.float32)

    return Parity(
        images=generator.integers(0, 256, (samples, size, size, 3), dtype=np.uint8),
        alpha=np.linspace(0, 3, samples, dtype=np.float32),
        prior_strength=np.linspace(1, 0, samples, dtype=np.float32),
        logits=floats(samples, classes),
        factual_logits=floats(samples, classes),
        counterfactual_logits=floats(samples, classes),
        confounder_cosine=floats(samples, HEADS),
    )


@pytest.fixture
def paper_bundle(tmp_path: Path) -> Bundle:
    """A bundle that is intact as a folder; its model file is no model."""
    return write_bundle(
        tmp_path / "paper",
        make_draft(),
        models={"fp32": b"no model"},
        files={"parity.npz": make_parity().to_bytes(), "evaluation.json": b"{}"},
    )


@pytest.fixture
def edit_manifest() -> Callable[[Bundle, Callable[[dict[str, Any]], None]], None]:
    def edit(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> None:
        path = bundle.path / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[SessionOnTheCpu]:
    """What seems to be a GPU: the sessions that are opened there, as they are opened."""
    return sessions_on_cuda(monkeypatch)
