"""A JSON file of LVIS v1 or COCO, checked and turned into flat arrays. Knows neither caches nor pixels.

A file that is of neither form is refused. A fault in one object or picture is counted, named and left out.
"""

import json
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeIs

from trainer.class_names import fault_of_class_name
from trainer.detection.faults import Faults
from trainer.detection.masks import run_lengths
from trainer.errors import TrainerError
from trainer.progress import track

Raw = dict[str, Any]
PLAIN = {
    "picture_ids": "q",
    "picture_sizes": "i",
    "object_ends": "q",
    "object_ids": "q",
    "boxes": "f",
    "labels": "i",
    "areas": "d",
    "is_crowd": "b",
}
"""Arrays with a fixed number of values for each picture or object, and the type code of each."""
RAGGED = {"names": "B", "absent": "i", "not_exhaustive": "i", "rings": "b", "coordinates": "f", "run_lengths": "B"}
"""Arrays with any number of values: by picture the first three, by ring the coordinates, else by object."""
SMALLEST_RING = 6
"""Three points; fewer enclose nothing."""
FARTHEST = 10
"""A ring with a point farther from the corner than so many of the picture's longer sides is none: to draw it would take
as many steps as it is long."""
LARGEST = 2**31 - 1
"""Of a size in pixels, and of what is listed by picture."""
LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class Category:
    """A class of a file; ``frequency`` is LVIS's r, c or f where the file gives it."""

    id: int
    name: str
    frequency: str | None = None


class Picture(NamedTuple):
    """One picture of a file: its id, the name of its file, its height and width in pixels."""

    id: int
    name: str
    height: int
    width: int


class Contents(NamedTuple):
    """What a file holds."""

    categories: list[Category]
    """In the order of their ids, which is that of the labels."""
    arrays: dict[str, NDArray[Any]]
    """Each of ``PLAIN``, and ``values`` and ``ends`` of each of ``RAGGED``; objects in the order of their pictures."""
    faults: Faults
    is_federated: bool
    """Whether pictures name the classes that they surely lack, as in LVIS; in COCO what is not annotated is absent."""


class Rows:
    """Rows of different lengths in one array that grows."""

    def __init__(self, code: str) -> None:
        self.values, self.ends = array(code), array("q", [0])

    def add(self, values: Iterable[Any]) -> None:
        """Add a row."""
        self.values.extend(values)
        self.ends.append(len(self.values))


def read_annotations(file: Path, content: bytes) -> Contents:
    """Read and check what a file holds.

    Raises:
        TrainerError: it is not JSON, or of neither form; the message says where.
    """
    document = _parse(file, content)
    categories = sorted((_category(file, raw) for raw in _list(file, document, "categories")), key=lambda one: one.id)
    pictures = sorted(
        ((_picture(file, raw), raw) for raw in _list(file, document, "images")), key=lambda one: one[0].id
    )
    _refuse_twice(file, "categories", "id", [category.id for category in categories])
    _refuse_twice(file, "categories", "name", [category.name for category in categories])
    _refuse_twice(file, "images", "id", [picture.id for picture, _ in pictures])
    reader = _Reader(file, {category.id: label for label, category in enumerate(categories)})
    for picture, raw in pictures:
        reader.add_picture(picture, raw)
    reader.add_objects([picture for picture, _ in pictures], _list(file, document, "annotations"))
    is_federated = bool(pictures) and all("neg_category_ids" in raw for _, raw in pictures)
    return Contents(categories, reader.arrays(), reader.faults, is_federated)


