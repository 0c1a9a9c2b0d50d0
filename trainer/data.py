"""The splits of a recipe, and batches of pixels from them.

Pictures in memory live on the device as uint8; large ones are decoded in worker processes. An epoch is a pure function
of (split, seed, epoch), so that a resumed run sees what an unbroken one would have seen. Knows no model.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from service.bundle import InputSpec
from trainer.augment import batch_augmentation, sample_augmentation, to_unit_range
from trainer.config import Recipe
from trainer.errors import TrainerError
from trainer.long_tail import hold_out, select_long_tail
from trainer.pixels import open_rgb, to_pixels
from trainer.progress import track
from trainer.sources import Table, load_source, open_image

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test pictures of a recipe, with the training count of each class."""

    train: Table
    validation: Table | None
    test: Table
    class_names: list[str]
    class_counts: NDArray[np.int64]

    def fingerprint(self) -> str:
        """Hash which pictures train the model: their bytes (or paths) and labels, in order."""
        digest = hashlib.sha256(self.train.labels.tobytes())
        for row in self.train.rows:
            image = row["image"]
            digest.update(hashlib.sha256(image["bytes"] or str(image["path"]).encode()).digest())
        return digest.hexdigest()


def load_splits(recipe: Recipe) -> Splits:
    """Open the recipe's source, make the long tail and hold out validation images.

    Raises:
        TrainerError: whatever is wrong with the source, or a class without training images.
    """
    source = load_source(recipe.data)
    train, validation = source.train, source.validation
    train = train.select(select_long_tail(train.labels, len(source.class_names), recipe.data.long_tail))
    if recipe.data.validation_share:
        kept, held_out = hold_out(train.labels, recipe.data.validation_share, recipe.seed)
        train, validation = train.select(kept), train.select(held_out)
    counts = np.bincount(train.labels, minlength=len(source.class_names))
    for empty in np.flatnonzero(counts == 0):
        raise TrainerError(
            f"data.source: class {empty} ({source.class_names[empty]}) has no training image in {recipe.data.source}; "
            "add some or drop the class"
        )
    return Splits(train, validation, source.test, source.class_names, counts)


def decode(table: Table, index: int, spec: InputSpec) -> NDArray[np.uint8]:
    """Decode one picture to the model's pixels [H, W, 3]."""
    return to_pixels(open_rgb(open_image(table.rows[index]), table.name_of(index)), spec)


class Pixels:
    """Batches of one split, for training (shuffled, augmented) and for evaluation (in order, as they are)."""

    def __init__(self, table: Table, recipe: Recipe, device: torch.device, *, name: str) -> None:
        self.table, self.recipe, self.device = table, recipe, device
        self._held = _hold(table, recipe.input, device, name) if recipe.data.in_memory else None
        self._labels = torch.from_numpy(table.labels).to(device)
        self._augment = batch_augmentation(recipe.augment, recipe.input)

    def __len__(self) -> int:
        return len(self.table)

    def steps_per_epoch(self) -> int:
        """Count the training batches of an epoch; a last batch of one image is left out, as it has no variance."""
        whole, rest = divmod(len(self), self.recipe.batch_size)
        return whole + (rest > 1)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Yield (pixels [N, 3, H, W] in [0, 1], labels [N]), shuffled and augmented by (seed, epoch) alone."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(_mix(self.recipe.seed, epoch)))
        torch.manual_seed(_mix(self.recipe.seed, epoch) + 1)
        batches = order.split(self.recipe.batch_size)[: self.steps_per_epoch()]
        if self._held is None:
            yield from self._from_workers(batches, augmented=True)
            return
        for rows in (batch.to(self.device) for batch in batches):
            yield self._augment(to_unit_range(self._held[rows])), self._labels[rows]

    def evaluation_steps(self) -> int:
        """Count the evaluation batches."""
        return -(-len(self) // self.recipe.batch_size)

    def evaluation(self) -> Iterator[Batch]:
        """Yield (pixels, labels) in the split's order, resized and cropped as in serving."""
        batches = torch.arange(len(self)).split(self.recipe.batch_size)
        if self._held is None:
            yield from self._from_workers(batches, augmented=False)
            return
        for rows in (batch.to(self.device) for batch in batches):
            yield to_unit_range(self._held[rows]), self._labels[rows]

    def _from_workers(self, batches: tuple[Tensor, ...], *, augmented: bool) -> Iterator[Batch]:
        loader = DataLoader(
            _Decoded(self.table, self.recipe, augmented=augmented),
            batch_sampler=[rows.tolist() for rows in batches],
            num_workers=self.recipe.data.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        for pixels, labels in loader:
            yield to_unit_range(pixels.to(self.device, non_blocking=True)), labels.to(self.device, non_blocking=True)


class _Decoded(Dataset[Any]):
    """Decodes a picture when asked for it: what worker processes run."""

    def __init__(self, table: Table, recipe: Recipe, *, augmented: bool) -> None:
        self.table, self.spec = table, recipe.input
        self.transform = sample_augmentation(recipe.augment, recipe.input) if augmented else None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.table.labels[index])
        if self.transform is None:
            return torch.from_numpy(decode(self.table, index, self.spec).copy()).permute(2, 0, 1), label
        image = open_rgb(open_image(self.table.rows[index]), self.table.name_of(index))
        return self.transform(image), label


def _hold(table: Table, spec: InputSpec, device: torch.device, name: str) -> Tensor:
    pixels = np.empty((len(table), spec.height, spec.width, 3), dtype=np.uint8)
    for index in track(range(len(table)), f"decoding {name}", total=len(table)):
        pixels[index] = decode(table, index, spec)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)


def _mix(seed: int, epoch: int) -> int:
    """Make one 63-bit seed of two numbers, far from those of neighbouring epochs and seeds."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
