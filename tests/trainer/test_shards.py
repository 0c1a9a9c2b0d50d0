import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.trainer.test_train import StoppedError, assert_same, losses
from tests.trainer.tiny import STREAMED, columns, tiny_recipe, write_parquet, write_shards
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import Recipe
from trainer.data import Batch, Pixels, Splits, load_splits
from trainer.errors import TrainerError
from trainer.runs import train_run
from trainer.shards import order_by_groups
from trainer.train import Training

CPU = torch.device("cpu")


def streamed(folder: Path, *settings: str) -> Recipe:
    return tiny_recipe(*STREAMED, "batch_size=8", *settings, source=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards") / "data")


def order(groups: Tensor, seed: int = 0, *, batch_size: int = 64, window: int = 1024) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return order_by_groups(groups, batch_size=batch_size, window=window, generator=generator)


def test_an_epoch_has_every_picture_once_in_an_order_of_the_seed_alone() -> None:
    groups = torch.arange(5000) // 100
    assert torch.equal(order(groups).sort().values, torch.arange(5000))
    assert torch.equal(order(groups), order(groups))
    assert not torch.equal(order(groups), order(groups, seed=1))
    assert torch.equal(order(groups[:3], batch_size=64).sort().values, torch.arange(3))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_process_reads_a_share_of_the_groups_and_every_batch_mixes_a_window(processes: int) -> None:
    groups = torch.arange(8192) // 32
    read = 0
    for window in order(groups).split(1024):
        batches = window.split(64)
        assert min(len(groups[batch].unique()) for batch in batches) > 20  # of the 32 groups of a window
        parts = [torch.cat([batch.tensor_split(processes)[rank] for batch in batches]) for rank in range(processes)]
        read += sum(len(groups[part].unique()) for part in parts)
    assert read <= 1.1 * 256  # every group about once, by one process


def test_shards_give_the_labels_and_pictures_that_reading_them_whole_gives(folder: Path) -> None:
    whole, shards = (
        load_splits(tiny_recipe("data.long_tail={profile: none}", source=folder)),
        load_splits(streamed(folder)),
    )
    assert (shards.class_names, shards.class_counts.tolist()) == (whole.class_names, [20, 20, 20])
    for one, other in ((shards.train, whole.train), (shards.test, whole.test)):
        assert np.array_equal(one.labels, other.labels)
        kept = np.array([len(one) - 1, 0, 7])
        for row in range(3):  # from the last shard back to the first
            assert one.select(kept).picture(row)[0].getvalue() == other.select(kept).picture(row)[0].getvalue()  # type: ignore[union-attr]
            assert one.select(kept).name_of(row) == other.select(kept).name_of(row)


def test_a_reader_holds_no_more_than_a_window_and_goes_to_other_processes_empty(folder: Path) -> None:
    rows = load_splits(streamed(folder)).train.rows
    for index in range(len(rows)):
        rows[index]
    assert sum(map(len, rows._held.values())) <= 16
    copy = pickle.loads(pickle.dumps(rows))
    assert not copy._held
    assert copy[59] == rows[59]


class Watched(Pixels):
    """Training pixels that note what is seen, and end the run where told."""

    seen: dict[tuple[int, int], Tensor]
    stop_at: tuple[int, int] | None = None

    def training(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().training(epoch, first_step), start=first_step):
            if (epoch, step) == self.stop_at:
                raise StoppedError
            self.seen[epoch, step] = batch[0].clone()
            yield batch


def train(
    recipe: Recipe,
    splits: Splits,
    folder: Path,
    seen: dict[tuple[int, int], Tensor],
    *,
    stop_at: tuple[int, int] | None = None,
) -> Checkpoint:
    training = Training(recipe, splits, CPU)
    if (folder / "checkpoint.safetensors").exists():
        training.resume(folder)
    folder.mkdir(exist_ok=True)
    pixels = Watched(splits.train, recipe, CPU, name="training images")
    pixels.seen, pixels.stop_at = seen, stop_at
    training.run(pixels, folder)
    return load_checkpoint(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_killed_within_an_epoch_sees_the_pictures_and_ends_as_the_unbroken_one(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    augment = "augment={crop_padding: 2, policy: auto, mixup: 1, cutmix: 1}"
    recipe = streamed(folder, f"data.num_workers={workers}", "checkpoint_steps=3", "averaging.decay=0.9", augment)
    splits = load_splits(recipe)
    unbroken: dict[tuple[int, int], Tensor] = {}
    before: dict[tuple[int, int], Tensor] = {}
    after: dict[tuple[int, int], Tensor] = {}
    whole = train(recipe, splits, tmp_path / "unbroken", unbroken)
    with pytest.raises(StoppedError):
        train(recipe, splits, tmp_path / "broken", before, stop_at=(1, 5))
    torch.rand(9)  # whatever else happens in between
    kept = load_checkpoint(tmp_path / "broken")
    assert (kept.epoch, kept.step) == (1, 3)
    resumed = train(recipe, splits, tmp_path / "broken", after)
    assert min(after) == (1, 3), "no picture again, none left out"
    assert len(unbroken) == 16
    assert_same(before | after, unbroken)
    assert losses(resumed) == losses(whole)
    for record, other in zip(resumed.history, whole.history, strict=True):
        assert record.train_accuracy == other.train_accuracy
        assert record.cosine_by_group == pytest.approx(other.cosine_by_group)
    assert_same(resumed.model, whole.model)
    assert_same(resumed.average, whole.average)
    assert (resumed.step, resumed.place) == (0, {})


def test_a_streamed_recipe_trains_evaluates_and_keeps_its_data(folder: Path, tmp_path: Path) -> None:
    train_run(streamed(folder), tmp_path / "run", device_name="cpu", resume=False)
    assert load_checkpoint(tmp_path / "run").is_finished()
    others = write_shards(tmp_path / "others", rows=19)
    with pytest.raises(TrainerError, match="begun on other training data"):
        train_run(streamed(others), tmp_path / "run", device_name="cpu", resume=True)


def test_what_cannot_be_streamed_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"data.stream: .*empty is no folder with train\*.parquet"):
        load_splits(streamed(tmp_path / "empty"))
    table = pa.table(columns([0, 1, 2, 0, 1, 2]))
    write_parquet(tmp_path / "two", train=table, test=table)
    pq.write_table(table.rename_columns(["img", "class"]), tmp_path / "two" / "train-2.parquet")
    with pytest.raises(
        TrainerError, match=r"train.parquet: its columns differ from those of .*train-2.parquet; all shards"
    ):
        load_splits(streamed(tmp_path / "two"))
    paths = write_parquet(
        tmp_path / "paths", train={"img": ["a.png"], "label": [0]}, test={"img": ["a.png"], "label": [0]}
    )
    with pytest.raises(TrainerError, match=r"data.image_column: 'img' must hold the bytes"):
        load_splits(streamed(paths, "data.image_column=img"))
    (tmp_path / "two" / "test.parquet").write_bytes(b"no parquet")
    (tmp_path / "two" / "train-2.parquet").unlink()
    with pytest.raises(TrainerError, match=r"test.parquet: cannot be read as parquet .*mend or remove it"):
        load_splits(streamed(tmp_path / "two"))


@pytest.mark.parametrize("column", [0, 1])
def test_a_shard_that_is_damaged_inside_is_named_when_it_is_read(tmp_path: Path, column: int) -> None:
    folder = write_shards(tmp_path / "data")
    file = folder / "train-1.parquet"
    found = pq.ParquetFile(file).metadata.row_group(2)
    names = [found.column(place).path_in_schema.split(".")[0] for place in range(found.num_columns)]
    place = found.column(names.index(("img", "label")[column]))
    begin = place.dictionary_page_offset or place.data_page_offset
    content = bytearray(file.read_bytes())
    content[begin : begin + 24] = b"\xff" * 24
    file.write_bytes(content)
    recipe = streamed(folder)
    with pytest.raises(TrainerError, match=r"train-1.parquet: cannot be read as parquet .*mend or remove it"):
        list(Pixels(load_splits(recipe).train, recipe, CPU, name="training images").training(0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("data.stream=true",), "stream=true reads pictures as they are needed: set in_memory=false"),
        (("checkpoint_steps=5",), "checkpoint_steps=5 needs data.in_memory=false"),
        ((*STREAMED, "data.lists={train: a, test: b}"), "lists name single pictures"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(TrainerError, match=said):
        tiny_recipe(*settings)
