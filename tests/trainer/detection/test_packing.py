import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from tests.trainer.detection.annotated import SIDE, changed, document, tiny_recipe, write
from trainer.detection import packing
from trainer.detection.data import load_detection_splits
from trainer.detection.packing import PackedAnnotations, pack
from trainer.errors import TrainerError

MINI = Path(__file__).parents[4] / "shared" / "data" / "coco-tail-mini"


def packed(folder: Path, content: dict[str, Any]) -> PackedAnnotations:
    return pack(write(folder, content), folder / "cache")


def refuse_difference(packed: PackedAnnotations, content: dict[str, Any]) -> None:
    """Compare every number of a file with its packed form; pictures and classes in the order of their ids."""
    categories = sorted(content["categories"], key=lambda one: one["id"])
    assert [vars(one) for one in packed.categories] == [
        {"id": one["id"], "name": one["name"], "frequency": one.get("frequency")} for one in categories
    ]
    images = sorted(content["images"], key=lambda one: one["id"])
    assert len(packed) == len(images)
    for row, image in enumerate(images):
        picture, objects = packed.picture(row), packed.objects(row)
        assert picture == (image["id"], image["file_name"], image["height"], image["width"])
        assert packed.absent(row) == image["neg_category_ids"]
        assert packed.not_exhaustive(row) == image["not_exhaustive_category_ids"]
        its = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        assert objects.ids.tolist() == [one["id"] for one in its]
        assert [categories[label]["id"] for label in objects.labels] == [one["category_id"] for one in its]
        assert objects.areas.tolist() == [one["area"] for one in its]
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in its)]).reshape(-1, 4)
        assert np.allclose(objects.boxes, corners, rtol=0, atol=1e-3)
        for place, one in enumerate(its, start=packed.rows(row).start):
            rings = packed.outline(place, picture)
            assert len(rings) == len(one["segmentation"])
            assert all((a == np.array(b, np.float32)).all() for a, b in zip(rings, one["segmentation"], strict=True))


def test_the_packed_form_holds_what_the_file_holds(tmp_path: Path) -> None:
    content = document()
    refuse_difference(packed(tmp_path, content), content)


@pytest.mark.skipif(not MINI.exists(), reason=f"{MINI} is not there")
@pytest.mark.parametrize("name", ["train", "val"])
def test_real_annotations_are_packed_whole(name: str, tmp_path: Path) -> None:
    opened = pack(MINI / f"{name}.json", tmp_path)
    assert not opened.faults.counts
    refuse_difference(opened, json.loads((MINI / f"{name}.json").read_bytes()))


def test_a_file_is_packed_once_and_a_changed_file_anew(tmp_path: Path) -> None:
    first = packed(tmp_path, document())
    stamp = (first.folder / "index.json").stat().st_mtime_ns
    again, other = packed(tmp_path, document()), packed(tmp_path, document(pictures=3))
    assert (again.folder, again.folder.joinpath("index.json").stat().st_mtime_ns) == (first.folder, stamp)
    assert (other.folder == first.folder, len(other)) == (False, 3)
    assert not list((tmp_path / "cache").glob(".packing-*")), "nothing half made is left"
    assert first.folder.stat().st_mode == (tmp_path / "cache").stat().st_mode, "others may read it as the user wants"


def test_a_file_that_changes_while_it_is_read_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, document())
    monkeypatch.setattr(packing, "_hash", lambda file: "0" * 64)
    with pytest.raises(TrainerError, match=r"train.json: has changed while it was read; start again"):
        pack(file, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("train-*/"))


def test_workers_map_the_same_arrays_and_copy_none(tmp_path: Path) -> None:
    opened = packed(tmp_path, document())
    base = opened.objects(0).boxes.base
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    sent = pickle.dumps(opened)
    assert len(sent) < 1000
    assert (pickle.loads(sent).objects(1).boxes == opened.objects(1).boxes).all()


