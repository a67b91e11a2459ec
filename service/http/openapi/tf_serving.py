"""TensorFlow Serving's REST API."""

from functools import partial
from typing import Any, Final

from pydantic import BaseModel

from service.http.openapi.parts import (
    ErrorMessage,
    Part,
    json,
    operation,
    request_body,
    response,
)
from service.http.tf_serving import PREFIX

TARGETS: Final = (
    PREFIX + "/{name}",
    PREFIX + "/{name}/versions/{version}",
    PREFIX + "/{name}/labels/{label}",
)


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


MODELS: Final = (PredictRequest, PredictResponse, ModelStatus, Metadata, ErrorMessage)


def paths() -> Part:
    """What can be done at each path."""
    ours = partial(operation, tag="TensorFlow Serving", error=ErrorMessage)
    found: Part = {}
    for target in TARGETS:
        found |= ours(
            "get",
            target,
            "tf_serving",
            summary="States of a model's versions",
            answer=response("The states", json(ModelStatus)),
            errors=(404,),
        )
        found |= ours(
            "get",
            f"{target}/metadata",
            "tf_serving_metadata",
            summary="Signatures of a model version",
            answer=response("The signatures", json(Metadata)),
            errors=(404,),
        )
        found |= ours(
            "post",
            f"{target}:predict",
            "tf_serving_predict",
            summary="Run a signature on tensors",
            body=request_body(json(PredictRequest)),
            answer=response("The outputs", json(PredictResponse)),
            errors=(400, 404, 413, 503, 504),
        )
    return found
