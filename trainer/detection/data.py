"""The two splits of a detector's recipe: annotations joined to the pictures that are whole. Knows no model."""

import hashlib
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import ShotGroup
from trainer.detection.annotations import Category, Picture
from trainer.detection.faults import NAMED, Faults
from trainer.detection.masks import Canvas, draw
from trainer.detection.packing import Objects, PackedAnnotations, default_cache, pack
from trainer.detection.picture_sampling import class_counts
from trainer.detection.pictures import faults_of_pictures
from trainer.detection.recipe import AnnotatedPictures, DetectionData
from trainer.errors import TrainerError

SHOT_GROUPS: dict[str, ShotGroup] = {"f": "many", "c": "medium", "r": "few"}
"""LVIS's frequent, common and rare, as evenkeel's groups."""
RARE, COMMON = 10, 100
"""Training pictures up to which a class is rare, and common (Gupta et al., CVPR 2019)."""


@dataclass(frozen=True)
class DetectionSplit:
    """Pictures of one split, with their annotations.

    Args:
        name: train or test, for messages.
        packed: the annotations.
        folder: of the pictures.
        rows: which pictures of ``packed`` are there and whole.
    """

    name: str
    packed: PackedAnnotations
    folder: Path
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, index: int) -> Picture:
        """Describe a picture of the split."""
        return self.packed.picture(int(self.rows[index]))

    def file(self, index: int) -> Path:
        """Name the file of a picture."""
        return self.folder / self.picture(index).name

    def objects(self, index: int) -> Objects:
        """Take the objects of a picture, crowds included."""
        return self.packed.objects(int(self.rows[index]))

    def masks(self, index: int, objects: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Draw masks of some of a picture's objects at a size (height, width): bool [n, height, width]."""
        picture, first = self.picture(index), self.packed.rows(int(self.rows[index])).start
        canvas = Canvas(*size, picture.height, picture.width)
        drawn = [draw(self.packed.outline(first + row, picture), canvas) for row in objects]
        return np.stack(drawn) if drawn else np.empty((0, *size), dtype=bool)

    def labels_by_picture(self) -> list[NDArray[np.int32]]:
        """List the classes of each picture, crowds left out, each class once."""
        everyones = list(self.packed.labels_by_picture())
        return [everyones[row] for row in self.rows]


@dataclass(frozen=True)
class DetectionSplits:
    """Both splits of a recipe, and what is known of the classes [C]."""

    train: DetectionSplit
    test: DetectionSplit
    class_names: list[str]
    class_counts: NDArray[np.int64] = field(repr=False)
    shot_groups: list[ShotGroup] = field(repr=False)

    def fingerprint(self) -> str:
        """Hash what trains the model: the file of annotations, and which of its pictures are taken."""
        return _fingerprint(self.train.packed, self.train.rows)

    def remedy(self, fingerprint: str, rows: NDArray[np.int64] | None) -> str:
        """Say what would make the training pictures those of another fingerprint.

        Args:
            fingerprint: as it was.
            rows: which pictures were taken then; None where that is not known, and may have been all.
        """
        packed, now = self.train.packed, self.train.rows
        then = np.arange(len(packed)) if rows is None else rows
        if _fingerprint(packed, then) != fingerprint:
            return f"give the same --data, with the same pictures whole: now {len(now)} of {len(packed)} are"
        lost, found = np.setdiff1d(then, now), np.setdiff1d(now, then)
        remedies = (
            f"missing, damaged or outside their folder now: {len(lost)} of its {len(then)} pictures; put in place "
            f"{self._names(lost)}",
            f"whole now, and left out then: {len(found)} pictures; take away {self._names(found)}",
        )
        return "; ".join(remedy for remedy, some in zip(remedies, (lost, found), strict=True) if len(some))

    def _names(self, rows: NDArray[np.int64]) -> str:
        names = [str(self.train.folder / self.train.packed.picture(int(row)).name) for row in rows[:NAMED]]
        return ", ".join([*names, "..."] if len(rows) > NAMED else names)


def load_detection_splits(data: DetectionData) -> DetectionSplits:
    """Open both splits of a recipe; faults are reported, or refused where the recipe says so.

    Raises:
        TrainerError: no such file, one of another form, splits with different classes, or no picture or object left.
    """
    train, test = (_open(data, name, part) for name, part in (("train", data.train), ("test", data.test)))
    categories = train.packed.categories
    _refuse_others(data, categories, test.packed.categories)
    counts = class_counts(train.labels_by_picture(), len(categories))
    if not counts.sum():
        raise TrainerError(
            f"data.train.annotations: {data.train.annotations} has no object in its {len(train)} whole pictures to "
            "train on, but for crowds and what was skipped; give a file with annotations"
        )
    groups = [
        SHOT_GROUPS.get(one.frequency or "", _group_of(int(n))) for one, n in zip(categories, counts, strict=True)
    ]
    return DetectionSplits(train, test, [category.name for category in categories], counts, groups)


def ground_truth(split: DetectionSplit, shot_groups: list[ShotGroup]) -> dict[str, Any]:
    """Give a split's annotations in the form that the evaluation takes, LVIS's with ``frequency`` of each class."""
    packed, frequencies = split.packed, {group: letter for letter, group in SHOT_GROUPS.items()}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(split)):
        row, picture = int(split.rows[index]), split.picture(index)
        listed = {"neg_category_ids": packed.absent(row), "not_exhaustive_category_ids": packed.not_exhaustive(row)}
        images.append({"id": picture.id, "height": picture.height, "width": picture.width, **listed})
        objects, first = split.objects(index), packed.rows(row).start
        for place, (x1, y1, x2, y2) in enumerate(objects.boxes.astype(float).tolist()):
            outline = packed.outline(first + place, picture)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # an id of 0 would read as unmatched
                    "image_id": picture.id,
                    "category_id": packed.categories[objects.labels[place]].id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(objects.areas[place]),
                    "iscrowd": int(objects.is_crowd[place]),
                    "segmentation": outline if isinstance(outline, dict) else [ring.tolist() for ring in outline],
                }
            )
    categories = [
        {"id": category.id, "name": category.name, "frequency": frequencies[group]}
        for category, group in zip(packed.categories, shot_groups, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _refuse_others(data: DetectionData, trained: list[Category], tested: list[Category]) -> None:
    """Refuse splits with different classes, and name the first that differs."""
    for one, other in zip_longest(trained, tested):
        names = [f"category {some.id}, {some.name!r}" if some else "no more categories" for some in (one, other)]
        if names[0] != names[1]:
            raise TrainerError(
                f"data.test.annotations: {data.test.annotations} has {names[1]}, where {data.train.annotations} has "
                f"{names[0]}; give files of one data set"
            )


def _open(data: DetectionData, name: str, part: AnnotatedPictures) -> DetectionSplit:
    source = Path(data.source)
    file, folder = source / part.annotations, source / part.pictures
    packed = pack(file, Path(data.cache) if data.cache else default_cache())
    if not len(packed):
        raise TrainerError(f"data.{name}.annotations: {file} has no pictures, its images are []; give a file with some")
    of_pictures = faults_of_pictures(packed, folder, data.num_workers)
    faults = Faults(dict(packed.faults.counts), {kind: list(some) for kind, some in packed.faults.examples.items()})
    for fault in filter(None, of_pictures):
        faults.add(*fault)
    faults.settle(file, data.faults)
    whole = np.array([row for row, fault in enumerate(of_pictures) if not fault], dtype=np.int64)
    if not len(whole):
        raise TrainerError(
            f"data.{name}.pictures: none of the {len(packed)} pictures of {file} lies whole in {folder}; "
            "give the folder that their file names begin in"
        )
    return DetectionSplit(name, packed, folder, whole)


def _fingerprint(packed: PackedAnnotations, rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(packed.source_hash.encode() + rows.tobytes()).hexdigest()


def _group_of(pictures: int) -> ShotGroup:
    if pictures > COMMON:
        return "many"
    return "few" if pictures <= RARE else "medium"