@pytest.mark.parametrize(
    ("content", "kind", "where"),
    [
        (changed(bbox=[1, 1, 0, 5]), "degenerate box", "annotation 7 of image 100: bbox [1, 1, 0, 5]"),
        (changed(bbox=[1, 1, -3, 5]), "degenerate box", "bbox [1, 1, -3, 5]"),
        (changed(bbox=[500, 1, 3, 5]), "degenerate box", "bbox [500, 1, 3, 5]"),
        (changed(bbox=[1, 1, 3]), "degenerate box", "bbox [1, 1, 3]"),
        (changed(bbox=[1, 1, 3, float("nan")]), "degenerate box", "nan"),
        (changed(bbox=None), "degenerate box", "bbox None"),
        (changed(segmentation=[]), "empty mask", "segmentation []"),
        (changed(segmentation=[[1, 1, 5, 5]]), "empty mask", "[[1, 1, 5, 5]]"),
        (changed(segmentation=[[1, 1, 5, 5, 9, 9]]), "empty mask", "[[1, 1, 5, 5, 9, 9]]"),
        (changed(segmentation={"size": [SIDE, 64], "counts": [SIDE * 64]}), "empty mask", "counts"),
        (changed(segmentation={"size": [9, 9], "counts": [1, 80]}), "empty mask", "counts"),
        (changed(segmentation={"size": [SIDE, 64], "counts": "~"}), "empty mask", "counts"),
        (changed(segmentation=None), "empty mask", "segmentation None"),
        (changed(image_id=5), "unknown picture", "annotation 7: image_id 5"),
        (changed(category_id=5), "unknown class", "annotation 7 of image 100: category_id 5"),
        (changed(bbox=[1, 1, 10**400, 5]), "degenerate box", "bbox [1, 1, 1000"),
        (changed(segmentation=[[1, 1, 9, 1, 9, 1e9]]), "empty mask", "1000000000.0"),
        (changed(segmentation={"size": 9, "counts": [1, 80]}), "empty mask", "counts"),
        (changed(image_id=[100]), "unknown picture", "annotation 7: image_id [100]"),
        (changed(category_id={}), "unknown class", "annotation 7 of image 100: category_id {}"),
        (changed(bbox=[float("nan"), 1, 2, 3]), "degenerate box", "bbox [nan, 1, 2, 3]"),
        (changed(bbox=[1e308, 1, 1e308, 3]), "degenerate box", "bbox [1e+308, 1, 1e+308, 3]"),
        (changed(segmentation=[[70, 1, 90, 1, 90, 9]]), "empty mask", "[[70, 1, 90, 1, 90, 9]]"),
        (changed(image_id="[/red]"), "unknown picture", "annotation 7: image_id '[/red]'"),
    ],
)
def test_a_fault_is_counted_named_and_left_out_or_refused(
    tmp_path: Path, content: dict[str, Any], kind: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = packed(tmp_path, content)
    assert opened.faults.counts == {kind: 1}
    kept = [number for row in range(len(opened)) for number in opened.objects(row).ids.tolist()]
    assert sorted(kept) == sorted(one["id"] for one in content["annotations"][1:])
    load_detection_splits(tiny_recipe(tmp_path).data)
    said = capsys.readouterr().err
    assert f"skipped 1 x {kind}: " in said
    assert where in said
    with pytest.raises(TrainerError, match=f"train.json: has faults; mend them.*\n1 x {kind}: "):
        load_detection_splits(tiny_recipe(tmp_path, "data.faults=refuse").data)


def test_unknown_classes_that_a_picture_surely_lacks_are_named_and_left_out(tmp_path: Path) -> None:
    content = document()
    content["images"][0]["neg_category_ids"] = [20, 77]
    opened = packed(tmp_path, content)
    assert opened.faults.counts == {"unknown class": 1}
    assert opened.faults.examples["unknown class"] == ["image 100: neg_category_ids 77"]
    assert opened.absent(len(opened) - 1) == [20]


def test_a_missing_picture_is_named_and_left_out_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, document())
    (tmp_path / "99.png").unlink()
    splits = load_detection_splits(tiny_recipe(tmp_path).data)
    assert [splits.train.picture(row).id for row in range(len(splits.train))] == [97, 98, 100]
    assert splits.class_counts.tolist() == [3, 2, 1]
    assert f"skipped 1 x missing picture: {tmp_path / '99.png'}" in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(TrainerError, match="1 x missing picture"):
        load_detection_splits(tiny_recipe(tmp_path, "data.faults=refuse").data)
    for left in tmp_path.glob("*.png"):
        left.unlink()
    with pytest.raises(TrainerError, match=r"data.train.pictures: none of the 4 pictures of .* lies whole in"):
        load_detection_splits(tiny_recipe(tmp_path).data)


@pytest.mark.parametrize("name", ["/99.png", "{top}/99.png", "../99.png", "of/../99.png", "{top}/of/../99.png"])
def test_a_picture_outside_its_folder_is_named_and_left_out_though_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content = document()
    write(tmp_path, content)
    write(tmp_path / "of", content)
    name = content["images"][1]["file_name"] = name.format(top=tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(content))
    recipe = tiny_recipe(tmp_path, "data.train.pictures=of", "data.test.pictures=of")
    assert [load_detection_splits(recipe.data).train.picture(row).id for row in range(3)] == [97, 98, 100]
    said = f"skipped 1 x picture outside its folder: {name} is not in {tmp_path / 'of'}"
    assert said in capsys.readouterr().err.replace("\n", "")


def test_a_picture_in_its_folder_may_be_named_from_the_root(tmp_path: Path) -> None:
    content = document()
    write(tmp_path, content)
    content["images"][1]["file_name"] = f"{tmp_path}/99.png"
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert len(load_detection_splits(tiny_recipe(tmp_path).data).train) == 4


