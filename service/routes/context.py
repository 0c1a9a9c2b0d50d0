"""What every route may reach: the parts that `create_app` put together. It knows no route."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.batcher import DynamicBatcher
from service.detection_predictor import DetectionPredictor
from service.exhibits import Exhibits
from service.images import ImageDecoder
from service.keeping import Keeping
from service.metrics import Metrics
from service.model import Served
from service.predictor import AnyOutcome, AnyWork, Predictor
from service.routes.answers import AnswerWriter
from service.routes.rules import Rules
from service.settings import Settings
from service.threads import Threads


class Readiness:
    """Whether requests are welcome, and if not, why.

    Attributes:
        is_ending: they never will be again.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.is_ending = False
        self._metrics = metrics
        self._refusal: str | None = "The service is starting."
        self._suspension: str | None = None
        metrics.ready.set(0)

    @property
    def reason(self) -> str | None:
        """Why requests are not welcome; None: they are."""
        return self._refusal or self._suspension

    def welcome(self) -> None:
        """Requests are welcome from now on."""
        self._refusal = None
        self._show()

    def refuse(self, reason: str) -> None:
        """Requests are not welcome from now on; those that come are still answered."""
        self._refusal = reason
        self._show()

    def end(self) -> None:
        """Requests are not welcome any more."""
        self.is_ending = True
        self.refuse("The service is shutting down.")

    def suspend(self, reason: str) -> None:
        """Requests are not welcome for a while, whatever else is the case."""
        self._suspension = reason
        self._show()

    def resume(self) -> None:
        """The while is over; what was refused for another reason stays so."""
        self._suspension = None
        self._show()

    def _show(self) -> None:
        self._metrics.ready.set(self.reason is None)


@dataclass(frozen=True)
class Service:
    """The parts of one app.

    Attributes:
        readers: read long JSON.
    """

    settings: Settings
    model: Served
    predictor: Predictor | DetectionPredictor
    metrics: Metrics
    batcher: DynamicBatcher[AnyWork, AnyOutcome]
    decoder: ImageDecoder
    readers: Threads
    readiness: Readiness
    rules: Rules
    answers: AnswerWriter
    exhibits: Exhibits
    keeping: Keeping


def service_of(request: Request) -> Service:
    """Return the parts of the app that the request came to."""
    service: Service = request.scope["app"].service
    return service


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request and returns the response.

    FastAPI documents it as any other, and does not look for dependencies, validate or serialise on the way.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself."""
        return cast(Callable[[Request], Coroutine[Any, Any, Response]], self.endpoint)
