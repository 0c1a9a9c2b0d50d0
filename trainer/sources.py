"""Where labelled pictures come from: the hub, parquet, image folders, list files, and the embedded digits.

Every source is opened by the Hugging Face ``datasets`` library and becomes one table per split.
This module knows neither the long tail nor pixels.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, disable_progress_bars, load_dataset
from datasets.exceptions import DatasetsError

from trainer.class_names import fault_of_class_name
from trainer.config import DataConfig, Lists
from trainer.errors import TrainerError
from trainer.progress import console
from trainer.shards import Shards
from trainer.table import Table

LIST_LINE = re.compile(r"(?P<path>.+?)\s+(?P<label>[0-9]{1,9})")
SPLITS = {"train": "train", "test": "test", "validation": "val"}  # our name: how a file or split name begins


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
    if not console.is_terminal:
        disable_progress_bars()
    if config.source == "digits":
        return _from_splits(_digits(), config)
    folder = Path(config.source).expanduser()
    if config.lists is not None:
        splits = _list_files(folder, config.lists)
        return _from_splits(splits, config, _listed_names(folder, config.lists.class_names))
    if config.stream:
        return _from_splits(_shards(folder, config), config)
    if folder.is_dir():
        return _from_splits(_local(folder), config)
    if folder.exists() or config.source.startswith((".", "/", "~")):
        raise TrainerError(f"data.source: {config.source!r} is no folder; give a folder or a hub id")
    return _from_splits(_hub(config.source), config)


def _hub(name: str) -> DatasetDict:
    try:
        return _load(name)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise TrainerError(
            f"data.source: {name!r} is no local folder and could not be had from the hub ({error}); "
            "check the name and the network, or name a local folder by --data"
        ) from error


def _parquet(folder: Path) -> dict[str, list[str]]:
    files = {ours: sorted(str(file) for file in folder.rglob(f"{prefix}*.parquet")) for ours, prefix in SPLITS.items()}
    return {split: found for split, found in files.items() if found}


def _shards(folder: Path, config: DataConfig) -> dict[str, Shards]:
    found = _parquet(folder)
    if not found:
        raise TrainerError(
            f"data.stream: {config.source} is no folder with train*.parquet and test*.parquet; give one by --data"
        )
    return {split: Shards([Path(file) for file in files], config.shuffle_window) for split, files in found.items()}


def _local(folder: Path) -> DatasetDict:
    found = _parquet(folder)
    try:
        return _load("parquet", data_files=found) if found else _load("imagefolder", data_dir=str(folder))
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise TrainerError(
            f"data.source: {folder} cannot be read ({cause}); it must hold train*.parquet and test*.parquet, "
            "or train/CLASS/ and test/CLASS/ folders of pictures"
        ) from error


def _load(path: str, **options: str | dict[str, list[str]]) -> DatasetDict:
    loaded = load_dataset(path, **options)
    by_split = {ours: loaded[name] for ours, prefix in SPLITS.items() for name in loaded if name.startswith(prefix)}
    return DatasetDict(by_split)


@cache  # compare asks for each training and each measurement anew
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
    features = Features({"image": Image(), "label": Value("int64")})
    rows = {split: _read_list(folder, name) for split, name in files.items() if name is not None}
    _warn_of_contradictions(rows)
    return DatasetDict({split: Dataset.from_dict(its, features=features) for split, its in rows.items()})


def _warn_of_contradictions(rows: dict[str, dict[str, list[Any]]]) -> None:
    """Name pictures that are listed with two labels, or for training and for a test: published lists have some."""
    labels: dict[str, set[int]] = {}
    for its in rows.values():
        for image, label in zip(its["image"], its["label"], strict=True):
            labels.setdefault(image, set()).add(label)
    trained = set(rows["train"]["image"])
    found = {"listed with two labels": [image for image, its in labels.items() if len(its) > 1]} | {
        f"listed for training and for {split}": [image for image in dict.fromkeys(its["image"]) if image in trained]
        for split, its in rows.items()
        if split != "train"
    }
    for what, images in found.items():
        if images:
            more = f" and {len(images) - 1} more" if len(images) > 1 else ""
            console.print(f"data.lists: {images[0]}{more} {what}; is that meant?", highlight=False, soft_wrap=True)


def _read_list(folder: Path, name: str) -> dict[str, list[Any]]:
    file = folder / name
    images, labels = [], []
    for number, line in _read_lines(file):
        match = LIST_LINE.fullmatch(line)
        if match is None:
            raise TrainerError(
                f"{file}, line {number}: must read 'path label' with a whole number from 0 on, got {line!r}"
            )
        picture = folder / match["path"]
        if not picture.is_file():
            raise TrainerError(f"{file}, line {number}: no picture at {picture}; check data.source (--data)")
        images.append(str(picture))
        labels.append(int(match["label"]))
    if not images:
        raise TrainerError(f"{file}: is empty; it must hold 'path label' lines")
    return {"image": images, "label": labels}


def _listed_names(folder: Path, name: str | None) -> list[str] | None:
    return [line for _, line in _read_lines(folder / name)] if name is not None else None


def _read_lines(file: Path) -> list[tuple[int, str]]:
    try:
        lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(f"{file}: cannot be read ({error}); check data.source (--data) and data.lists") from error
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _from_splits(splits: DatasetDict | dict[str, Shards], config: DataConfig, names: list[str] | None = None) -> Source:
    for required in ("train", "test"):
        if required not in splits:
            raise TrainerError(f"data.source: {config.source} has no {required} split, only {', '.join(splits)}")
    image, label = _columns(splits["train"], config)
    tables = {split: Table.of(rows, image=image, label=label, split=split) for split, rows in splits.items()}
    names = _class_names(splits["train"].features[label], tables) if names is None else names
    _check_names(names)
    where = "data.lists.class_names names" if config.lists and config.lists.class_names else "there are"
    for table in tables.values():
        _check_labels(table, len(names), f"{where} {len(names)} classes")
    return Source(tables["train"], tables["test"], tables.get("validation"), names)


def _columns(rows: Dataset | Shards, config: DataConfig) -> tuple[str, str]:
    images = [name for name, feature in rows.features.items() if isinstance(feature, Image) or "bytes" in str(feature)]
    labels = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    labels = labels or [name for name, feature in rows.features.items() if str(feature).startswith("Value('int")]
    if not labels and config.label_column is None:
        raise TrainerError(
            f"data.label_column: no column of {config.source} holds labels, only {', '.join(rows.column_names)}. "
            "Parquet needs whole numbers; a folder of pictures must read train/CLASS/PICTURE, with at least two "
            "classes and no folder deeper or higher than that"
        )
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


def _class_names(feature: ClassLabel | Value, tables: dict[str, Table]) -> list[str]:
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    # Every class needs a training image, so a label beyond their number is a fault and not a class.
    for table in tables.values():
        _check_labels(table, len(tables["train"]), f"{len(tables['train'])} training images make no more classes")
        _refuse_gap(table, set(tables["train"].labels.tolist()))
    return [str(index) for index in range(max(int(table.labels.max()) for table in tables.values()) + 1)]


def _refuse_gap(table: Table, trained: set[int]) -> None:
    row = int(table.labels.argmax())
    highest = int(table.labels[row])
    missing = next((label for label in range(highest + 1) if label not in trained), None)
    if missing is not None:
        raise TrainerError(
            f"{table.name_of(row)}: label {highest} is out of range or class {missing} is empty: no training image has "
            f"label {missing}, and labels must run from 0 without a gap; mend the label, or add images of the class"
        )


def _check_names(names: list[str]) -> None:
    if len(names) < 2:
        raise TrainerError(f"data.source: at least two classes are needed, got {len(names)}")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise TrainerError(
                f"data.source: class name {name!r} occurs twice, for {names.index(name)} and {index}; rename one"
            )
        if fault := fault_of_class_name(name):
            raise TrainerError(f"data.source: name {name!r} of class {index}: {fault}")


def _check_labels(table: Table, num_classes: int, why: str) -> None:
    for row in np.flatnonzero((table.labels < 0) | (table.labels >= num_classes)):
        raise TrainerError(
            f"{table.name_of(int(row))}: label {table.labels[row]} of the {table.split} split is out of range "
            f"0 to {num_classes - 1}; {why}"
        )
