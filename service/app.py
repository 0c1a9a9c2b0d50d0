"""`create_app(settings, model)`: puts the parts together, and keeps them from the first request to the last.

Importing it does nothing; creating an app opens nothing. The model is loaded, warm and checked before it comes here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service.batcher import DynamicBatcher
from service.cores import available_cores
from service.exhibits import Exhibits
from service.front_door import FrontDoor
from service.images import ImageDecoder
from service.keeping import Keeping
from service.metrics import Metrics
from service.model import Model
from service.predictor import Predictor, run_batch
from service.routes import (
    clients,
    failures,
    feedback,
    health,
    inference_protocol,
    metrics,
    model,
    predict,
    samples,
)
from service.routes.answers import AnswerWriter
from service.routes.context import Readiness, Service
from service.routes.rules import Rules
from service.settings import Settings
from service.tracing import Tracing
from service.watchdog import Watchdog

_NOTHING = Exhibits()

_LAST_WRITE = 6.0
"""Seconds that the last write may take: a little more than a database may."""


def create_app(settings: Settings, served: Model, exhibits: Exhibits = _NOTHING) -> FastAPI:
    """Return the app that serves a model under these settings; each app counts in metrics of its own."""
    service = _assemble(settings, served, exhibits)
    watchdog = Watchdog(service.batcher, service.readiness, patience=settings.stall_timeout, metrics=service.metrics)

    @asynccontextmanager
    async def lifespan(app: FrontDoor) -> AsyncIterator[None]:
        await asyncio.to_thread(service.keeping.begin)
        welcome = asyncio.create_task(_welcome_once_clients_are_known(service))
        watching = asyncio.create_task(watchdog.run())
        try:
            yield
        finally:
            welcome.cancel()
            watching.cancel()
            service.readiness.refuse("The service is shutting down.")
            await service.batcher.close(settings.shutdown_timeout)
            service.decoder.close()
            await asyncio.to_thread(service.keeping.end, _LAST_WRITE)
            if app.tracing:
                await asyncio.to_thread(app.tracing.close)

    app = FrontDoor(
        title="evenkeel",
        summary="Image classification with a knob from head to tail classes.",
        version=version("evenkeel"),
        lifespan=lifespan,
    )
    app.state.service = service
    app.tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    app.logs_access = settings.access_log
    failures.install(app)
    routes = set()
    for part in (predict, inference_protocol, feedback, clients, model, samples, health, metrics):
        app.include_router(part.router)
        routes |= {route.path for route in part.router.routes}
    app.counted_routes = frozenset(routes)
    return app


async def _welcome_once_clients_are_known(service: Service) -> None:
    """Be ready; where every request needs a key, not before the first keys were read."""
    while service.settings.authentication and not service.keeping.callers.loaded:
        service.readiness.refuse("The clients' keys could not be read from the database yet.")
        await asyncio.sleep(0.1)
    service.readiness.welcome()


def _assemble(settings: Settings, served: Model, exhibits: Exhibits) -> Service:
    instruments = Metrics()
    instruments.model.info(
        {
            "name": served.manifest.name,
            "version": served.manifest.version,
            "provider": served.provider,
            "precision": served.precision,
        }
    )
    batcher = DynamicBatcher(
        run_batch,
        max_batch_size=settings.max_batch_size,
        max_queue_size=settings.max_queue_size,
        max_queue_delay=settings.max_queue_delay,
        metrics=instruments,
    )
    decoder = ImageDecoder(
        served.manifest.input,
        max_pixels=settings.max_image_pixels,
        threads=settings.decode_threads or available_cores(),
    )
    return Service(
        settings=settings,
        model=served,
        predictor=Predictor(served),
        metrics=instruments,
        batcher=batcher,
        decoder=decoder,
        readiness=Readiness(instruments),
        rules=Rules(served.manifest, settings),
        answers=AnswerWriter(served.manifest),
        exhibits=exhibits,
        keeping=Keeping(settings, served.manifest, instruments),
    )
