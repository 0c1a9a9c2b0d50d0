import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tests.trainer.tiny import columns, data_config, pixels, png, write_image_folder, write_lists, write_parquet
from trainer.config import Lists
from trainer.errors import TrainerError
from trainer.pixels import open_rgb
from trainer.sources import load_source
from trainer.table import Table

CIFAR = Path(__file__).parents[2].parent / "shared" / "data" / "cifar100-lt"
LISTS = Lists(train="train.txt", test="test.txt")


def picture_of(table: Table, row: int) -> np.ndarray:
    return np.asarray(open_rgb(*table.picture(row)))


def test_the_digits_are_split_by_class_the_same_way_every_time() -> None:
    one, two = load_source(data_config("digits")), load_source(data_config("digits"))
    assert one.class_names == [f"digit {number}" for number in range(10)]
    assert one.validation is None
    assert (len(one.train), len(one.test)) == (1262, 535)
    assert (one.train.labels == two.train.labels).all()
    assert (np.bincount(one.test.labels) == np.bincount(two.test.labels)).all()
    assert picture_of(one.train, 0).shape == (8, 8, 3)
    assert (picture_of(one.test, 5) == picture_of(two.test, 5)).all()


def test_no_digit_is_in_both_splits() -> None:
    source = load_source(data_config("digits"))
    seen = {picture_of(source.train, row).tobytes() for row in range(len(source.train))}
    assert not any(picture_of(source.test, row).tobytes() in seen for row in range(len(source.test)))


def test_parquet_without_metadata_is_read_by_its_types(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, train=columns([0, 1, 2, 0]), test=columns([2, 1], first=50))
    source = load_source(data_config(folder))
    assert source.class_names == ["0", "1", "2"]
    assert source.train.labels.tolist() == [0, 1, 2, 0]
    assert (picture_of(source.train, 2) == pixels(2)).all()
    assert (picture_of(source.test, 1) == pixels(51)).all()


def test_parquet_with_metadata_keeps_its_class_names(tmp_path: Path) -> None:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split, labels in (("train", [1, 0, 1]), ("test", [0])):
        rows = datasets.Dataset.from_dict(columns(labels), features=features)
        rows.to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    source = load_source(data_config(tmp_path))
    assert source.class_names == ["cat", "dog"]
    assert source.train.labels.tolist() == [1, 0, 1]


def test_a_validation_split_is_found(tmp_path: Path) -> None:
    table = columns([0, 1])
    source = load_source(data_config(write_parquet(tmp_path, train=table, validation=table, test=table)))
    assert source.validation is not None
    assert len(source.validation) == 2


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = {**columns([0, 1]), "coarse": [1, 0]}
    folder = write_parquet(tmp_path, train=table, test=table)
    with pytest.raises(TrainerError, match=r"data.label_column: got None; name one of the columns img, label, coarse"):
        load_source(data_config(folder))
    source = load_source(data_config(folder, label_column="coarse"))
    assert source.train.labels.tolist() == [1, 0]


def test_raw_bytes_are_pictures_too_when_their_column_is_named(tmp_path: Path) -> None:
    table = {"picture": [png(0), png(1)], "label": [0, 1]}
    source = load_source(data_config(write_parquet(tmp_path, train=table, test=table), image_column="picture"))
    assert (picture_of(source.train, 1) == pixels(1)).all()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, -1], "train row 2: label -1 of the train split is out of range 0 to 2; 3 training images"),
        ([0, 1, 10**12], "train row 2: label 1000000000000 of the train split is out of range 0 to 2"),
        (
            [0, 1, None],
            "'label' of the train split must hold a whole number in every row, got none in row 2",
        ),
        ([0.0, 0.5, 1.0], "data.label_column: no column of .* holds labels, only img, label"),
        (["cat", "dog", "cat"], "data.label_column: no column of .* holds labels"),
        ([0, 0, 0], "at least two classes are needed, got 1"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: list[Any], said: str) -> None:
    table = columns(labels)
    with pytest.raises(TrainerError, match=said):
        load_source(data_config(write_parquet(tmp_path, train=table, test=table)))


