"""The FastAPI application: every HTTP endpoint over one gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.routing import Route

from service.gateway import Gateway
from service.http import classify, errors, models, openapi, operations, statistics
from service.http.auth import RequireToken
from service.http.identity import Identified
from service.http.open_inference import ROOT, OpenInferenceEndpoint
from service.http.shortcut import Shortcut
from service.http.tf_serving import PREFIX, TfServingEndpoint
from service.settings import Settings
from service.token import Token


def create_app(
    settings: Settings | None = None, *, gateway: Gateway | None = None
) -> FastAPI:
    """The application; its lifespan starts and stops the gateway.

    How the log looks, and whether requests show in it, is up to who runs it: they are
    records of level INFO of `blockserve.access`. `service.telemetry.logs.configure`
    does as the settings say.

    Args:
        settings: How to run; `None` reads the environment and the TOML file.
        gateway: A gateway to share with another protocol, made from the same settings.
    """
    gateway = gateway or Gateway(settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    app = FastAPIOffline(
        title="blockserve",
        summary="Serves block-based CNNs",
        version=version("blockserve"),
        redoc_url=None,
        openapi_tags=[
            {"name": "classify", "description": "Images in, labels out"},
            {"name": "TensorFlow Serving", "description": "Its REST API: tensors"},
            {"name": "Open Inference", "description": "KServe's and Triton's API"},
            {"name": "models", "description": "What is served"},
            {"name": "operations", "description": "Health and metrics"},
        ],
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    app.router.routes[:0] = classify.routes(classify.ClassifyEndpoint(gateway))
    app.include_router(operations.router(gateway))
    app.include_router(statistics.router(gateway))
    app.router.routes += [
        Route(PREFIX + "{path:path}", TfServingEndpoint(gateway), methods=None),
        Route(ROOT + "{path:path}", OpenInferenceEndpoint(gateway), methods=None),
    ]
    app.include_router(models.router(gateway))
    errors.install(app)
    openapi.document(app)
    if token := _token(gateway.settings):
        app.add_middleware(RequireToken, token=token)
    app.add_middleware(Identified)
    return app


def create_asgi(gateway: Gateway) -> Shortcut:
    """The application with a shortcut to its hot endpoints: what the server runs."""
    return Shortcut(
        create_app(gateway=gateway),
        classify.ClassifyEndpoint(gateway),
        TfServingEndpoint(gateway),
        OpenInferenceEndpoint(gateway),
        token=_token(gateway.settings),
    )


def _token(settings: Settings) -> Token | None:
    return Token(settings.token.get_secret_value()) if settings.token else None
