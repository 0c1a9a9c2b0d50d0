"""`create_app(settings, model)`: puts the parts together, and keeps them from the first request to the last.

Importing it does nothing; creating an app opens nothing. The model is loaded, warm and checked before it comes here.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

import numpy as np
from fastapi import FastAPI

from service.batcher import DynamicBatcher
from service.cores import available_cores
from service.exhibits import Exhibits
from service.front_door import FrontDoor
from service.images import ImageDecoder, Pixels
from service.metrics import Metrics
from service.model import Model
from service.routes import failures, health, metrics, model, predict, samples
from service.routes.answers import AnswerWriter
from service.routes.context import Readiness, Service
from service.routes.rules import Rules
from service.scoring import Knobs, Score, score
from service.settings import Settings

_NOTHING = Exhibits()


def create_app(settings: Settings, served: Model, exhibits: Exhibits = _NOTHING) -> FastAPI:
    """Return the app that serves a model under these settings; each app counts in metrics of its own."""
    service = _assemble(settings, served, exhibits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.readiness.welcome()
        try:
            yield
        finally:
            service.readiness.refuse("The service is shutting down.")
            await service.batcher.close(settings.shutdown_timeout)
            service.decoder.close()

    app = FrontDoor(
        title="evenkeel",
        summary="Image classification with a knob from head to tail classes.",
        version=version("evenkeel"),
        lifespan=lifespan,
    )
    app.state.service = service
    failures.install(app)
    routes = set()
    for part in (predict, model, samples, health, metrics):
        app.include_router(part.router)
        routes |= {route.path for route in part.router.routes}
    app.counted_routes = frozenset(routes)
    return app


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
        _batch_function(served),
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
        metrics=instruments,
        batcher=batcher,
        decoder=decoder,
        readiness=Readiness(instruments),
        rules=Rules(served.manifest, settings),
        answers=AnswerWriter(served.manifest),
        exhibits=exhibits,
    )


def _batch_function(served: Model) -> Callable[[list[tuple[Pixels, Knobs]]], Sequence[Score]]:
    """Return the function from a batch of pictures with their knobs to their scores: one run of the model."""
    alpha, log_class_share = served.manifest.alpha, served.manifest.log_class_share()

    def run(batch: list[tuple[Pixels, Knobs]]) -> list[Score]:
        branches = served.branches(np.stack([pixels for pixels, _ in batch]))
        knobs = [knobs for _, knobs in batch]
        return score(branches, knobs, log_class_share=log_class_share, low=alpha.minimum, high=alpha.maximum)

    return run
