from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from tests.trainer.test_head import import_checked
from tests.trainer.tiny import tiny_recipe
from trainer.checkpoint import finished_checkpoint
from trainer.classifiers import CLASSIFIERS, Classifier, create_classifier
from trainer.config import HeadConfig
from trainer.data import Splits
from trainer.export import OPSET, export_run
from trainer.graph import ServedBranches
from trainer.head import folded_branches
from trainer.runs import read_evaluation, train_run

Array = NDArray[np.float64]
NAMES = list(CLASSIFIERS)
GAMMA, TAU = 0.25, 8.0


def make(name: str, heads: int, *, features: int = 12, classes: int = 5) -> Classifier:
    torch.manual_seed(heads)
    classifier = create_classifier(
        HeadConfig(classifier=name, num_heads=heads, tau=TAU, gamma=GAMMA), features, classes
    ).double()
    classifier.momentum_direction = torch.randn(features, dtype=torch.float64)
    return classifier


def reference(name: str, classifier: Classifier, features: Array, alpha: float) -> Array:
    """Logits by loops over pictures, classes and slices, as the table in ``trainer.classifiers`` writes them."""
    weight, direction = (part.detach().numpy() for part in (classifier.weight, classifier.momentum_direction))
    heads = classifier.num_heads
    logits = np.zeros((len(features), len(weight)))
    for n, feature in enumerate(features):
        for c, class_weight in enumerate(weight):
            for x, w, d in zip(*(np.split(v, heads) for v in (feature, class_weight, direction)), strict=True):
                x_norm, w_norm, d_unit = np.linalg.norm(x), np.linalg.norm(w), d / np.linalg.norm(d)
                cosine = x @ d_unit / x_norm
                if name == "linear":
                    logits[n, c] += w @ x - alpha * (x @ d_unit) * (w @ d_unit)
                elif name == "capsule":
                    part = (w @ x - alpha * x_norm * cosine * (w @ d_unit)) / ((1 + x_norm) * w_norm)
                    logits[n, c] += TAU / heads * part
                else:
                    gamma = GAMMA if name == "deconfounded" else 0.0
                    part = (w @ x / x_norm - alpha * cosine * (w @ d_unit)) / (w_norm + gamma)
                    logits[n, c] += TAU / heads * part
    return logits if classifier.bias is None else logits + classifier.bias.detach().numpy()


def test_a_recipe_may_name_every_classifier_and_no_other() -> None:
    assert set(get_args(HeadConfig.model_fields["classifier"].annotation)) == set(CLASSIFIERS)
    assert HeadConfig().classifier == "deconfounded"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.7])
