"""The operations over HTTP.

Tensors go as the Open Inference Protocol's binary data where the server takes them, and
as TensorFlow Serving's JSON else.
"""

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote

import msgspec

from service.client import open_inference, tf_serving_rest
from service.client.answers import (
    Classification,
    Metadata,
    ModelChoice,
    Prediction,
    VersionStatus,
)
from service.client.conversations import Conversation
from service.client.errors import (
    DEADLINE_EXCEEDED,
    NOT_FOUND,
    UNAVAILABLE,
    RequestFailed,
    no_classifier,
)
from service.client.http_requests import HttpRequest, checked, parsed, told
from service.client.operations import Operations
from service.tensors import Array

BYTES: Final = "application/octet-stream"
BINARY_TENSORS: Final = "binary_tensor_data"
# What servers answer at paths that they do not have, and proxies at those that they do
# not pass on.
NOT_THERE: Final = frozenset({404, 405})
NOT_PASSED_ON: Final = frozenset({400, 403})


class _Result(msgspec.Struct):
    predictions: tuple[Prediction, ...]


class _Classification(msgspec.Struct):
    model: str
    version: int
    results: list[_Result]


class _Server(msgspec.Struct):
    extensions: list[str] = []


class HttpOperations(Operations):
    """See `Operations`; requests are `HttpRequest`, answers those of httpx."""

    def __init__(self) -> None:
        super().__init__()
        self._takes_binary: bool | None = None

    def classify(
        self, images: Sequence[bytes], model: ModelChoice, top_k: int | None
    ) -> Conversation[Classification]:
        """`POST /classify`: an image as the body, several as a form."""
        path = f"{_path('/models', model)}/classify" if model.name else "/classify"
        params = {} if top_k is None else {"top_k": str(top_k)}
        if len(images) == 1:
            request = HttpRequest(
                method="POST",
                path=path,
                params=params,
                headers={"content-type": BYTES},
                content=images[0],
            )
        else:
            files = [("image", ("image", image, BYTES)) for image in images]
            request = HttpRequest(method="POST", path=path, params=params, files=files)
        answer = yield request
        if answer.status_code in NOT_THERE and told(answer) is None:
            raise no_classifier()
        found = parsed(answer, _Classification)
        return Classification(
            model=found.model,
            version=found.version,
            results=tuple(result.predictions for result in found.results),
        )

    def status(self, model: ModelChoice) -> Conversation[Sequence[VersionStatus]]:
        """`GET /v1/models/NAME`."""
        answer = yield HttpRequest(method="GET", path=_path("/v1/models", model))
        return tf_serving_rest.statuses(answer)

    def is_ready(self) -> Conversation[bool]:
        """`GET /readyz`, or `/v2/health/ready`.

        A server that has neither answers at least.
        """
        for path in ("/readyz", "/v2/health/ready"):
            try:
                checked((yield HttpRequest(method="GET", path=path)))
            except RequestFailed as error:
                if error.status in {UNAVAILABLE, DEADLINE_EXCEEDED}:
                    return False
                if error.status != NOT_FOUND:
                    raise
            else:
                return True
        return True

    def _metadata(self, model: ModelChoice) -> Conversation[Metadata]:
        path = _path("/v1/models", model) + "/metadata"
        answer = yield HttpRequest(method="GET", path=path)
        return tf_serving_rest.metadata(answer)

    def _run(
        self,
        tensors: Mapping[str, Array],
        model: ModelChoice,
        signature_name: str | None,
        outputs: Sequence[str] | None,
    ) -> Conversation[dict[str, Array]]:
        if (yield from self._takes_binary_of(model)):
            path = _path("/v2/models", model, labels="/versions") + "/infer"
            answer = yield open_inference.request(
                path, tensors, signature_name, outputs
            )
            return open_inference.outputs(answer)
        signature = yield from self._signature(model, signature_name)
        path = _path("/v1/models", model) + ":predict"
        answer = yield tf_serving_rest.request(path, tensors, signature_name)
        return tf_serving_rest.outputs(answer, signature, outputs)

    def _takes_binary_of(self, model: ModelChoice) -> Conversation[bool]:
        """Whether the server takes binary tensors for a version of a model."""
        if self._takes_binary is None:
            answer = yield HttpRequest(method="GET", path="/v2")
            self._takes_binary = (
                answer.status_code not in NOT_THERE | NOT_PASSED_ON
                and BINARY_TENSORS in parsed(answer, _Server).extensions
            )
        # Where the protocol has only versions, such a label would be one.
        is_number = model.label is not None and model.label.isdecimal()
        return self._takes_binary and not is_number


def _path(root: str, model: ModelChoice, labels: str = "/labels") -> str:
    path = f"{root}/{_quoted(model.name or '')}"
    if model.version is not None:
        return f"{path}/versions/{model.version}"
    if model.label is not None:
        return f"{path}{labels}/{_quoted(model.label)}"
    return path


def _quoted(name: str) -> str:
    return quote(name, safe="")
