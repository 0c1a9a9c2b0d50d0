import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.tiny import patient
from trainer.config import LongTail
from trainer.errors import TrainerError
from trainer.long_tail import hold_out, long_tail_counts, select_long_tail

profiles = st.sampled_from(["exponential", "step"])
counts_of_classes = st.lists(st.integers(1, 600), min_size=2, max_size=30).map(np.array)


@pytest.mark.parametrize(("factor", "total"), [(10, 19573), (20, 15907), (50, 12608), (100, 10847), (200, 9502)])
def test_cifar100_lt_has_its_published_counts(factor: int, total: int) -> None:
    counts = long_tail_counts(np.full(100, 500), LongTail(profile="exponential", imbalance_factor=factor))
    assert counts.sum() == total
    assert counts.tolist() == [int(500 * (1 / factor) ** (c / 99) + 1e-9) for c in range(100)]
    assert (counts[0], counts[-1]) == (500, 500 // factor)


def test_a_long_tail_of_a_long_tail_is_that_of_the_whole() -> None:
    at_10 = long_tail_counts(np.full(100, 500), LongTail(profile="exponential", imbalance_factor=10))
    at_100 = long_tail_counts(at_10, LongTail(profile="exponential", imbalance_factor=100))
    again = long_tail_counts(at_10, LongTail(profile="exponential", imbalance_factor=10))
    assert at_100.sum() == 10847
    assert (again == at_10).all()


def test_the_step_keeps_half_the_classes_whole() -> None:
    counts = long_tail_counts(np.full(5, 100), LongTail(profile="step", imbalance_factor=20))
    assert counts.tolist() == [100, 100, 100, 5, 5]


@patient
@given(counts_of_classes, profiles, st.floats(1, 300))
def test_no_class_gives_more_than_it_has_and_none_follows_a_smaller_one(
    available: np.ndarray, profile: str, factor: float
) -> None:
    counts = long_tail_counts(available, LongTail(profile=profile, imbalance_factor=factor))
    assert (counts <= available).all()
    assert (np.diff(counts) <= 0).all()
    assert counts[0] // factor <= counts[-1] + 1


@patient
@given(counts_of_classes, profiles)
def test_without_imbalance_every_class_keeps_as_many_as_the_smallest_has(available: np.ndarray, profile: str) -> None:
    counts = long_tail_counts(available, LongTail(profile=profile, imbalance_factor=1))
    assert set(counts.tolist()) == {available.min()}


@patient
@given(st.data(), profiles, st.none() | st.integers(0, 2**63 - 1))
def test_the_rows_that_stay_have_the_counts_and_their_old_order(
    data: st.DataObject, profile: str, seed: int | None
) -> None:
    labels = np.array(data.draw(st.permutations([0] * 40 + [1] * 40 + [2] * 40)))
    tail = LongTail(profile=profile, imbalance_factor=8, seed=seed)
    rows = select_long_tail(labels, 3, tail)
    assert (np.diff(rows) > 0).all()
    assert np.bincount(labels[rows]).tolist() == long_tail_counts(np.full(3, 40), tail).tolist()
    assert (rows == select_long_tail(labels, 3, tail)).all()


def test_without_a_seed_the_first_rows_of_each_class_stay() -> None:
    labels = np.array([1, 0, 0, 1, 0, 1])
    rows = select_long_tail(labels, 2, LongTail(profile="exponential", imbalance_factor=3))
    assert rows.tolist() == [0, 1, 2, 4]


def test_seeds_choose_different_rows() -> None:
    labels = np.repeat([0, 1], 100)
    choices = [
        select_long_tail(labels, 2, LongTail(profile="step", imbalance_factor=10, seed=seed)).tolist()
        for seed in (0, 1, 0)
    ]
    assert choices[0] == choices[2] != choices[1]


def test_no_profile_keeps_every_row() -> None:
    assert select_long_tail(np.array([2, 0, 2]), 3, LongTail()).tolist() == [0, 1, 2]


def test_a_tail_that_leaves_a_class_empty_is_refused_by_the_factor_and_the_class() -> None:
    with pytest.raises(TrainerError, match=r"imbalance_factor: 1000 leaves class 1 without an image .*class 0 keeps 9"):
        select_long_tail(np.repeat([0, 1, 2], [9, 9, 1]), 3, LongTail(profile="exponential", imbalance_factor=1000))


@patient
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array), st.floats(0, 0.99), st.integers(0, 9))
def test_validation_takes_its_share_of_each_class_and_nothing_is_lost(
    labels: np.ndarray, share: float, seed: int
) -> None:
    kept, held_out = hold_out(labels, share, seed)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    counts = np.bincount(labels)
    assert (np.bincount(labels[held_out], minlength=len(counts)) == (counts * share).astype(int)).all()
    assert (np.bincount(labels[kept], minlength=len(counts))[counts > 0] > 0).all()
