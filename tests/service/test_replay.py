from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from service.replay import Candidates, Rectangle, Replay, candidates, packed_candidates
from service.tradeoff import Floats

RECTANGLE = Rectangle(0.0, 3.0, 2.0)
GROUPS = ("many", "medium", "few")


class Case:
    """Some predictions of a model that was drawn, with true labels and the knobs to ask for."""

    def __init__(self, data: st.DataObject) -> None:
        samples, classes = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 9))
        elements = data.draw(st.sampled_from([st.floats(-20, 20, width=32), st.integers(-3, 3).map(float)]))
        self.factual, self.counterfactual = (
            data.draw(hnp.arrays(np.float32, (samples, classes), elements=elements)) for _ in range(2)
        )
        counts = data.draw(hnp.arrays(np.int64, classes, elements=st.integers(1, 500)))
        self.log_share = np.log(counts / counts.sum())
        self.log_target: Floats | None = None
        if data.draw(st.booleans()):
            self.log_target = data.draw(hnp.arrays(np.float64, classes, elements=st.floats(-3, 3)))
        self.labels = data.draw(hnp.arrays(np.int64, samples, elements=st.integers(0, classes - 1)))
        self.groups = data.draw(st.lists(st.sampled_from(GROUPS), min_size=classes, max_size=classes))

    def logits(self, alpha: float, prior_strength: float) -> Floats:
        plain = self.factual.astype(np.float64) + (0.0 if self.log_target is None else self.log_target)
        logits: Floats = plain - prior_strength * self.log_share - alpha * self.counterfactual
        return logits

    def replay(self) -> Replay:
        packed = packed_candidates(
            self.factual,
            self.counterfactual,
            log_class_share=self.log_share,
            log_target=self.log_target,
            rectangle=RECTANGLE,
        )
        return Replay.of(
            [Candidates.unpack(each, len(self.log_share)) for each in packed],
            self.labels.tolist(),
            log_class_share=self.log_share,
            log_target=self.log_target,
            shot_groups=self.groups,
            rectangle=RECTANGLE,
        )


def clear(logits: Floats) -> NDArray[np.bool_]:
    """Which samples have one winner beyond rounding."""
    best_two = np.sort(logits, axis=1)[:, -2:]
    apart: NDArray[np.bool_] = best_two[:, 1] - best_two[:, 0] > 1e-6
    return apart


@settings(deadline=None)
@given(st.data(), st.floats(0, 3), st.floats(0, 2))
def test_replay_names_the_winner_of_a_new_run_at_every_knob(
    data: st.DataObject, alpha: float, prior_strength: float
) -> None:
    case = Case(data)
    logits = case.logits(alpha, prior_strength)
    sure = clear(logits)
    assert (case.replay().winners(alpha, prior_strength) == logits.argmax(axis=1))[sure].all()


@settings(deadline=None)
@given(st.data(), st.floats(0, 2))
def test_the_curve_equals_running_every_prediction_again_at_every_alpha(
    data: st.DataObject, prior_strength: float
) -> None:
    case = Case(data)
    curve = case.replay().curve(prior_strength)
    edges = np.concatenate([[curve.low], curve.breakpoints, [curve.high]])
    for alpha in ((edges[:-1] + edges[1:]) / 2)[np.diff(edges) > 1e-5]:
        logits = case.logits(float(alpha), prior_strength)
        if not clear(logits).all():
            continue  # equal lines, whose order is another test, or rounding
        correct = logits.argmax(axis=1) == case.labels
        accuracies = curve.at(float(alpha))
        assert accuracies["overall"] == pytest.approx(correct.mean())
        recalls = [correct[case.labels == label].mean() for label in np.unique(case.labels)]
        assert accuracies["balanced"] == pytest.approx(np.mean(recalls))
        groups = np.array(case.groups)[case.labels]
        for group in set(groups.tolist()):
            assert accuracies[group] == pytest.approx(correct[groups == group].mean())


@pytest.mark.parametrize(("samples", "classes"), [(1, 2), (300, 100), (2, 70_000)])
def test_the_bytes_of_many_are_those_of_each_by_itself(samples: int, classes: int) -> None:
    draw = np.random.default_rng(samples)
    factual, counterfactual = draw.normal(size=(2, samples, classes)).astype(np.float32)
    share = np.log(draw.dirichlet(np.ones(classes)))
    of_model: Any = {"log_class_share": share, "log_target": draw.normal(size=classes), "rectangle": RECTANGLE}
    alone = [candidates(factual[row : row + 1], counterfactual[row : row + 1], **of_model)[0] for row in range(samples)]
    assert packed_candidates(factual, counterfactual, **of_model) == [each.pack(classes) for each in alone]


def test_a_label_that_can_never_win_is_right_nowhere() -> None:
    kept = [Candidates(np.array([0, 2]), np.float32([1, 0]), np.float32([1, 0]))]
    replay = Replay.of(kept, [1], log_class_share=np.log([0.5, 0.25, 0.25]), shot_groups=GROUPS, rectangle=RECTANGLE)
    assert [each.tolist() for each in replay.intervals(0.0)] == [[0.0], [0.0]]
    assert replay.curve().overall.tolist() == [0.0]
    wider = replay.within(Rectangle(-1.0, 3.0, 2.0))
    assert [each.tolist() for each in wider.intervals(0.0)] == [[-1.0], [-1.0]]


def test_damaged_bytes_are_refused() -> None:
    for length in (0, 13):
        with pytest.raises(ValueError, match=f"{length} bytes are no whole number of candidates"):
            Candidates.unpack(b"x" * length, 10)


@pytest.mark.parametrize(("classes", "size"), [(100, 20), (65_536, 20), (65_537, 24)])
def test_a_candidate_takes_ten_bytes_or_twelve(classes: int, size: int) -> None:
    kept = Candidates(np.array([0, classes - 1]), np.float32([1, 2]), np.float32([3, 4]))
    content = kept.pack(classes)
    back = Candidates.unpack(content, classes)
    assert len(content) == size
    assert (back.classes == kept.classes).all()
    assert (back.factual == kept.factual).all()
    assert (back.counterfactual == kept.counterfactual).all()
