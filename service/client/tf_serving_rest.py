"""TensorFlow Serving's REST API: requests in columns, and its answers."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec
import numpy as np
import orjson
from google.protobuf.json_format import ParseDict

from proto.tensorflow.serving.get_model_metadata_pb2 import SignatureDefMap
from service.client.answers import Metadata, Signature, TensorSpec, VersionStatus
from service.client.errors import INVALID_ARGUMENT, RequestFailed, reading
from service.client.http_requests import HttpRequest, checked, parsed
from service.client.operations import metadata_of
from service.open_inference.data_types import shaped
from service.tensors import Array


class _Spec(msgspec.Struct):
    name: str
    version: int


class _Definitions(msgspec.Struct):
    signature_def: dict[str, Any]


class _Metadata(msgspec.Struct):
    model_spec: _Spec
    metadata: _Definitions


class _Error(msgspec.Struct):
    error_message: str = ""


class _Status(msgspec.Struct):
    version: int
    state: str
    status: _Error


class _Statuses(msgspec.Struct):
    model_version_status: list[_Status]


def statuses(answer: httpx.Response) -> Sequence[VersionStatus]:
    """The states of versions, in the order of the answer.

    Raises:
        RequestFailed: It is a failure, or cannot be read.
    """
    return [
        VersionStatus(
            version=one.version,
            state=one.state,
            error_message=one.status.error_message,
        )
        for one in parsed(answer, _Statuses).model_version_status
    ]


def metadata(answer: httpx.Response) -> Metadata:
    """A version's signatures.

    Raises:
        RequestFailed: It is a failure, or cannot be read.
    """
    found = parsed(answer, _Metadata)
    with reading():
        definitions = ParseDict(
            found.metadata.signature_def, SignatureDefMap(), ignore_unknown_fields=True
        )
        return metadata_of(found.model_spec.name, found.model_spec.version, definitions)


def request(
    path: str, tensors: Mapping[str, Array], signature_name: str | None
) -> HttpRequest:
    """A `:predict` request in columns.

    Args:
        path: Where it goes.
        tensors: The inputs by name.
        signature_name: What is run.
    """
    document: dict[str, Any] = {}
    if signature_name:
        document["signature_name"] = signature_name
    document["inputs"] = {name: _as_json(array) for name, array in tensors.items()}
    return HttpRequest(
        method="POST",
        path=path,
        headers={"content-type": "application/json"},
        content=orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY),
    )


def outputs(
    answer: httpx.Response, signature: Signature, wanted: Sequence[str] | None
) -> dict[str, Array]:
    """The outputs of an answer by name.

    Args:
        answer: The answer to a request in columns.
        signature: What was run: JSON does not tell the dtypes, nor an only name.
        wanted: The names of outputs; all if there are none.

    Raises:
        RequestFailed: It is a failure, cannot be read, or lacks a wanted output.
    """
    body = checked(answer).content
    specs = signature.outputs
    with reading():
        values = _loaded(body)["outputs"]
        if len(specs) == 1:
            values = dict.fromkeys(specs, values)
        found = {name: _array(values[name], spec) for name, spec in specs.items()}
    for name in wanted or ():
        if name not in found:
            raise RequestFailed(
                INVALID_ARGUMENT,
                f"there is no output {name!r}; there is "
                f"{', '.join(map(repr, sorted(found)))}",
            )
    return {name: found[name] for name in wanted or found}


def _as_json(array: Array) -> Any:
    """What orjson writes as an array's values, without loss."""
    if array.dtype.hasobject:
        encoded = [{"b64": b64encode(text).decode()} for text in array.ravel()]
        return shaped(encoded, array.dtype, array.shape).tolist()
    if array.dtype.kind not in "biu":
        # The server reads a double, not always to the last bit: what is written to the
        # last digit of a double is the same float in any case.
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            return orjson.Fragment(json.dumps(array.tolist()))
    return np.ascontiguousarray(array) if array.ndim else array.item()


def _loaded(body: bytes) -> Any:
    """A document that may hold `NaN`, `Infinity` and strings that are not UTF-8."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body.decode(errors="surrogateescape"))


def _array(values: Any, spec: TensorSpec) -> Array:
    if not spec.dtype.hasobject:
        return np.asarray(values, spec.dtype)
    texts = np.asarray(values, object)
    return shaped([_bytes(text) for text in texts.ravel()], spec.dtype, texts.shape)


def _bytes(text: Any) -> bytes:
    if isinstance(text, dict):
        return b64decode(text["b64"])
    encoded: bytes = text.encode(errors="surrogateescape")
    return encoded
