"""From a client's kept predictions and labels to what they say of its knobs. It knows neither HTTP nor the terminal."""

from dataclasses import dataclass

from service.clients import fit
from service.manifest import ManifestDraft
from service.objectives import Objective
from service.policy_store import PolicyStore
from service.prediction_store import PredictionStore
from service.replay import Candidates, Rectangle, Replay
from service.scoring import Knobs
from service.tune import Tuning, Which, labels_lacking, tune

MOST_LABELS = 5000
"""The newest are enough: a recommendation from so many is sure, and traffic changes."""


@dataclass(frozen=True, eq=False)
class Study:
    """What is known of a client's trade-off.

    Attributes:
        client: whose.
        model: the version of the model that its labels are of; None: none that the database knows is served.
        current: the knobs of its requests that name none.
        labels: how many labelled predictions were found.
        tuning: what they say; None where they do not suffice.
        keep: why the current knobs should stay; None: they should change to `tuning.best`.
    """

    client: str
    model: str | None
    current: Knobs | None
    labels: int
    tuning: Tuning | None
    keep: str | None


def study(
    name: str,
    objective: Objective,
    which: Which,
    *,
    model: str | None,
    policies: PolicyStore,
    predictions: PredictionStore,
    max_prior_strength: float,
) -> Study:
    """Return what the newest labelled predictions that a model made for the client say.

    Only predictions under its present target distribution count, and only knobs within its bounds.

    Args:
        name: the client's.
        objective: what to make large.
        which: the knobs to choose.
        model: the version that is served: what labels of another's predictions say does not hold for it.
        policies, predictions: where to read.
        max_prior_strength: the largest that a request may ask for.

    Raises:
        UnknownClient: there is no such client.
        PolicyMismatch: its policy does not fit the model.
        StoreUnavailable: the database is away.
    """
    policy = policies.client(name).policy
    manifest = None if model is None else predictions.model(model)
    if model is None or manifest is None:
        reason = (
            "no model was served on this database yet"
            if model is None
            else f"the database does not know the model {model} yet"
        )
        return Study(name, None, None, 0, None, reason)
    if manifest.task == "detection":
        return Study(name, model, None, 0, None, f"{manifest.name}, which is served, is a detector and takes no labels")
    terms = fit(policy, manifest, max_prior_strength)
    kept = predictions.labelled(name, model=model, target=terms.target_version, limit=MOST_LABELS)
    strongest = min([terms.max_prior_strength, *(each.max_prior_strength for each in kept)])
    current = Knobs(terms.alpha, min(terms.prior_strength, strongest))
    if not kept:
        has_none = predictions.label_count(name, model) is None
        unlabelled = f"none of its predictions by {manifest.name} {model}, which is served, has a label yet"
        changed = "no label since its target distribution changed"
        return Study(name, model, current, 0, None, unlabelled if has_none else changed)
    if not terms.alpha_min < terms.alpha_max:
        return Study(name, model, current, len(kept), None, "its bounds leave one alpha alone")
    classes = len(manifest.classes)
    replay = Replay.of(
        [Candidates.unpack(each.candidates, classes) for each in kept],
        [each.label for each in kept],
        log_class_share=manifest.log_class_share(),
        log_target=terms.log_target,
        shot_groups=_shot_groups(manifest),
        rectangle=Rectangle(terms.alpha_min, terms.alpha_max, strongest),
    )
    lacking = labels_lacking(replay, objective)
    if lacking is not None:
        return Study(name, model, current, len(kept), None, lacking)
    tuning = tune(replay, objective, current, which=which)
    return Study(name, model, current, len(kept), tuning, tuning.keep)


def apply(best: Knobs, name: str, which: Which, *, policies: PolicyStore, who: str) -> None:
    """Set the client's knobs: alpha, and prior_strength where both were tuned.

    Raises:
        UnknownClient: there is no such client.
    """
    changes = {"alpha": best.alpha} | ({"prior_strength": best.prior_strength} if which == "both" else {})
    policies.set(name, changes, who=who)


def _shot_groups(manifest: ManifestDraft) -> list[str]:
    return [info.shot_group for info in manifest.classes]
