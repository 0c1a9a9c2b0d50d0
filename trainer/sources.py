"""Where labelled pictures come from: the hub, parquet, image folders, list files, and the embedded digits.

Every source becomes Hugging Face data sets with the columns ``image`` (bytes or path, not decoded) and ``label``.
This module knows neither the long tail nor pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from datasets.exceptions import DatasetNotFoundError
from numpy.typing import NDArray

from trainer.config import DataConfig, Lists
from trainer.errors import TrainerError

SPLITS = {"train": "train", "test": "test", "validation": "val"}  # our name: how a file or split name begins


@dataclass(frozen=True)
class Table:
    """Labelled pictures of one split, not yet decoded."""

    rows: Dataset
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: NDArray[np.int64]) -> "Table":
        """Keep these rows, in this order."""
        return Table(self.rows.select(indices), self.labels[indices])

    def name_of(self, index: int) -> str:
        """Say where a row comes from, for messages."""
        return self.rows[index]["image"]["path"] or f"row {index}"


@dataclass(frozen=True)
class Source:
    """What a source offers, whole: splits and class names."""

    train: Table
    test: Table
    validation: Table | None
    class_names: list[str]


def load_source(config: DataConfig) -> Source:
    """Open the source that the recipe names.

    Raises:
        TrainerError: nothing there, no train or test split, columns that cannot be told, or a label out of range.
    """
    if config.source == "digits":
        return _from_splits(_digits(), config)
    folder = Path(config.source).expanduser()
    if config.lists is not None:
        return _from_splits(_list_files(folder, config.lists), config)
    if folder.is_dir():
        return _from_splits(_local(folder), config)
    if folder.exists() or config.source.startswith((".", "/", "~")):
        raise TrainerError(f"data.source: {config.source!r} is not a folder; give a folder or a hub id")
    return _from_splits(_hub(config.source), config)


def _hub(name: str) -> DatasetDict:
    try:
        return _load(name)
    except (ConnectionError, DatasetNotFoundError, OSError, ValueError) as error:
        raise TrainerError(
            f"data.source: {name!r} is no local folder and could not be had from the hub ({error}); "
            "check the name and the network, or name a local folder by --data"
        ) from error


def _local(folder: Path) -> DatasetDict:
    parquet = {
        ours: sorted(str(file) for file in folder.rglob(f"{prefix}*.parquet")) for ours, prefix in SPLITS.items()
    }
    found = {split: files for split, files in parquet.items() if files}
    try:
        return _load("parquet", data_files=found) if found else _load("imagefolder", data_dir=str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise TrainerError(
            f"data.source: {folder} cannot be read ({cause}); it must hold train*.parquet and test*.parquet, "
            "or train/CLASS/ and test/CLASS/ folders of pictures"
        ) from error


def _load(path: str, **options: str | dict[str, list[str]]) -> DatasetDict:
    loaded = load_dataset(path, **options)
    by_split = {ours: loaded[name] for ours, prefix in SPLITS.items() for name in loaded if name.startswith(prefix)}
    return DatasetDict(by_split)


def _digits() -> DatasetDict:
    """Split scikit-learn's digits: of each class the first three tenths are for the test, the rest for training."""
    from PIL import Image as PillowImage  # noqa: PLC0415 - scikit-learn is slow to import and serves the demo alone
    from sklearn.datasets import load_digits  # noqa: PLC0415

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[f"digit {n}" for n in range(10)])})
    is_test = np.zeros(len(pixels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(digits.target == label)
        is_test[members[: len(members) * 3 // 10]] = True
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [PillowImage.fromarray(one) for one in pixels[rows]], "label": digits.target[rows]},
                features=features,
            )
            for split, rows in (("train", ~is_test), ("test", is_test))
        }
    )


