"""Who is asked, and with what: settled once before each run, in each process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

import httpx

from loadtest.harness.protocol_requests import INPUT, Model
from loadtest.harness.workloads import digits, photographs

DIGITS, PHOTOGRAPHS = "digits", "photographs"
IMAGES: Final = MappingProxyType({DIGITS: digits, PHOTOGRAPHS: photographs})
GREY: Final = 1

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Question(Generic[Content]):
    """What is sent, and the class that it got when it was asked alone."""

    content: Content
    expected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server and one of its models.

    Attributes:
        host: Where it answers HTTP, as in `http://127.0.0.1:8000`.
        grpc_host: Where it answers gRPC, as in `127.0.0.1:8001`.
        images: JPEG files.
        authorization: What shows its token, as a header or as metadata.
        patience_seconds: What takes longer has failed.
    """

    host: str
    grpc_host: str
    model: Model
    images: Sequence[bytes]
    authorization: Mapping[str, str]
    patience_seconds: float


def subject_of(options: Any, host: str) -> Subject:
    """What Locust's options describe; the model's shape comes from the server.

    Args:
        options: See `loadtest.users.command_line`.
        host: Where the server answers HTTP.

    Raises:
        httpx.HTTPError: It does not answer, or has no such model.
        ValueError: The model takes no images of a known size.
    """
    authorization = _authorization(options.token)
    shape = _shape(host, options.model, authorization, options.patience)
    images = options.images or (DIGITS if shape[-1] == GREY else PHOTOGRAPHS)
    return Subject(
        host=host,
        grpc_host=options.grpc_host,
        model=Model(name=options.model, shape=shape),
        images=IMAGES[images](),
        authorization=authorization,
        patience_seconds=options.patience,
    )


def _authorization(token: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def _shape(
    host: str, model: str, authorization: Mapping[str, str], patience_seconds: float
) -> tuple[int, int, int]:
    """Height, width and channels, from the model's metadata."""
    with httpx.Client(
        base_url=host, headers=authorization, timeout=patience_seconds
    ) as client:
        inputs = _inputs(client, model)
    match inputs.get(INPUT):
        case [_, int(height), int(width), int(channels)] if min(height, width) > 0:
            return height, width, channels
    raise ValueError(f"{model} takes no images of a known size, but {inputs}")


def _inputs(client: httpx.Client, model: str) -> Mapping[str, Sequence[int]]:
    """Shapes by names, of the signature that is asked when none is named."""
    answer = client.get(f"/v2/models/{model}")
    if answer.status_code == httpx.codes.NOT_FOUND:
        # TensorFlow Serving alone has its own API and no other.
        metadata = client.get(f"/v1/models/{model}/metadata")
        if metadata.is_success:
            return _tf_serving_inputs(metadata.json())
    document = answer.raise_for_status().json()
    return {one["name"]: one["shape"] for one in document["inputs"]}


def _tf_serving_inputs(document: Any) -> Mapping[str, Sequence[int]]:
    signatures = document["metadata"]["signature_def"]["signature_def"]
    inputs = signatures.get("serving_default", {}).get("inputs", {})
    return {
        name: [int(dim["size"]) for dim in one["tensor_shape"].get("dim", ())]
        for name, one in inputs.items()
    }
