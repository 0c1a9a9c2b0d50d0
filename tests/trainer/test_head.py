import importlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import install_import_hook
from numpy.typing import NDArray
from torch import Tensor

import trainer
from tests.trainer.tiny import patient
from trainer import head
from trainer.classifiers.deconfounded import DeconfoundedClassifier
from trainer.head import (
    background_exempted_probabilities,
    branch_logits,
    combine,
    fold,
    folded_branches,
    tde_logits,
    unit,
)

Array = NDArray[np.float64]
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
eighths = st.integers(-40, 40).map(lambda number: number / 8)
"""Moderate numbers, exact in float, among which zero is frequent."""


def import_checked(name: str) -> ModuleType:
    """Import a second copy of a module whose shapes and types are checked at every call."""
    plain = sys.modules.pop(name)
    try:
        with install_import_hook(name, "beartype.beartype"):
            return importlib.import_module(name)
    finally:
        sys.modules[name] = plain
        package, _, module = name.rpartition(".")
        setattr(sys.modules[package], module, plain)


checked = import_checked("trainer.head")


@dataclass(frozen=True)
class Problem:
    """Features [N, D], weight [C, D] and direction [D] of K slices."""

    features: Array
    weight: Array
    direction: Array
    num_heads: int
    tau: float
    gamma: float

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(self.features), torch.tensor(self.weight), torch.tensor(self.direction)

    def settings(self) -> dict[str, float]:
        return {"num_heads": self.num_heads, "tau": self.tau, "gamma": self.gamma}

    def reference(self) -> tuple[Array, Array]:
        """Equation 7 and the subtrahend of equation 8, term by term."""
        factual = np.zeros((len(self.features), len(self.weight)))
        counterfactual = np.zeros_like(factual)
        for n, feature in enumerate(self.features):
            for c, class_weight in enumerate(self.weight):
                slices = (np.split(v, self.num_heads) for v in (feature, class_weight, self.direction))
                for x, w, d in zip(*slices, strict=True):
                    x_norm, w_norm, d_norm = (float(np.sqrt(sum(number * number for number in v))) for v in (x, w, d))
                    scale = self.tau / self.num_heads
                    if x_norm == 0 or w_norm == 0:
                        continue
                    factual[n, c] += scale * float(w @ x) / x_norm / (w_norm + self.gamma)
                    if d_norm == 0:
                        continue
                    cosine = float(x @ d) / x_norm / d_norm
                    counterfactual[n, c] += scale * cosine * float(w @ d) / d_norm / (w_norm + self.gamma)
        return factual, counterfactual


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    heads, size, rows, classes = (draw(st.integers(1, most)) for most in (4, 4, 5, 5))
    features, weight, direction = (
        draw(hnp.arrays(np.float64, shape, elements=eighths))
        for shape in ((rows, heads * size), (classes, heads * size), (heads * size,))
    )
    gamma = draw(st.sampled_from([0.0, 1 / 32, 1.0]))
    return Problem(features, weight, direction, heads, draw(st.sampled_from([1.0, 16.0, 30.5])), gamma)


@patient
@given(problems())
def test_both_branches_are_the_formulas_of_the_paper(problem: Problem) -> None:
    branches = branch_logits(*problem.tensors(), **problem.settings())
    for branch, expected in zip(branches, problem.reference(), strict=True):
        np.testing.assert_allclose(branch.numpy(), expected, **EXACT)


@patient
@given(problems())
def test_in_float32_both_branches_are_right_to_single_precision(problem: Problem) -> None:
    branches = branch_logits(*(part.float() for part in problem.tensors()), **problem.settings())
    for branch, expected in zip(branches, problem.reference(), strict=True):
        assert branch.dtype == torch.float32
        np.testing.assert_allclose(branch.numpy(), expected, rtol=1e-4, atol=1e-4 * problem.tau)


