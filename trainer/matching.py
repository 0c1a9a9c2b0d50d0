"""Tensors of a file against those that a model takes, key by key. Knows neither files nor models."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
PREFIX = "module."
"""What DataParallel and DistributedDataParallel put before names."""


def key_faults(wanted: dict[str, Tensor], found: dict[str, tuple[str, Tensor]]) -> list[str]:
    """Say each key that is missing, unexpected, of another kind or shape, or not finite once it is of the model's type.

    Args:
        wanted: what the model takes, by its names.
        found: under the model's name the file's key and its tensor.
    """
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # older versions of torch had none
    faults = [f"missing: {name}, {shape(wanted[name])}" for name in wanted if name not in found.keys() | counters]
    faults += [f"unexpected: {key}, {shape(value)}" for name, (key, value) in found.items() if name not in wanted]
    fitting = ((name, key, value, wanted[name]) for name, (key, value) in found.items() if name in wanted)
    return faults + [fault for one in fitting if (fault := _fault(*one))]


def unlike_numbers(tensor: Tensor, kinds: frozenset[torch.dtype] = FLOATS) -> str:
    """Say what keeps a tensor from being plain numbers of these kinds: nothing (``""``) for most.

    Example:
        >>> unlike_numbers(torch.ones(2)), unlike_numbers(torch.ones(2, device="meta")), unlike_numbers(torch.arange(2))
        ('', 'on the meta device', 'of torch.int64')
    """
    if type(tensor) not in {Tensor, Parameter}:
        return f"a {type(tensor).__name__}"
    if tensor.is_meta:
        return "on the meta device"
    if tensor.layout != torch.strided:
        return f"of {tensor.layout}"
    return "" if tensor.dtype in kinds else f"of {tensor.dtype}"


def bare_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ``module.`` off the names that begin with it.

    Raises:
        ValueError: two names become one.
    """
    bare = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    if len(bare) < len(tensors):
        name = next(name for name in tensors if f"{PREFIX}{name}" in tensors)
        raise ValueError(f"holds both {name!r} and {PREFIX + name!r}; keep one of them")
    return bare


def shape(tensor: Tensor) -> str:
    """Write a shape as a list."""
    return str(list(tensor.shape))


def _fault(name: str, key: str, value: Tensor, wanted: Tensor) -> str:
    kinds = FLOATS if wanted.is_floating_point() else FLOATS | INTEGERS  # of counters that were averaged or halved
    if unlike := unlike_numbers(value, kinds):
        return f"kind: {key} is {unlike}, and {name} takes plain numbers as {wanted.dtype}"
    if value.shape != wanted.shape:
        return f"shape: {key} is {shape(value)}, and {name} takes {shape(wanted)}"
    finite = value.isfinite().all() and value.to(wanted.dtype).isfinite().all()
    return "" if finite else f"value: {key} holds a NaN or an infinity as {wanted.dtype}"
