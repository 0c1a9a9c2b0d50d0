"""`create_app(settings, model)`: puts the parts together, and keeps them from the first request to the last.

Importing it does nothing; creating an app opens nothing. The model is loaded, warm and checked before it comes here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, cast

from service.batcher import DynamicBatcher
from service.cores import available_cores
from service.detection_predictor import DetectionPredictor
from service.detector import Detector
from service.exhibits import Exhibits
from service.front_door import FrontDoor
from service.images import ImageDecoder
from service.keeping import Keeping
from service.metrics import Metrics
from service.model import Model, Served
from service.predictor import Predictor, run_batch
from service.reload import Loaded, Reloader
from service.routes import (
    changes,
    clients,
    failures,
    feedback,
    health,
    inference_protocol,
    metrics,
    model,
    page,
    predict,
    samples,
    terms,
)
from service.routes.answers import AnswerWriter
from service.routes.context import Readiness, Service
from service.routes.rules import Rules
from service.session import LANES
from service.settings import Settings
from service.threads import Threads, in_a_thread_of_its_own
from service.tracing import Tracing
from service.watchdog import Watchdog

logger = logging.getLogger(__name__)

_NOTHING = Exhibits()

_BRIEF = 0.004
"""Seconds of a run of the model for which the event loop may stand still: about what decoding a batch takes it."""

RUNS_AT_ONCE_ON_A_DEVICE = LANES + 1
"""One runs in each lane, and the next is there, put together: the device need not wait for the event loop."""

READERS = 2
"""Long bodies that are read at a time. They share one interpreter; but none waits for the end of the longest."""

_LAST_WRITE = 6.0
"""Seconds that the last write and the last spans may take: a little more than a database may."""

_CLOSING = 1.0
"""Seconds that the database's files may then take to close."""

LONGEST_END = 10.0
"""Seconds after drain_delay and shutdown_timeout in which a process has ended that serves the app, whatever hangs: for
the last write, closing, the answers of what was cut short, and a timeout of less than a second."""


