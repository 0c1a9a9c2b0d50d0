"""The splits of a recipe, and batches of pixels from them.

Pictures in memory live on the device as uint8; large ones are decoded in worker processes. An epoch is a pure function
of (split, seed, epoch), so that a resumed run sees what an unbroken one would have seen. Knows no model.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from service.bundle import InputSpec
from trainer.augment import batch_augmentation, policy_augmentation, sample_augmentation, to_unit_range
from trainer.config import Recipe
from trainer.distributed import on_device, part_of, world_size
from trainer.errors import TrainerError
from trainer.long_tail import hold_out, select_long_tail
from trainer.pixels import open_rgb, to_pixels
from trainer.progress import track
from trainer.shards import ShardPictures, order_by_groups
from trainer.sources import load_source
from trainer.table import Table

Batch = tuple[Tensor, Tensor]
POLICY_BATCHES = 8  # batches whose drawn changes are made together: fewer and larger operations


@dataclass(frozen=True)
class Splits:
    """Training, validation and test pictures of a recipe, with the training count of each class."""

    train: Table
    validation: Table | None
    test: Table
    class_names: list[str]
    class_counts: NDArray[np.int64]

    def fingerprint(self) -> str:
        """Hash which pictures train the model, wherever they lie (``Table.identity``)."""
        return self.train.identity()


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
        if not len(held_out):
            raise TrainerError(
                f"data.validation_share: {recipe.data.validation_share:g} of a class with at most "
                f"{np.bincount(train.labels).max()} images is no image; choose a larger share"
            )
        train, validation = train.select(kept), train.select(held_out)
    if recipe.alpha.choose == "validation" and validation is None:
        raise TrainerError(
            f"alpha.choose: validation needs validation images, and {recipe.data.source} has no validation split; "
            "set data.validation_share above 0 or data.lists.validation"
        )
    counts = np.bincount(train.labels, minlength=len(source.class_names))
    for empty in np.flatnonzero(counts == 0):
        raise TrainerError(
            f"data.source: class {empty} ({source.class_names[empty]}) has no training image in {recipe.data.source}; "
            "add some or drop the class"
        )
    return Splits(train, validation, source.test, source.class_names, counts)


def decode(table: Table, index: int, spec: InputSpec) -> NDArray[np.uint8]:
    """Decode one picture to the model's pixels [H, W, 3]."""
    return to_pixels(open_rgb(*table.picture(index)), spec)


