"""A client's policy: which knobs its requests get, and how many images it may send.

A policy is what an operator has decided, whatever the model; `fit` says what it means for the model that is served.
It knows neither storage nor HTTP.
"""

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from service.errors import PolicyMismatch
from service.manifest import ManifestDraft
from service.tradeoff import Floats

ANONYMOUS = ""
"""The name under which requests without a key are kept."""

OTHER = "other"
NAMELESS = "anonymous"
"""The labels, in the metrics, of clients without one of their own and of requests without a client."""


class Owner(NamedTuple):
    """Whose a prediction is: a client that was removed is not the one that has its name next.

    Attributes:
        name: the client's.
        made_at: when it was made, by the clock of whoever made it: to be told apart by, and never held against another
            clock.
    """

    name: str
    made_at: float


NOBODY = Owner(ANONYMOUS, 0.0)
"""Whose predictions are that a request without a key has got."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _is_free(name: str) -> str:
    if name in (OTHER, NAMELESS):
        raise ValueError(f"{name!r} stands for others in the metrics; choose another name")
    return name


def can_be_name(text: str) -> bool:
    """Return whether a client may have this name; not every database takes every other text, such as a NUL.

    >>> can_be_name("shop"), can_be_name("a b"), can_be_name("shop\\n")
    (True, False, False)
    """
    return bool(re.fullmatch(NAME_PATTERN, text))


ClientName = Annotated[str, Field(pattern=NAME_PATTERN), AfterValidator(_is_free)]
AlphaSource = Literal["request", "client", "model"]

_Knob = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e6, le=1e6)]
_Strength = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=100)]


_LEAST_SHARE, _ROUNDED = 1e-9, 1e-6
"""The least share of a class, of all; by how much shares that sum to 1 may miss it."""


class ClientPolicy(BaseModel):
    """What is decided for one client; whatever is None is left to the model and the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: _Knob | None = Field(None, description="alpha of requests that name none")
    alpha_min: _Knob | None = Field(None, description="lowest alpha that a request may ask for")
    alpha_max: _Knob | None = Field(None, description="highest alpha that a request may ask for")
    prior_strength: _Strength | None = Field(None, description="prior_strength of requests that name none")
    max_prior_strength: _Strength | None = Field(None, description="highest prior_strength that a request may ask for")
    images_per_second: Annotated[float, Field(strict=True, gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        None, description="most images a second, on average, in each process of the service"
    )
    target_distribution: dict[str, Annotated[float, Field(strict=True, gt=0, le=1e12, allow_inf_nan=False)]] | None = (
        Field(None, description="how frequent each class is in this client's traffic, by name; made to sum to 1")
    )

    @field_validator("target_distribution")
    @classmethod
    def _sums_to_one(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        if shares is None:
            return None
        total = sum(shares.values())
        if len(shares) < 2:
            raise ValueError("target_distribution needs a share for every class of the model")
        rarest = min(shares, key=lambda name: shares[name])
        rounded = abs(total - 1) <= _ROUNDED
        if shares[rarest] < _LEAST_SHARE * (0.5 if rounded else total):
            raise ValueError(f"the share of {rarest!r} is below {_LEAST_SHARE:g} of the whole; make it larger")
        if rounded:  # what is kept is read again as it is, or its labels would belong to another
            return shares
        return {name: round(share / total, 12) for name, share in shares.items()}

    @model_validator(mode="after")
    def _defaults_lie_within_their_bounds(self) -> Self:
        bounds = [value for value in (self.alpha_min, self.alpha, self.alpha_max) if value is not None]
        if bounds != sorted(bounds):
            names = ("alpha_min", "alpha", "alpha_max")
            given = ", ".join(f"{name} {value:g}" for name in names if (value := getattr(self, name)) is not None)
            raise ValueError(f"a policy needs alpha_min <= alpha <= alpha_max, got {given}; change one of them")
        if None not in (self.prior_strength, self.max_prior_strength) and (
            (self.prior_strength or 0) > (self.max_prior_strength or 0)
        ):
            raise ValueError(
                f"a policy needs prior_strength <= max_prior_strength, got {self.prior_strength} and "
                f"{self.max_prior_strength}; change one of them"
            )
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a client's requests get of one model.

    Attributes:
        alpha, alpha_source: the alpha of a request that names none, and who chose it.
        alpha_min, alpha_max: the range that its requests may choose from.
        prior_strength, max_prior_strength: likewise, from 0.
        log_target: log of each class's share in the client's traffic less the mean over classes, [C]; None: not stated.
        target_version: a short hash of that distribution, '' where none is stated.
    """

    alpha: float
    alpha_source: AlphaSource
    alpha_min: float
    alpha_max: float
    prior_strength: float
    max_prior_strength: float
    log_target: Floats | None = None
    target_version: str = ""


def fit(policy: ClientPolicy, manifest: ManifestDraft, max_prior_strength: float) -> Terms:
    """Return what a policy means for a model: the narrower of both ranges, the client's default before the model's.

    Args:
        policy: the client's.
        manifest: the model's.
        max_prior_strength: the largest that the settings allow; a detector has none.

    Raises:
        PolicyMismatch: the ranges do not meet, a default lies outside, the target names other classes, or the policy
            sets what a detector does not have.
    """
    if manifest.task == "detection":
        _refuse_what_no_detector_has(policy)
        max_prior_strength = 0.0
    model = manifest.alpha
    low, high = _least(policy.alpha_min, model.minimum), _most(policy.alpha_max, model.maximum)
    strengths = _most(policy.max_prior_strength, max_prior_strength)
    if low > high:
        raise _mismatch(
            "alpha_min", low, f"leaves nothing of the model's range, {model.minimum:g} to {model.maximum:g}"
        )
    if policy.alpha is not None and not low <= policy.alpha <= high:
        raise _mismatch("alpha", policy.alpha, f"lies outside {low:g} to {high:g}")
    if policy.prior_strength is not None and policy.prior_strength > strengths:
        raise _mismatch("prior_strength", policy.prior_strength, f"lies above {strengths:g}")
    alpha = min(max(model.default, low), high) if policy.alpha is None else policy.alpha
    log_target = None
    if policy.target_distribution is not None:
        log_target = _log_target(policy.target_distribution, [info.name for info in manifest.classes])
    return Terms(
        alpha=alpha + 0.0,  # -0.0 is 0
        alpha_source="model" if policy.alpha is None and alpha == model.default else "client",
        alpha_min=low,
        alpha_max=high,
        prior_strength=policy.prior_strength or 0.0,
        max_prior_strength=strengths,
        log_target=log_target,
        target_version=target_version(policy.target_distribution),
    )


def target_version(shares: dict[str, float] | None) -> str:
    """Return a short hash of a target distribution, '' for none."""
    return sha256(json.dumps(shares, sort_keys=True).encode()).hexdigest()[:16] if shares else ""


def log_target_of(shares: dict[str, float], names: list[str]) -> Floats:
    """Return the logarithm of each class's share less its mean over the classes, [C], in the order of `names`.

    >>> log_target_of({"cat": 0.5, "dog": 0.5}, ["dog", "cat"]).tolist()
    [0.0, 0.0]
    """
    logs = np.log(np.array([shares[name] for name in names], dtype=np.float64))
    centred: Floats = logs - logs.mean()
    return centred


def _refuse_what_no_detector_has(policy: ClientPolicy) -> None:
    if policy.prior_strength:
        raise _mismatch("prior_strength", policy.prior_strength, "is for classification, and the model is a detector")
    if policy.target_distribution:
        classes = f"{len(policy.target_distribution)} classes"
        raise _mismatch("target_distribution", classes, "is for classification, and the model is a detector")


def _log_target(shares: dict[str, float], names: list[str]) -> Floats:
    unknown, missing = [name for name in shares if name not in names], [name for name in names if name not in shares]
    if unknown or missing:
        what = "names a class that the model lacks" if unknown else "lacks a class of the model"
        raise _mismatch("target_distribution", (unknown or missing)[0], what)
    return log_target_of(shares, names)


def _least(chosen: float | None, bound: float) -> float:
    return bound if chosen is None else max(chosen, bound)


def _most(chosen: float | None, bound: float) -> float:
    return bound if chosen is None else min(chosen, bound)


def _mismatch(field: str, value: str | float, what: str) -> PolicyMismatch:
    return PolicyMismatch(
        f"The client's {field} {what}.",
        field=field,
        value=value,
        remedy="Change the client's policy to fit the model that is served; GET /model says its range and its classes.",
    )