class _Reader:
    """Arrays that grow by a picture or an object at a time."""

    def __init__(self, file: Path, labels: dict[int, int]) -> None:
        self.file, self.labels, self.faults = file, labels, Faults()
        self.plain: dict[str, array[Any]] = {name: array(code) for name, code in PLAIN.items()}
        self.ragged = {name: Rows(code) for name, code in RAGGED.items()}

    def add_picture(self, picture: Picture, raw: Raw) -> None:
        self.plain["picture_ids"].append(picture.id)
        self.plain["picture_sizes"].extend((picture.height, picture.width))
        self.ragged["names"].add(picture.name.encode())
        for name, key in (("absent", "neg_category_ids"), ("not_exhaustive", "not_exhaustive_category_ids")):
            ids = raw.get(key, [])
            if not isinstance(ids, list) or not all(type(one) is int and abs(one) <= LARGEST for one in ids):
                raise _refused(self.file, f"image {picture.id}: {key} must be a list of ids, got {ids!r:.80}")
            for one in ids:
                if one not in self.labels:
                    self.faults.add("unknown class", f"image {picture.id}: {key} {one}")
            self.ragged[name].add(one for one in ids if one in self.labels)

    def add_objects(self, pictures: list[Picture], rows: list[Raw]) -> None:
        by_picture: dict[int, list[Raw]] = {picture.id: [] for picture in pictures}
        for raw in rows:
            _whole(self.file, raw, "id", "an annotation")
            wanted = raw.get("image_id")
            if _is_finite(wanted) and wanted in by_picture:
                by_picture[wanted].append(raw)
            else:
                self.faults.add("unknown picture", f"annotation {raw['id']}: image_id {raw.get('image_id')!r:.80}")
        _refuse_twice(self.file, "annotations", "id", [raw["id"] for raw in rows])
        self.plain["object_ends"].append(0)
        for picture in track(pictures, "reading annotations", total=len(pictures)):
            for raw in by_picture[picture.id]:
                self._add_object(raw, picture)
            self.plain["object_ends"].append(len(self.plain["labels"]))

    def _add_object(self, raw: Raw, picture: Picture) -> None:
        where = f"annotation {raw['id']} of image {picture.id}"
        category: Any = raw.get("category_id")
        label = self.labels.get(category) if _is_finite(category) else None
        if label is None:
            return self.faults.add("unknown class", f"{where}: category_id {raw.get('category_id')!r:.80}")
        box = _corners(raw.get("bbox"), picture)
        if box is None:
            return self.faults.add("degenerate box", f"{where}: bbox {raw.get('bbox')!r:.80}")
        rings, runs = _outline(raw.get("segmentation"), picture)
        if not rings and runs is None:
            return self.faults.add("empty mask", f"{where}: segmentation {raw.get('segmentation')!r:.60}")
        crowd = raw.get("iscrowd")
        if crowd not in (None, 0, 1):
            raise _refused(self.file, f"{where}: iscrowd must be 0 or 1, got {crowd!r:.80}")
        area: Any = raw.get("area")
        if area is not None and not (_is_finite(area) and area >= 0):
            raise _refused(self.file, f"{where}: area must be a number from 0 on, got {area!r:.80}")
        self.plain["object_ids"].append(raw["id"])
        self.plain["boxes"].extend(box)
        self.plain["labels"].append(label)
        self.plain["areas"].append((box[2] - box[0]) * (box[3] - box[1]) if area is None else area)
        self.plain["is_crowd"].append(bool(crowd))
        self.ragged["rings"].add([1] * len(rings))
        for ring in rings:
            self.ragged["coordinates"].add(ring)
        self.ragged["run_lengths"].add(runs or b"")
        return None

    def arrays(self) -> dict[str, NDArray[Any]]:
        plain = {name: np.asarray(values) for name, values in self.plain.items()}
        plain["picture_sizes"] = plain["picture_sizes"].reshape(-1, 2)
        plain["boxes"] = plain["boxes"].reshape(-1, 4)
        plain["is_crowd"] = plain["is_crowd"].astype(bool)
        ragged = {f"{name}.values": np.asarray(rows.values) for name, rows in self.ragged.items()}
        return plain | ragged | {f"{name}.ends": np.asarray(rows.ends) for name, rows in self.ragged.items()}


def _parse(file: Path, content: bytes) -> Raw:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _refused(file, f"not JSON ({error})") from error
    if not isinstance(document, dict):
        raise _refused(file, f"must be an object, got a {type(document).__name__}")
    return document


def _refused(file: Path, what: str) -> TrainerError:
    return TrainerError(f"{file}: is no file of LVIS v1 or COCO: {what}; give another file, or mend it")


def _list(file: Path, document: Raw, key: str) -> list[Raw]:
    rows = document.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _refused(file, f"{key} must be a list of objects, got {rows!r:.60}")
    return rows