def test_logits_and_their_counterfactual_part_are_the_formulas(name: str, heads: int, alpha: float) -> None:
    classifier, features = make(name, heads), torch.randn(7, 12, dtype=torch.float64)
    factual, counterfactual, cosine = (part.detach() for part in folded_branches(features, classifier.fold()))
    expected = reference(name, classifier, features.numpy(), alpha)
    np.testing.assert_allclose(factual - alpha * counterfactual, expected, rtol=1e-9)
    sliced, direction = (part.unflatten(-1, (heads, -1)) for part in (features, classifier.momentum_direction))
    np.testing.assert_allclose(cosine, torch.cosine_similarity(sliced, direction, dim=-1), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("heads", [1, 3])
def test_the_served_graph_gives_the_same_branches_and_nothing_for_a_slice_of_zeros(name: str, heads: int) -> None:
    classifier, features = make(name, heads), torch.randn(7, 12, dtype=torch.float64)
    features[0], features[1, :4] = 0, 0
    served = ServedBranches(classifier.fold()).double()
    for ours, expected in zip(served(features), folded_branches(features, classifier.fold()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "products", "reshapes"), [("deconfounded", 3, 2), ("linear", 4, 3)])
def test_exported_they_are_few_operations_and_give_nothing_for_a_slice_of_zeros(
    name: str, products: int, reshapes: int
) -> None:
    classifier, features = make(name, 3).float(), torch.randn(7, 12)
    features[0], features[1, :4] = 0, 0
    served, rows = ServedBranches(classifier.fold()).eval(), {0: torch.export.Dim("n")}
    program = torch.onnx.export(served, (features,), dynamo=True, opset_version=OPSET, dynamic_shapes=(rows,))
    assert program is not None
    operations = Counter(node.op_type for node in program.model_proto.graph.node)
    assert operations == {"Gemm": products, "LpNormalization": 1, "Reshape": reshapes}
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for part in (features, features[:1]):
        found = session.run(None, {session.get_inputs()[0].name: part.numpy()})
        for ours, expected in zip(found, folded_branches(part, classifier.fold()), strict=True):
            np.testing.assert_allclose(ours, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training_uses_the_factual_branch(name: str) -> None:
    classifier, features = make(name, 3), torch.randn(7, 12, dtype=torch.float64)
    torch.testing.assert_close(classifier(features), folded_branches(features, classifier.fold())[0])


@pytest.mark.parametrize("name", NAMES)
def test_at_alpha_one_nothing_is_left_of_features_along_the_direction_but_the_bias(name: str) -> None:
    classifier = make(name, 3)
    features = (classifier.momentum_direction.view(3, 4) * torch.tensor([[0.5], [2.0], [-7.0]])).view(1, 12).double()
    factual, counterfactual, _ = (part.detach() for part in folded_branches(features, classifier.fold()))
    bias = torch.zeros(5) if classifier.bias is None else classifier.bias.detach()
    assert factual.abs().max() > 0.1
    torch.testing.assert_close((factual - counterfactual)[0], bias.double())


@pytest.mark.parametrize("name", NAMES)
def test_zero_features_give_finite_logits_and_gradients(name: str) -> None:
    classifier, features = make(name, 3), torch.zeros(2, 12, dtype=torch.float64, requires_grad=True)
    factual, counterfactual, cosine = folded_branches(features, classifier.fold())
    torch.autograd.backward(classifier(features).sum())
    assert features.grad is not None
    assert all(part.isfinite().all() for part in (factual, counterfactual, cosine, features.grad))
    assert not counterfactual.any()


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_direction_does_not_matter(name: str) -> None:
    classifier, features = make(name, 3), torch.randn(7, 12, dtype=torch.float64)
    before = folded_branches(features, classifier.fold())
    after = folded_branches(features, classifier.fold(1e6 * classifier.momentum_direction))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_has_a_meaning_depends_on_the_length_of_features_and_weights() -> None:
    features = torch.randn(3, 12, dtype=torch.float64)
    for name, by_feature, by_weight in (
        ("linear", True, True),
        ("capsule", True, False),
        ("cosine", False, False),
        ("deconfounded", False, True),
    ):
        classifier = make(name, 3)
        logits = classifier(features)
        assert torch.allclose(classifier(3 * features), logits) != by_feature, name
        with torch.no_grad():
            classifier.weight.mul_(3)
        assert torch.allclose(classifier(features), logits) != by_weight, name


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_keeps_its_direction_and_learns_only_weight_and_bias(name: str) -> None:
    classifier = make(name, 3)
    learnt = {"weight", "bias"} if name == "linear" else {"weight"}
    assert {key for key, _ in classifier.named_parameters()} == learnt
    assert set(classifier.state_dict()) == {*learnt, "momentum_direction"}


@pytest.mark.parametrize("name", NAMES)
def test_slices_that_do_not_divide_the_features_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="12 features, got 5"):
        make(name, 5)


@pytest.mark.parametrize("module", ["interface", "deconfounded", "cosine", "capsule", "linear"])
def test_every_shape_is_what_its_annotation_says(module: str) -> None:
    checked = import_checked(f"trainer.classifiers.{module}")
    for name in ("DeconfoundedClassifier", "CosineClassifier", "CapsuleClassifier", "LinearClassifier"):
        if hasattr(checked, name):
            classifier = getattr(checked, name)(12, 5, num_heads=3, tau=TAU, gamma=GAMMA)
            classifier.update_direction(torch.randn(2, 12), momentum_decay=0.9)
            assert classifier(torch.randn(2, 12)).shape == (2, 5)
            classifier.fold()


@pytest.mark.parametrize("name", ["linear", "cosine", "capsule"])
def test_each_classifier_trains_evaluates_and_exports(name: str, digits: Splits, tmp_path: Path) -> None:
    train_run(tiny_recipe(f"head.classifier={name}"), tmp_path / "run", device_name="cpu", resume=False)
    checkpoint = finished_checkpoint(tmp_path / "run")
    assert checkpoint.epoch == 2
    assert checkpoint.history[1].losses[-1] < checkpoint.history[0].losses[0]
    assert read_evaluation(tmp_path / "run")["test_images"] == len(digits.test)
    bundle = export_run(tmp_path / "run", tmp_path / "bundle", direction="ema", fp16=False)
    scale = 1.0 if name == "linear" else 8.0
    assert bundle.manifest.tde.tau / bundle.manifest.tde.num_heads == scale
    assert bundle.manifest.tde.gamma == 0.0
