"""The long tail as arithmetic: how many images of each class stay, which, and what their numbers say of the classes.

Knows labels, not images.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from service.bundle import ShotGroup, shot_group_of
from trainer.config import LongTail
from trainer.errors import TrainerError


def long_tail_counts(available: NDArray[np.int64], tail: LongTail) -> NDArray[np.int64]:
    """Compute the number of images that each class keeps [C], class 0 the most frequent.

    exponential: ``int(n * f ** (-c / (C - 1)))``; step: n for the first half of the classes, ``int(n / f)`` after;
    n is the largest number for which every class has enough images.

    Args:
        available: images of each class [C].
        tail: profile and imbalance factor f.

    Example:
        >>> long_tail_counts(np.array([500, 500, 500]), LongTail(profile="exponential", imbalance_factor=100)).tolist()
        [500, 50, 5]
        >>> long_tail_counts(np.array([9, 8, 9]), LongTail(profile="step", imbalance_factor=4)).tolist()
        [8, 8, 2]

    Source: Cui et al., CVPR 2019 (exponential); Cao et al., NeurIPS 2019 (step).
    """
    position = np.arange(len(available))
    if tail.profile == "exponential":
        share = tail.imbalance_factor ** (-position / max(len(available) - 1, 1))
    else:
        share = np.where(position < len(available) / 2, 1, 1 / tail.imbalance_factor)
    # int(n * share) <= available needs n < (available + 1) / share. The tiny addend keeps exact results such as
    # 500 / 100 from falling to 4.999... and then to 4.
    largest = int((np.ceil((available + 1) / share - 1e-9) - 1).min())
    return (largest * share + 1e-9).astype(np.int64)


def select_long_tail(labels: NDArray[np.int64], num_classes: int, tail: LongTail) -> NDArray[np.int64]:
    """Choose the rows that form the long tail, in their old order.

    Args:
        labels: class of each row [N].
        num_classes: C.
        tail: profile, imbalance factor, and the seed of the choice; without one, the first rows of a class stay.

    Raises:
        TrainerError: a class that would keep no image.
    """
    if tail.profile == "none":
        return np.arange(len(labels))
    available = np.bincount(labels, minlength=num_classes)
    wanted = long_tail_counts(available, tail)
    for index in np.flatnonzero(wanted == 0):
        raise TrainerError(
            f"data.long_tail.imbalance_factor: {tail.imbalance_factor:g} leaves class {index} without an image "
            f"(class 0 keeps {wanted[0]}); choose a smaller one, or data with more images of each class"
        )
    order = np.arange(len(labels)) if tail.seed is None else np.random.default_rng(tail.seed).permutation(len(labels))
    return np.sort(_first_of_each_class(labels, order, wanted))


def hold_out(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into (training, validation): ``int(share * n)`` of each class's n rows are held out."""
    counts = np.bincount(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = np.sort(_first_of_each_class(labels, order, (counts * share).astype(np.int64)))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def log_class_share(class_counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the log of each class's share of the training images [C]: ``log(n_c / sum n)``.

    Args:
        class_counts: training images per class [C], each at least 1.

    Example:
        >>> log_class_share(np.array([3, 1])).round(4).tolist()
        [-0.2877, -1.3863]
    """
    log_share: NDArray[np.float64] = np.log(class_counts / class_counts.sum())
    return log_share


def shot_groups_of(class_counts: Iterable[int]) -> list[ShotGroup]:
    """Give the shot group of each class by its training images.

    Example:
        >>> shot_groups_of(np.array([500, 50, 5]))
        ['many', 'medium', 'few']
    """
    return [shot_group_of(int(count)) for count in class_counts]


def _first_of_each_class(
    labels: NDArray[np.int64], order: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    return np.concatenate([order[labels[order] == index][:count] for index, count in enumerate(counts)])