def _whole(file: Path, raw: Raw, key: str, what: str) -> int:
    value = raw.get(key)
    if type(value) is not int or abs(value) > LARGEST_ID:
        raise _refused(file, f"{key} of {what} must be a whole number of 64 bits, got {value!r:.80}")
    return value


def _refuse_twice(file: Path, key: str, name: str, values: list[Any]) -> None:
    seen: set[Any] = set()
    for value in values if len(set(values)) < len(values) else ():
        if value in seen:
            raise _refused(file, f"{name} {value!r} occurs twice in {key}")
        seen.add(value)


def _category(file: Path, raw: Raw) -> Category:
    number, name, frequency = _whole(file, raw, "id", "a category"), raw.get("name"), raw.get("frequency")
    if not isinstance(name, str):
        raise _refused(file, f"category {number}: name must be text, got {name!r:.80}")
    if fault := fault_of_class_name(name.strip()):
        raise _refused(file, f"category {number}: name {name!r:.80}: {fault}")
    if frequency not in (None, "r", "c", "f"):
        raise _refused(file, f"category {number}: frequency must be r, c or f, got {frequency!r}")
    return Category(number, name.strip(), frequency)


def _picture(file: Path, raw: Raw) -> Picture:
    number = _whole(file, raw, "id", "an image")
    height, width = (_whole(file, raw, key, f"image {number}") for key in ("height", "width"))
    if min(height, width) < 1 or max(height, width) > LARGEST:
        raise _refused(file, f"image {number}: height and width must be from 1 to {LARGEST}, got {height} and {width}")
    name = raw.get("file_name") or _name_in(raw.get("coco_url"))
    if not _is_text(name):
        raise _refused(file, f"image {number}: needs a file_name, or a coco_url as in LVIS v1, got {name!r}")
    return Picture(number, name, height, width)


def _is_text(value: object) -> TypeIs[str]:
    """Tell whether a value is text that a file can be named by; JSON may hold half a surrogate pair, or a NUL."""
    return isinstance(value, str) and not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value)


def _name_in(url: object) -> str | None:
    """LVIS v1 names no files, but addresses that end in train2017/NUMBER.jpg or val2017/NUMBER.jpg."""
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None


def _corners(box: object, picture: Picture) -> tuple[float, float, float, float] | None:
    """Turn x, y, width, height into corners within the picture; None where nothing is left."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return None
    x, y, width, height = box
    left, top = (min(max(start, 0.0), float(LARGEST)) for start in (x, y))
    right, bottom = min(x + width, float(picture.width)), min(y + height, float(picture.height))
    return (
        (left, top, right, bottom)
        if np.float32(left) < np.float32(right) and np.float32(top) < np.float32(bottom)
        else None
    )


def _outline(segmentation: object, picture: Picture) -> tuple[list[list[float]], bytes | None]:
    """Take the rings that enclose something, or the run-length code if any pixel is in it."""
    if isinstance(segmentation, dict):
        code = run_lengths(segmentation, picture.height, picture.width)
        return [], code
    rings = segmentation if isinstance(segmentation, list) else []
    return [ring for ring in rings if _encloses(ring, picture)], None


def _encloses(ring: object, picture: Picture) -> bool:
    """Tell whether a ring (x, y, x, y, ...) has an area, by the shoelace formula, and reaches into the picture."""
    if not isinstance(ring, list) or len(ring) < SMALLEST_RING or len(ring) % 2:
        return False
    try:
        numbers = np.array(ring)
    except ValueError:  # lists of different lengths in it
        return False
    farthest = FARTHEST * max(picture.height, picture.width)
    if numbers.ndim != 1 or numbers.dtype.kind not in "if" or not (np.abs(numbers) <= farthest).all():
        return False  # so is what is not finite
    x, y = numbers[::2], numbers[1::2]
    if x.max() <= 0 or y.max() <= 0 or x.min() >= picture.width or y.min() >= picture.height:
        return False
    twice = np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:]) + x[-1] * y[0] - y[-1] * x[0]
    return bool(abs(twice) > 1e-6)


def _is_finite(value: object) -> bool:
    """Tell whether a value is a number, and one that a double can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
