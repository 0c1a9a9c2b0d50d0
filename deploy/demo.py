"""The last step of `make demo` before the service starts: a few digits as PNG files, and what to try with them.

Takes pictures of the test split on which alpha decides: wrong at alpha 0, right at some alpha. It asks the
model itself, through ONNX Runtime, and knows nothing of HTTP.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from service.bundle import Bundle, read_bundle
from service.tradeoff import correct_intervals
from trainer.config import load_recipe
from trainer.data import decode, load_splits

LARGEST_SHOWN = 4


@dataclass(frozen=True)
class Sample:
    """One test picture, its true class, and the stretch of alpha on which the model names that class."""

    pixels: NDArray[np.uint8]
    label: int
    right_from: float
    right_to: float


def samples_that_alpha_decides(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> list[Sample]:
    """Return for each class the picture that is right on the widest stretch not reaching down to alpha 0; widest first.

    Args:
        pixels: uint8 [N, H, W, 3].
        labels: true classes, [N].
        starts, ends: where the true class wins, [N] each; start == end means nowhere.
    """
    width = np.where(starts > 0, ends - starts, 0.0)
    chosen: dict[int, int] = {}
    for index in np.argsort(-width, kind="stable"):
        if width[index] > 0:
            chosen.setdefault(int(labels[index]), int(index))
    return [Sample(pixels[i], label, float(starts[i]), float(ends[i])) for label, i in chosen.items()][:LARGEST_SHOWN]


def branches(bundle: Bundle, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run the bundle's model: factual and counterfactual logits, [N, C] each."""
    session = onnxruntime.InferenceSession(bundle.model_path("fp32"), providers=["CPUExecutionProvider"])
    zeros = np.zeros(len(pixels), dtype=np.float32)
    factual, counterfactual = session.run(
        ["factual_logits", "counterfactual_logits"], {"image": pixels, "alpha": zeros, "prior_strength": zeros}
    )
    return factual, counterfactual


def telling_samples(bundle: Bundle, recipe_name: str) -> list[Sample]:
    """Find the telling pictures in the recipe's test split."""
    recipe = load_recipe(recipe_name)
    test = load_splits(recipe).test
    pixels = np.stack([decode(test, index, bundle.manifest.input) for index in range(len(test))])
    span = bundle.manifest.alpha
    starts, ends = correct_intervals(*branches(bundle, pixels), test.labels, low=span.minimum, high=span.maximum)
    return samples_that_alpha_decides(pixels, test.labels, starts, ends)


def write_samples(bundle: Bundle, samples: list[Sample], folder: Path) -> list[Path]:
    """Write the pictures as PNG, named by class and shot group."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for sample in samples:
        info = bundle.manifest.classes[sample.label]
        path = folder / f"{info.name.replace(' ', '-')}-{info.shot_group}-shot.png"
        Image.fromarray(sample.pixels).save(path)
        paths.append(path)
    return paths


def what_to_try(bundle: Bundle, samples: list[Sample], paths: list[Path], port: int) -> str:
    """Say which commands show the knob at work."""
    url = f"http://127.0.0.1:{port}"
    lines = ["", "Try, in another terminal:", ""]
    for sample, path in zip(samples, paths, strict=True):
        info = bundle.manifest.classes[sample.label]
        alpha = round((sample.right_from + sample.right_to) / 2, 2)
        lines.append(
            f"  # {info.name} ({info.train_count} in training): wrong at alpha 0, "
            f"right from {sample.right_from:.2f} to {sample.right_to:.2f}"
        )
        lines += [
            f"  curl --data-binary @{path} -H 'Content-Type: image/png' '{url}/predict?alpha={value:g}'"
            for value in (0, alpha)
        ]
        lines.append("")
    lines += [f"  curl {url}/metrics", f"  {url}/docs   every request and answer, to try out in a browser", ""]
    return "\n".join(lines)


def main() -> None:
    """Write the pictures and print what to try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--recipe", default="digits_lt")
    parser.add_argument("--samples", type=Path, default=Path("runs/samples"))
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.bundle)
    samples = telling_samples(bundle, arguments.recipe)
    paths = write_samples(bundle, samples, arguments.samples)
    Console(soft_wrap=True, highlight=False, markup=False).print(what_to_try(bundle, samples, paths, arguments.port))


if __name__ == "__main__":
    main()
