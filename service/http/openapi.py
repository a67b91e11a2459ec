"""OpenAPI of the hot endpoints, which FastAPI cannot read from their code."""

import re
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter

from service.http.classify import PATHS
from service.http.terms import PRIORITIES
from service.http.tf_serving.routes import PREFIX

_PRIORITIES: Final = [name.decode() for name in PRIORITIES]
TARGETS: Final = (
    "/{name}",
    "/{name}/versions/{version}",
    "/{name}/labels/{label}",
)
REF: Final = "#/components/schemas/{model}"


class EncodedImage(BaseModel):
    """An encoded image in base64."""

    b64: str


class ClassifyRequest(BaseModel):
    """Images as JSON; raw bodies and multipart are smaller and faster."""

    images: list[EncodedImage]


class Prediction(BaseModel):
    """A class of the model and how probable it is for an image."""

    label: str
    index: int
    probability: float


class Result(BaseModel):
    """What the model says of one image, most probable class first."""

    predictions: list[Prediction]


class ClassifyResponse(BaseModel):
    """What a model version says of each image."""

    model: str
    version: int
    results: list[Result]


class PredictRequest(BaseModel):
    """Tensors, row by row (`instances`) or input by input (`inputs`)."""

    signature_name: str = "serving_default"
    instances: list[Any] | None = None
    inputs: Any = None


class PredictResponse(BaseModel):
    """`predictions` for `instances`, `outputs` for `inputs`."""

    predictions: list[Any] | None = None
    outputs: Any = None


class VersionStatus(BaseModel):
    """`OK`, or why the version could not be loaded."""

    error_code: str
    error_message: str


class ModelVersionStatus(BaseModel):
    """A version's state: START, LOADING, AVAILABLE, UNLOADING or END."""

    version: str
    state: str
    status: VersionStatus


class ModelStatus(BaseModel):
    """The states of a model's versions, latest first."""

    model_version_status: list[ModelVersionStatus]


class Metadata(BaseModel):
    """A version's signatures, as `SignatureDef` messages."""

    model_spec: dict[str, str]
    metadata: dict[str, Any]


class ServingError(BaseModel):
    """The shape of TensorFlow Serving's errors."""

    error: str


class ErrorDetail(BaseModel):
    """`code` is stable, `message` is for people."""

    code: str
    message: str


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


ERRORS: Final = {
    400: "malformed request",
    404: "no such model, version or label",
    413: "body, image or number of images over the limit",
    415: "content type that holds no images",
    422: "not an image, or a damaged one",
    503: "overloaded, not ready or shutting down; see Retry-After",
    504: "the request's time ran out",
}


DOCUMENTS: Final = (
    *(ClassifyRequest, ClassifyResponse, ErrorBody),
    *(PredictRequest, PredictResponse, ModelStatus, Metadata, ServingError),
)


def document(app: FastAPI) -> None:
    """Add the hot endpoints to the document that FastAPI makes."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            _, definitions = TypeAdapter.json_schemas(
                [(kind, "serialization", TypeAdapter(kind)) for kind in DOCUMENTS],
                ref_template=REF,
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions["$defs"])
            for path in PATHS:
                schema["paths"][path] = {"post": _operation(path)}
            schema["paths"].update(_tf_serving())
        assert app.openapi_schema is not None  # noqa: S101, `generate` has set it
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _tf_serving() -> dict[str, Any]:
    """The paths of TensorFlow Serving's REST API."""
    paths: dict[str, Any] = {}
    for target in TARGETS:
        names = _names(target)
        shared = {
            "tags": ["TensorFlow Serving"],
            "parameters": [_parameter(n, "path", {"type": "string"}) for n in names],
        }
        by = "".join(f"_by_{name}" for name in names)
        error = _response("what is wrong", ServingError)
        for suffix, summary, kind in (
            ("", "States of a model's versions", ModelStatus),
            ("/metadata", "Signatures of a model version", Metadata),
        ):
            paths[PREFIX + target + suffix] = {
                "get": {
                    **shared,
                    "summary": summary,
                    "operationId": f"tf_serving{suffix.replace('/', '_')}{by}",
                    "responses": {"200": _response(summary, kind), "404": error},
                }
            }
        paths[f"{PREFIX}{target}:predict"] = {
            "post": {
                **shared,
                "summary": "Run a signature on tensors",
                "operationId": f"tf_serving_predict{by}",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": _json(PredictRequest)},
                },
                "responses": {
                    "200": _response("The outputs", PredictResponse),
                    **dict.fromkeys(("400", "404", "413", "503", "504"), error),
                },
            }
        }
    return paths


def _names(path: str) -> list[str]:
    return re.findall(r"{(\w+)}", path)


def _operation(path: str) -> dict[str, Any]:
    names = _names(path)
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "tags": ["classify"],
        "summary": "Classify images",
        "operationId": "classify" + "".join(f"_by_{name}" for name in names),
        "parameters": [
            *(_parameter(name, "path", {"type": "string"}) for name in names),
            _parameter("top_k", "query", {"type": "integer", "minimum": 1}),
            _parameter("X-Request-Timeout", "header", {"type": "number", "minimum": 0}),
            _parameter("X-Request-Priority", "header", {"enum": sorted(_PRIORITIES)}),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": binary,
                "image/*": binary,
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {
                            "image": {"type": "array", "items": binary["schema"]}
                        },
                    }
                },
                "application/json": _json(ClassifyRequest),
            },
        },
        "responses": {
            "200": _response("Predictions, image by image", ClassifyResponse),
            **{str(code): _response(text, ErrorBody) for code, text in ERRORS.items()},
        },
    }


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _response(description: str, kind: type) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": _json(kind)}}


def _json(kind: type) -> dict[str, Any]:
    return {"schema": {"$ref": REF.format(model=kind.__name__)}}
