"""The Open Inference Protocol's REST API."""

from collections.abc import Iterable
from functools import partial
from typing import Final

from pydantic import BaseModel

from service.http.arrivals import WINDOW_BITS
from service.http.openapi.open_inference_models import (
    ControlRequest,
    Done,
    IndexRequest,
    InferRequest,
    InferResponse,
    ModelConfiguration,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    RepositoryIndex,
    ServerMetadata,
)
from service.http.openapi.parts import (
    BYTES,
    TERMS,
    ErrorMessage,
    Part,
    json,
    operation,
    parameter,
    request_body,
    response,
)

MODELS: Final = (
    *(ServerMetadata, ModelMetadata, ModelReady, ModelConfiguration, ModelStatistics),
    *(InferRequest, InferResponse, ErrorMessage),
    *(IndexRequest, RepositoryIndex, ControlRequest, Done),
)
# A version is a number or a label.
TARGETS: Final = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
REPOSITORY: Final = "/v2/repository"
JSON_LENGTH: Final = "Inference-Header-Content-Length"
LENGTH: Final[Part] = {"type": "integer", "minimum": 0}
BINARY: Final[Part] = {
    "application/octet-stream": {
        "schema": BYTES | {"description": "JSON, and behind it the bytes of tensors."}
    }
}
NOT_SERVED: Final = (404, 503)
NOT_READ: Final = (400, 413, 503, 504)

_ours = partial(operation, tag="Open Inference", error=ErrorMessage)


def paths() -> Part:
    """What can be done at each path."""
    found = _get("/v2", "server", "What the server is", ServerMetadata, ())
    every = "/v2/models/stats"
    found |= _get(every, "all_stats", "What all models have done", ModelStatistics, ())
    for target in TARGETS:
        found |= _infer(f"{target}/infer")
        found |= _get(target, "model", "Inputs and outputs of a model", ModelMetadata)
        found |= _get(f"{target}/ready", "ready", "Whether a model serves", ModelReady)
        found |= _get(
            f"{target}/config", "config", "How a model is run", ModelConfiguration
        )
        found |= _get(
            f"{target}/stats", "stats", "What a model has done", ModelStatistics
        )
    found |= _ours(
        "post",
        f"{REPOSITORY}/index",
        "open_inference_index",
        summary="Versions of all models with their states",
        body=request_body(json(IndexRequest), required=False),
        answer=response("The versions", json(RepositoryIndex)),
        errors=NOT_READ,
    )
    for action in ("load", "unload"):
        found |= _ours(
            "post",
            f"{REPOSITORY}/models/{{name}}/{action}",
            f"open_inference_{action}",
            summary=f"{action.capitalize()} a model, where model_control is set",
            body=request_body(json(ControlRequest), required=False),
            answer=response("It is done", json(Done)),
            errors=(404, *NOT_READ),
        )
    return found


def _get(
    path: str,
    identifier: str,
    summary: str,
    model: type[BaseModel],
    errors: Iterable[int] = NOT_SERVED,
) -> Part:
    return _ours(
        "get",
        path,
        f"open_inference_{identifier}",
        summary=summary,
        answer=response(summary, json(model)),
        errors=errors,
    )


def _infer(path: str) -> Part:
    length = parameter(JSON_LENGTH, "header", LENGTH) | {
        "description": "Bytes of JSON that the body begins with, where that is not all "
        "of it; 0 where it is nothing but the values of the only input."
    }
    answered = {
        "description": "Bytes of JSON, where others are behind it.",
        "schema": LENGTH,
    }
    encodings = {"enum": sorted(name.decode() for name in WINDOW_BITS)}
    return _ours(
        "post",
        path,
        "open_inference_infer",
        summary="Run a model on tensors or on files of images",
        parameters=(length, parameter("Content-Encoding", "header", encodings), *TERMS),
        body=request_body(json(InferRequest) | BINARY),
        answer=response("The outputs", json(InferResponse) | BINARY)
        | {"headers": {JSON_LENGTH: answered}},
        errors=(400, 404, 413, 422, 503, 504),
    )
