"""The features of a run's splits, computed once and kept in a file. Knows neither classifiers nor methods."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trainer.checkpoint import CHECKPOINT_FILE
from trainer.config import Recipe
from trainer.data import Pixels, Splits
from trainer.errors import writing
from trainer.inference import extract_features
from trainer.model import LongTailClassifier
from trainer.posthoc.features import LabelledFeatures
from trainer.table import Table


@dataclass(frozen=True)
class SplitFeatures:
    """Features and labels of the training, the validation (if there is one) and the test split."""

    train: LabelledFeatures
    validation: LabelledFeatures | None
    test: LabelledFeatures


def features_of(
    run: Path, model: LongTailClassifier, recipe: Recipe, splits: Splits, *, device: torch.device, cache: Path
) -> SplitFeatures:
    """Compute the features of all splits in evaluation mode, or read them where that was done before.

    Args:
        run: folder of the finished run, which stays as it is.
        model: its model, on the device.
        recipe: says how pictures are read.
        splits: the pictures.
        device: where to compute.
        cache: folder for the file, which is named by the hash of checkpoint and pictures.
    """
    tables = {"train": splits.train, "test": splits.test}
    if splits.validation is not None:
        tables["validation"] = splits.validation
    file = cache / f"features-{_fingerprint(run, splits)}.safetensors"
    tensors = _read(file, tables)
    if tensors is None:
        tensors = {}
        for name, table in tables.items():
            pixels = Pixels(table, recipe, device, name=f"{name} images")
            features, labels = extract_features(model, pixels, f"{name} features")
            tensors |= {name: features, f"{name}_labels": torch.from_numpy(labels)}
        _write(tensors, file)
    classes = len(splits.class_names)
    parts = {name: LabelledFeatures(tensors[name], tensors[f"{name}_labels"], classes) for name in tables}
    return SplitFeatures(parts["train"], parts.get("validation"), parts["test"])


def _fingerprint(run: Path, splits: Splits) -> str:
    digest = hashlib.sha256((run / CHECKPOINT_FILE).read_bytes())
    for table in (splits.train, splits.test, splits.validation):
        digest.update(b"" if table is None else table.state().encode())
    return digest.hexdigest()[:12]


def _read(file: Path, tables: dict[str, Table]) -> dict[str, Tensor] | None:
    """Read kept features; None where there are none, or none of these splits."""
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError):
        return None
    return tensors if all(len(tensors.get(name, ())) == len(table) for name, table in tables.items()) else None


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_suffix(".partial")
        staging.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        staging.replace(file)
