"""Which annotated pictures are there, whole, and of the size that was annotated.

Damage shows only where a picture is decoded, and in the middle of an epoch that is too late. So each is decoded once,
and the verdict kept beside the packed annotations; it holds as long as the file's size and time stay as they are. Knows
no objects and no network.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, cast

from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from trainer.data import or_say_who_died, usable_cores
from trainer.detection.annotations import Picture
from trainer.detection.faults import Kind
from trainer.detection.packing import PackedAnnotations
from trainer.errors import TrainerError, writing
from trainer.pixels import open_rgb
from trainer.progress import console, track

AT_ONCE = 16
"""Pictures that a worker looks at before it answers."""


class Fault(NamedTuple):
    """What is wrong with a picture."""

    kind: Kind
    what: str


class Verdict(NamedTuple):
    """What was found of one file: its size in bytes and its time in nanoseconds then, and its fault if it has one."""

    stamp: tuple[int, int]
    fault: Fault | None


def faults_of_pictures(packed: PackedAnnotations, folder: Path, num_workers: int) -> list[Fault | None]:
    """Tell what is wrong with each picture; of several processes one looks, and the others read what it found.

    Args:
        packed: the annotations.
        folder: in which the names of its pictures begin.
        num_workers: processes that decode.

    Raises:
        TrainerError: the verdicts cannot be written.
    """
    stamps = _stamps(packed, folder)
    cache, place = packed.folder.parent, hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    record = cache / f"{packed.folder.name}-pictures-{place}.json"
    known = _read(record)
    if _unknown(known, stamps):
        with writing(cache), FileLock(f"{record}.lock"):
            known = _read(record)
            if unknown := _unknown(known, stamps):
                known |= _look(packed, folder, unknown, stamps, num_workers)
                _write(record, known)
    names = (packed.picture(row).name for row in range(len(packed)))
    return [
        known[row].fault if stamp else _absence(folder, name)
        for row, (name, stamp) in enumerate(zip(names, stamps, strict=True))
    ]


def fault_of(file: Path, picture: Picture) -> Fault | None:
    """Decode a picture and tell what is wrong with it."""
    try:
        image = open_rgb(str(file), str(file))
    except TrainerError as error:
        return Fault("damaged picture", str(error))
    return fault_of_size(image, file, picture)


def fault_of_size(image: Image.Image, file: Path, picture: Picture) -> Fault | None:
    """Compare a picture's size with that of its annotations."""
    if image.size == (picture.width, picture.height):
        return None
    what = f"{image.width} x {image.height} pixels, and its annotations say {picture.width} x {picture.height}"
    return Fault("picture of another size", f"{file}: is {what}")


def _stamps(packed: PackedAnnotations, folder: Path) -> list[tuple[int, int] | None]:
    """Tell size and time of each picture's file, None where there is none, or none that lies in the folder.

    A folder is listed once: a look-up for each of 100,000 files takes long.
    """
    listed: dict[str, dict[str, tuple[int, int]]] = {}
    stamps = []
    for row in range(len(packed)):
        place, name = os.path.split(packed.picture(row).name)
        if place not in listed:
            listed[place] = _stamps_in(folder / place) if _is_within(folder, place) else {}
        stamps.append(listed[place].get(name))
    return stamps


def _stamps_in(folder: Path) -> dict[str, tuple[int, int]]:
    try:
        with os.scandir(folder) as entries:
            found = ((entry.name, entry.stat()) for entry in entries if entry.is_file())
            return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found}
    except OSError:
        return {}


def _unknown(known: dict[int, Verdict], stamps: list[tuple[int, int] | None]) -> list[int]:
    return [row for row, stamp in enumerate(stamps) if stamp and (row not in known or known[row].stamp != stamp)]


def _is_within(folder: Path, name: str) -> bool:
    """Tell whether a name leads to a place in the folder: a file of annotations may come from anyone."""
    top = Path(os.path.abspath(folder))  # noqa: PTH100 - Path.absolute keeps ".."
    return ".." not in Path(name).parts and (top / name).is_relative_to(top)


def _absence(folder: Path, name: str) -> Fault:
    if _is_within(folder, name):
        return Fault("missing picture", str(folder / name))
    return Fault("picture outside its folder", f"{name} is not in {folder}")


class _Looks(Dataset[Any]):
    """Decodes pictures of some rows: what worker processes run."""

    def __init__(self, packed: PackedAnnotations, folder: Path, rows: list[int]) -> None:
        self.packed, self.folder, self.rows = packed, folder, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Fault | None:
        picture = self.packed.picture(self.rows[index])
        return fault_of(self.folder / picture.name, picture)


def _look(
    packed: PackedAnnotations,
    folder: Path,
    rows: list[int],
    stamps: list[tuple[int, int] | None],
    num_workers: int,
) -> dict[int, Verdict]:
    console.print(f"looking once through {len(rows)} pictures in {folder}", highlight=False, soft_wrap=True)
    looks = _Looks(packed, folder, rows)
    workers = min(num_workers, usable_cores())
    loader = DataLoader(looks, batch_size=AT_ONCE, num_workers=workers, collate_fn=list)
    found = (fault for faults in or_say_who_died(loader) for fault in faults)
    seen = track(found, "looking at pictures", total=len(rows))
    return {row: Verdict(cast("tuple[int, int]", stamps[row]), fault) for row, fault in zip(rows, seen, strict=True)}


def _read(record: Path) -> dict[int, Verdict]:
    try:
        rows = json.loads(record.read_text(encoding="utf-8"))
        return {row: Verdict((size, time), Fault(*fault) if fault else None) for row, size, time, fault in rows}
    except (FileNotFoundError, ValueError, TypeError):  # none yet, or one that a crash of the machine left half written
        return {}


def _write(record: Path, known: dict[int, Verdict]) -> None:
    rows = [(row, *verdict.stamp, verdict.fault) for row, verdict in sorted(known.items())]
    staging = record.with_suffix(".partial")
    staging.write_text(json.dumps(rows), encoding="utf-8")
    staging.replace(record)