def test_what_would_make_the_training_pictures_those_of_before_is_said(tmp_path: Path) -> None:
    write(tmp_path, document())
    data = tiny_recipe(tmp_path).data
    whole = load_detection_splits(data)
    (tmp_path / "98.png").rename(tmp_path / "away.png")
    fewer = load_detection_splits(data)
    before, other = (whole.fingerprint(), fewer.fingerprint())
    put_back = f"missing, damaged or outside their folder now: 1 of its 4 pictures; put in place {tmp_path / '98.png'}"
    assert fewer.remedy(before, whole.train.rows) == fewer.remedy(before, None) == put_back
    take_away = f"whole now, and left out then: 1 pictures; take away {tmp_path / '98.png'}"
    assert whole.remedy(other, fewer.train.rows) == take_away
    unknown = "give the same --data, with the same pictures whole: now 4 of 4 are"
    assert whole.remedy(other, None) == whole.remedy("of another file", whole.train.rows) == unknown


def test_a_file_without_pictures_is_refused_and_not_their_folder(tmp_path: Path) -> None:
    write(tmp_path, document() | {"images": []})
    with pytest.raises(TrainerError, match=r"data.train.annotations: .*train.json has no pictures.*; give a file with"):
        load_detection_splits(tiny_recipe(tmp_path).data)


def test_damaged_pictures_and_those_of_another_size_are_named_and_left_out_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, document())
    whole = (tmp_path / "99.png").read_bytes()
    (tmp_path / "99.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (5, 7)).save(tmp_path / "98.png")
    splits = load_detection_splits(tiny_recipe(tmp_path, "data.num_workers=1").data)
    assert [splits.train.picture(row).id for row in range(len(splits.train))] == [97, 100]
    assert splits.class_counts.tolist() == [2, 1, 1]
    said = capsys.readouterr().err.replace("\n", "")
    assert said.count("looking once through 4 pictures") == 1, "both splits have the same pictures"
    assert f"1 x damaged picture: {tmp_path / '99.png'}: cannot be read as a picture" in said
    size = f"98.png: is 5 x 7 pixels, and its annotations say 64 x {SIDE}"
    assert f"1 x picture of another size: {tmp_path / size}" in said
    with pytest.raises(TrainerError, match="1 x damaged picture"):
        load_detection_splits(tiny_recipe(tmp_path, "data.faults=refuse").data)
    assert "looking once" not in capsys.readouterr().err
    (tmp_path / "99.png").write_bytes(whole)
    splits = load_detection_splits(tiny_recipe(tmp_path).data)
    assert [splits.train.picture(row).id for row in range(len(splits.train))] == [97, 99, 100]
    assert "looking once through 1 pictures" in capsys.readouterr().err


def broken(content: dict[str, Any], key: str, row: int, **changes: Any) -> dict[str, Any]:
    content[key][row] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object, got a list"),
        ('{"categories": []}', "images must be a list of objects, got None"),
        (broken(document(), "images", 0, id="x"), "id of an image must be a whole number of 64 bits, got 'x'"),
        (
            broken(document(), "annotations", 0, id=2**70),
            "id of an annotation must be a whole number of 64 bits, got 118",
        ),
        (
            broken(document(), "images", 0, height=2**31),
            "height and width must be from 1 to 2147483647, got 2147483648",
        ),
        (
            broken(document(), "images", 0, height=0),
            "image 100: height and width must be from 1 to 2147483647, got 0 and 64",
        ),
        (broken(document(), "images", 0, file_name=None), "image 100: needs a file_name, or a coco_url"),
        (broken(document(), "images", 0, file_name="\udce9.png"), r"image 100: needs a file_name.* got '\\udce9.png'"),
        (broken(document(), "images", 0, file_name="a\0b/c"), "image 100: needs a file_name"),
        (broken(document(), "categories", 1, name=5), "category 10: name must be text, got 5"),
        (broken(document(), "categories", 1, name="\ud800"), r"category 10: name '\\ud800': .* valid string"),
        (broken(document(), "categories", 1, name="a\nb"), r"category 10: name 'a\\nb': .*; clean the name"),
        (broken(document(), "categories", 1, name="a\u202eb"), r"category 10: name 'a\\u202eb': a name is printable"),
        (broken(document(), "categories", 1, name="x" * 201), "category 10: name 'xxx.*: .* at most 200 characters"),
        (broken(document(), "images", 0, neg_category_ids=3), "image 100: neg_category_ids must be a list of ids"),
        (
            broken(document(), "images", 0, neg_category_ids=[2**31]),
            "image 100: neg_category_ids must be a list of ids",
        ),
        (broken(document(), "images", 1, id=100), "id 100 occurs twice in images"),
        (broken(document(), "annotations", 1, id=7), "id 7 occurs twice in annotations"),
        (broken(document(), "categories", 1, name="blue"), "name 'blue' occurs twice in categories"),
        (broken(document(), "categories", 1, name=" "), "category 10: name ' ': .* at least 1 character"),
        (changed(iscrowd="0"), "annotation 7 of image 100: iscrowd must be 0 or 1, got '0'"),
        (changed(area="9"), "annotation 7 of image 100: area must be a number from 0 on, got '9'"),
        (changed(area=-1), "annotation 7 of image 100: area must be a number from 0 on, got -1"),
        (changed(area=float("nan")), "annotation 7 of image 100: area must be a number from 0 on, got nan"),
        (broken(document(), "categories", 1, frequency="often"), "frequency must be r, c or f, got 'often'"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_place(
    tmp_path: Path, content: dict[str, Any] | str, said: str
) -> None:
    file = tmp_path / "train.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(TrainerError, match=f"^{file}: is no file of LVIS v1 or COCO: .*{said}"):
        pack(file, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("train-*/")), "nothing is left behind"


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"none.json: cannot be read \(No such file"):
        pack(tmp_path / "none.json", tmp_path)


def test_masks_of_every_form_are_drawn_alike(tmp_path: Path) -> None:
    content, (x, y, side) = document(), (4, 6, 16)
    pixels = np.zeros((SIDE, 64), dtype=np.uint8, order="F")
    pixels[y : y + side, x : x + side] = 1
    runs = coco_mask.encode(pixels)["counts"].decode()
    lengths = np.diff(np.flatnonzero(np.diff(pixels.ravel("F"), prepend=0, append=0)), prepend=0).tolist()
    for code in (runs, [*lengths, SIDE * 64 - sum(lengths)]):
        content["annotations"][0] |= {"segmentation": {"size": [SIDE, 64], "counts": code}, "iscrowd": 1}
        write(tmp_path, content)
        train = load_detection_splits(tiny_recipe(tmp_path).data).train
        row = next(row for row in range(len(train)) if train.picture(row).id == 100)
        assert train.objects(row).is_crowd.tolist() == [True, False]
        assert (train.masks(row, [0], (SIDE, 64))[0] == pixels).all()
        assert (train.masks(row, [0], (SIDE * 2, 128))[0] == pixels.repeat(2, 0).repeat(2, 1)).all()


def test_lvis_names_files_by_their_address(tmp_path: Path) -> None:
    content = document(pictures=1)
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000000000100.jpg"
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content))
    assert pack(file, tmp_path / "cache").picture(0).name == "val2017/000000000100.jpg"