def create_app(
    settings: Settings,
    served: Model | Detector,
    exhibits: Exhibits = _NOTHING,
    *,
    load: Callable[[str], Loaded | None] | None = None,
    bundle: Path | None = None,
) -> FrontDoor:
    """Return the app that serves a model under these settings; each app counts in metrics of its own.

    Args:
        settings: what the operator has set.
        served: the model, warm and checked.
        exhibits: what of its bundle is shown.
        load: reads the bundle anew unless it is the version given; None: there is no reloading.
        bundle: the folder to watch if the settings say so.
    """
    service = _assemble(settings, served, exhibits)
    readiness = service.readiness  # the function keeps this alone, not the first model
    service.batcher.is_ending = lambda: readiness.is_ending

    async def attempt() -> None:
        """Have the model that is served by then try a picture on which it cannot fail unless it fails on all."""
        await app.service.batcher.run_alone(app.service.predictor.trial())

    watchdog = Watchdog(service.batcher, attempt, readiness, patience=settings.stall_timeout, metrics=service.metrics)

    @asynccontextmanager
    async def lifespan(app: FrontDoor) -> AsyncIterator[None]:
        await asyncio.to_thread(app.service.keeping.begin)
        welcome = asyncio.create_task(_welcome_once_clients_are_known(app.service))
        tasks = [welcome, asyncio.create_task(watchdog.run())]
        if app.reloader and bundle and settings.watch_bundle:
            tasks.append(asyncio.create_task(app.reloader.watch(bundle, settings.watch_bundle)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            app.service.readiness.end()
            answers_until = app.answers_until or monotonic() + settings.shutdown_timeout
            await app.service.batcher.close(max(0.0, answers_until - monotonic()))
            app.service.decoder.close()
            app.service.readers.close()
            await _let_go(app)

    app = FrontDoor(
        title="evenkeel",
        summary="Image classification and detection with a knob from head to tail classes.",
        version=version("evenkeel"),
        lifespan=lifespan,
        docs_url=None,  # the framework's pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # whoever sends a body does not follow a redirect
    )
    app.service = service
    _judge_by(service)

    def swap(loaded: Loaded) -> None:
        """Have requests meet the new model from now on; those under way keep the `Service` that they began with."""
        # `app.service` and no other: what knew the first one would keep its model for ever.
        app.service = replace(app.service, **_parts_of(loaded.model, loaded.exhibits, settings))
        app.service.batcher.start_anew(**_pace_of(loaded.model, settings))
        _judge_by(app.service)
        _announce(loaded.model, app.service.metrics)
        app.service.keeping.remember(loaded.model.manifest)

    if load:
        app.reloader = Reloader(load, swap, version=served.manifest.version, metrics=service.metrics)
    app.tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    app.logs_access = settings.access_log
    failures.install(app)
    routes = set()
    for part in (predict, inference_protocol, feedback, clients, changes, terms, model, samples, health, metrics, page):
        app.include_router(part.router)
        routes |= {route.path for route in part.router.routes}
    app.counted_routes = frozenset(routes)
    return app


async def _let_go(app: FrontDoor) -> None:
    """Write what waits to the database and send what waits to the collector; who hangs is left to itself."""
    ends = [in_a_thread_of_its_own(app.service.keeping.end, _LAST_WRITE)]
    if app.tracing:
        ends.append(in_a_thread_of_its_own(app.tracing.close, _LAST_WRITE))
    try:
        async with asyncio.timeout(_LAST_WRITE + _CLOSING):
            await asyncio.gather(*ends)
    except TimeoutError:
        logger.error("the database has not closed in %g s: it is left as it is", _LAST_WRITE + _CLOSING)


async def _welcome_once_clients_are_known(service: Service) -> None:
    """Be ready; where every request needs a key, not before the first keys were read."""
    while service.settings.authentication and not service.keeping.callers.loaded:
        service.readiness.refuse("The clients' keys could not be read from the database yet.")
        await asyncio.sleep(0.1)
    service.readiness.welcome()


def _assemble(settings: Settings, served: Model | Detector, exhibits: Exhibits) -> Service:
    instruments = Metrics()
    _announce(served, instruments)
    batcher = DynamicBatcher(
        run_batch,
        max_queue_size=settings.max_queue_size,
        max_queue_delay=settings.max_queue_delay,
        metrics=instruments,
        **_pace_of(served, settings),
    )
    return Service(
        settings=settings,
        metrics=instruments,
        batcher=batcher,
        readers=Threads(READERS, "read"),
        readiness=Readiness(instruments),
        **_parts_of(served, exhibits, settings),
        keeping=Keeping(settings, served.manifest, instruments),
    )


def _pace_of(served: Model | Detector, settings: Settings) -> dict[str, Any]:
    """Return how many pictures of a model make a batch, how short a batch may hold up the event loop, and so on."""
    on_cpu = served.provider == "cpu"
    if served.manifest.task == "detection":  # each runs alone: the first need not wait for the last
        return {"max_batch_size": 1, "brief": 0.0, "shares_cores": on_cpu}
    if on_cpu:
        return {"max_batch_size": settings.max_batch_size, "brief": _BRIEF, "shares_cores": True}
    # A device can hang, a processor cannot: no run on the event loop.
    return {"max_batch_size": settings.max_batch_size, "brief": 0.0, "runs_at_once": RUNS_AT_ONCE_ON_A_DEVICE}


def _judge_by(service: Service) -> None:
    """Have the batcher learn from runs of the model that is served alone, and know of what is prepared for it."""
    predictor, decoder, readers = service.predictor, service.decoder, service.readers
    service.batcher.counts = lambda work: work.predictor is predictor
    service.batcher.seconds_until_prepared = lambda: max(decoder.busy(), readers.busy())


def _parts_of(served: Model | Detector, exhibits: Exhibits, settings: Settings) -> dict[str, Any]:
    """Return the parts of a `Service` that belong to one model."""
    return {
        "model": served,
        "predictor": _predictor_of(served),
        "decoder": ImageDecoder(
            served.manifest.input,
            max_pixels=settings.max_image_pixels,
            threads=settings.decode_threads or available_cores(),
        ),
        "rules": Rules(served.manifest, settings),
        "answers": AnswerWriter(served.manifest),
        "exhibits": exhibits,
    }


def _predictor_of(served: Model | Detector) -> Predictor | DetectionPredictor:
    if served.manifest.task == "detection":
        return DetectionPredictor(cast(Detector, served))
    return Predictor(cast(Model, served))


def _announce(served: Served, instruments: Metrics) -> None:
    manifest = served.manifest
    what = {"name": manifest.name, "version": manifest.version}
    trained = manifest.trained_cosine()
    instruments.trained_cosine.set_function(lambda: {} if trained is None else {manifest.version: trained})
    instruments.model.info(what | {"provider": served.provider, "precision": served.precision})
