import numpy as np
import pytest

from trainer.detection.picture_sampling import class_counts, epoch_batches, repeat_factors

WIDE = np.array([True, False, True, True, False, True, True])


def test_repeat_factors_are_those_of_the_formula() -> None:
    labels = [np.array(row, dtype=np.int64) for row in ([0], [0, 1], [0, 2], [], [0], [0], [0], [0])]
    share = np.array([7, 1, 1]) / 8
    expected = [max([1.0, *(max(1.0, (0.5 / share[c]) ** 0.5) for c in row)]) for row in labels]
    assert repeat_factors(labels, 3, 0.5) == pytest.approx(expected)
    assert repeat_factors(labels, 3, 0.5)[1] == 2
    assert repeat_factors(labels, 3, 0.001).tolist() == [1] * 8
    assert class_counts(labels, 4).tolist() == [7, 1, 1, 0]


def test_each_picture_comes_once_and_wide_ones_stay_with_wide_ones() -> None:
    batches = epoch_batches(WIDE, None, batch_size=2, least=1, seed=0, epoch=3)
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert [len(batch) for batch in batches].count(1) == 1
    assert sum(WIDE[batch].all() or not WIDE[batch].any() for batch in batches) >= 3
    again = epoch_batches(WIDE, None, batch_size=2, least=1, seed=0, epoch=3)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    others = [epoch_batches(WIDE, None, batch_size=2, least=1, seed=s, epoch=e) for s, e in ((0, 4), (1, 3))]
    assert all([row.tolist() for row in other] != [row.tolist() for row in batches] for other in others)


def test_a_batch_with_fewer_pictures_than_processes_is_left_out() -> None:
    assert sum(len(batch) for batch in epoch_batches(WIDE, None, batch_size=2, least=2, seed=0, epoch=0)) == 6


def test_pictures_come_as_often_as_their_factor_says_on_average() -> None:
    factors = np.array([1, 2, 2.5, 1, 1, 1.25, 1])
    times = np.zeros(7)
    for epoch in range(400):
        rows = np.concatenate(epoch_batches(WIDE, factors, batch_size=3, least=1, seed=0, epoch=epoch))
        times += np.bincount(rows, minlength=7)
    assert times / 400 == pytest.approx(factors, abs=0.1)
    assert times[[0, 1]].tolist() == [400, 800]
