"""Arrays from a `.npz` file, read without unpickling. Whatever is wrong with the file is one kind of error."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

# RuntimeError: zipfile's word for a file that is encrypted or packed in a way that it does not know.
_FAULTS = (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile, zlib.error)


def read_arrays(file: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read these arrays of a `.npz` file.

    Raises:
        ValueError: there is no such file, it is damaged or of another kind, or it has no array of one of the names.
    """
    try:
        with file.open("rb") as source:
            opened = np.load(source, allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            with opened as arrays:
                return {name: arrays[name] for name in names}
    except _FAULTS as error:
        raise ValueError(str(error) or "it is empty") from error
