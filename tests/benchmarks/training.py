"""The trainer against the loop that one would write first: fp32, and a DataLoader whose workers augment each picture.

Both train the paper's ResNet-32 with the paper's augmentation on pictures of CIFAR's size; random pixels, as only time
counts. Images/s of whole epochs after the first.
"""

import io
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from service.cores import available_cores
from tests.benchmarks.result import Figure, at_least
from tests.benchmarks.rounds import median_ratio
from tests.benchmarks.workplace import Workplace
from trainer.config import Recipe, load_recipe
from trainer.data import Pixels, Splits
from trainer.model import LongTailClassifier
from trainer.table import Table
from trainer.train import Training, computes_bf16

PART = "Training"
IMAGES, CLASSES = 2048, 100


def run(workplace: Workplace) -> list[Figure]:
    """Train both in turns, an epoch at a time, on the CPU."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(IMAGES) % CLASSES
    recipe = load_recipe("cifar100_lt")
    ours, plain = _ours(recipe, images, labels), _plain(recipe, images, labels)
    next(ours), next(plain)  # the first epoch pays for what is made once
    pairs = [(next(ours), next(plain)) for _ in range(workplace.rounds(3))]
    ratio = median_ratio(*map(list, zip(*pairs, strict=True)))
    rates = [statistics.median(column) for column in zip(*pairs, strict=True)]
    how = "bf16" if computes_bf16(torch.device("cpu")) else "fp32, as the processor has no bf16"
    note = (
        f"{rates[0]:,.0f} and {rates[1]:,.0f} images/s; ResNet-32, batches of {recipe.batch_size}, the trainer in {how}"
    )
    return [Figure(PART, "images/s, trainer / plain fp32 loop with workers, CPU", ratio, goal=at_least(2), note=note)]


def _ours(recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> Iterator[float]:
    table = Table.of(_dataset(images, labels), image="image", label="label", split="train")
    names = [f"class {index}" for index in range(CLASSES)]
    splits = Splits(table, None, table, names, np.bincount(labels))
    training = Training(recipe, splits, torch.device("cpu"))
    pixels = Pixels(table, recipe, torch.device("cpu"), name="train")
    for epoch in range(1000):
        yield training._epoch(pixels, epoch).images_per_second


def _plain(recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> Iterator[float]:
    model = LongTailClassifier(recipe, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    augment = v2.Compose(
        [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )

    class Pictured(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return augment(Pictures.fromarray(images[index])), int(labels[index])

    workers = max(1, available_cores() - 1)
    loader = DataLoader(Pictured(), recipe.batch_size, shuffle=True, num_workers=workers, persistent_workers=True)
    while True:
        begin = time.perf_counter()
        for pixels, truth in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(pixels)[0], truth).backward()
            optimizer.step()
        yield len(images) / (time.perf_counter() - begin)


def _dataset(images: np.ndarray, labels: np.ndarray) -> Dataset:
    features = Features({"image": Image(decode=False), "label": ClassLabel(num_classes=CLASSES)})
    return Dataset.from_dict(
        {"image": [{"bytes": _png(one), "path": None} for one in images], "label": labels}, features
    )


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Pictures.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()
