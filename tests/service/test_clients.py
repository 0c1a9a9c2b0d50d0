import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.clients import ClientPolicy, fit
from service.errors import PolicyMismatch
from service.rates import TokenBucket
from tests.service.fakes import make_manifest

MANIFEST = make_manifest()  # alpha 1.0 of 0..3
NAMES = [info.name for info in MANIFEST.classes]


def test_what_a_policy_leaves_open_is_the_models() -> None:
    terms = fit(ClientPolicy(), MANIFEST, 4.0)
    assert (terms.alpha, terms.alpha_source, terms.alpha_min, terms.alpha_max) == (1.0, "model", 0.0, 3.0)
    assert (terms.prior_strength, terms.max_prior_strength, terms.log_target) == (0.0, 4.0, None)


def test_the_narrower_range_counts_and_the_clients_default_comes_first() -> None:
    policy = ClientPolicy(alpha=2, alpha_min=0.5, alpha_max=9, prior_strength=0.5, max_prior_strength=9)
    terms = fit(policy, MANIFEST, 4.0)
    assert (terms.alpha, terms.alpha_source, terms.alpha_min, terms.alpha_max) == (2.0, "client", 0.5, 3.0)
    assert (terms.prior_strength, terms.max_prior_strength) == (0.5, 4.0)


def test_less_than_nothing_is_nothing() -> None:
    assert str(fit(ClientPolicy(alpha=-0.0, prior_strength=-0.0), MANIFEST, 4.0).alpha) == "0.0"


def test_bounds_that_leave_the_models_default_out_move_it_in() -> None:
    terms = fit(ClientPolicy(alpha_max=0.5), MANIFEST, 4.0)
    assert (terms.alpha, terms.alpha_source) == (0.5, "client")


def test_a_target_distribution_has_one_version_in_whatever_order_it_is_stated() -> None:
    shares = {name: 1 / len(NAMES) + index / 100 for index, name in enumerate(NAMES)}
    there, back = (
        fit(ClientPolicy(target_distribution=dict(items)), MANIFEST, 4.0).target_version
        for items in (shares.items(), reversed(shares.items()))
    )
    other = fit(ClientPolicy(target_distribution=dict.fromkeys(NAMES, 1.0)), MANIFEST, 4.0).target_version
    assert there == back
    assert there != other


def test_a_target_distribution_is_normalised_and_centred_in_the_models_order() -> None:
    policy = ClientPolicy(target_distribution={name: 2.0**index for index, name in enumerate(reversed(NAMES))})
    assert sum((policy.target_distribution or {}).values()) == pytest.approx(1)
    log_target = fit(policy, MANIFEST, 4.0).log_target
    assert log_target is not None
    np.testing.assert_allclose(log_target, np.log(2) * np.array([2, 1, 0, -1, -2]), atol=1e-9)


@pytest.mark.parametrize(
    ("policy", "field", "value"),
    [
        (ClientPolicy(alpha_min=5), "alpha_min", 5),
        (ClientPolicy(alpha=3.5), "alpha", 3.5),
        (ClientPolicy(prior_strength=5), "prior_strength", 5),
        (ClientPolicy(target_distribution={"class 0": 1, "class 1": 1}), "target_distribution", "class 2"),
        (ClientPolicy(target_distribution=dict.fromkeys([*NAMES, "cat"], 1.0)), "target_distribution", "cat"),
    ],
)
def test_a_policy_that_does_not_fit_the_model_is_refused_by_name(
    policy: ClientPolicy, field: str, value: str | float
) -> None:
    with pytest.raises(PolicyMismatch) as caught:
        fit(policy, MANIFEST, 4.0)
    assert (caught.value.field, caught.value.value) == (field, value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 2, "alpha_max": 1}, "alpha_min <= alpha <= alpha_max"),
        ({"alpha_min": 2, "alpha_max": 1}, "alpha_min <= alpha <= alpha_max, got alpha_min 2, alpha_max 1; change"),
        ({"prior_strength": 2, "max_prior_strength": 1}, "prior_strength <= max_prior_strength"),
        ({"alpha": float("nan")}, "finite number"),
        ({"images_per_second": 0}, "greater than 0"),
        ({"target_distribution": {"cat": 1}}, "every class"),
        ({"target_distribution": {"cat": 1, "dog": 0}}, "greater than 0"),
        ({"target_distribution": {"cat": 1, "dog": 1e-13}}, "share of 'dog' is below 1e-09 of the whole"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClientPolicy.model_validate(fields)


@given(shares=st.lists(st.floats(1e-3, 1e3) | st.just(1e-3), min_size=2, max_size=300))
def test_a_policy_that_is_kept_is_read_again_as_it_is(shares: list[float]) -> None:
    target = {f"class {index}": share for index, share in enumerate(shares)}
    kept = ClientPolicy.model_validate({"target_distribution": target})
    assert ClientPolicy.model_validate_json(kept.model_dump_json()) == kept


def test_the_average_holds_whatever_the_sizes() -> None:
    bucket = TokenBucket(rate=10)
    now, taken = 0.0, 0
    for step in range(4000):
        now = step * 0.01
        count = (1, 7, 32)[step % 3]
        taken += count if bucket.take(count, now) == 0 else 0
    assert taken / now == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("rate", [1e-300, 5e-324])
def test_who_may_send_next_to_nothing_is_told_to_come_back_tomorrow(rate: float) -> None:
    bucket = TokenBucket(rate)
    assert [bucket.take(1, 0.0), bucket.take(1, 0.0)] == [0, 86_400]


def test_whoever_comes_back_when_told_is_let_in() -> None:
    bucket = TokenBucket(rate=0.5)
    assert bucket.take(3, 0.0) == 0
    wait = bucket.take(1, 0.0)
    assert wait > 0
    assert bucket.take(1, float(wait)) == 0
