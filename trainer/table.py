"""The labelled pictures of one split, not yet decoded, and what each is called in messages. Knows no classes' names."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image
from numpy.typing import NDArray

from trainer.errors import TrainerError
from trainer.shards import ShardPictures, Shards

HEAD_BYTES = 4096
"""Of a picture's file, read to tell it from another of its name and size."""


@dataclass(frozen=True)
class Table:
    """Pictures and labels of one split.

    Args:
        split: train, test or validation.
        rows: the column ``image`` with the bytes or the path of each picture [N]: read at once, or from shards.
        labels: the class of each picture [N].
        numbers: the number that each row has in its source [N].
    """

    split: str
    rows: Dataset | ShardPictures
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Dataset | Shards, *, image: str, label: str, split: str) -> "Table":
        """Read two columns of a data set.

        Raises:
            TrainerError: no rows, a column that is not there, pictures that are none, labels that are no whole numbers.
        """
        for column in (image, label):
            if column not in rows.column_names:
                raise TrainerError(
                    f"data.source: the {split} split has no column {column!r}, only {', '.join(rows.column_names)}; "
                    "all splits must have the same columns"
                )
        if not len(rows):
            raise TrainerError(f"data.source: the {split} split is empty; it must hold at least one picture")
        labels = rows.column(label) if isinstance(rows, Shards) else np.asarray(rows.with_format("numpy")[label][:])
        if labels.dtype.kind not in "iu":
            empty = next((row for row, one in enumerate(labels.tolist()) if str(one) in {"None", "nan"}), None)
            found = rows.features[label] if empty is None else f"none in row {empty}"
            raise TrainerError(
                f"data.label_column: {label!r} of the {split} split must hold a whole number in every row, got {found}"
            )
        pictures = _pictures(rows, image)
        return cls(split, pictures, labels.astype(np.int64), np.arange(len(pictures)))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: NDArray[np.int64]) -> "Table":
        """Keep these rows, in this order."""
        return Table(self.split, self.rows.select(indices), self.labels[indices], self.numbers[indices])

    def name_of(self, index: int) -> str:
        """Say where a row comes from, for messages: its file, or else its split and number there."""
        return self._name(index, self.rows[index]["image"])

    def picture(self, index: int) -> tuple[BytesIO | str, str]:
        """Give what Pillow opens, the bytes or the path of a picture, and its name for messages.

        Raises:
            TrainerError: a row without a picture.
        """
        image = self.rows[index]["image"]
        name = self._name(index, image)
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise TrainerError(f"{name}: holds no picture; mend or remove the row")
        return (str(image["path"]) if image["bytes"] is None else BytesIO(image["bytes"])), name

    def identity(self) -> str:
        """Hash which pictures and labels these are, in order, wherever they lie.

        Embedded pictures count by their bytes; files by their paths behind what all paths begin with, by their sizes
        and their first ``HEAD_BYTES``; shards by what ``ShardPictures.fingerprint`` takes. Reading all may take hours.
        """
        return self._hash(_identities)

    def state(self) -> str:
        """Hash the pictures and labels as they are now, so that what was computed of them is found again.

        As ``identity``, but a file counts by its path, its size and the time of its last change, and is not read.
        """
        return self._hash(_states)

    def _hash(self, of_files: Callable[[list[str]], Iterable[bytes]]) -> str:
        digest = hashlib.sha256(self.labels.tobytes())
        if isinstance(self.rows, ShardPictures):
            digest.update(self.rows.fingerprint())
            return digest.hexdigest()
        pictures = [_embedded(row["image"] or {}) for row in self.rows]  # not their bytes: all may be more than fits
        files = iter(of_files([one for one in pictures if isinstance(one, str)]))
        for one in pictures:
            digest.update(hashlib.sha256(next(files)).digest() if isinstance(one, str) else one)
        return digest.hexdigest()

    def _name(self, index: int, image: dict[str, Any] | None) -> str:
        path = image["path"] if image is not None else None
        if path is not None and image is not None and image["bytes"] is None:
            return str(path)
        row = f"{self.split} row {self.numbers[index]}"
        return f"{row} ({path})" if path else row


def _pictures(rows: Dataset | Shards, image: str) -> Dataset | ShardPictures:
    try:
        if isinstance(rows, Shards):
            return rows.pictures(image)
        return rows.select_columns([image]).rename_columns({image: "image"}).cast_column("image", Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TrainerError(
            f"data.image_column: {image!r} must hold the bytes or the path of pictures, got {rows.features[image]}"
        ) from error


def _embedded(image: dict[str, Any]) -> bytes | str:
    """Take the hash of a picture's bytes, or its path."""
    return hashlib.sha256(image["bytes"]).digest() if image.get("bytes") else str(image.get("path"))


def _identities(paths: list[str]) -> Iterator[bytes]:
    top = len(os.path.commonprefix(paths))  # noqa: RUF071 - any beginning will do, and this one never fails
    with ThreadPoolExecutor() as readers:
        for path, content in zip(paths, readers.map(_beginning, paths), strict=True):
            yield path[top:].encode() + content


def _beginning(path: str) -> bytes:
    """Take a file's size and its first bytes; nothing of one that cannot be read, which is told where it is decoded."""
    try:
        with Path(path).open("rb") as file:
            return b" %d " % os.fstat(file.fileno()).st_size + file.read(HEAD_BYTES)
    except (OSError, ValueError):  # the latter for a name that no file can have
        return b""


def _states(paths: list[str]) -> Iterator[bytes]:
    for path in map(Path, paths):
        facts = path.stat() if path.is_file() else None
        yield f"{path} {facts and (facts.st_size, facts.st_mtime_ns)}".encode()
