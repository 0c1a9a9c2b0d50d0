from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.detection.annotated import Document, document, tiny_recipe, write
from tests.trainer.detection.drawing import paste
from trainer.detection.data import DetectionSplit, DetectionSplits, ground_truth, load_detection_splits
from trainer.detection.precision import Precision

Result = dict[str, Any]


def splits_of(folder: Path, content: Document) -> DetectionSplits:
    write(folder, content)
    return load_detection_splits(tiny_recipe(folder).data)


def perfect(split: DetectionSplit) -> list[Result]:
    """Every object, found as it is annotated."""
    results = []
    for row in range(len(split)):
        picture, objects = split.picture(row), split.objects(row)
        for place, box in enumerate(objects.boxes):
            x1, y1, x2, y2 = box.tolist()
            mask = paste(np.ones((28, 28), np.float32), box, (picture.height, picture.width), 0.5)
            category = split.packed.categories[objects.labels[place]].id
            found = {"image_id": picture.id, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            results.append(found | {"score": 0.9, "segmentation": mask})
    return results


def measured(splits: DetectionSplits, results: list[Result], kind: str = "box") -> dict[str, float | None]:
    truth = ground_truth(splits.test, splits.shot_groups)
    precision = Precision(truth, splits.shot_groups, is_federated=splits.test.packed.is_federated)
    return precision.measure(deepcopy(results), kind)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_perfect_detections_have_a_precision_of_one(tmp_path: Path, kind: str) -> None:
    splits = splits_of(tmp_path, document())
    names = ("AP", "AP50", "AP75", "APr", "APc", "APf")
    assert measured(splits, perfect(splits.test), kind) == dict.fromkeys(names, pytest.approx(1))


def test_nothing_found_has_a_precision_of_zero(tmp_path: Path) -> None:
    splits = splits_of(tmp_path, document())
    assert measured(splits, []) == dict.fromkeys(("AP", "AP50", "AP75", "APr", "APc", "APf"), 0)


def test_a_missed_rare_class_costs_its_group_all_and_the_whole_a_third(tmp_path: Path) -> None:
    splits = splits_of(tmp_path, document())
    found = measured(splits, [one for one in perfect(splits.test) if one["category_id"] != 30])
    assert (found["APr"], found["APc"], found["APf"]) == (0, pytest.approx(1), pytest.approx(1))
    assert found["AP"] == pytest.approx(2 / 3)


def test_a_false_positive_counts_where_the_class_is_known_to_be_absent(tmp_path: Path) -> None:
    """A better scored box of class 30 in picture 99, which lacks it: the precision of its one object is a half."""
    content = document()
    splits = splits_of(tmp_path, content)
    wrong = {**perfect(splits.test)[0], "image_id": 99, "category_id": 30, "score": 0.99}
    assert measured(splits, [*perfect(splits.test), wrong])["APr"] == pytest.approx(0.5)


def test_by_lvis_what_is_not_known_of_a_picture_counts_neither_way(tmp_path: Path) -> None:
    content = document()
    for image in content["images"]:
        image["neg_category_ids"] = []
    splits = splits_of(tmp_path, content)
    wrong = {**perfect(splits.test)[0], "image_id": 99, "category_id": 30, "score": 0.99}
    assert measured(splits, [*perfect(splits.test), wrong])["APr"] == pytest.approx(1)
    content["images"][0]["not_exhaustive_category_ids"] = [30]
    splits = splits_of(tmp_path, content)
    another = {**wrong, "image_id": 100, "bbox": [0, 40, 5, 5]}
    assert measured(splits, [*perfect(splits.test), another])["APr"] == pytest.approx(1), "not every one is annotated"


def test_by_lvis_the_best_300_of_a_picture_count_whatever_their_classes(tmp_path: Path) -> None:
    splits = splits_of(tmp_path, document())
    right = [one for one in perfect(splits.test) if one["image_id"] == 100]
    assert sorted(one["category_id"] for one in right) == [10, 30]
    others = [{**right[0], "category_id": 10, "bbox": [0, 40, 5, 5], "score": 0.95} for _ in range(298)]
    rest = [one for one in perfect(splits.test) if one["image_id"] != 100]
    assert measured(splits, [*right, *others, *rest])["APr"] == pytest.approx(1)
    assert measured(splits, [*right, *others, *others[:2], *rest])["APr"] == 0


def test_by_coco_what_is_not_annotated_is_absent(tmp_path: Path) -> None:
    content = document()
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    splits = splits_of(tmp_path, content)
    assert not splits.test.packed.is_federated
    wrong = {**perfect(splits.test)[0], "image_id": 99, "category_id": 30, "score": 0.99}
    assert measured(splits, [*perfect(splits.test), wrong])["APr"] == pytest.approx(0.5)


def test_a_box_with_an_overlap_of_six_tenths_counts_up_to_there(tmp_path: Path) -> None:
    """Right at 0.50 and 0.55 of ten overlaps: a box of 0.58 of the object's height."""
    splits = splits_of(tmp_path, document())
    results = perfect(splits.test)
    for one in results:
        one["bbox"][3] *= 0.58
    found = measured(splits, results)
    assert (found["AP50"], found["AP75"], found["AP"]) == (pytest.approx(1), 0, pytest.approx(0.2))


def test_a_group_without_objects_has_no_precision(tmp_path: Path) -> None:
    content = document()
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 30]
    splits = splits_of(tmp_path, content)
    for results in (perfect(splits.test), []):
        assert measured(splits, results)["APr"] is None