def test_a_test_label_beyond_the_classes_is_named_with_its_split(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, train=columns([0, 1]), test=columns([0, 7]))
    with pytest.raises(TrainerError, match=r"test row 1: label 7 of the test split is out of range 0 to 1"):
        load_source(data_config(folder))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_column": "picture"}, "data.image_column: got 'picture'; name one of the columns img, label"),
        ({"label_column": "picture"}, "data.label_column: got 'picture'; name one of the columns img, label"),
        ({"image_column": "label"}, "data.image_column: 'label' must hold the bytes or the path of pictures"),
        ({"label_column": "img"}, "data.label_column: 'img' of the train split must hold a whole number"),
    ],
)
def test_wrong_columns_are_named_with_those_that_are_there(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    folder = write_parquet(tmp_path, train=columns([0, 1]), test=columns([0, 1]))
    with pytest.raises(TrainerError, match=said):
        load_source(data_config(folder, **settings))


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_split_is_named_with_those_that_are_there(tmp_path: Path, missing: str) -> None:
    other = "test" if missing == "train" else "train"
    folder = write_parquet(tmp_path, **{other: columns([0, 1])})
    with pytest.raises(TrainerError, match=f"has no {missing} split, only {other}"):
        load_source(data_config(folder))


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_a_damaged_parquet_file_is_refused_with_the_reason(tmp_path: Path, content: bytes) -> None:
    folder = write_parquet(tmp_path, test=columns([0, 1]))
    (folder / "train.parquet").write_bytes(content)
    with pytest.raises(TrainerError, match=f"data.source: {folder} cannot be read .*Parquet"):
        load_source(data_config(folder))


def test_splits_with_other_columns_are_refused(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, train=columns([0, 1]), test={"image": columns([0])["img"], "label": [0]})
    with pytest.raises(TrainerError, match="column names don't match"):
        load_source(data_config(folder))


def test_a_row_without_a_picture_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    table = columns([0, 1, 0])
    table["img"][1] = None
    source = load_source(data_config(write_parquet(tmp_path, train=table, test=columns([0, 1]))))
    chosen = source.train.select(np.array([2, 1]))
    with pytest.raises(TrainerError, match=r"^train row 1: holds no picture"):
        chosen.picture(1)


def test_a_row_keeps_its_number_and_the_path_that_parquet_records(tmp_path: Path) -> None:
    table = columns([0, 1, 0])
    table["img"] = [{"bytes": png(row), "path": f"photo-{row}.png"} for row in range(3)]
    source = load_source(data_config(write_parquet(tmp_path, train=table, test=table)))
    assert source.train.select(np.array([2, 0])).name_of(0) == "train row 2 (photo-2.png)"


def test_an_image_folder_names_classes_by_its_folders(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path)
    for junk in ("Thumbs.db", ".DS_Store", "notes.txt"):
        (folder / "train" / "class 0" / junk).write_bytes(b"junk")
    source = load_source(data_config(folder))
    assert source.class_names == ["class 0", "class 1", "class 2"]
    assert np.bincount(source.train.labels).tolist() == [6, 6, 6]
    row = int(np.flatnonzero(source.train.labels == 1)[2])
    assert Path(source.train.name_of(row)) == folder / "train" / "class 1" / "2.png"
    assert (picture_of(source.train, row) == pixels(102)).all()


def test_an_image_folder_with_a_folder_too_deep_is_refused_with_the_layout(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path)
    (folder / "train" / "class 1" / "more").mkdir()
    (folder / "train" / "class 1" / "more" / "0.png").write_bytes(png(0))
    with pytest.raises(TrainerError, match=r"holds labels, only image\. .*train/CLASS/PICTURE"):
        load_source(data_config(folder))


def test_an_image_folder_without_a_test_split_is_refused(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path)
    shutil.rmtree(folder / "test")
    with pytest.raises(TrainerError, match="has no test split, only train"):
        load_source(data_config(folder))


def test_an_empty_folder_is_refused_with_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=rf"data.source: {tmp_path} cannot be read .*must hold train\*\.parquet"):
        load_source(data_config(tmp_path))


@pytest.mark.parametrize("source", ["/no/such/folder", "./no/such/folder", "~/no/such/folder"])
def test_a_path_that_is_no_folder_is_never_taken_for_a_hub_id(source: str) -> None:
    with pytest.raises(TrainerError, match=f"data.source: '{source}' is no folder; give a folder or a hub id"):
        load_source(data_config(source))


def test_a_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match="is no folder"):
        load_source(data_config(tmp_path / "file"))


@pytest.mark.parametrize("name", ["uoft-cs/cifar100", "no-such-data-set", "no such name!"])
def test_a_hub_that_cannot_be_reached_is_said_with_both_remedies(name: str) -> None:
    with pytest.raises(TrainerError, match=f"data.source: '{name}' is no local folder .*--data"):
        load_source(data_config(name))


def test_list_files_read_paths_and_labels(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, train="a.png 0\n\n  b.png\t1 \r\nc.png  1\n", test="d.png 0\n", val="c.png 1\n")
    (folder / "with space.png").write_bytes(png(9))
    (folder / "train.txt").write_text((folder / "train.txt").read_text() + "with space.png 0\n")
    lists = Lists(train="train.txt", test="test.txt", validation="val.txt")
    source = load_source(data_config(folder, lists=lists))
    assert source.class_names == ["0", "1"]
    assert source.train.labels.tolist() == [0, 1, 1, 0]
    assert source.validation is not None
    assert source.validation.labels.tolist() == [1]
    assert (picture_of(source.train, 2) == pixels(2)).all()
    assert (picture_of(source.train, 3) == pixels(9)).all()


