"""`POST /predict` while a detector is served: pictures in, boxes and masks out, each at its own alpha.

The order is that of classification: options are checked before the body is read, places in the queue are taken before
anything is decoded, and whoever has left costs no run of the model. An answer may have megabytes of masks, up to a
bound: it is written in a thread.
"""

import asyncio
from time import monotonic, perf_counter
from typing import cast

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.callers import Caller
from service.detection_predictor import DetectionOutcome, DetectionPredictor, Detections, DetectionWork, MasksTooLong
from service.errors import AnswerTooLarge
from service.images import Sized
from service.routes.access import caller_of, rules_for, take
from service.routes.answers import Answer, AnswerWriter
from service.routes.client_watch import ClientWatch
from service.routes.context import Service
from service.routes.detection_rules import DetectionImageQuery, DetectionQuery, DetectionRules
from service.routes.forms import read_query
from service.routes.patience import patience
from service.telemetry import Times, note_times


async def detect(request: Request, service: Service, by: DetectionPredictor) -> Response:
    """Answer a prediction request in any of its forms."""
    begin = perf_counter()
    deadline = monotonic() + patience(request, service.settings)
    caller = caller_of(request, service)
    query = await read_query(request, DetectionRules(rules_for(caller, service), by.detection), deadline)
    with service.batcher.admit(len(query.images), deadline=deadline) as admission:
        take(caller, len(query.images), service)
        decoding = perf_counter()
        begun = (service.decoder.begin_sized(image.data, field=image.field) for image in query.images)
        watch = ClientWatch(request, admission)
        try:
            pictures: list[Sized] = await admission.prepare(begun, busy=service.decoder.busy, when_long=watch.begin)
            decoded = perf_counter()
            works = [
                DetectionWork(by, picture, image.alpha, query.limits)
                for picture, image in zip(pictures, query.images, strict=True)
            ]
            outcomes = await admission.run(works, when_long=watch.begin)
        finally:
            watch.end()
    found = _within_limits(query, cast(list[DetectionOutcome], outcomes))
    _observe(query, found, service, caller)
    body = await asyncio.to_thread(_written, query, pictures, found, service.answers)
    times = Times(decoded - decoding, *admission.seconds, perf_counter() - begin)
    service.metrics.decode_seconds.observe(times.decode)
    service.metrics.total_seconds.observe(times.total)
    note_times(times)
    return Response(body, media_type="application/json")


def _within_limits(query: DetectionQuery, outcomes: list[DetectionOutcome]) -> list[Detections]:
    for image, outcome in zip(query.images, outcomes, strict=True):
        if isinstance(outcome, MasksTooLong):
            raise AnswerTooLarge(
                f"The masks of {image.field} have too long outlines: they may pass {query.limits.mask_steps} columns "
                f"of pixels in all where a request holds {len(query.images)} images.",
                field="masks",
                value=outcome.steps,
                remedy="Ask for masks=false, a lower top_k or a higher score_threshold; or send fewer or smaller ones.",
            )
    return cast(list[Detections], outcomes)


def _observe(query: DetectionQuery, outcomes: list[Detections], service: Service, caller: Caller) -> None:
    for image, found in zip(query.images, outcomes, strict=True):
        groups = [service.answers.reference(label)["shot_group"] for label in found.labels.tolist()]
        service.metrics.observe_detections(alpha=image.alpha, groups=groups)
        caller.counts.observe_detections(alpha=image.alpha, groups=groups)


def _written(query: DetectionQuery, pictures: list[Sized], outcomes: list[Detections], writer: AnswerWriter) -> bytes:
    images = [_image(*each, writer) for each in zip(query.images, pictures, outcomes, strict=True)]
    return orjson.dumps({"model": writer.model, "images": images})


def _image(image: DetectionImageQuery, picture: Sized, found: Detections, writer: AnswerWriter) -> Answer:
    width, height = picture.own
    detections = [
        {"box": box, **writer.reference(label), "score": score}
        for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    for each, counts in zip(detections, found.masks or (), strict=False):
        each["mask"] = {"size": [height, width], "counts": counts}
    return {
        "alpha": image.alpha,
        "alpha_source": image.alpha_source,
        "width": width,
        "height": height,
        "detections": detections,
    }
