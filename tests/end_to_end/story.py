"""Two clients, one model: each with its own lean, and one that learns its lean from labels of its own traffic.

As a command it tells the story on the test pictures of a bundle and prints the figures: once with one process on
SQLite, and once with two on a PostgreSQL of its own, of which one is killed halfway.

    python -m tests.end_to_end.story bundles/cifar100_lt --data ../shared/data/cifar100-lt
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.bundle import read_bundle
from tests import plain_http
from tests.end_to_end.http_predictions import png
from tests.end_to_end.stage import Answer, Stage, staged
from trainer.config import Recipe
from trainer.data import decode
from trainer.runs import with_data
from trainer.sources import load_source

GROUPS = ("many", "medium", "few")


@dataclass(frozen=True)
class Cast:
    """Test pictures as PNG with their labels: some to learn from, others to see whether it holds."""

    learn: list[bytes]
    learn_labels: NDArray[np.int64]
    hold: list[bytes]
    hold_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Ending:
    """What came of it.

    Attributes:
        alpha, prior_strength: what tuning chose.
        before, after: accuracies on the pictures to hold, by name.
        predicted: the changes that replay of the labelled pictures predicted, by name.
        noise: the standard error of the change on the pictures to hold, by name.
        said: what `service tune` printed.
    """

    alpha: float
    prior_strength: float
    before: dict[str, float]
    after: dict[str, float]
    predicted: dict[str, float]
    noise: dict[str, float]
    said: str

    def change(self, name: str) -> float:
        return self.after[name] - self.before[name]


def read_cast(bundle: Path, data: str | None, *, size: int, seed: int = 0) -> Cast:
    """Draw test pictures of a bundle's data: `size` to learn from and as many others."""
    recipe = with_data(Recipe.model_validate(read_bundle(bundle).manifest.provenance["recipe"]), data)
    test = load_source(recipe.data).test
    drawn = np.random.default_rng(seed).permutation(len(test))[: 2 * size]
    pictures = [png(decode(test, row, recipe.input)) for row in drawn.tolist()]
    labels = test.labels[drawn]
    return Cast(pictures[:size], labels[:size], pictures[size:], labels[size:])


def tell(stage: Stage, cast: Cast, *, objective: str, knobs: str) -> Ending:
    """Tell the story, and hold every step of it to what is promised."""
    classes = plain_http.get(f"{stage.addresses[0]}/model").json()["classes"]
    groups, names = np.array([each["shot_group"] for each in classes]), [each["name"] for each in classes]

    # Two clients with different bounds, the same picture, different winners: in every process alike.
    album = stage.cli("clients", "add", "album", "--alpha", "0", "--alpha-max", "0.3").split()[0]
    rescue = stage.cli("clients", "add", "rescue", "--alpha", "2").split()[0]
    stage.wait_for_key(rescue)
    picture = _told_apart(stage, album, rescue, cast)
    for address in stage.addresses:
        first, second = (stage.predict(key, [picture], address)[0] for key in (album, rescue))
        assert (first["alpha"], second["alpha"], first["alpha_source"]) == (0.0, 2.0, "client")
        assert first["predictions"][0]["index"] != second["predictions"][0]["index"]
        refused = stage.refusal(album, picture, 2.0, address)
        assert refused.status_code == 422
        assert "between 0 and 0.3" in refused.json()["message"]

    # The second starts plain and sends the true classes of its pictures.
    stage.cli("clients", "set", "rescue", "--alpha", "0")
    stage.wait_for_alpha(rescue, picture, 0.0)
    answers = stage.predict(rescue, cast.learn)
    right_before = winners(stage.predict(rescue, cast.hold)) == cast.hold_labels
    sent = [
        {"prediction_id": answer["prediction_id"], "label": names[label]}
        for answer, label in zip(answers, cast.learn_labels.tolist(), strict=True)
    ]
    acknowledged = stage.label(rescue, sent)
    assert acknowledged == len(cast.learn)

    # No acknowledged label is lost, and replay at the knobs in use is what was served.
    found, *others = (
        stage.tradeoff("rescue", address, objective=objective, knobs=knobs) for address in stage.addresses
    )
    assert found["labels"] == acknowledged
    assert all((other["labels"], other["best"]) == (acknowledged, found["best"]) for other in others)
    served = accuracies(winners(answers) == cast.learn_labels, groups[cast.learn_labels])
    assert {name: found["before"][name] for name in served} == pytest.approx(served, abs=1e-9)

    # Tuning moves its knobs in every process, and the other client's stay.
    said = stage.cli("tune", "rescue", "--objective", objective, "--knobs", knobs, "--apply")
    assert "Applied to rescue" in said, said
    assert f"tune {objective}" in stage.cli("clients", "show", "rescue")
    stage.wait_for_alpha(rescue, picture, found["best"]["alpha"])
    right_after = winners(stage.predict(rescue, cast.hold)) == cast.hold_labels
    assert {stage.predict(album, [picture], address)[0]["alpha"] for address in stage.addresses} == {0.0}
    held = groups[cast.hold_labels]
    return Ending(
        **found["best"],
        before=accuracies(right_before, held),
        after=accuracies(right_after, held),
        predicted={name: found["after"][name] - found["before"][name] for name in served},
        noise=_noise(right_after.astype(float) - right_before, held),
        said=said,
    )