def test_list_files_take_class_names_from_a_file(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, train="a.png 0\nb.png 1\n", names="house cat\n\ndog \n")
    source = load_source(data_config(folder, lists=LISTS.model_copy(update={"class_names": "names.txt"})))
    assert source.class_names == ["house cat", "dog"]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            "a.png 0\n\nb.png one\n",
            "train.txt, line 3: must read .* with a whole number from 0 on, got 'b.png one'",
        ),
        ("a.png\n", "train.txt, line 1: must read 'path label' with a whole number from 0 on, got 'a.png'"),
        ("a.png -1\n", "train.txt, line 1: must read 'path label'"),
        ("a.png 99999999999999999999\n", "train.txt, line 1: must read 'path label'"),
        ("a.png ²\n", "train.txt, line 1: must read 'path label'"),
        ("a.png 0\nnone.png 1\n", "train.txt, line 2: no picture at .*none.png; check data.source"),
        (". 0\n", "train.txt, line 1: no picture at"),
        ("\n", "train.txt: is empty; it must hold 'path label' lines"),
        ("a.png 0\nb.png 999999999\n", "b.png: label 999999999 of the train split is out of range 0 to 1"),
    ],
)
def test_a_bad_line_of_a_list_is_named_by_file_and_number(tmp_path: Path, train: str, said: str) -> None:
    folder = write_lists(tmp_path, train=train)
    with pytest.raises(TrainerError, match=said):
        load_source(data_config(folder, lists=LISTS))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("cat\ncat\n", "class name 'cat' occurs twice, for 0 and 1; rename one"),
        ("cat\n", "at least two classes are needed, got 1"),
        ("", "at least two classes are needed, got 0"),
        ("cat\ndog\tbone\n", "name 'dog.tbone' of class 1: a name is printable text"),
        (f"cat\n{'x' * 300}\n", "of class 1: .*at most 200 characters"),
    ],
)
def test_class_names_that_no_bundle_may_hold_are_refused_before_training(tmp_path: Path, names: str, said: str) -> None:
    folder = write_lists(tmp_path, train="a.png 0\nb.png 1\n", names=names)
    with pytest.raises(TrainerError, match=f"data.source: .*{said}"):
        load_source(data_config(folder, lists=LISTS.model_copy(update={"class_names": "names.txt"})))


def test_a_label_beyond_the_class_names_is_named(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, train="a.png 0\nb.png 2\n", names="cat\ndog\n")
    with pytest.raises(TrainerError, match=r"b.png: label 2 .* is out of range 0 to 1; data.lists.class_names names 2"):
        load_source(data_config(folder, lists=LISTS.model_copy(update={"class_names": "names.txt"})))


def test_lists_that_contradict_themselves_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_lists(tmp_path, train="a.png 0\nb.png 1\na.png 1\n", test="c.png 0\nb.png 1\na.png 0\n")
    assert len(load_source(data_config(folder, lists=LISTS)).train) == 3
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"data.lists: {folder / 'a.png'} listed with two labels" in said
    assert "b.png and 1 more listed for training and for test" in said
    load_source(data_config(write_lists(tmp_path / "good", train="a.png 0\nb.png 1\n", test="c.png 0\n"), lists=LISTS))
    assert "listed" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    folder = write_lists(tmp_path, train="a.png 0\n")
    (folder / "train.txt").unlink()
    if content is not None:
        (folder / "train.txt").write_bytes(content)
    with pytest.raises(TrainerError, match=re.escape(f"{folder / 'train.txt'}: cannot be read")):
        load_source(data_config(folder, lists=LISTS))


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-100-LT parquet files are not beside the repository")
def test_the_cifar100_lt_files_hold_what_they_should() -> None:
    source = load_source(data_config(CIFAR, image_column="img", label_column="fine_label"))
    assert (len(source.train), len(source.test), source.validation) == (19573, 10000, None)
    assert source.class_names[:2] == ["apple", "aquarium_fish"]
    assert set(np.bincount(source.test.labels)) == {100}
    assert picture_of(source.test, 9999).shape == (32, 32, 3)


def test_a_gap_below_a_list_files_highest_label_names_its_picture(tmp_path: Path) -> None:
    folder = write_lists(tmp_path, train="a.png 0\nb.png 1\nc.png 3\nd.png 0\n")
    with pytest.raises(TrainerError, match=r"c\.png: label 3 is out of range or class 2 is empty"):
        load_source(data_config(folder, lists=LISTS))
