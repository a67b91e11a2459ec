"""What the descriptions of all APIs are made of."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel

from service.http.terms import PRIORITIES

Part = dict[str, Any]

REFERENCE: Final = "#/components/schemas/{model}"
BYTES: Final[Part] = {"type": "string", "format": "binary"}
ERRORS: Final[Mapping[int, str]] = {
    400: "malformed request",
    404: "no such model, version, label or signature",
    413: "body, image or number of images over the limit",
    415: "content type that holds no images",
    422: "not an image, or a damaged one",
    503: "overloaded, not ready or shutting down; see Retry-After",
    504: "the request's time ran out",
}


class ErrorMessage(BaseModel):
    """The shape of the errors that clients of other servers know."""

    error: str


def operation(
    method: Literal["get", "post"],
    path: str,
    identifier: str,
    *,
    tag: str,
    summary: str,
    answer: Part,
    errors: Iterable[int],
    error: type[BaseModel],
    parameters: Iterable[Part] = (),
    body: Part | None = None,
) -> Part:
    """What can be done at a path: `{path: {method: …}}`.

    Args:
        method: Of HTTP.
        path: Names in braces become parameters, and tell its identifier from that of
            the same operation at another path.
        identifier: The same for all its paths.
        tag: The API that it belongs to.
        summary: What it does.
        answer: What it answers if all is well; see `response`.
        errors: The statuses that it answers else.
        error: The form of its errors.
        parameters: Those in the query and in headers; see `parameter`.
        body: What it takes; see `request_body`.
    """
    names = re.findall(r"{(\w+)}", path)
    in_path = (parameter(name, "path", {"type": "string"}) for name in names)
    refused = {str(code): response(ERRORS[code], json(error)) for code in errors}
    described = {
        "tags": [tag],
        "summary": summary,
        "operationId": identifier + "".join(f"_by_{name}" for name in names),
        "parameters": [*in_path, *parameters],
        "responses": {"200": answer, **refused},
    }
    if body is not None:
        described["requestBody"] = body
    return {path: {method: described}}


def parameter(name: str, place: str, schema: Part) -> Part:
    """A parameter in the `path`, the `query` or a `header`."""
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def request_body(content: Part, *, required: bool = True) -> Part:
    """A body, by its media types."""
    return {"required": required, "content": content}


def response(description: str, content: Part) -> Part:
    """An answer, by its media types."""
    return {"description": description, "content": content}


def json(model: type[BaseModel]) -> Part:
    """Content that is JSON."""
    reference = REFERENCE.format(model=model.__name__)
    return {"application/json": {"schema": {"$ref": reference}}}


# The headers of every request that waits for an engine.
TERMS: Final = (
    parameter("X-Request-Timeout", "header", {"type": "number", "minimum": 0}),
    parameter(
        "X-Request-Priority",
        "header",
        {"enum": sorted(name.decode() for name in PRIORITIES)},
    ),
)
