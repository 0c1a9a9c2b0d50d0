"""Tensors of a file against those that a model takes, key by key. Knows neither files nor models."""

from torch import Tensor


def key_faults(wanted: dict[str, Tensor], found: dict[str, tuple[str, Tensor]]) -> list[str]:
    """Say each key that is missing, unexpected, of another shape or not finite.

    Args:
        wanted: what the model takes, by its names.
        found: under the model's name the file's key and its tensor.
    """
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # older versions of torch had none
    faults = [f"missing: {name}, {shape(wanted[name])}" for name in wanted if name not in found.keys() | counters]
    faults += [f"unexpected: {key}, {shape(value)}" for name, (key, value) in found.items() if name not in wanted]
    for name, (key, value) in found.items():
        if name in wanted and value.shape != wanted[name].shape:
            faults.append(f"shape: {key} is {shape(value)}, and {name} takes {shape(wanted[name])}")
        elif name in wanted and not value.isfinite().all():
            faults.append(f"value: {key} holds a NaN or an infinity")
    return faults


def shape(tensor: Tensor) -> str:
    """Write a shape as a list."""
    return str(list(tensor.shape))
