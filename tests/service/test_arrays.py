import io
from pathlib import Path

import numpy as np
import pytest

from service.arrays import read_arrays

IMAGES = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=IMAGES, labels=np.array([3]))
    return buffer.getvalue()


def single() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "."),
        (b"no archive", "."),
        (archive()[:-40], "not a zip file"),
        (archive()[:100], "not a zip file"),
        (single(), "one array without a name"),
    ],
)
def test_what_is_no_whole_archive_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_arrays(tmp_path / "a.npz", ("images",))


def test_a_missing_file_and_a_missing_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_arrays(tmp_path / "a.npz", ("images",))
    (tmp_path / "a.npz").write_bytes(archive())
    assert read_arrays(tmp_path / "a.npz", ("labels",))["labels"].tolist() == [3]
    with pytest.raises(ValueError, match="sizes"):
        read_arrays(tmp_path / "a.npz", ("images", "sizes"))


@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    content, refused = archive(), 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            assert (read_arrays(tmp_path / "a.npz", ("images",))["images"] == IMAGES).all()
        except ValueError:
            refused += 1
    assert refused > len(content) / 4
