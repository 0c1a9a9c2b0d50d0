"""What a running service says of whole splits, beside what PyTorch says of them.

As a command it measures a run's test accuracy through HTTP, picture by picture as lossless PNG:

    python -m tests.end_to_end.http_predictions RUN http://127.0.0.1:8000 --data SOURCE --alpha 0 --alpha 1.5

Knobs are alpha, or alpha and prior strength with a comma: `--alpha 0.77,0.5`.
"""

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tests import plain_http
from trainer.checkpoint import finished_checkpoint
from trainer.data import Pixels, decode, load_splits
from trainer.inference import Branches, branches_of, extract_features
from trainer.runs import restore_model, with_data

IMAGES_PER_REQUEST = 16


@dataclass(frozen=True)
class TestSplit:
    """The test pictures of a run, and both branches of PyTorch for them."""

    __test__ = False

    pictures: list[bytes]
    branches: Branches

    def logits(self, alphas: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return PyTorch's TDE logits [N, C] at one alpha per picture [N]."""
        return self.branches.factual - alphas[:, None] * self.branches.counterfactual


def read_test_split(run: Path, data: str | None = None) -> TestSplit:
    """Load a run's test pictures as PNG and compute their branches with PyTorch."""
    checkpoint = finished_checkpoint(run)
    recipe, device = with_data(checkpoint.recipe, data), torch.device("cpu")
    splits = load_splits(recipe)
    model = restore_model(checkpoint, device)
    features, labels = extract_features(model, Pixels(splits.test, recipe, device, name="test images"), "features")
    pictures = [png(decode(splits.test, row, recipe.input)) for row in range(len(splits.test))]
    return TestSplit(pictures, branches_of(features, labels, model.head))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels [H, W, 3] without loss."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def predict_all(
    url: str, pictures: list[bytes], alphas: NDArray[np.float32], num_classes: int, *, prior_strength: float = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ask a service for every picture at its own alpha, several pictures a request.

    Returns:
        The winner of each picture [N] and all its logits in the order of the classes [N, C].
    """
    winners = np.empty(len(pictures), dtype=np.int64)
    logits = np.empty((len(pictures), num_classes))
    with plain_http.Client(base_url=url, timeout=60) as client:
        for first in range(0, len(pictures), IMAGES_PER_REQUEST):
            part = range(first, min(first + IMAGES_PER_REQUEST, len(pictures)))
            files = [("image", (f"{row}.png", pictures[row], "image/png")) for row in part]
            fields = {"alpha": [str(float(alphas[row])) for row in part]}
            asked = {"top_k": num_classes, "prior_strength": prior_strength}
            response = client.post("/predict", params=asked, files=files, data=fields)
            assert response.status_code == 200, response.text
            for row, answer in zip(part, response.json()["images"], strict=True):
                winners[row] = answer["predictions"][0]["index"]
                for prediction in answer["predictions"]:
                    logits[row, prediction["index"]] = prediction["logit"]
    return winners, logits


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a service's test accuracy with PyTorch's.")
    parser.add_argument("run", type=Path)
    parser.add_argument("url")
    parser.add_argument("--data")
    parser.add_argument("--alpha", metavar="ALPHA[,STRENGTH]", action="append", required=True)
    arguments = parser.parse_args()
    split = read_test_split(arguments.run, arguments.data)
    counts = np.array(finished_checkpoint(arguments.run).class_counts)
    for knobs in arguments.alpha:
        alpha, strength = (*map(float, knobs.split(",")), 0.0)[:2]
        alphas = np.full(len(split.pictures), alpha, dtype=np.float32)
        expected = split.logits(alphas) - strength * np.log(counts / counts.sum())
        winners, logits = predict_all(arguments.url, split.pictures, alphas, expected.shape[1], prior_strength=strength)
        labels, own = split.branches.labels, expected.argmax(axis=1)
        print(
            f"alpha {alpha:g}, prior strength {strength:g}: {len(winners)} pictures, "
            f"accuracy {(winners == labels).mean():.4f} through HTTP, "
            f"{(own == labels).mean():.4f} in PyTorch, {(winners != own).sum()} winners differ, "
            f"largest logit difference {np.abs(logits - expected).max():.2g}"
        )


if __name__ == "__main__":
    main()
