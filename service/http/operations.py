"""What operators ask: is it alive, is it ready, what are its numbers."""

from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from service.errors import Unavailable
from service.gateway import Gateway

HEALTH_PATHS: Final = frozenset(
    {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
)


class NotReady(Unavailable):
    """No model serves, or the process is shutting down."""

    code = "not_ready"


def router(gateway: Gateway) -> APIRouter:
    """Liveness, readiness and metrics."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/", include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse("/docs")

    @routes.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @routes.get("/readyz", summary="Whether a model serves; 503 says why not")
    async def readyz() -> dict[str, str]:
        if problem := gateway.problem:
            raise NotReady(problem)
        return {"status": "ready"}

    @routes.get("/v2/health/live", summary="As /healthz, for Open Inference clients")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/v2/health/ready", summary="As /readyz, for Open Inference clients")
    async def ready() -> dict[str, bool]:
        await readyz()
        return {"ready": True}

    @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        body, content_type = await gateway.exposition(accept)
        return Response(body, headers={"content-type": content_type})

    return routes
