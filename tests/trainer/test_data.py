import hashlib
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.test_sources import CIFAR
from tests.trainer.tiny import (
    folder_recipe,
    pixels,
    png,
    tiny_recipe,
    write_image_folder,
    write_lists,
)
from trainer.checkpoint import CHECKPOINT_FILE
from trainer.config import Recipe, load_recipe
from trainer.data import Pixels, Splits, decode, load_splits
from trainer.errors import TrainerError
from trainer.features import features_of
from trainer.model import LongTailClassifier
from trainer.posthoc.features import LabelledFeatures

CPU = torch.device("cpu")
LARGE = ("data.in_memory=false", "data.num_workers=0")
# Newer Pythons warn of forking beside threads; torch's workers fork, and the tests' threads idle.
forks = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


def batches(recipe: Recipe, epoch: int | None, splits: Splits | None = None) -> list[tuple[Tensor, Tensor]]:
    pixels = Pixels((splits or load_splits(recipe)).train, recipe, CPU, name="test")
    return list(pixels.evaluation() if epoch is None else pixels.training(epoch))


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("pictures") / "small")


@pytest.mark.parametrize("settings", [(), LARGE])
def test_an_epoch_depends_on_seed_and_epoch_alone(folder: Path, settings: tuple[str, ...]) -> None:
    recipe = folder_recipe(folder, "augment.horizontal_flip=true", "augment.color_jitter=0.4", *settings)
    first = batches(recipe, 3)
    torch.manual_seed(99)
    torch.rand(5)
    assert same(first, batches(recipe, 3))
    assert not same(first, batches(recipe, 4))
    assert not same(first, batches(recipe.model_copy(update={"seed": 1}), 3))


@forks
def test_the_number_of_workers_changes_nothing(folder: Path) -> None:
    recipe = folder_recipe(folder, "augment.random_resized_crop=true", "augment.horizontal_flip=true", *LARGE[:1])
    counts = [
        recipe.model_copy(update={"data": recipe.data.model_copy(update={"num_workers": workers})})
        for workers in (0, 1, 2, 64)
    ]
    epochs = [batches(one, 1) for one in counts]
    assert all(same(one, other) for one, other in pairwise(epochs))


def test_drawing_a_picture_leaves_the_models_randomness_alone(folder: Path) -> None:
    recipe = folder_recipe(folder, "augment.horizontal_flip=true", *LARGE)
    table = load_splits(recipe).train
    drawn = []
    for skipped in (1, 3):
        epoch = Pixels(table, recipe, CPU, name="test").training(0)
        for _ in range(skipped):
            next(epoch)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@forks
def test_in_memory_and_from_workers_evaluation_sees_the_same_pixels(folder: Path) -> None:
    held = batches(folder_recipe(folder), None)
    for workers in (0, 2):
        assert same(held, batches(folder_recipe(folder, "data.in_memory=false", f"data.num_workers={workers}"), None))


def test_evaluation_gives_every_picture_in_order_as_serving_would_see_it(folder: Path) -> None:
    recipe = folder_recipe(folder, "input.height=5")
    table = load_splits(recipe).train
    images, labels = (torch.cat(parts) for parts in zip(*batches(recipe, None), strict=True))
    assert images.shape == (18, 3, 5, 8)
    assert images.dtype == torch.float32
    assert labels.tolist() == table.labels.tolist()
    for row in range(len(table)):
        expected = torch.from_numpy(decode(table, row, recipe.input).copy()).permute(2, 0, 1) / 255
        assert torch.equal(images[row], expected)