def _list_files(folder: Path, lists: Lists) -> DatasetDict:
    files = {"train": lists.train, "test": lists.test, "validation": lists.validation}
    tables = {split: _read_list(folder, name) for split, name in files.items() if name is not None}
    names = _read_lines(folder / lists.class_names) if lists.class_names else None
    label: ClassLabel | Value = ClassLabel(names=names) if names else Value("int64")
    features = Features({"image": Image(), "label": Value("int64")})
    loaded = DatasetDict({split: Dataset.from_dict(table, features=features) for split, table in tables.items()})
    if names:
        for split, table in tables.items():
            _check_labels(np.array(table["label"]), len(names), table["image"].__getitem__, split)
    return loaded.cast_column("label", label)


def _read_list(folder: Path, name: str) -> dict[str, list[Any]]:
    file = folder / name
    images, labels = [], []
    for number, line in enumerate(_read_lines(file), start=1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isascii() or not label.isdigit():
            raise TrainerError(f"{file}, line {number}: must read 'path label' with a whole number, got {line!r}")
        if not (folder / path).is_file():
            raise TrainerError(f"{file}, line {number}: no picture at {folder / path}; check data.source (--data)")
        images.append(str(folder / path))
        labels.append(int(label))
    if not images:
        raise TrainerError(f"{file}: is empty; it must hold 'path label' lines")
    return {"image": images, "label": labels}


def _read_lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(f"{file}: cannot be read ({error}); check data.source (--data) and data.lists") from error


def _from_splits(splits: DatasetDict, config: DataConfig) -> Source:
    for required in ("train", "test"):
        if required not in splits:
            raise TrainerError(f"data.source: {config.source} has no {required} split, only {', '.join(splits)}")
    image, label = _columns(splits["train"], config)
    names = _class_names(splits, label)
    tables = {split: _table(rows, image, label, len(names), split) for split, rows in splits.items()}
    return Source(tables["train"], tables["test"], tables.get("validation"), names)


def _columns(rows: Dataset, config: DataConfig) -> tuple[str, str]:
    images = [name for name, feature in rows.features.items() if isinstance(feature, Image) or "bytes" in str(feature)]
    labels = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    labels = labels or [name for name, feature in rows.features.items() if str(feature).startswith("Value('int")]
    return (
        _choose("image_column", config.image_column, images, rows.column_names),
        _choose("label_column", config.label_column, labels, rows.column_names),
    )


def _choose(field: str, wanted: str | None, candidates: list[str], columns: list[str]) -> str:
    if wanted in columns:
        return str(wanted)
    if wanted is None and len(candidates) == 1:
        return candidates[0]
    raise TrainerError(f"data.{field}: got {wanted!r}; name one of the columns {', '.join(columns)}")


def _class_names(splits: DatasetDict, label: str) -> list[str]:
    feature = splits["train"].features[label]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    return [str(index) for index in range(max(max(rows[label]) for rows in splits.values()) + 1)]


def _table(rows: Dataset, image: str, label: str, num_classes: int, split: str) -> Table:
    rows = rows.select_columns([image, label]).rename_columns({image: "image", label: "label"})
    rows = rows.cast_column("image", Image(decode=False))
    table = Table(rows, np.array(rows.with_format("numpy")["label"][:], dtype=np.int64))
    _check_labels(table.labels, num_classes, table.name_of, split)
    return table


def _check_labels(labels: NDArray[np.int64], num_classes: int, name_of: Callable[[int], str], split: str) -> None:
    for row in np.flatnonzero((labels < 0) | (labels >= num_classes)):
        raise TrainerError(
            f"{split}, {name_of(int(row))}: label {labels[row]} is out of range; there are {num_classes} classes, "
            f"0 to {num_classes - 1}"
        )


def open_image(row: dict[str, Any]) -> BytesIO | str:
    """Give what Pillow opens: the bytes of a row's picture, or its path."""
    image = row["image"]
    return BytesIO(image["bytes"]) if image["bytes"] is not None else str(image["path"])
