"""One run of the model for a batch in which requests of every kind share places.

Each item of work names the predictor that it was admitted for: while a new bundle takes over, a batch may hold work
for the old one and for the new one, and each is run by its own. It knows neither queues nor HTTP.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.detection_predictor import DetectionOutcome, DetectionWork
from service.images import Pixels
from service.model import Model
from service.scoring import Branches, Knobs, Score, offsets, score


class Tensors(NamedTuple):
    """What the model's outputs are for one picture.

    Attributes:
        logits, factual_logits, counterfactual_logits: [C]; in `logits` the picture's knobs are applied.
        confounder_cosine: [K].
        feature_map: [D, h, w], or None where it was not asked for.
    """

    logits: NDArray[np.float32]
    factual_logits: NDArray[np.float32]
    counterfactual_logits: NDArray[np.float32]
    confounder_cosine: NDArray[np.float32]
    feature_map: NDArray[np.float32] | None


class Explained(NamedTuple):
    """What is said of a picture, and the feature map [D, h, w] that it was said from."""

    score: Score
    feature_map: NDArray[np.float32]


Wants = Literal["score", "explained", "tensors", "feature_map"]


class Work(NamedTuple):
    """One picture to run: by whom, with which knobs, and what is wanted of it."""

    predictor: "Predictor"
    pixels: Pixels
    knobs: Knobs
    wants: Wants = "score"


Outcome = Score | Explained | Tensors
"""What comes of a work: the score, alone or with the feature map, or the tensors where it wants those."""


AnyWork = Work | DetectionWork
AnyOutcome = Outcome | DetectionOutcome
"""Of whichever task: at a reload one batch may hold work of both."""


def run_batch(batch: Sequence[AnyWork]) -> list[AnyOutcome]:
    """Return what comes of each work, in order: one run of the model, save where a new bundle takes over."""
    outcomes: list[AnyOutcome] = []
    for predictor, works in groupby(batch, key=attrgetter("predictor")):
        outcomes += predictor.run(list(works))
    return outcomes


def _together(pictures: Sequence[Pixels]) -> NDArray[np.uint8]:
    """Return the pictures as one array [N, H, W, 3]; those of one request that lie so already are not copied."""
    whole = pictures[0].base
    if isinstance(whole, np.ndarray) and whole.size == len(pictures) * pictures[0].size:
        images = whole.reshape(len(pictures), *pictures[0].shape)
        if all(map(_is_same, images, pictures)):
            return images
    return np.array(pictures)


def _is_same(one: Pixels, other: Pixels) -> bool:
    return bool(one.__array_interface__ == other.__array_interface__)


class Predictor:
    """A model with what scoring needs of its manifest."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._range = model.manifest.alpha
        self._calibration = model.manifest.calibration
        self.log_class_share = model.manifest.log_class_share()

    def trial(self) -> Work:
        """Return the work that tells whether the model answers at all: the black picture that warmed it."""
        spec = self.model.manifest.input
        return Work(self, np.zeros((spec.height, spec.width, 3), np.uint8), Knobs(self.model.manifest.alpha.default))

    def run(self, works: Sequence[Work]) -> list[Outcome]:
        """Run the model once for all and give each what it wants."""
        images = _together([work.pixels for work in works])
        wanted = {work.wants for work in works}
        if wanted == {"score"}:
            return [*self._scores(self.model.branches(images), [work.knobs for work in works])]
        feature_map: NDArray[np.float32] | None = None
        if wanted & {"explained", "feature_map"}:
            branches, feature_map = self.model.branches_and_feature_map(images)
        else:
            branches = self.model.branches(images)
        outcomes: list[Outcome] = [*self._tensors(branches, feature_map, [work.knobs for work in works])]
        rows = [row for row, work in enumerate(works) if work.wants in {"score", "explained"}]
        if rows:
            scored = Branches(*(array[rows] for array in branches))
            for row, one in zip(rows, self._scores(scored, [works[row].knobs for row in rows]), strict=True):
                is_plain = works[row].wants == "score"
                outcomes[row] = one if is_plain or feature_map is None else Explained(one, feature_map[row])
        return outcomes

    def _scores(self, branches: Branches, knobs: Sequence[Knobs]) -> list[Score]:
        low, high = self._range.minimum, self._range.maximum
        return score(
            branches,
            knobs,
            log_class_share=self.log_class_share,
            low=low,
            high=high,
            calibration=self._calibration,
        )

    def _tensors(
        self, branches: Branches, feature_map: NDArray[np.float32] | None, knobs: Sequence[Knobs]
    ) -> list[Tensors]:
        alpha = np.array([each.alpha for each in knobs], dtype=np.float64)[:, None]
        logits = branches.factual_logits - alpha * branches.counterfactual_logits
        logits += offsets(knobs, self.log_class_share)
        maps = [None] * len(knobs) if feature_map is None else feature_map
        return [Tensors(*row) for row in zip(logits.astype(np.float32), *branches, maps, strict=True)]
