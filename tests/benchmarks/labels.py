"""What to expect of some labels: which knobs they choose, and what that brings on pictures that they have not seen.

Draws labelled test pictures again and again, tunes on each draw as `service tune` does for a client that starts plain,
and measures the choice on all other test pictures. No server: the bundle's model runs once over the whole test split.

    python -m tests.benchmarks.labels bundles/cifar100_lt --data ../shared/data/cifar100-lt
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest, read_bundle
from service.model import OnnxModel
from service.objectives import parse_objective
from service.replay import Rectangle, Replay, candidates
from service.scoring import Branches, Knobs
from service.settings import Settings
from service.tradeoff import upper_envelope, upper_envelopes
from service.tune import Which, tune
from trainer.config import Recipe
from trainer.data import decode
from trainer.runs import with_data
from trainer.sources import load_source

BATCH = 200
NAMES = ("overall", "many", "medium", "few")


def run_model(bundle: Path, data: str | None) -> tuple[Manifest, Branches, NDArray[np.int64]]:
    """Return both branches of the bundle's model for its whole test split, and the labels."""
    intact = read_bundle(bundle)
    recipe = with_data(Recipe.model_validate(intact.manifest.provenance["recipe"]), data)
    test = load_source(recipe.data).test
    model = OnnxModel(intact, provider="cpu", threads=None, max_batch_size=BATCH)
    pixels = np.stack([decode(test, row, recipe.input) for row in range(len(test))])
    parts = [model.branches(pixels[first : first + BATCH]) for first in range(0, len(test), BATCH)]
    return intact.manifest, Branches(*map(np.concatenate, zip(*parts, strict=True))), test.labels


def print_envelopes(manifest: Manifest, branches: Branches) -> None:
    """Say how many breakpoints a picture has, and what an envelope costs."""
    lines = branches.factual_logits, branches.counterfactual_logits
    low, high = _range(manifest)
    counts = np.array([len(each.breakpoints) for each in upper_envelopes(*lines, low=low, high=high)])
    print(
        f"{len(counts)} pictures, alpha in [{low:g}, {high:g}]: {counts.mean():.2f} breakpoints on average, "
        f"at most {counts.max()}, none for {(counts == 0).mean():.1%}"
    )
    alone = _microseconds(lambda: [upper_envelope(*row, low=low, high=high) for row in zip(*lines, strict=True)])
    together = _microseconds(lambda: upper_envelopes(*lines, low=low, high=high))
    print(f"an envelope: {alone / len(counts):.1f} us one by one, {together / len(counts):.1f} us many at a time")


def draws(
    replay: Replay, *, labels: int, number: int, objective: str, which: Which
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Tune on each draw and measure on what is left.

    Returns:
        One row a draw: alpha, prior_strength, the changes held out [4], the changes predicted [4]; and where tuning
        says to keep what there is.
    """
    generator, wanted, plain = np.random.default_rng(0), parse_objective(objective), Knobs(0.0)
    rows, keeps = [], []
    for _ in range(number):
        order = generator.permutation(len(replay))
        found = tune(_part(replay, order[:labels]), wanted, plain, which=which)
        rest, best = _part(replay, order[labels:]), found.best
        before, after = rest.curve(0.0).at(0.0), rest.curve(best.prior_strength).at(best.alpha)
        held, predicted = _changes(before, after), _changes(found.before, found.after)
        rows.append([best.alpha, best.prior_strength, *held, *predicted])
        keeps.append(found.keep is not None)
    return np.array(rows), np.array(keeps)


def print_draws(rows: NDArray[np.float64], keeps: NDArray[np.bool_]) -> None:
    means, spreads = rows.mean(axis=0), rows.std(axis=0)
    print(f"alpha {means[0]:.2f} +- {spreads[0]:.2f}, prior_strength {means[1]:.2f} +- {spreads[1]:.2f}")
    for place, name in enumerate(NAMES):
        held, said = 2 + place, 2 + len(NAMES) + place
        print(
            f"{name:8} {means[held]:+6.1%} +- {spreads[held]:.1%} on other pictures; on the labels themselves "
            f"{means[said]:+6.1%} +- {spreads[said]:.1%}"
        )
    print(f"'keep what you have' in {keeps.mean():.1%} of {len(keeps)} draws")


def _range(manifest: Manifest) -> tuple[float, float]:
    return manifest.alpha.minimum, manifest.alpha.maximum


def _microseconds(work: Callable[[], object], rounds: int = 5) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1e6


def _replay(manifest: Manifest, branches: Branches, labels: NDArray[np.int64]) -> Replay:
    rectangle = Rectangle(*_range(manifest), Settings().max_prior_strength)
    share = manifest.log_class_share()
    lines = branches.factual_logits, branches.counterfactual_logits
    kept = candidates(*lines, log_class_share=share, rectangle=rectangle)
    groups = [info.shot_group for info in manifest.classes]
    return Replay.of(kept, labels.tolist(), log_class_share=share, shot_groups=groups, rectangle=rectangle)


def _part(replay: Replay, rows: NDArray[np.int64]) -> Replay:
    columns = ("classes", "heights", "slopes", "labels")
    return replace(replay, **{name: getattr(replay, name)[rows] for name in columns})


def _changes(before: dict[str, float], after: dict[str, float]) -> Sequence[float]:
    return [after[name] - before[name] for name in NAMES]


def main() -> None:
    """Print what to expect."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.labels", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", help="where the pictures are; default: where the model was trained from")
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--objective", default="overall")
    parser.add_argument("--knobs", choices=("alpha", "both"), default="alpha")
    arguments = parser.parse_args()
    manifest, branches, labels = run_model(arguments.bundle, arguments.data)
    print_envelopes(manifest, branches)
    replay = _replay(manifest, branches, labels)
    print(f"{arguments.labels} labels, objective {arguments.objective}, from alpha 0:")
    found = draws(
        replay, labels=arguments.labels, number=arguments.draws, objective=arguments.objective, which=arguments.knobs
    )
    print_draws(*found)


if __name__ == "__main__":
    main()
