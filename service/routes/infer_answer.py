"""From the rows of a batch to the answer of an inference request of the Open Inference Protocol.

It counts predictions as `/predict` does, and notes for feedback those whose answer names them (`prediction_id`). An
answer that is large is written in a thread. It knows neither the request's form nor the queue.
"""

import asyncio
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from service.bundle import Manifest
from service.callers import Caller
from service.detection_predictor import DetectionPredictor
from service.detector import Outputs
from service.predictor import AnyOutcome, Predictor, Tensors
from service.routes.context import Service
from service.routes.infer_contract import IDENTIFIER
from service.routes.infer_request import InferQuery, RequestedOutput
from service.routes.predict import NEAR
from service.routes.rules import Rules
from service.scoring import offsets
from service.tensors import Values, join_message, write_tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
_COUNTED = ("logits", "factual_logits", "counterfactual_logits", "confounder_cosine")
_SMALL = 20_000
"""Numbers that are written as JSON in a millisecond or two."""


async def answer(query: InferQuery, rows: list[AnyOutcome], service: Service, caller: Caller, rules: Rules) -> Response:
    """Return the outputs that are wanted, in JSON or as bytes after it; the predictions are counted."""
    by = service.predictor
    if isinstance(by, DetectionPredictor):
        found = cast(list[Outputs], rows)
        _observe_detections(query, found, service, caller)
        return await asyncio.to_thread(lambda: _written(query, _stacked(query, found), by.model.manifest))
    values = _predictions(query, cast(list[Tensors], rows), service, caller, rules, by=by)
    if sum(each.size for each in values.values() if not isinstance(each, list)) <= _SMALL:
        return _written(query, values, by.model.manifest)
    return await asyncio.to_thread(_written, query, values, by.model.manifest)


def _observe_detections(query: InferQuery, rows: list[Outputs], service: Service, caller: Caller) -> None:
    groups = [info.shot_group for info in service.model.manifest.classes]
    for knobs, row in zip(query.knobs, rows, strict=True):
        found = [groups[label] for label in row["labels"][: int(row["count"])].tolist()]
        service.metrics.observe_detections(alpha=knobs.alpha, groups=found)
        caller.counts.observe_detections(alpha=knobs.alpha, groups=found)


def _stacked(query: InferQuery, rows: list[Outputs]) -> dict[str, Values]:
    return {output.name: np.stack([row[output.name] for row in rows]) for output in query.outputs}


def _predictions(
    query: InferQuery, rows: list[Tensors], service: Service, caller: Caller, rules: Rules, *, by: Predictor
) -> dict[str, Values]:
    manifest = by.model.manifest
    # A row may also bear a feature map for which a neighbour in its batch asked.
    names = {*_COUNTED, *(output.name for output in query.outputs)}.intersection(Tensors._fields)
    columns = {name: np.stack([getattr(row, name) for row in rows]) for name in names}
    _observe(query, columns, by, service, caller)
    return {
        output.name: _identifiers(query, columns, service, caller, rules)
        if output.name == IDENTIFIER
        else _values(columns[output.name], output, manifest)
        for output in query.outputs
    }


def _written(query: InferQuery, values: dict[str, Values], manifest: Manifest) -> Response:
    written = [write_tensor(output.name, values[output.name], binary=output.binary) for output in query.outputs]
    message: dict[str, Any] = {"model_name": manifest.name, "model_version": manifest.version}
    if query.id is not None:
        message["id"] = query.id
    message["outputs"] = [tensor for tensor, _ in written]
    body, head = join_message(message, [raw for _, raw in written])
    if head is None:
        return Response(body, media_type="application/json")
    return Response(body, headers={HEADER_LENGTH: str(head)}, media_type="application/octet-stream")


def _values(values: NDArray[np.float32], output: RequestedOutput, manifest: Manifest) -> Values:
    """Return the numbers, or each row's ranking as `value:index:label`."""
    if not output.classes:
        return values
    ranking = (-values).argsort(axis=1, kind="stable")[:, : output.classes]
    return [
        [f"{row[index]:f}:{index}:{manifest.classes[index].name}" for index in order]
        for row, order in zip(values.tolist(), ranking.tolist(), strict=True)
    ]


def _identifiers(
    query: InferQuery, columns: dict[str, NDArray[np.float32]], service: Service, caller: Caller, rules: Rules
) -> Values:
    """Note each prediction for feedback, and return what names it there."""
    winners = columns["logits"].argmax(axis=1).tolist()
    lines = zip(columns["factual_logits"], columns["counterfactual_logits"], strict=True)
    return [
        [
            service.keeping.recorder.note(
                caller.owner,
                rules.terms,
                service.model.manifest,
                knobs,
                winner=winner,
                factual_logits=factual,
                counterfactual_logits=counterfactual,
            )
        ]
        for knobs, winner, (factual, counterfactual) in zip(query.knobs, winners, lines, strict=True)
    ]


def _observe(
    query: InferQuery, columns: dict[str, NDArray[np.float32]], by: Predictor, service: Service, caller: Caller
) -> None:
    """Count each prediction as `/predict` does."""
    manifest = service.model.manifest
    groups = [info.shot_group for info in manifest.classes]
    plain = columns["factual_logits"] + offsets(query.knobs, by.log_class_share)
    alphas = np.array([knobs.alpha for knobs in query.knobs])

    def winners(alpha: NDArray[np.float64]) -> NDArray[np.int64]:
        within = alpha.clip(manifest.alpha.minimum, manifest.alpha.maximum)
        best: NDArray[np.int64] = (plain - within[:, None] * columns["counterfactual_logits"]).argmax(axis=1)
        return best

    won, before, after = winners(alphas), winners(alphas - NEAR), winners(alphas + NEAR)
    near = ((before != won) | (after != won)).tolist()
    cosines = columns["confounder_cosine"].mean(axis=1).tolist()
    for row, (winner, plain_winner) in enumerate(zip(won.tolist(), plain.argmax(axis=1).tolist(), strict=True)):
        alpha, flipped = query.knobs[row].alpha, winner != plain_winner
        service.metrics.observe_prediction(
            alpha=alpha,
            winner_group=groups[winner],
            plain_group=groups[plain_winner],
            flipped=flipped,
            confounder_cosine=cosines[row],
        )
        caller.counts.observe_prediction(
            alpha=alpha,
            prior_strength=query.knobs[row].prior_strength,
            winner_group=groups[winner],
            plain_group=groups[plain_winner],
            flipped=flipped,
            near_breakpoint=near[row],
            confounder_cosine=cosines[row],
        )
