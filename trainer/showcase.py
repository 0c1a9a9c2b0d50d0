"""Test pictures that go with a bundle for people to try: some that alpha rescues, some that it spoils, some steady."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.bundle import SAMPLES_FILE, read_arrays
from trainer.checkpoint import finished_checkpoint
from trainer.config import Recipe
from trainer.data import decode
from trainer.errors import TrainerError, writing
from trainer.inference import Branches
from trainer.table import Table

RESCUED, SPOILED, STEADY = 5, 2, 1
"""How many of each; where one kind lacks some, the next ones fill up."""


def write_showcase(table: Table, branches: Branches, recipe: Recipe, alpha: float, file: Path) -> None:
    """Write the chosen pictures of a test split as `images` uint8 [N, H, W, 3] and `labels` [N]."""
    rows = choose_showcase(branches, alpha)
    images = np.stack([decode(table, int(row), recipe.input) for row in rows])
    np.savez_compressed(file, images=images, labels=branches.labels[rows])


def write_pictures(run: Path, output: Path, *, count: int) -> list[Path]:
    """Write a finished run's showcase as PNG files, named by the true class.

    Raises:
        TrainerError: a run that has not ended or was not evaluated, or a folder that cannot be written.
    """
    names = finished_checkpoint(run).class_names
    images, labels = read_showcase(run / SAMPLES_FILE)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        files = []
        for number, (image, label) in enumerate(zip(images[:count], labels, strict=False)):
            files.append(output / f"{number}-{re.sub('[^A-Za-z0-9]+', '-', names[label])}.png")
            Image.fromarray(image).save(files[-1])
    return files


def read_showcase(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the chosen pictures, uint8 [N, H, W, 3], and their labels [N].

    Raises:
        TrainerError: the run was not evaluated, or the file is damaged.
    """
    try:
        images, labels = read_arrays(file, ("images", "labels")).values()
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != (len(images),):
            raise ValueError(f"images {images.dtype} {list(images.shape)} and labels {list(labels.shape)}")
        return images, labels
    except ValueError as error:
        raise TrainerError(f"{file}: cannot be read ({error}); run evaluate {file.parent}") from error


def choose_showcase(branches: Branches, alpha: float) -> NDArray[np.int64]:
    """Choose rows of pictures that alpha makes right, wrong, or leaves right; of different classes where there are.

    Args:
        branches: logits and labels of N pictures.
        alpha: the model's default.
    """
    labels = branches.labels
    before = branches.factual.argmax(axis=1) == labels
    after = (branches.factual - alpha * branches.counterfactual).argmax(axis=1) == labels
    kinds = [~before & after, before & ~after, before & after, ~before & ~after]
    wanted, rows = 0, np.empty(0, dtype=np.int64)
    for kind, share in zip(kinds, (RESCUED, SPOILED, STEADY, 0), strict=True):
        wanted += share
        rows = np.concatenate([rows, _varied(np.flatnonzero(kind), labels)[: wanted - len(rows)]])
    return rows


def _varied(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order rows so that the first of each class come before the second of any."""
    seen: Counter[int] = Counter()
    turns: list[int] = []
    for label in labels[rows].tolist():
        turns.append(seen[label])
        seen[label] += 1
    return rows[np.argsort(turns, kind="stable")]
