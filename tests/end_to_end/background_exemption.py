"""Equation 9 on real proposals of a trained detector: alpha moves no probability from or to the background.

    python -m tests.end_to_end.background_exemption RUN --split train --alpha 0 --alpha 1.5 --alpha 3

``--data`` names the folder of the data where it has moved. The status is 1 where a row's background differs from that
of the plain model, a row does not sum to one, or the foreground's scores and the background do not, by more than 1e-5.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.detection.batches import EvaluationPictures
from trainer.detection.cascade import Branches
from trainer.detection.checkpoints import finished_detection_checkpoint
from trainer.detection.data import load_detection_splits
from trainer.detection.network import exempted_scores
from trainer.detection.runs import restore_detector, with_source
from trainer.errors import TrainerError
from trainer.head import background_exempted_probabilities, combine

TOLERANCE = 1e-5


@dataclass
class Exemption:
    """What was found over all proposals and stages; each the largest of its kind."""

    proposals: int = 0
    background: float = 0.0
    """Difference of a row's background probability from the plain model's."""
    row_sum: float = 0.0
    """Difference of a row's sum from one, in every stage."""
    score_sum: float = 0.0
    """The same of the scores that are averaged over the stages, with the plain background."""
    moved: float = 0.0
    """How far alpha moves the score of a class."""

    def holds(self) -> bool:
        """Tell whether Eq. 9 was kept."""
        return max(self.background, self.row_sum, self.score_sum) <= TOLERANCE

    def take_in(self, branches: Branches, alpha: float) -> None:
        """Compare the proposals of one picture at one alpha with the plain model."""
        at, last = torch.tensor(alpha), branches.factual.shape[-1] - 1
        factual, counterfactual = (rows[:, branches.valid] for rows in (branches.factual, branches.counterfactual))
        plain = factual.softmax(dim=-1)
        rows = factual.flatten(0, 1)
        logits = combine(rows, counterfactual.flatten(0, 1), at)
        exempted = background_exempted_probabilities(rows, logits, background=last)
        scores = exempted_scores(factual, counterfactual, at)
        self.background = max(self.background, _largest(exempted[:, last] - plain.flatten(0, 1)[:, last]))
        self.row_sum = max(self.row_sum, _largest(exempted.sum(dim=-1) - 1))
        self.score_sum = max(self.score_sum, _largest(scores.sum(dim=-1) + plain[..., last].mean(dim=0) - 1))
        self.moved = max(self.moved, _largest(scores - plain.mean(dim=0)[:, :last]))


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


@torch.no_grad()
def exemption(
    run: Path, *, data: str | None, split: str, alphas: list[float], pictures: int | None = None
) -> Exemption:
    """Send pictures of a split through a run's network, and compare every proposal at every alpha."""
    checkpoint = finished_detection_checkpoint(run)
    recipe = with_source(checkpoint.recipe, data)
    splits = load_detection_splits(recipe.data)
    model = restore_detector(checkpoint, torch.device("cpu"))
    chosen = EvaluationPictures(splits.train if split == "train" else splits.test, recipe.input)
    found = Exemption()
    for row in range(len(chosen) if pictures is None else min(pictures, len(chosen))):
        scaled = chosen[row]
        if isinstance(scaled, TrainerError):
            raise scaled
        sizes = torch.tensor([scaled.size], dtype=torch.float32)
        (branches,) = model.branches(torch.from_numpy(scaled.pixels)[None], sizes)
        found.proposals += int(branches.valid.sum())
        for alpha in alphas:
            found.take_in(branches, alpha)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Check Eq. 9 on the proposals of a trained detector.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--split", choices=["test", "train"], default="test")
    parser.add_argument("--alpha", type=float, action="append", required=True)
    parser.add_argument("--pictures", type=int, help="the first so many alone")
    arguments = parser.parse_args()
    found = exemption(
        arguments.run,
        data=arguments.data,
        split=arguments.split,
        alphas=arguments.alpha,
        pictures=arguments.pictures,
    )
    print(f"{found.proposals} proposals, alphas {', '.join(f'{alpha:g}' for alpha in arguments.alpha)}")
    print(f"  background, largest difference from the plain model: {found.background:.2g}")
    print(f"  rows, largest difference of the sum from one: {found.row_sum:.2g}; of the scores: {found.score_sum:.2g}")
    print(f"  a class's score moves by up to {found.moved:.2g}")
    raise SystemExit(int(not found.holds()))


if __name__ == "__main__":
    main()
