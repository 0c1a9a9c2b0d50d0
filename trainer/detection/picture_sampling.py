"""Which pictures an epoch consists of, in which batches. A pure function of labels, seed and epoch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trainer.data import mixed_seed


def repeat_factors(
    labels_by_picture: Iterable[NDArray[np.integer]], num_classes: int, threshold: float
) -> NDArray[np.float64]:
    """Compute how often each picture comes in an epoch, on average.

    ``r(picture) = max over its classes c of max(1, sqrt(threshold / f(c)))`` with f(c) the share of pictures with c; a
    picture without objects has 1.

    Args:
        labels_by_picture: the classes of each picture, each once.
        num_classes: C.
        threshold: t; classes in a larger share of the pictures are not repeated.

    Example:
        >>> repeat_factors([np.array([0]), np.array([0, 1]), np.array([0]), np.array([0])], 2, 1.0).tolist()
        [1.0, 2.0, 1.0, 1.0]

    Source: Gupta, Dollar and Girshick, *LVIS*, CVPR 2019, section 5.1.
    """
    rows = list(labels_by_picture)
    share = class_counts(rows, num_classes) / len(rows)
    of_class = np.maximum(1, np.sqrt(threshold / np.maximum(share, 1e-12)))
    return np.array([of_class[row].max(initial=1.0) for row in rows])


def class_counts(labels_by_picture: Iterable[NDArray[np.integer]], num_classes: int) -> NDArray[np.int64]:
    """Count the pictures with each class [C]."""
    rows = list(labels_by_picture)
    return np.bincount(np.concatenate([np.empty(0, dtype=np.int64), *rows]), minlength=num_classes)


def epoch_batches(
    is_wide: NDArray[np.bool_],
    factors: NDArray[np.float64] | None,
    *,
    batch_size: int,
    least: int,
    seed: int,
    epoch: int,
) -> list[NDArray[np.int64]]:
    """Draw the batches of an epoch: rows of pictures, wide ones with wide ones, so that little is padded.

    A factor r brings a picture floor(r) times, and once more with the probability of what is left.

    Args:
        is_wide: by picture.
        factors: as ``repeat_factors`` gives them; none: each picture comes once.
        batch_size: pictures of all processes together.
        least: a last batch with fewer pictures is left out.
        seed, epoch: what the drawing depends on, beside the pictures.
    """
    generator = np.random.default_rng(mixed_seed(seed, epoch))
    times = np.ones(len(is_wide), dtype=np.int64)
    if factors is not None:
        times = np.floor(factors + generator.random(len(factors))).astype(np.int64)
    order = generator.permutation(np.repeat(np.arange(len(is_wide)), times))
    wide, tall = order[is_wide[order]], order[~is_wide[order]]
    whole = [len(part) // batch_size * batch_size for part in (wide, tall)]
    rest = np.concatenate([wide[whole[0] :], tall[whole[1] :]])
    rows = np.concatenate([wide[: whole[0]], tall[: whole[1]], rest])
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    batches = [batch for batch in batches if len(batch) >= least]
    return [batches[place] for place in generator.permutation(len(batches))]
