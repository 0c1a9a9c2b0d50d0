"""Pictures and targets as the network takes them: scaled, flipped, padded at the right and the bottom with zeros.

What is drawn for a training picture depends on (seed, epoch, place in the epoch) alone, whichever worker makes it. It
knows no network.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from service.bundle import InputSpec
from trainer.data import mixed_seed, or_say_who_died, usable_cores
from trainer.detection.data import DetectionSplit
from trainer.detection.picture_sampling import epoch_batches, repeat_factors
from trainer.detection.pictures import fault_of_size
from trainer.detection.recipe import DetectionRecipe
from trainer.detection.scaling import scaled_boxes, shorter_sides, training_size
from trainer.detection.types import Batch, Targets
from trainer.distributed import part_of, world_size
from trainer.errors import TrainerError
from trainer.pixels import RESAMPLE, open_rgb

DIVISOR = 32
"""Sides of a training batch are multiples of it, so that the pyramid's levels fit on each other."""


class Sample(NamedTuple):
    """A picture that is ready, without padding; masks bool [n, height, width]."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


class Scaled(NamedTuple):
    """A picture of a split for evaluation, on the canvas of the input."""

    row: int
    """In the split."""
    pixels: NDArray[np.uint8]
    """[H, W, 3]."""
    size: tuple[int, int]
    """Height and width of what is picture."""


class TrainingBatches:
    """The batches of a split for training; of several processes each takes its part of every batch.

    Args:
        split: training pictures.
        recipe: how large, how changed, how many.
        num_classes: C, for repeat factors.
        device: where tensors go.
    """

    def __init__(self, split: DetectionSplit, recipe: DetectionRecipe, num_classes: int, device: torch.device) -> None:
        self.split, self.recipe, self.device = split, recipe, device
        threshold = recipe.data.repeat_threshold
        labels = split.labels_by_picture()
        self._factors = repeat_factors(labels, num_classes, threshold) if threshold else None
        pictures = [split.picture(index) for index in range(len(split))]
        self._is_wide = np.array([picture.width >= picture.height for picture in pictures])

    def rows(self, epoch: int) -> list[NDArray[np.int64]]:
        """Draw the epoch's batches of rows, those of all processes together.

        Raises:
            TrainerError: there are fewer pictures than processes.
        """
        batches = epoch_batches(
            self._is_wide,
            self._factors,
            batch_size=self.recipe.batch_size,
            least=world_size(),
            seed=self.recipe.seed,
            epoch=epoch,
        )
        if not batches:
            raise TrainerError(
                f"data.train: has {len(self.split)} pictures, which are no batch for {world_size()} processes; "
                "start fewer processes, or give more pictures"
            )
        return batches

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield this process's part of each batch, from a step on."""
        first, asked = 0, []
        for rows in self.rows(epoch):
            places = torch.arange(first, first + len(rows))
            asked.append([(int(rows[place - first]), int(place)) for place in part_of(places)])
            first += len(rows)
        loader = DataLoader(
            _Samples(self.split, self.recipe, epoch),
            batch_sampler=asked[first_step:],
            num_workers=min(self.recipe.data.num_workers, usable_cores()),
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
        )
        for batch in or_say_who_died(loader):
            if isinstance(batch, TrainerError):
                raise batch
            yield _moved(batch, self.device)


class EvaluationPictures(Dataset[Any]):
    """Pictures of a split as serving scales them; a fault is returned, not raised, as workers bury its message."""

    def __init__(self, split: DetectionSplit, spec: InputSpec) -> None:
        self.split, self.spec = split, spec

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Scaled | TrainerError:
        try:
            image = open_picture(self.split, index)
        except TrainerError as error:
            return error
        width, height = self.spec.fitted_size(*image.size)
        pixels = np.zeros((self.spec.height, self.spec.width, 3), dtype=np.uint8)
        pixels[:height, :width] = _resized(image, (height, width), self.spec)
        return Scaled(index, pixels, (height, width))

    def all(self, num_workers: int) -> Iterator[Scaled]:
        """Yield every picture, in order."""
        loader = DataLoader(self, batch_size=1, num_workers=min(num_workers, usable_cores()), collate_fn=_only)
        for scaled in or_say_who_died(loader):
            if isinstance(scaled, TrainerError):
                raise scaled
            yield scaled