def test_an_epoch_has_every_picture_once_in_another_order(folder: Path) -> None:
    recipe = folder_recipe(folder, "augment.crop_padding=0", "batch_size=5")
    images = torch.cat([part for part, _ in batches(recipe, 0)])
    plain = torch.cat([part for part, _ in batches(recipe, None)])
    assert not torch.equal(images, plain)
    assert sorted(images.flatten(1).tolist()) == sorted(plain.flatten(1).tolist())


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 4, 4, 2]), (17, [17]), (9, [9, 9]), (1000, [18])])
@pytest.mark.parametrize("settings", [(), LARGE])
def test_a_last_batch_of_one_is_left_out_of_training(
    folder: Path, batch_size: int, sizes: list[int], settings: tuple[str, ...]
) -> None:
    recipe = folder_recipe(folder, f"batch_size={batch_size}", *settings)
    assert [len(labels) for _, labels in batches(recipe, 0)] == sizes
    assert sum(len(labels) for _, labels in batches(recipe, None)) == 18
    held = Pixels(load_splits(recipe).train, recipe, CPU, name="test")
    assert (held.steps_per_epoch(), held.evaluation_steps()) == (len(sizes), -(-18 // batch_size))


@forks
@pytest.mark.parametrize("settings", [("data.in_memory=true",), LARGE, ("data.in_memory=false", "data.num_workers=2")])
@pytest.mark.parametrize(("content", "said"), [(b"junk", "known format"), (png(0)[:-30], "truncated")])
def test_an_unreadable_picture_is_named_and_nothing_else_is_said(
    tmp_path: Path, settings: tuple[str, ...], content: bytes, said: str
) -> None:
    folder = write_image_folder(tmp_path)
    broken = folder / "train" / "class 1" / "4.png"
    broken.write_bytes(content)
    for epoch in (None, 0):
        with pytest.raises(TrainerError, match=f"^{broken}: .*{said}.*; mend or remove it$") as refused:
            batches(folder_recipe(folder, *settings), epoch)
        assert "Traceback" not in str(refused.value)


def test_the_long_tail_and_validation_come_from_the_training_pictures(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path, train=10)
    tail = "data.long_tail={profile: exponential, imbalance_factor: 2}"
    splits = load_splits(folder_recipe(folder, tail, "data.validation_share=0.3"))
    assert splits.validation is not None
    assert splits.class_counts.tolist() == [7, 5, 4]
    assert np.bincount(splits.validation.labels).tolist() == [3, 2, 1]
    assert len(splits.test) == 6
    names = [table.name_of(row) for table in (splits.train, splits.validation) for row in range(len(table))]
    assert len(set(names)) == 22


def test_a_class_of_one_image_keeps_it_for_training(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, train="a.png 0\nb.png 0\nc.png 1\n")
    lists = "data.lists={train: train.txt, test: test.txt}"
    splits = load_splits(folder_recipe(folder, lists, "data.validation_share=0.5"))
    assert splits.validation is not None
    assert (splits.class_counts.tolist(), splits.validation.labels.tolist()) == ([1, 1], [0])


def test_a_validation_share_of_nothing_is_refused(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path, train=1)
    with pytest.raises(TrainerError, match=r"data.validation_share: 0.5 of a class with at most 1 images is no image"):
        load_splits(folder_recipe(folder, "data.validation_share=0.5"))


def test_choosing_alpha_on_validation_images_needs_some(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"alpha.choose: validation needs validation images, .* has no validation"):
        load_splits(folder_recipe(folder, "alpha.choose=validation"))
    own = shutil.copytree(folder, tmp_path / "own")
    shutil.copytree(own / "test", own / "validation")
    splits = load_splits(folder_recipe(own, "alpha.choose=validation"))
    assert splits.validation is not None
    assert len(splits.validation) == 6


def test_a_class_without_training_pictures_is_named(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path)
    shutil.rmtree(folder / "train" / "class 1")
    with pytest.raises(TrainerError, match=rf"class 1 \(class 1\) has no training image in {folder}"):
        load_splits(folder_recipe(folder))


def test_the_fingerprint_tells_pictures_and_labels_but_not_where_they_lie(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "moved")
    before = load_splits(folder_recipe(folder)).fingerprint()
    assert load_splits(folder_recipe(moved)).fingerprint() == before
    (moved / "train" / "class 0" / "0.png").rename(moved / "train" / "class 0" / "another.png")
    assert load_splits(folder_recipe(moved)).fingerprint() != before


def test_of_embedded_pictures_only_one_is_held_at_a_time_while_they_are_hashed(digits: Splits) -> None:
    class Picture(dict[str, bytes]):
        alive = most = 0

        def __init__(self, number: int) -> None:
            super().__init__(bytes=bytes([number]))
            Picture.alive += 1
            Picture.most = max(Picture.most, Picture.alive)

        def __del__(self) -> None:
            Picture.alive -= 1

    expected = hashlib.sha256(np.arange(9).tobytes())
    for number in range(9):
        expected.update(hashlib.sha256(bytes([number])).digest())
    rows = ({"image": Picture(number)} for number in range(9))
    table = replace(digits.train, rows=rows, labels=np.arange(9))
    assert table.identity() == expected.hexdigest()
    assert Picture.most <= 2


def test_another_picture_under_the_same_name_is_another_training_set(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    picture = other / "train" / "class 0" / "0.png"
    before = picture.stat()
    picture.write_bytes(png(4321))
    assert picture.stat().st_size == before.st_size, "else the size would tell"
    assert load_splits(folder_recipe(other)).fingerprint() != load_splits(folder_recipe(folder)).fingerprint()


@pytest.mark.parametrize("split", ["train", "test"])
def test_features_of_pictures_that_have_changed_are_computed_anew(tmp_path: Path, split: str) -> None:
    folder = write_image_folder(tmp_path / "pictures")
    recipe, device = folder_recipe(folder), CPU
    run = tmp_path / "run"
    run.mkdir()
    (run / CHECKPOINT_FILE).write_bytes(b"any")
    model = LongTailClassifier(recipe, 3)

    def features() -> torch.Tensor:
        found = features_of(run, model, recipe, load_splits(recipe), device=device, cache=tmp_path / "cache")
        part: LabelledFeatures = getattr(found, split)
        return part.features

    before = features()
    assert torch.equal(features(), before)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (folder / split / "class 1" / "0.png").write_bytes(png(4321))
    assert not torch.equal(features(), before)


def test_the_fingerprint_of_embedded_pictures_is_that_of_their_bytes(digits: Splits) -> None:
    assert digits.fingerprint() == load_splits(tiny_recipe()).fingerprint()
    other = load_splits(tiny_recipe("data.long_tail.seed=1"))
    assert (other.class_counts == digits.class_counts).all()
    assert other.fingerprint() != digits.fingerprint()


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-100-LT parquet files are not beside the repository")
@pytest.mark.parametrize(("factor", "total", "last"), [(10, 19573, 50), (100, 10847, 5)])
def test_cifar100_lt_has_its_published_counts(factor: int, total: int, last: int) -> None:
    settings = [f"data.source={CIFAR}", f"data.long_tail.imbalance_factor={factor}"]
    splits = load_splits(load_recipe("cifar100_lt", settings))
    assert (splits.class_counts.sum(), splits.class_counts[0], splits.class_counts[-1]) == (total, 500, last)
    assert len(splits.test) == 10000
    assert decode(splits.train, 0, load_recipe("cifar100_lt").input).shape == (32, 32, 3)


def test_pixels_of_the_tests_are_what_the_files_hold(folder: Path) -> None:
    recipe = folder_recipe(folder)
    table = load_splits(recipe).train
    row = [table.name_of(index).endswith("class 2/3.png") for index in range(len(table))].index(True)
    assert (decode(table, row, recipe.input) == pixels(203)).all()