def test_groups_are_those_of_the_file_or_follow_from_pictures(tmp_path: Path) -> None:
    content = document()
    write(tmp_path, content)
    assert load_detection_splits(tiny_recipe(tmp_path).data).shot_groups == ["many", "medium", "few"]
    for category in content["categories"]:
        del category["frequency"]
    write(tmp_path, content)
    assert load_detection_splits(tiny_recipe(tmp_path).data).shot_groups == ["few", "few", "few"]


def test_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, document())
    other = document()
    other["categories"][0]["name"] = "purple"
    write(tmp_path, other, "val.json")
    with pytest.raises(
        TrainerError, match=r"val.json has category 30, 'purple', where train.json has category 30, 'blue'"
    ):
        load_detection_splits(tiny_recipe(tmp_path, "data.test.annotations=val.json").data)
    del other["categories"][0]
    write(tmp_path, other, "val.json")
    with pytest.raises(
        TrainerError, match=r"val.json has no more categories, where train.json has category 30, 'blue'"
    ):
        load_detection_splits(tiny_recipe(tmp_path, "data.test.annotations=val.json").data)


def test_without_an_object_to_train_on_nothing_begins(tmp_path: Path) -> None:
    write(tmp_path, document() | {"annotations": []})
    with pytest.raises(TrainerError, match=r"data.train.annotations: train.json has no object in its 4 whole pictures"):
        load_detection_splits(tiny_recipe(tmp_path).data)


def test_what_a_crash_left_half_written_in_the_cache_is_made_anew_or_named(tmp_path: Path) -> None:
    write(tmp_path, document())
    data = tiny_recipe(tmp_path).data
    load_detection_splits(data)
    (record,) = (tmp_path / "cache").glob("*-pictures-*.json")
    whole = record.read_text()
    record.write_text(whole[: len(whole) // 2])
    assert len(load_detection_splits(data).train) == 4
    assert record.read_text() == whole
    labels = next((tmp_path / "cache").glob("train-*/labels.npy"))
    labels.write_bytes(labels.read_bytes()[:40])
    with pytest.raises(TrainerError, match=rf"^{labels.parent}: is damaged \(.*\); remove it, and"):
        load_detection_splits(data)