def _told_apart(stage: Stage, album: str, rescue: str, cast: Cast) -> bytes:
    """Return a picture of which the two clients get different winners."""
    some = cast.learn[:100]
    first, second = (winners(stage.predict(key, some)) for key in (album, rescue))
    return some[int(np.flatnonzero(first != second)[0])]


def winners(answers: list[Answer]) -> NDArray[np.int64]:
    return np.array([answer["predictions"][0]["index"] for answer in answers])


def accuracies(right: NDArray[np.bool_], groups: NDArray[np.str_]) -> dict[str, float]:
    return {"overall": float(right.mean())} | {name: float(right[groups == name].mean()) for name in GROUPS}


def _noise(changes: NDArray[np.float64], groups: NDArray[np.str_]) -> dict[str, float]:
    """Return the standard error of the mean change, over all pictures and over each group's."""
    parts = {"overall": changes} | {name: changes[groups == name] for name in GROUPS}
    return {name: float(part.std() / np.sqrt(len(part))) for name, part in parts.items()}


def report(ending: Ending) -> str:
    """Return the figures as a table."""
    rows = [f"alpha {ending.alpha:.3f}, prior_strength {ending.prior_strength:.3f}", ""]
    rows.append(f"{'on other pictures':18}  before   after  change  predicted")
    for name, before in ending.before.items():
        rows.append(
            f"{name:18}  {before:6.3f}  {ending.after[name]:6.3f}  {ending.change(name):+6.3f}"
            f"  {ending.predicted[name]:+9.3f}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell the story of two clients on a bundle's test pictures.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", help="where the pictures are; default: where the model was trained from")
    parser.add_argument("--labels", type=int, default=500, help="pictures to learn from, and as many to hold")
    parser.add_argument("--objective", default="overall")
    parser.add_argument("--knobs", choices=("alpha", "both"), default="alpha")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--seed", type=int, default=0, help="of drawing the pictures")
    arguments = parser.parse_args()
    cast = read_cast(arguments.bundle, arguments.data, size=arguments.labels, seed=arguments.seed)
    for database in arguments.database or ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory() as folder, staged(arguments.bundle, Path(folder), database) as stage:
            print(f"{database}, {len(stage.addresses)} process(es):")
            ending = tell(stage, cast, objective=arguments.objective, knobs=arguments.knobs)
            print(f"{ending.said}\n{report(ending)}\n")


if __name__ == "__main__":
    main()
