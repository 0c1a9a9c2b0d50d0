"""`GET /healthz`: is the process alive? `GET /readyz`: are requests welcome?"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.errors import NotReady
from service.routes.context import PlainRoute, service_of
from service.routes.failures import documented
from service.schemas import StatusResponse

router = APIRouter(route_class=PlainRoute)


@router.get("/healthz", summary="Is the process alive?", response_model=StatusResponse)
async def healthz(request: Request) -> Response:
    """Answer as long as the event loop turns."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz", summary="Are requests welcome?", response_model=StatusResponse, responses=documented(503))
async def readyz(request: Request) -> Response:
    """Answer 200 from the model's passing its checks until the shutdown begins."""
    reason = service_of(request).readiness.reason
    if reason is not None:
        raise NotReady(reason, remedy="Send requests to another instance, or come back later.")
    return JSONResponse({"status": "ready"})
