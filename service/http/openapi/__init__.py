"""OpenAPI of the hot endpoints, which FastAPI cannot read from their code."""

from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter


def document(app: FastAPI) -> None:
    """Add the hot endpoints to the document that FastAPI makes."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _add_to(generate())
        assert app.openapi_schema is not None  # noqa: S101, `generate` has set it
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _add_to(schema: dict[str, Any]) -> None:
    # Who only serves need not wait until all these models are made.
    from service.http.openapi import (  # noqa: PLC0415
        classify,
        open_inference,
        tf_serving,
    )
    from service.http.openapi.parts import REFERENCE  # noqa: PLC0415

    models = (*classify.MODELS, *tf_serving.MODELS, *open_inference.MODELS)
    _, definitions = TypeAdapter.json_schemas(
        [(model, "serialization", TypeAdapter(model)) for model in models],
        ref_template=REFERENCE,
    )
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    schema["paths"] |= classify.paths() | tf_serving.paths() | open_inference.paths()
