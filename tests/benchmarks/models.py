"""The models that are served: the project's own architectures with random weights, through the project's own export.

What a model costs does not depend on what it has learnt. Beside each bundle lies its plain model: the same backbone
with a plain linear layer, exported by the same exporter.
"""

import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from service.bundle import (
    AlphaSpec,
    Bundle,
    ClassInfo,
    ManifestDraft,
    Parity,
    Precision,
    TdeSpec,
    read_bundle,
    write_bundle,
)
from trainer.config import Recipe, load_recipe
from trainer.export import OPSET, PARITY_PRIOR_STRENGTHS, check_parity, export_onnx
from trainer.graph import OUTPUTS, PixelNormalisation, ServingGraph
from trainer.model import LongTailClassifier

TINY, CIFAR, HEAVY = ("cifar10_lt", 10), ("cifar100_lt", 100), ("imagenet_lt", 1000)
"""Recipe and number of classes: one convolution, ResNet-32, ResNeXt-50 32x4d."""


def plain_model(bundle: Bundle) -> Path:
    """Return where the plain model of a bundle lies."""
    return bundle.path.with_suffix(".plain.onnx")


def bundle_of(model: tuple[str, int], folder: Path, *, half: bool = False) -> Bundle:
    """Return the bundle of a recipe's architecture, from the folder if it is there already.

    Args:
        model: one of the above.
        folder: where it lies, or is written.
        half: with a model in fp16 beside that in fp32.
    """
    name, classes = model
    target = folder / (f"{name}_fp16" if half else name)
    if target.exists() and plain_model(intact := read_bundle(target)).exists():
        return intact
    recipe = load_recipe(name)
    torch.manual_seed(0)
    classifier = LongTailClassifier(recipe, classes).eval()
    if model == TINY:
        classifier.backbone = _OneConvolution(classifier.backbone.num_features)  # type: ignore[assignment]
    draft = _draft(recipe, classes)
    direction = torch.randn(classifier.backbone.num_features)
    log_share = torch.from_numpy(draft.log_class_share()).float()
    graph = ServingGraph(classifier, direction, log_share).eval()
    parity = _parity(graph, recipe)
    files: dict[Precision, Path] = {"fp32": folder / f"{name}.onnx"}
    export_onnx(graph, parity, files["fp32"])
    if half:
        files["fp16"] = folder / f"{name}.fp16.onnx"
        export_onnx(ServingGraph(deepcopy(classifier), direction, log_share, half=True).eval(), parity, files["fp16"])
    for precision, file in files.items():
        check_parity(file, parity, precision)
    bundle = write_bundle(target, draft, models=files, files={"parity.npz": parity.to_bytes()})
    for file in files.values():
        file.unlink()
    _export_plain(classifier, parity, classes, plain_model(bundle))
    return bundle


def _draft(recipe: Recipe, classes: int) -> ManifestDraft:
    counts = [max(1, int(500 * 100 ** (-index / (classes - 1)))) for index in range(classes)]
    return ManifestDraft(
        name=recipe.name,
        classes=[ClassInfo.of(f"class {index}", count) for index, count in enumerate(counts)],
        input=recipe.input,
        tde=TdeSpec(num_heads=2, tau=16.0, gamma=1 / 32, direction="ema", direction_cosine=1.0),
        alpha=AlphaSpec(default=1.5, chosen_by="recipe", minimum=0.0, maximum=3.0),
    )


def _parity(graph: ServingGraph, recipe: Recipe, samples: int = 4) -> Parity:
    shape = (samples, recipe.input.height, recipe.input.width, 3)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    alpha = torch.linspace(0, 3, samples)
    strength = torch.tensor([PARITY_PRIOR_STRENGTHS[row % 3] for row in range(samples)])
    with torch.inference_mode():
        outputs = graph(images, alpha, strength)
    named = {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True) if name != "feature_map"}
    return Parity(images=images.numpy(), alpha=alpha.numpy(), prior_strength=strength.numpy(), **named)


class _OneConvolution(nn.Module):
    """Next to nothing, so that what is left is the cost of the server."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.patches = nn.Conv2d(3, num_features, kernel_size=8, stride=8)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        feature_map = self.patches(images).relu()
        return feature_map.mean(dim=(2, 3)), feature_map


class _Plain(nn.Module):
    """The same pixels and backbone, and a linear layer."""

    def __init__(self, classifier: LongTailClassifier, classes: int) -> None:
        super().__init__()
        self.normalise, self.backbone = PixelNormalisation(classifier.mean, classifier.std), classifier.backbone
        self.linear = nn.Linear(classifier.backbone.num_features, classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.backbone(self.normalise(image))[0])
        return logits


def _export_plain(classifier: LongTailClassifier, parity: Parity, classes: int, file: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Plain(classifier, classes).eval(),
            (torch.from_numpy(parity.images[:2]),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    onnx.save(program.model_proto, file)
