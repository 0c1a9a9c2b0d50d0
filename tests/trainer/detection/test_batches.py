from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainer.detection.annotated import COLORS, SIDE, document, tiny_recipe, write
from trainer.detection.batches import EvaluationPictures, TrainingBatches, training_sample
from trainer.detection.data import DetectionSplit, load_detection_splits
from trainer.detection.recipe import DetectionRecipe
from trainer.detection.types import Batch
from trainer.errors import TrainerError

CPU = torch.device("cpu")


def opened(folder: Path, *settings: str) -> tuple[DetectionSplit, DetectionRecipe]:
    write(folder, document())
    recipe = tiny_recipe(folder, *settings)
    return load_detection_splits(recipe.data).train, recipe


def refuse_targets_off_their_colours(batch: Batch) -> int:
    """Compare every target with the picture: its colour is under its mask alone, and its box holds the mask."""
    seen = 0
    for pixels, size, targets in zip(batch.pixels, batch.sizes, batch.targets, strict=True):
        height, width = (int(side) for side in size)
        assert not pixels[height:].any()
        assert not pixels[:, width:].any()
        for box, label, mask in zip(*targets, strict=True):
            color = torch.tensor(COLORS[int(label)])
            is_like = (pixels.int() - color).abs().amax(dim=-1) < 40
            assert (is_like & mask).sum() >= 0.75 * mask.sum(), "scaling blurs the edges, no more"
            assert (is_like & ~mask).sum() <= 0.25 * mask.sum()
            rows, columns = mask.nonzero().T
            edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (edges - box).abs().max() <= 1
            seen += 1
    return seen


@pytest.mark.parametrize(
    "augment",
    ["{}", "{horizontal_flip: true}", "{shortest_sides: [30, 75, 96], longest_side: 110, horizontal_flip: true}"],
)
def test_targets_lie_where_the_picture_shows_them(tmp_path: Path, augment: str) -> None:
    split, recipe = opened(tmp_path, f"augment={augment}")
    batches = TrainingBatches(split, recipe, 3, CPU)
    assert sum(refuse_targets_off_their_colours(batch) for epoch in range(3) for batch in batches.epoch(epoch)) == 24


def test_flips_and_sizes_vary_by_epoch_and_come_again_with_the_seed(tmp_path: Path) -> None:
    split, recipe = opened(tmp_path, "augment={horizontal_flip: true, shortest_sides: [40, 60], longest_side: 90}")
    batches = TrainingBatches(split, recipe, 3, CPU)

    def epochs(count: int) -> list[bytes]:
        return [batch.pixels.numpy().tobytes() for epoch in range(count) for batch in batches.epoch(epoch)]

    assert epochs(4) == epochs(4)
    assert len(set(epochs(4))) == 8


def test_workers_make_the_same_batches(tmp_path: Path) -> None:
    split, recipe = opened(tmp_path, "augment={horizontal_flip: true}")
    with_workers = recipe.model_copy(update={"data": recipe.data.model_copy(update={"num_workers": 1})})
    pair = [list(TrainingBatches(split, one, 3, CPU).epoch(0)) for one in (recipe, with_workers)]
    for own, theirs in zip(*pair, strict=True):
        assert torch.equal(own.pixels, theirs.pixels)
        assert all(torch.equal(a.masks, b.masks) for a, b in zip(own.targets, theirs.targets, strict=True))


def test_crowds_and_objects_too_small_to_see_are_no_targets(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1] |= {"bbox": [9, 9, 1, 1], "segmentation": [[9, 9, 10, 9, 10, 10, 9, 10]]}
    write(tmp_path, content)
    recipe = tiny_recipe(tmp_path, "augment.smallest_object=2")
    split = load_detection_splits(recipe.data).train
    rows = [row for row in range(4) if split.picture(row).id == 100]
    sample = training_sample(split, rows[0], recipe, np.random.default_rng(0))
    assert (sample.boxes.shape, sample.masks.shape) == ((0, 4), (0, SIDE, 64))


def test_evaluation_pictures_are_those_of_serving(tmp_path: Path) -> None:
    split, recipe = opened(tmp_path, "input.height=80", "input.width=40")
    scaled = list(EvaluationPictures(split, recipe.input).all(0))
    assert [one.row for one in scaled] == [0, 1, 2, 3]
    for one in scaled:
        with Image.open(split.file(one.row)) as image:
            size, box = recipe.input.geometry(*image.size)
            assert (one.pixels == np.asarray(image.resize(size, Image.Resampling.BILINEAR).crop(box))).all()
        assert one.size == size[::-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_becomes_another_or_breaks_in_training_is_named(tmp_path: Path, workers: int) -> None:
    split, recipe = opened(tmp_path, f"data.num_workers={workers}")
    Image.new("RGB", (5, 7)).save(tmp_path / "98.png")
    with pytest.raises(TrainerError, match=rf"98\.png: is 5 x 7 pixels, and its annotations say 64 x {SIDE}"):
        list(EvaluationPictures(split, recipe.input).all(workers))
    (tmp_path / "98.png").write_bytes(b"no picture")
    with pytest.raises(TrainerError, match=r"98\.png: is not a picture"):
        list(TrainingBatches(split, recipe, 3, CPU).epoch(0))
