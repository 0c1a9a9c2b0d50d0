"""Splits of a frozen backbone: features in place of pixels, computed once and kept in a file.

Features depend on the backbone's weights, on the pictures and on how pixels are made of them, so the file is named by
the hash of these. Runs whose folders lie side by side take each other's. Knows no classifier.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trainer.config import Recipe
from trainer.data import Batch, Pixels, mixed_seed
from trainer.distributed import is_first, on_device, part_of
from trainer.errors import writing
from trainer.inference import extract_features
from trainer.model import LongTailClassifier
from trainer.progress import console
from trainer.table import Table


class KeptFeatures(Pixels):
    """Batches of one split as ``Pixels`` gives them, but of features [N, D] in evaluation mode."""

    def __init__(self, table: Table, recipe: Recipe, device: torch.device, features: Tensor) -> None:
        self.table, self.recipe, self.device = table, recipe, device
        self._features = features.to(device)
        self._labels = torch.from_numpy(table.labels).to(device)

    def training(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield (features [N, D], labels [N]), shuffled by (seed, epoch) alone."""
        generator = torch.Generator().manual_seed(mixed_seed(self.recipe.seed, epoch))
        order = torch.randperm(len(self), generator=generator)
        for rows in on_device(order, self.device).split(self.recipe.batch_size)[first_step : self.steps_per_epoch()]:
            part = part_of(rows)
            yield self._features[part], self._labels[part]

    def evaluation(self) -> Iterator[Batch]:
        """Yield (features, labels) in the split's order."""
        size = self.recipe.batch_size
        yield from zip(self._features.split(size), self._labels.split(size), strict=True)


def open_split(
    table: Table, recipe: Recipe, device: torch.device, *, name: str, model: LongTailClassifier, folder: Path
) -> Pixels:
    """Open a split: its pixels, or its features where the recipe freezes the backbone.

    Args:
        table, recipe, device, name: as ``Pixels`` takes them.
        model: computes the features, unless they are there.
        folder: of the run, where they are kept; runs in folders beside it are asked first.
    """
    if not recipe.backbone.frozen:
        return Pixels(table, recipe, device, name=name)
    file = f"features-{_fingerprint(model.backbone, table, recipe)}.safetensors"
    for kept in (folder / file, *sorted(folder.absolute().parent.glob(f"*/{file}"))):
        features = _read(kept, len(table))
        if features is not None:
            console.print(f"features of {len(table)} {name} taken from {kept}", soft_wrap=True)
            return KeptFeatures(table, recipe, device, features)
    pixels = Pixels(table, recipe, device, name=name)
    features, _ = extract_features(model, pixels, f"features of {name}")
    if is_first():
        _write(features, folder / file)
    return KeptFeatures(table, recipe, device, features)


def _fingerprint(backbone: nn.Module, table: Table, recipe: Recipe) -> str:
    digest = hashlib.sha256(recipe.input.model_dump_json(exclude={"decoder"}).encode())
    digest.update(recipe.backbone.name.encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(table.state().encode())
    return digest.hexdigest()[:16]


def _read(file: Path, rows: int) -> Tensor | None:
    try:
        features: Tensor = load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):
        return None
    return features if len(features) == rows else None


def _write(features: Tensor, file: Path) -> None:
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_suffix(".partial")
        staging.write_bytes(save({"features": features.contiguous()}))
        staging.replace(file)
