import numpy as np

from trainer.inference import Branches
from trainer.showcase import RESCUED, SPOILED, STEADY, choose_showcase


def pictures(*kinds: str, labels: list[int]) -> Branches:
    """Pictures of three classes that alpha 1 rescues or spoils, or that are right or wrong at any alpha."""
    factual, counterfactual = np.zeros((2, len(kinds), 3))
    for row, (kind, label) in enumerate(zip(kinds, labels, strict=True)):
        plain = label if kind in {"spoiled", "right"} else (label + 1) % 3
        factual[row, plain], factual[row, (plain + 2) % 3] = 2, 1
        counterfactual[row, plain] = 3 * (kind in {"spoiled", "rescued"})
    return Branches(factual, counterfactual, np.zeros((len(kinds), 1)), np.array(labels))


def test_some_of_each_kind_are_chosen() -> None:
    kinds = ["wrong"] * 9 + ["right"] * 9 + ["spoiled"] * 9 + ["rescued"] * 9
    chosen = [kinds[row] for row in choose_showcase(pictures(*kinds, labels=[0] * len(kinds)), 1.0)]
    assert chosen == ["rescued"] * RESCUED + ["spoiled"] * SPOILED + ["right"] * STEADY


def test_what_one_kind_lacks_the_next_fill_up() -> None:
    kinds = ["wrong"] * 3 + ["right"] * 4 + ["rescued"]
    chosen = [kinds[row] for row in choose_showcase(pictures(*kinds, labels=[0] * len(kinds)), 1.0)]
    assert chosen == ["rescued"] + ["right"] * 4 + ["wrong"] * 3


def test_different_classes_come_first() -> None:
    branches = pictures(*["rescued"] * 6, labels=[0, 0, 0, 1, 1, 2])
    assert choose_showcase(branches, 1.0).tolist() == [0, 3, 5, 1, 4]