class _Samples(Dataset[Any]):
    """Makes a training sample when asked for (row, place in the epoch): what worker processes run."""

    def __init__(self, split: DetectionSplit, recipe: DetectionRecipe, epoch: int) -> None:
        self.split, self.recipe, self.epoch = split, recipe, epoch

    def __getitem__(self, asked: tuple[int, int]) -> Sample | TrainerError:
        row, place = asked
        generator = np.random.default_rng(mixed_seed(self.recipe.seed, self.epoch, place))
        try:
            return training_sample(self.split, row, self.recipe, generator)
        except TrainerError as error:
            return error


def training_sample(
    split: DetectionSplit, index: int, recipe: DetectionRecipe, generator: np.random.Generator
) -> Sample:
    """Make a training picture with its targets, crowds left out.

    Raises:
        TrainerError: a picture that cannot be read, or is of another size than annotated.
    """
    image, objects, shortest_sides = open_picture(split, index), split.objects(index), recipe.augment.shortest_sides
    shortest = int(generator.choice(shortest_sides)) if shortest_sides else None
    size = training_size(image.size, recipe, shortest)
    pixels = _resized(image, size, recipe.input)
    boxes = scaled_boxes(objects.boxes, image.size, size)
    kept = np.flatnonzero(~objects.is_crowd & (shorter_sides(boxes) >= recipe.augment.smallest_object))
    masks = split.masks(index, kept.tolist(), size)
    visible = masks.any(axis=(1, 2))
    sample = Sample(pixels, boxes[kept][visible], objects.labels[kept][visible].astype(np.int64), masks[visible])
    is_flipped = recipe.augment.horizontal_flip and generator.random() < 0.5
    return flipped(sample) if is_flipped else sample


def flipped(sample: Sample) -> Sample:
    """Mirror a picture and its targets, left to right."""
    width = sample.pixels.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - sample.boxes[:, [2, 0]]
    return Sample(sample.pixels[:, ::-1], boxes, sample.labels, sample.masks[:, :, ::-1])


def open_picture(split: DetectionSplit, index: int) -> Image.Image:
    """Decode a picture, upright and in RGB.

    Raises:
        TrainerError: it cannot be read, or is of another size than its annotations say.
    """
    file, picture = split.file(index), split.picture(index)
    image = open_rgb(str(file), str(file))
    if fault := fault_of_size(image, file, picture):
        raise TrainerError(f"{fault.what}; it has changed since training began, so start again")
    return image


def collate(samples: list[Sample | TrainerError]) -> Batch | TrainerError:
    """Pad samples to one size."""
    whole: list[Sample] = []
    for sample in samples:
        if isinstance(sample, TrainerError):
            return sample
        whole.append(sample)
    height, width = (_rounded_up(max(one.pixels.shape[axis] for one in whole)) for axis in (0, 1))
    pixels = np.zeros((len(whole), height, width, 3), dtype=np.uint8)
    targets = []
    for place, (picture, boxes, labels, masks) in zip(pixels, whole, strict=True):
        place[: picture.shape[0], : picture.shape[1]] = picture
        padded = np.zeros((len(labels), height, width), dtype=bool)
        padded[:, : masks.shape[1], : masks.shape[2]] = masks
        targets.append(Targets(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(padded)))
    sizes = torch.tensor([one.pixels.shape[:2] for one in whole], dtype=torch.float32)
    return Batch(torch.from_numpy(pixels), sizes, tuple(targets))


def _resized(image: Image.Image, size: tuple[int, int], spec: InputSpec) -> NDArray[np.uint8]:
    height, width = size
    if image.size == (width, height):
        return np.asarray(image)
    return np.asarray(image.resize((width, height), RESAMPLE[spec.interpolation]))


def _rounded_up(side: int) -> int:
    return -(-side // DIVISOR) * DIVISOR


def _moved(batch: Batch, device: torch.device) -> Batch:
    targets = (Targets(*(part.to(device, non_blocking=True) for part in one)) for one in batch.targets)
    return Batch(batch.pixels.to(device, non_blocking=True), batch.sizes.to(device, non_blocking=True), tuple(targets))


def _only(samples: list[Scaled | TrainerError]) -> Scaled | TrainerError:
    return samples[0]
