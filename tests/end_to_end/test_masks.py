"""A detector's masks are laid over a picture as drawing every pixel does it, in evaluation and in serving alike."""

import numpy as np
from faster_coco_eval.core import mask as coco

from service.masks import mask_runs, pack_counts
from tests.trainer.detection.drawing import paste


def test_runs_of_masks_are_those_of_drawing_them() -> None:
    generator = np.random.default_rng(0)
    width, height = 97, 61
    for _ in range(200):
        mask = generator.beta(0.6, 0.6, (28, 28)).astype(np.float32)
        x, y = np.sort(generator.uniform(0, width, 2)), np.sort(generator.uniform(0, height, 2))
        box = (x[0], y[0], x[1], y[1])
        evaluated = coco.decode(paste(mask, np.array(box), (height, width), 0.5)).astype(bool)
        counts = mask_runs(mask, box, width=width, height=height, threshold=0.5)
        served = coco.decode({"size": [height, width], "counts": pack_counts(counts)}).astype(bool)
        assert (evaluated != served).sum() <= 1  # float32 there: a value may lie on the threshold but for rounding
