"""Small recipes, pictures and sources: everything here is made in milliseconds."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

from trainer.config import DataConfig, Recipe, load_recipe

# A busy machine is slow, and that is no fault of the code.
patient = settings(max_examples=50, deadline=None)

NO_TAIL = ("data.long_tail={profile: none}",)
TWO_EPOCHS = ("schedule={epochs: 2, warmup_epochs: 1, decay: cosine}", "data.long_tail.imbalance_factor=50")


def tiny_recipe(*settings: str, source: Path | str = "digits") -> Recipe:
    """The digits' recipe cut down to two epochs; later settings win."""
    return load_recipe("digits_lt", [f'data.source="{source}"', *TWO_EPOCHS, *settings])


def folder_recipe(folder: Path, *settings: str) -> Recipe:
    """A recipe for a handful of pictures in a folder, all of them kept."""
    return tiny_recipe(*NO_TAIL, "batch_size=4", *settings, source=folder)


def data_config(source: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(source=str(source), **settings)


def pixels(seed: int, height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int, height: int = 8, width: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, height, width)).save(buffer, "PNG")
    return buffer.getvalue()


def write_image_folder(folder: Path, *, classes: int = 3, train: int = 6, test: int = 2) -> Path:
    for split, first, count in (("train", 0, train), ("test", 1000, test)):
        for label in range(classes):
            place = folder / split / f"class {label}"
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number}.png").write_bytes(png(first + 100 * label + number))
    return folder


def columns(labels: list[Any], *, first: int = 0) -> dict[str, list[Any]]:
    return {"img": [{"bytes": png(first + row), "path": None} for row in range(len(labels))], "label": labels}


def write_parquet(folder: Path, **splits: dict[str, list[Any]] | pa.Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), folder / f"{split}.parquet")
    return folder


def write_lists(folder: Path, *, train: str, test: str = "a.png 0\nb.png 1\n", **others: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate("abcd"):
        (folder / f"{name}.png").write_bytes(png(seed))
    for name, text in {"train": train, "test": test, **others}.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def write_shards(folder: Path, *, shards: int = 3, rows: int = 20, group: int = 5, classes: int = 3) -> Path:
    """Training shards of small row groups, and a test split of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        first = shard * rows
        table = pa.table(columns([row % classes for row in range(first, first + rows)], first=first))
        pq.write_table(table, folder / f"train-{shard}.parquet", row_group_size=group)
    test = pa.table(columns([row % classes for row in range(9)], first=5000))
    pq.write_table(test, folder / "test.parquet", row_group_size=group)
    return folder


STREAMED = ("data.stream=true", "data.in_memory=false", "data.num_workers=0", "data.shuffle_window=16", *NO_TAIL)