@patient
@given(problems())
def test_every_shape_is_what_its_annotation_says(problem: Problem) -> None:
    tensors, options = problem.tensors(), problem.settings()
    factual, _ = checked.branch_logits(*tensors, **options)
    alphas = torch.linspace(-1, 3, len(factual), dtype=torch.float64)
    for alpha in (1.5, alphas, torch.tensor(0.5, dtype=torch.float64)):
        logits = checked.tde_logits(*tensors, alpha, **options)
        if logits.shape[1] > 1:
            checked.background_exempted_probabilities(factual, logits, background=0)
    checked.folded_branches(tensors[0], checked.fold(*tensors[1:], **options))


@patient
@given(problems(), st.floats(-3, 5))
def test_logits_are_linear_in_alpha(problem: Problem, alpha: float) -> None:
    factual, counterfactual = problem.reference()
    logits = tde_logits(*problem.tensors(), alpha, **problem.settings())
    np.testing.assert_allclose(logits.numpy(), factual - alpha * counterfactual, **EXACT)


@patient
@given(problems(), st.data())
def test_mixed_alphas_equal_separate_calls(problem: Problem, data: st.DataObject) -> None:
    features, weight, direction = problem.tensors()
    alphas = data.draw(hnp.arrays(np.float64, len(features), elements=st.floats(-3, 5)))
    mixed = tde_logits(features, weight, direction, torch.tensor(alphas), **problem.settings())
    for row, alpha in enumerate(alphas):
        alone = tde_logits(features[row : row + 1], weight, direction, float(alpha), **problem.settings())
        np.testing.assert_allclose(mixed[row].numpy(), alone[0].numpy(), **EXACT)


@patient
@given(problems(), st.sampled_from([1e-200, 1e-30, 3.0, 1e150]))
def test_the_scale_of_the_direction_does_not_matter(problem: Problem, scale: float) -> None:
    features, weight, direction = problem.tensors()
    plain = branch_logits(features, weight, direction, **problem.settings())
    scaled = branch_logits(features, weight, direction * scale, **problem.settings())
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), **EXACT)


@patient
@given(problems(), st.data())
def test_neither_does_the_scale_of_one_slice_of_it_or_of_a_feature(problem: Problem, data: st.DataObject) -> None:
    features, weight, direction = problem.tensors()
    scales = st.sampled_from([1e-200, 0.25, 1e150])
    by_slice = torch.tensor([data.draw(scales) for _ in range(problem.num_heads)], dtype=torch.float64)
    wide = by_slice.repeat_interleave(len(direction) // problem.num_heads)
    plain = branch_logits(features, weight, direction, **problem.settings())
    scaled = branch_logits(features * wide, weight, direction * wide, **problem.settings())
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), **EXACT)


