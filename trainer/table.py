"""The labelled pictures of one split, not yet decoded, and what each is called in messages. Knows no classes' names."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from datasets import Dataset, Image
from numpy.typing import NDArray

from trainer.errors import TrainerError
from trainer.shards import ShardPictures, Shards


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
            raise TrainerError(
                f"data.label_column: {label!r} of the {split} split must hold a whole number in every row, "
                f"got {rows.features[label]}"
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
