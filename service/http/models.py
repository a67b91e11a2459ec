"""`GET /models`: what the repository holds and how each version is doing."""

import asyncio

from fastapi import APIRouter, Response
from pydantic import BaseModel

from models.card import GRAPH_FILE, SUMMARY_FILE, ModelCard
from service.batching import BatchingState
from service.errors import NotFound
from service.gateway import Gateway
from service.repository import Model, Target, Version, VersionState


class VersionView(BaseModel):
    """One version: its state, and while it serves its engine, batching and card.

    `batching` tells of each signature what was learned of its batches.
    """

    version: int
    state: VersionState
    error: str | None
    engine: str | None
    batching: dict[str, BatchingState] | None
    card: ModelCard | None


class ModelView(BaseModel):
    """A model with its versions, latest first, and its labels."""

    name: str
    labels: dict[str, int]
    versions: list[VersionView]


class ModelList(BaseModel):
    """All models, by name."""

    models: list[ModelView]


def router(gateway: Gateway) -> APIRouter:
    """The endpoints that describe models."""
    routes = APIRouter(tags=["models"])
    repository = gateway.repository

    def view(model: Model) -> ModelView:
        versions = sorted(model.versions.values(), key=lambda v: v.number, reverse=True)
        return ModelView(
            name=model.name,
            labels=dict(model.config.labels),
            versions=[_view(version) for version in versions],
        )

    async def asset(
        name: str, version: int | None, file: str, media_type: str
    ) -> Response:
        with repository.lease(Target(name=name, version=version)) as served:
            path = repository.model(name).versions[served.version].path / file
            try:
                content = await asyncio.to_thread(path.read_bytes)
            except FileNotFoundError as error:
                raise NotFound(
                    f"model {name!r} version {served.version} came without {file}",
                    code="asset_not_found",
                ) from error
        return Response(content, media_type=media_type)

    @routes.get("/models", summary="All models with their versions and states")
    async def list_models() -> ModelList:
        models = repository.models
        return ModelList(models=[view(models[name]) for name in sorted(models)])

    @routes.get("/models/{name}", summary="One model")
    async def show_model(name: str) -> ModelView:
        return view(repository.model(name))

    @routes.get("/models/{name}/graph.svg", summary="The model drawn as a graph")
    async def graph(name: str, version: int | None = None) -> Response:
        return await asset(name, version, GRAPH_FILE, "image/svg+xml")

    @routes.get("/models/{name}/summary", summary="Keras' summary of the model")
    async def summary(name: str, version: int | None = None) -> Response:
        return await asset(name, version, SUMMARY_FILE, "text/plain")

    return routes


def _view(version: Version) -> VersionView:
    served = version.served
    return VersionView(
        version=version.number,
        state=version.state,
        error=version.error,
        engine=served.engine.kind if served else None,
        batching=(
            {name: batcher.state for name, batcher in served.batchers.items()}
            if served
            else None
        ),
        card=served.card if served else None,
    )
