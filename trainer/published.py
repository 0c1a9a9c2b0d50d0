"""Reads a checkpoint in the published layout: a torch file with two state dicts and the momentum direction.

    {"state_dict_best" or "state_dict": {"feat_model": {...}, "classifier": {...}}, "embed": NumPy vector, ...}

Keys may begin with ``module.``; ``embed`` may be a tensor too, and a single row [1, D]. Nothing in the file is run:
torch reads it with ``weights_only``, and where it names NumPy's own constructors, stand-ins of this module take their
place, which build an array of plain numbers from its bytes or refuse. Knows no model of ours.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.errors import TrainerError
from trainer.matching import bare_names, shape, unlike_numbers

STATE_KEYS = ("state_dict_best", "state_dict")
PARTS = ("feat_model", "classifier")
NUMBERS = {"f2", "f4", "f8", "i4", "i8", "u1", "b1"}


@dataclass(frozen=True)
class Published:
    """The tensors of the backbone and of the classifier by name, ``module.`` taken off, and the direction [D]."""

    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]
    direction: Tensor


def read_published(file: Path) -> Published:
    """Read a checkpoint in the published layout.

    Raises:
        TrainerError: no file, a damaged one, one that would run code, or another layout: says what was found.
    """
    content = read_torch_file(file)
    state = next((content[key] for key in STATE_KEYS if key in content), None)
    if not isinstance(state, Mapping):
        raise TrainerError(f"{file}: holds {_names(content)}; it must hold {' or '.join(STATE_KEYS)}")
    if missing := [part for part in PARTS if not isinstance(state.get(part), Mapping)]:
        raise TrainerError(f"{file}: its state dict holds {_names(state)}; it must hold {', '.join(missing)}")
    backbone, classifier = (_tensors(state[part], f"{file}: {part}") for part in PARTS)
    embed = content.get("embed", state.get("embed"))
    return Published(backbone, classifier, _direction(embed, file))


def read_torch_file(file: Path) -> Mapping[str, Any]:
    """Read what a torch file maps, with stand-ins for NumPy's constructors.

    Raises:
        TrainerError: no file, a damaged one, one that would run code or holds no mapping.
    """
    if not file.is_file():
        raise TrainerError(f"{file}: no such file; name a torch checkpoint")
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that torch no longer writes
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise TrainerError(f"{file}: is refused, as it holds more than numbers ({_reason(error)})") from error
    except Exception as error:  # torch's readers raise whatever damaged bytes lead them to
        first_line = next(iter(str(error).splitlines()), "")
        raise TrainerError(f"{file}: is not a readable torch file ({type(error).__name__}: {first_line})") from error
    if not isinstance(content, Mapping):
        raise TrainerError(f"{file}: holds a {type(content).__name__}; it must hold tensors by name")
    return content


def _reason(error: UnpicklingError) -> str:
    """Say what torch met, without its advice to switch the safeguard off."""
    return str(error.__context__ or error).split(" Please use")[0].strip().rstrip(".")


def _names(content: Mapping[Any, Any]) -> str:
    return ", ".join(repr(key) for key in content) or "nothing"


def _tensors(part: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    for name, value in part.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TrainerError(f"{where}.{name}: must be a tensor with a name, got {type(value).__name__}")
    try:
        return {name: value.detach() for name, value in bare_names(part).items()}
    except ValueError as error:
        raise TrainerError(f"{where} {error}") from error


def _direction(embed: object, file: Path) -> Tensor:
    if isinstance(embed, _Array) and embed.array is not None:
        embed = torch.from_numpy(embed.array.copy())
    if not isinstance(embed, Tensor):
        raise TrainerError(
            f"{file}: embed must be a NumPy vector, the momentum direction, got {type(embed).__name__}; without it "
            "there is no TDE"
        )
    if unlike := unlike_numbers(embed):
        raise TrainerError(f"{file}: embed must be a vector of plain floating-point numbers, got one {unlike}")
    vector = embed.detach().float().flatten()
    is_vector = embed.dim() in {1, 2} and embed.numel() == embed.shape[-1]
    if not is_vector or not vector.isfinite().all() or not vector.any():
        raise TrainerError(
            f"{file}: embed must be a vector of finite numbers that are not all 0, got shape {shape(embed)}"
        )
    return vector


class _Number:
    """Stands in for ``numpy.dtype``: plain numbers only."""

    def __init__(self, code: str = "", *_: object) -> None:
        if code not in NUMBERS:
            raise UnpicklingError(f"NumPy type {code!r} is no plain number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take over the byte order, the one part of a number's state that varies."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray``: filled from its shape, its type and its bytes."""

    array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number, fortran, content = state
        if not isinstance(number, _Number) or not isinstance(content, bytes):
            raise UnpicklingError("a NumPy array is not made of plain numbers")
        self.array = np.frombuffer(content, number.dtype).reshape(shape, order="F" if fortran else "C")
        self.array = self.array.astype(self.array.dtype.newbyteorder("="))


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(number: _Number, content: bytes) -> float:
    """Stand in for NumPy's scalars: an accuracy that was stored beside the weights."""
    return float(np.frombuffer(content, number.dtype)[0])


_STAND_INS: list[Any] = [
    (_Array, "numpy.ndarray"),
    (_Number, "numpy.dtype"),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