@patient
@given(problems(), st.data())
def test_alpha_one_leaves_nothing_of_features_parallel_to_the_direction(problem: Problem, data: st.DataObject) -> None:
    _, weight, direction = problem.tensors()
    scales = st.sampled_from([-7.0, -0.5, 0.125, 3.0])  # against the direction is parallel too
    by_slice = torch.tensor([data.draw(scales) for _ in range(problem.num_heads)], dtype=torch.float64)
    features = (direction * by_slice.repeat_interleave(len(direction) // problem.num_heads)).unsqueeze(0)
    logits = tde_logits(features, weight, direction, 1.0, **problem.settings())
    np.testing.assert_allclose(logits.numpy(), 0, atol=1e-9 * problem.tau)


@pytest.mark.parametrize("empty", ["features", "weight", "direction"])
def test_a_zero_slice_contributes_zero_to_logits_and_gradients(empty: str) -> None:
    generator = np.random.default_rng(0)
    parts = {"features": generator.normal(size=(3, 6)), "weight": generator.normal(size=(4, 6))}
    parts["direction"] = generator.normal(size=6)
    parts[empty][..., :3] = 0
    problem = Problem(**parts, num_heads=2, tau=16.0, gamma=0.0)
    tensors = [tensor.requires_grad_() for tensor in problem.tensors()]
    factual, counterfactual = branch_logits(*tensors, **problem.settings())
    for branch, expected in zip((factual, counterfactual), problem.reference(), strict=True):
        np.testing.assert_allclose(branch.detach().numpy(), expected, **EXACT)
    torch.autograd.backward(factual.sum() + counterfactual.sum())
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


def test_all_zero_features_give_all_zero_logits() -> None:
    factual, counterfactual = branch_logits(
        torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(4), num_heads=2, tau=16.0, gamma=0.0
    )
    assert factual.tolist() == counterfactual.tolist() == [[0.0] * 3] * 2


def test_the_gradient_of_unit_is_that_of_the_plain_formula() -> None:
    vector = torch.tensor([[0.3, -2.0, 1.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (vector,))


@pytest.mark.parametrize("alpha", [torch.zeros(2), torch.zeros(4), torch.zeros(3, 1), torch.zeros(0)])
def test_an_alpha_that_is_neither_one_number_nor_one_per_row_is_refused(alpha: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one per row \[3\], got \["):
        combine(torch.zeros(3, 5), torch.zeros(3, 5), alpha)


@pytest.mark.parametrize("num_heads", [0, -1, 4, 7])
def test_a_number_of_slices_that_does_not_divide_the_features_is_refused(num_heads: int) -> None:
    with pytest.raises(ValueError, match=f"must divide the feature size 6, got {num_heads}"):
        branch_logits(torch.zeros(1, 6), torch.zeros(2, 6), torch.zeros(6), num_heads=num_heads, tau=1.0, gamma=0.0)


def test_a_classifier_refuses_a_number_of_slices_that_does_not_divide_its_features() -> None:
    with pytest.raises(ValueError, match="64 features, got 3"):
        DeconfoundedClassifier(64, 2, num_heads=3, tau=1.0, gamma=0.0)


@pytest.mark.parametrize(("weight", "direction"), [((2, 5), (6,)), ((2, 6), (5,)), ((2, 6), (1, 6))])
def test_shapes_that_do_not_fit_are_refused_by_their_values(
    weight: tuple[int, ...], direction: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"share their last axis, got \[1, 6\]"):
        branch_logits(torch.zeros(1, 6), torch.zeros(weight), torch.zeros(direction), num_heads=2, tau=1.0, gamma=0.0)


@patient
@given(problems())
def test_the_folded_head_gives_the_branches_and_the_cosine_of_each_slice(problem: Problem) -> None:
    features, weight, direction = problem.tensors()
    factual, counterfactual, cosine = folded_branches(features, fold(weight, direction, **problem.settings()))
    for branch, expected in zip((factual, counterfactual), problem.reference(), strict=True):
        np.testing.assert_allclose(branch.numpy(), expected, **EXACT)
    for n, feature in enumerate(problem.features):
        slices = (np.split(v, problem.num_heads) for v in (feature, problem.direction))
        for k, (x, d) in enumerate(zip(*slices, strict=True)):
            norms = np.linalg.norm(x) * np.linalg.norm(d)
            assert float(cosine[n, k]) == pytest.approx(float(x @ d) / norms if norms else 0.0, abs=1e-9)


@patient
@given(problems())
def test_training_uses_the_factual_branch(problem: Problem) -> None:
    features, weight, direction = problem.tensors()
    classifier = DeconfoundedClassifier(features.shape[1], len(weight), **problem.settings()).double()
    classifier.load_state_dict({"weight": weight, "momentum_direction": direction})
    np.testing.assert_allclose(classifier(features).detach().numpy(), problem.reference()[0], **EXACT)
    scores = folded_branches(features, classifier.fold())[1].detach().numpy()
    np.testing.assert_allclose(scores, problem.reference()[1], **EXACT)


def test_the_momentum_direction_is_the_decayed_sum_of_batch_means() -> None:
    classifier = DeconfoundedClassifier(4, 3, num_heads=2, tau=16.0, gamma=0.0)
    expected = np.zeros(4)
    generator = np.random.default_rng(1)
    for decay, rows in ((0.9, 5), (0.5, 1), (1.0, 7)):
        batch = generator.normal(size=(rows, 4))
        classifier.update_direction(torch.tensor(batch), momentum_decay=decay)
        expected = decay * expected + sum(batch) / rows
    np.testing.assert_allclose(classifier.momentum_direction.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_momentum_direction_is_saved_with_the_weights_and_learns_nothing() -> None:
    classifier = DeconfoundedClassifier(4, 3, num_heads=2, tau=16.0, gamma=0.0)
    assert set(classifier.state_dict()) == {"weight", "momentum_direction"}
    assert [name for name, _ in classifier.named_parameters()] == ["weight"]


@st.composite
def background_problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 6)))
    size = draw(st.sampled_from([5.0, 1e4]))
    arrays = (draw(hnp.arrays(np.float64, shape, elements=st.floats(-size, size))) for _ in range(2))
    factual, logits = (torch.tensor(array) for array in arrays)
    return factual, logits, draw(st.integers(0, shape[1] - 1))


@patient
@given(background_problems())
def test_background_exempted_probabilities_sum_to_one_and_keep_the_background(
    problem: tuple[Tensor, Tensor, int],
) -> None:
    factual, logits, background = problem
    result = background_exempted_probabilities(factual, logits, background=background)
    assert ((result >= 0) & (result <= 1 + 1e-12)).all()
    np.testing.assert_allclose(result.sum(dim=1).numpy(), 1, **EXACT)
    kept = factual.softmax(dim=1)[:, background]
    np.testing.assert_allclose(result[:, background].numpy(), kept.numpy(), **EXACT)


@patient
@given(background_problems())
def test_background_exempted_probabilities_are_equation_9(problem: tuple[Tensor, Tensor, int]) -> None:
    factual, logits, background = problem
    result = background_exempted_probabilities(factual, logits, background=background).numpy()
    for row, (p, q) in enumerate(zip(*(softmax_rows(part.numpy()) for part in (factual, logits)), strict=True)):
        if 1 - q[background] < 1e-3:
            continue  # there the formula as it stands loses its digits
        for index in range(len(p)):
            exempted = p[index] if index == background else (1 - p[background]) * q[index] / (1 - q[background])
            assert result[row, index] == pytest.approx(exempted, abs=1e-9)


def softmax_rows(logits: Array) -> list[list[float]]:
    rows = []
    for row in logits:
        exponentials = [float(np.exp(number - row.max())) for number in row]
        rows.append([number / sum(exponentials) for number in exponentials])
    return rows


@pytest.mark.parametrize("extreme", [1e4, 1e30])
def test_background_exempted_probabilities_hold_where_the_background_takes_all(extreme: float) -> None:
    factual, logits = torch.tensor([[extreme, 0.0, 1.0]]), torch.tensor([[extreme, 0.0, 0.0]])
    for background in range(3):
        result = background_exempted_probabilities(factual, logits, background=background)
        assert result.isfinite().all()
        assert float(result.sum()) == pytest.approx(1)
    sure = background_exempted_probabilities(-factual, logits, background=0)
    assert sure[0].tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(("classes", "background"), [(3, 3), (3, -1), (1, 0)])
def test_a_background_that_is_no_class_or_the_only_one_is_refused(classes: int, background: int) -> None:
    with pytest.raises(ValueError, match=f"of at least 2 classes, got {background}"):
        background_exempted_probabilities(torch.zeros(1, classes), torch.zeros(1, classes), background=background)


def test_the_checked_copy_leaves_the_module_as_it_was() -> None:
    assert sys.modules["trainer.head"] is head is trainer.head