class Pixels:
    """Batches of one split, for training (shuffled, augmented) and for evaluation (in order, as they are)."""

    def __init__(self, table: Table, recipe: Recipe, device: torch.device, *, name: str) -> None:
        self.table, self.recipe, self.device = table, recipe, device
        self._held = _hold(table, recipe.input, device, name) if recipe.data.in_memory else None
        self._labels = torch.from_numpy(table.labels).to(device)
        self._policy = policy_augmentation(recipe.augment, recipe.input)
        self._augment = batch_augmentation(recipe.augment, recipe.input)

    def __len__(self) -> int:
        return len(self.table)

    def steps_per_epoch(self) -> int:
        """Count the training batches of an epoch.

        A last batch of one image is left out, as it has no variance, and one with fewer images than processes.
        """
        whole, rest = divmod(len(self), self.recipe.batch_size)
        return whole + (rest >= max(2, world_size()))

    def training(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield (pixels [N, 3, H, W] in [0, 1], labels [N]), shuffled and augmented by (seed, epoch) alone.

        Of several processes each yields its part of every batch. Pictures in memory are changed as a whole batch before
        it is parted, so that they are those that one process would have seen. ``first_step`` leaves out the batches
        before it, where pictures are decoded as they are needed.
        """
        order = self._order(torch.Generator().manual_seed(mixed_seed(self.recipe.seed, epoch)))
        torch.manual_seed(mixed_seed(self.recipe.seed, epoch) + 1)
        batches = order.split(self.recipe.batch_size)[: self.steps_per_epoch()]
        if self._held is None:
            yield from self._from_workers(tuple(part_of(rows) for rows in batches[first_step:]), epoch)
            return
        rows = on_device(torch.cat(batches), self.device)
        for together in rows.split(POLICY_BATCHES * self.recipe.batch_size):
            changed = self._policy(self._held[together]).split(self.recipe.batch_size)
            labels = self._labels[together].split(self.recipe.batch_size)
            for pixels, truth in zip(changed, labels, strict=True):
                yield part_of(self._augment(to_unit_range(pixels))), part_of(truth)

    def _order(self, generator: torch.Generator) -> Tensor:
        rows = self.table.rows
        if not isinstance(rows, ShardPictures):
            return torch.randperm(len(self), generator=generator)
        window = self.recipe.data.shuffle_window
        groups = torch.from_numpy(rows.groups())
        return order_by_groups(groups, batch_size=self.recipe.batch_size, window=window, generator=generator)

    def evaluation_steps(self) -> int:
        """Count the evaluation batches."""
        return -(-len(self) // self.recipe.batch_size)

    def evaluation(self) -> Iterator[Batch]:
        """Yield (pixels, labels) in the split's order, resized and cropped as in serving."""
        batches = torch.arange(len(self)).split(self.recipe.batch_size)
        if self._held is None:
            yield from self._from_workers(batches, None)
            return
        for rows in (batch.to(self.device) for batch in batches):
            yield to_unit_range(self._held[rows]), self._labels[rows]

    def _from_workers(self, batches: tuple[Tensor, ...], epoch: int | None) -> Iterator[Batch]:
        loader = DataLoader(
            _Decoded(self.table, self.recipe, epoch),
            batch_sampler=[rows.tolist() for rows in batches],
            num_workers=min(self.recipe.data.num_workers, usable_cores()),
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        for batch in or_say_who_died(loader):
            if isinstance(batch, TrainerError):
                raise batch
            pixels, labels = (part.to(self.device, non_blocking=True) for part in batch)
            yield to_unit_range(pixels), labels


class _Decoded(Dataset[Any]):
    """Decodes a picture when asked for it: what worker processes run.

    Changes of a training picture are drawn by (seed, epoch, row) alone, whichever worker makes them. A fault is
    returned, not raised: torch would bury its message under the worker's traceback.
    """

    def __init__(self, table: Table, recipe: Recipe, epoch: int | None) -> None:
        self.table, self.spec, self.seed, self.epoch = table, recipe.input, recipe.seed, epoch
        self.transform = sample_augmentation(recipe.augment, recipe.input)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | TrainerError:
        try:
            return self._pixels(index), int(self.table.labels[index])
        except TrainerError as error:
            return error

    def _pixels(self, index: int) -> Tensor:
        if self.epoch is None:
            return torch.from_numpy(decode(self.table, index, self.spec).copy()).permute(2, 0, 1)
        image = open_rgb(*self.table.picture(index))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self.seed, self.epoch, index))
            pixels: Tensor = self.transform(image)
        return pixels


def _collate(samples: list[tuple[Tensor, int] | TrainerError]) -> Batch | TrainerError:
    pictures = []
    for sample in samples:
        if isinstance(sample, TrainerError):
            return sample
        pictures.append(sample)
    pixels, labels = zip(*pictures, strict=True)
    return torch.stack(pixels), torch.tensor(labels)


def or_say_who_died(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield a loader's batches; a worker that dies, mostly for want of memory, is said as what it is."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainerError(
            f"data.num_workers: a worker process died ({error}); lower data.num_workers or batch_size, "
            "or give the container more shared memory (docker run --shm-size=2g)"
        ) from error


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hold(table: Table, spec: InputSpec, device: torch.device, name: str) -> Tensor:
    pixels = np.empty((len(table), spec.height, spec.width, 3), dtype=np.uint8)
    for index in track(range(len(table)), f"decoding {name}", total=len(table)):
        pixels[index] = decode(table, index, spec)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)


def mixed_seed(*numbers: int) -> int:
    """Make one 63-bit seed of several numbers, far from those of neighbouring epochs and seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
