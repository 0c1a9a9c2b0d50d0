"""A JSON file of LVIS v1 or COCO, read once into arrays that are mapped into memory and shared by all who read them.

The packed form lies in a folder named by the hash of the file, so that a changed file is packed anew and every run,
worker and rank takes the same one. Knows neither pixels nor recipes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from trainer.detection.annotations import PLAIN, RAGGED, Category, Picture, read_annotations
from trainer.detection.faults import Faults
from trainer.detection.masks import Outline
from trainer.errors import TrainerError, writing
from trainer.progress import console

VERSION = 4
"""Of the packed form, and of what is refused: what an earlier version packed is packed anew."""
INDEX_FILE = "index.json"


class Objects(NamedTuple):
    """The annotated objects of one picture; rows of mapped arrays."""

    ids: NDArray[np.int64]
    boxes: NDArray[np.float32]
    """[n, 4]: x1, y1, x2, y2, within the picture."""
    labels: NDArray[np.int32]
    """[n]: 0 to C - 1, classes in the order of their ids."""
    areas: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]


class Ragged(NamedTuple):
    """Rows of different lengths in one array."""

    values: NDArray[Any]
    ends: NDArray[np.int64]
    """[rows + 1]: where each row ends; begins with 0."""

    def row(self, index: int) -> NDArray[Any]:
        """Take a row."""
        return self.values[self.ends[index] : self.ends[index + 1]]


class PackedAnnotations:
    """The packed form of one file, opened; passed to another process it is opened there again.

    Args:
        folder: as ``pack`` gives it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        self.source_hash: str = index["source_hash"]
        self.categories = [Category(**category) for category in index["categories"]]
        self.faults = Faults(**index["faults"])
        self.is_federated: bool = index["is_federated"]
        """Whether pictures name the classes that are absent, as LVIS does: what is not said there is not known."""
        self._plain = {name: _mapped(folder, name) for name in PLAIN}
        self._ragged = {
            name: Ragged(*(_mapped(folder, f"{name}.{part}") for part in Ragged._fields)) for name in RAGGED
        }

    def __reduce__(self) -> tuple[type["PackedAnnotations"], tuple[Path]]:
        return PackedAnnotations, (self.folder,)

    def __len__(self) -> int:
        return len(self._plain["picture_ids"])

    def picture(self, index: int) -> Picture:
        """Describe a picture."""
        height, width = self._plain["picture_sizes"][index].tolist()
        name = bytes(self._ragged["names"].row(index)).decode()
        return Picture(int(self._plain["picture_ids"][index]), name, height, width)

    def objects(self, index: int) -> Objects:
        """Take the objects of a picture."""
        rows = self.rows(index)
        return Objects(*(self._plain[name][rows] for name in ("object_ids", "boxes", "labels", "areas", "is_crowd")))

    def rows(self, index: int) -> slice:
        """Tell which rows of all objects are those of a picture."""
        ends = self._plain["object_ends"]
        return slice(int(ends[index]), int(ends[index + 1]))

    def outline(self, row: int, picture: Picture) -> Outline:
        """Take the mask of an object, by its row among all objects."""
        runs = self._ragged["run_lengths"].row(row)
        if len(runs):
            return {"size": [picture.height, picture.width], "counts": bytes(runs)}
        rings, coordinates = self._ragged["rings"], self._ragged["coordinates"]
        return [coordinates.row(ring) for ring in range(int(rings.ends[row]), int(rings.ends[row + 1]))]

    def absent(self, index: int) -> list[int]:
        """List the classes that a picture surely lacks."""
        return [int(one) for one in self._ragged["absent"].row(index)]

    def not_exhaustive(self, index: int) -> list[int]:
        """List the classes of which not every object of a picture is annotated."""
        return [int(one) for one in self._ragged["not_exhaustive"].row(index)]

    def labels_by_picture(self) -> Iterator[NDArray[np.int32]]:
        """Yield the classes of each picture, crowds left out, each class once."""
        labels, is_crowd = self._plain["labels"], self._plain["is_crowd"]
        for index in range(len(self)):
            rows = self.rows(index)
            yield np.unique(labels[rows][~is_crowd[rows]])


def pack(file: Path, cache: Path) -> PackedAnnotations:
    """Open the packed form of a file, making it if the cache lacks it; of several processes one makes it.

    Raises:
        TrainerError: the file cannot be read or is none of LVIS or COCO, or the cache cannot be written or is damaged.
    """
    source_hash = _hash(file)
    folder = cache / f"{file.stem}-{source_hash[:16]}-{VERSION}"
    if not (folder / INDEX_FILE).exists():
        with writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / INDEX_FILE).exists():
                    _make(file, source_hash, folder)
    try:
        return PackedAnnotations(folder)
    except (OSError, ValueError, LookupError, TypeError) as error:  # as a crash of the machine may leave it
        raise TrainerError(f"{folder}: is damaged ({error}); remove it, and the annotations are packed anew") from error


def default_cache() -> Path:
    """Name evenkeel's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "evenkeel" / "annotations"


def _mapped(folder: Path, name: str) -> NDArray[Any]:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise TrainerError(
            f"{file}: cannot be read ({error.strerror}); check data.source and the annotations below it"
        ) from error


def _unchanged(file: Path, source_hash: str) -> bytes:
    """Read a file whose hash is known already."""
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != source_hash:
        raise TrainerError(f"{file}: has changed while it was read; start again when it is whole")
    return content


def _make(file: Path, source_hash: str, folder: Path) -> None:
    """Pack into a folder beside the wanted one, which then takes its name: there is a whole one or none."""
    console.print(f"packing {file} into {folder}", highlight=False, soft_wrap=True)
    content = read_annotations(file, _unchanged(file, source_hash))
    scratch = folder.with_name(f".packing-{folder.name}")  # of this name is one alone, as its maker holds the lock
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        for name, values in content.arrays.items():
            np.save(scratch / f"{name}.npy", values)
        index = {"source_hash": source_hash, "is_federated": content.is_federated, "faults": asdict(content.faults)}
        index["categories"] = [asdict(category) for category in content.categories]
        (scratch / INDEX_FILE).write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
