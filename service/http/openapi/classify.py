"""The gateway's own API for images."""

from typing import Final

from pydantic import BaseModel

from service.http.classify import PATHS
from service.http.openapi.parts import (
    BYTES,
    TERMS,
    Part,
    json,
    operation,
    parameter,
    request_body,
    response,
)


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


class ErrorDetail(BaseModel):
    """`code` is stable, `message` is for people."""

    code: str
    message: str


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


MODELS: Final = (ClassifyRequest, ClassifyResponse, ErrorBody)


def paths() -> Part:
    """What can be done at each path."""
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "array", "items": BYTES}},
    }
    content = {
        "application/octet-stream": {"schema": BYTES},
        "image/*": {"schema": BYTES},
        "multipart/form-data": {"schema": form},
        **json(ClassifyRequest),
    }
    found: Part = {}
    for path in PATHS:
        found |= operation(
            "post",
            path,
            "classify",
            tag="classify",
            summary="Classify images",
            parameters=(
                parameter("top_k", "query", {"type": "integer", "minimum": 1}),
                *TERMS,
            ),
            body=request_body(content),
            answer=response("Predictions, image by image", json(ClassifyResponse)),
            errors=(400, 404, 413, 415, 422, 503, 504),
            error=ErrorBody,
        )
    return found
