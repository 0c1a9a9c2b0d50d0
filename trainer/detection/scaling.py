"""How large training pictures and their objects become, and which objects are then too small. Knows no pixels."""

import numpy as np
from numpy.typing import NDArray

from trainer.detection.data import DetectionSplit
from trainer.detection.recipe import DetectionRecipe
from trainer.errors import TrainerError
from trainer.progress import console

Size = tuple[int, int]


def training_size(picture: Size, recipe: DetectionRecipe, shortest: int | None) -> Size:
    """Give the size (height, width) that a picture (width, height) is scaled to, proportions kept.

    Args:
        picture: its size.
        recipe: what it must fit.
        shortest: the shorter side wanted; None: as in serving.
    """
    if shortest is None:
        width, height = recipe.input.fitted_size(*picture)
        return height, width
    scale = min(shortest / min(picture), recipe.augment.longest_side / max(picture))
    width, height = (max(1, int(side * scale + 0.5)) for side in picture)
    return height, width


def scaled_boxes(boxes: NDArray[np.float32], picture: Size, size: Size) -> NDArray[np.float32]:
    """Scale boxes [n, 4] of a picture (width, height) as it is scaled to a size (height, width)."""
    return boxes * np.array([size[1] / picture[0], size[0] / picture[1]] * 2, dtype=np.float32)


def shorter_sides(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the shorter side of each of the boxes [n, 4]."""
    sides: NDArray[np.float32] = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    return sides


def settle_small_objects(split: DetectionSplit, recipe: DetectionRecipe) -> None:
    """Say how many objects are too small to be targets, even where their pictures are largest.

    Raises:
        TrainerError: all of them.
    """
    sides = np.concatenate([_largest(split, index, recipe) for index in range(len(split))])
    smallest, left_out = recipe.augment.smallest_object, int((sides < recipe.augment.smallest_object).sum())
    if left_out == len(sides):
        raise TrainerError(
            f"augment.smallest_object={smallest:g} leaves out all {left_out} training objects, whose shorter sides are "
            f"at most {sides.max():.3g} pixels in the scaled pictures; lower it"
        )
    if left_out:
        console.print(
            f"augment.smallest_object={smallest:g} leaves out {left_out} of {len(sides)} training objects, whose "
            "shorter sides are shorter than that in the scaled pictures",
            highlight=False,
            soft_wrap=True,
        )


def _largest(split: DetectionSplit, index: int, recipe: DetectionRecipe) -> NDArray[np.float32]:
    """Give the shorter sides of a picture's objects, crowds left out, at the largest size that it is trained at."""
    picture, objects = split.picture(index), split.objects(index)
    size = (picture.width, picture.height)
    trained_at = training_size(size, recipe, max(recipe.augment.shortest_sides, default=None))
    return shorter_sides(scaled_boxes(objects.boxes[~objects.is_crowd], size, trained_at))
