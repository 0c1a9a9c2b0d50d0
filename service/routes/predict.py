"""`POST /predict`: pictures in, classes out, each at its own alpha.

The order is the point: options are checked before the body is read, places in the queue are taken before anything
is decoded, and whoever has left costs no run of the model.
"""

import asyncio
from time import monotonic, perf_counter
from typing import cast

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.callers import Caller
from service.detection_predictor import DetectionPredictor
from service.detection_schemas import DetectResponse
from service.predictor import Explained, Wants, Work
from service.routes.access import caller_of, rules_for, take
from service.routes.answers import Answer
from service.routes.client_watch import ClientWatch
from service.routes.context import PlainRoute, Service, service_of
from service.routes.detect import detect
from service.routes.explanations import explainer
from service.routes.failures import documented
from service.routes.forms import read_query
from service.routes.patience import patience
from service.routes.predict_docs import DESCRIPTION, OPENAPI
from service.routes.rules import PredictQuery, Rules
from service.schemas import PredictResponse
from service.scoring import Score
from service.telemetry import Times, note_times

router = APIRouter(route_class=PlainRoute)

NEAR = 0.1
"""How close a breakpoint is near."""
_JSON = (b"content-type", b"application/json")


@router.post(
    "/predict",
    summary="Classify pictures, or detect what is in them, each at its own alpha",
    description=DESCRIPTION,
    response_model=PredictResponse | DetectResponse,
    responses=documented(400, 401, 408, 409, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=OPENAPI,
)
async def predict(request: Request) -> Response:
    """Answer a prediction request in any of its forms."""
    service = service_of(request)
    by = service.predictor
    if isinstance(by, DetectionPredictor):
        return await detect(request, service, by)
    begin = perf_counter()
    deadline = monotonic() + patience(request, service.settings)
    caller = caller_of(request, service)
    rules = rules_for(caller, service)
    query = await read_query(request, rules, deadline)
    explain = explainer(service) if query.explain else None
    with service.batcher.admit(len(query.images), deadline=deadline) as admission:
        take(caller, len(query.images), service)
        if service.batcher.callers() > 1:
            await asyncio.sleep(0)  # until all who came are as far: one behind the other, decoding takes less
        decoding = perf_counter()
        begun = (service.decoder.begin(image.data, field=image.field) for image in query.images)
        wants: Wants = "explained" if explain else "score"
        watch = ClientWatch(request, admission)
        try:
            pixels = await admission.prepare(begun, busy=service.decoder.busy, when_long=watch.begin)
            decoded = perf_counter()
            items = [Work(by, picture, image.knobs, wants) for picture, image in zip(pixels, query.images, strict=True)]
            outcomes = await admission.run(items, when_long=watch.begin)
        finally:
            watch.end()
    if explain:
        explained = cast(list[Explained], outcomes)
        answer = _answer(query, [each.score for each in explained], service, caller, rules)
        await asyncio.to_thread(explain, answer["images"], explained)
    else:
        answer = _answer(query, cast(list[Score], outcomes), service, caller, rules)
    body = orjson.dumps(answer)
    times = Times(decoded - decoding, *admission.seconds, perf_counter() - begin)
    service.metrics.decode_seconds.observe(times.decode)
    service.metrics.total_seconds.observe(times.total)
    note_times(times)
    return _JsonAnswer(body)


class _JsonAnswer(Response):
    """JSON, with the two headers that it takes: finding them out anew for each answer costs 4 us."""

    def __init__(self, body: bytes) -> None:
        self.body, self.status_code, self.background = body, 200, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), _JSON]


def _answer(query: PredictQuery, scores: list[Score], service: Service, caller: Caller, rules: Rules) -> Answer:
    writer, manifest, note = service.answers, service.model.manifest, service.keeping.recorder.note
    answers = []
    for image, score in zip(query.images, scores, strict=True):
        answer = writer.image(image, score, top_k=query.top_k, breakpoints=query.breakpoints, lines=query.lines)
        winner, plain = answer["predictions"][0], answer["plain"]
        answer["prediction_id"] = note(
            caller.owner,
            rules.terms,
            manifest,
            image.knobs,
            winner=winner["index"],
            factual_logits=score.factual_logits,
            counterfactual_logits=score.counterfactual_logits,
        )
        flipped, alpha = winner["index"] != plain["index"], image.knobs.alpha
        service.metrics.observe_prediction(
            alpha=alpha,
            winner_group=winner["shot_group"],
            plain_group=plain["shot_group"],
            flipped=flipped,
            confounder_cosine=score.confounder_cosine,
        )
        start, end = answer["stable_interval"]
        caller.counts.observe_prediction(
            alpha=alpha,
            prior_strength=image.knobs.prior_strength,
            winner_group=winner["shot_group"],
            plain_group=plain["shot_group"],
            flipped=flipped,
            confounder_cosine=score.confounder_cosine,
            near_breakpoint=(alpha - start < NEAR and start > manifest.alpha.minimum)
            or (end - alpha < NEAR and end < manifest.alpha.maximum),
        )
        answers.append(answer)
    return {"model": writer.model, "images": answers}
