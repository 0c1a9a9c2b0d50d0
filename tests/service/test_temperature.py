import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import softmax

from service.bundle import Bundle, read_bundle, write_bundle
from service.manifest import content_version
from service.scoring import Branches, Knobs, score
from service.temperature import Calibration
from tests.service.conftest import COUNTS, make_draft, make_parity

CALIBRATION = Calibration(log_temperature=(0.5, -0.3, 0.1, -0.2, 0.05, 0.2), images=40)
LOG_SHARE = np.log(np.array(COUNTS) / sum(COUNTS))
coefficients = st.tuples(*[st.floats(-20, 20)] * 6)


def branches(samples: int) -> Branches:
    generator = np.random.default_rng(3)
    factual, counterfactual = generator.normal(scale=5, size=(2, samples, len(COUNTS))).astype(np.float32)
    return Branches(factual, counterfactual, np.full((samples, 2), 0.5, np.float32))


def test_the_temperature_is_the_formula_and_stays_as_it_is_beyond_the_largest_strength() -> None:
    assert CALIBRATION.temperature(0.0, 0.0) == pytest.approx(np.exp(0.5))
    expected = np.exp(0.5 - 0.3 * 2 + 0.1 * 4 - 0.2 * 0.5 + 0.05 * 0.25 + 0.2 * 2 * 0.5)
    assert CALIBRATION.temperature(2.0, 0.5) == pytest.approx(expected)
    assert CALIBRATION.temperature(2.0, 4.0) == CALIBRATION.temperature(2.0, 1.0)


@given(coefficients, st.floats(-100, 100), st.floats(0, 100))
def test_a_temperature_is_a_positive_number_wherever_the_knobs_are(
    numbers: tuple[float, ...], alpha: float, strength: float
) -> None:
    temperature = Calibration.model_validate({"log_temperature": numbers, "images": 1}).temperature(alpha, strength)
    assert 0.04 < temperature < 21


def test_probabilities_follow_the_temperature_of_their_own_knobs_and_nothing_else_does() -> None:
    of = branches(4)
    knobs = [Knobs(0.0), Knobs(1.5), Knobs(3.0, 1.0), Knobs(0.5, 4.0)]
    plain = score(of, knobs, log_class_share=LOG_SHARE, low=0.0, high=3.0)
    calibrated = score(of, knobs, log_class_share=LOG_SHARE, low=0.0, high=3.0, calibration=CALIBRATION)
    for before, after, (alpha, strength, _) in zip(plain, calibrated, knobs, strict=True):
        temperature = CALIBRATION.temperature(alpha, strength)
        np.testing.assert_allclose(after.probabilities, softmax(before.logits / temperature), rtol=1e-12)
        np.testing.assert_array_equal(after.logits, before.logits)
        np.testing.assert_array_equal(after.ranking, before.ranking)
        np.testing.assert_array_equal(after.envelope.breakpoints, before.envelope.breakpoints)
        assert after.plain_winner == before.plain_winner


def test_a_bundle_keeps_its_calibration(tmp_path: Path) -> None:
    files = {"parity.npz": make_parity().to_bytes()}
    write_bundle(tmp_path / "b", make_draft(calibration=CALIBRATION), models={"fp32": b""}, files=files)
    assert read_bundle(tmp_path / "b").manifest.calibration == CALIBRATION


def test_a_bundle_of_an_earlier_release_has_none_and_is_read_as_it_is(paper_bundle: Bundle) -> None:
    path = paper_bundle.path / "manifest.json"
    content = json.loads(path.read_text())
    del content["calibration"]
    path.write_text(json.dumps(content | {"version": content_version(content)}))
    assert read_bundle(paper_bundle.path).manifest.calibration is None


@pytest.mark.parametrize("numbers", [(0.0,) * 5, (0.0,) * 5 + (float("nan"),), (0.0,) * 5 + (1e3,)])
def test_coefficients_that_cannot_be_are_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="log_temperature"):
        Calibration.model_validate({"log_temperature": numbers, "images": 1})
