"""Activation maps for the answers of those who ask for them by `explain=true`. It knows nothing of batches."""

from collections.abc import Callable, Sequence
from typing import Any

from service.bundle import ActivationMaps, area_at_half_energy
from service.errors import InvalidParameter
from service.predictor import Explained
from service.routes.answers import Answer
from service.routes.context import Service

Explain = Callable[[Sequence[Answer], Sequence[Explained]], None]


def explainer(service: Service) -> Explain:
    """Return what adds activation maps to answers.

    Raises:
        InvalidParameter: the model's bundle does not bring its classifier.
    """
    maps, reference = service.exhibits.activation_maps, service.answers.reference
    if maps is None:
        raise InvalidParameter(
            "The bundle of this model does not bring its classifier, from which activation maps are made.",
            field="explain",
            value=True,
            remedy="Leave explain out, or have the run exported anew; a model whose logits are no average over the "
            "places of its feature map has no such maps.",
        )

    def explain(answers: Sequence[Answer], outcomes: Sequence[Explained]) -> None:
        for answer, outcome in zip(answers, outcomes, strict=True):
            winner, plain, alpha = answer["predictions"][0]["index"], answer["plain"]["index"], answer["alpha"]
            wanted = dict.fromkeys([(winner, alpha), (winner, 0.0), (plain, 0.0)])
            answer["activation_maps"] = [
                reference(index) | _map(maps, outcome.feature_map, at, index) for index, at in wanted
            ]

    return explain


def _map(maps: ActivationMaps, feature_map: Any, alpha: float, index: int) -> Answer:  # noqa: ANN401 - an array
    (values,) = maps.of(feature_map, alpha, [index])
    return {
        "alpha": alpha,
        "logit": float(values.sum()),
        "area_at_half_energy": area_at_half_energy(values),
        "values": values.tolist(),
    }
