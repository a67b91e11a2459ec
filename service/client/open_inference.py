"""The Open Inference Protocol's inference over HTTP, with binary tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import msgspec
import orjson

from service.client.errors import reading
from service.client.http_requests import HttpRequest, checked
from service.open_inference.data_types import datatype_of, dtype_of, from_raw, to_raw
from service.tensors import Array

JSON_LENGTH: Final = "inference-header-content-length"


class _Parameters(msgspec.Struct):
    binary_data_size: int


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: _Parameters


class _Answer(msgspec.Struct):
    outputs: list[_Output]


def request(
    path: str,
    tensors: Mapping[str, Array],
    signature_name: str | None,
    outputs: Sequence[str] | None,
) -> HttpRequest:
    """An inference request, with all outputs as binary data.

    Args:
        path: Where it goes.
        tensors: The inputs by name.
        signature_name: What is run; not every server knows several.
        outputs: Those that are wanted; all if there are none.
    """
    contents = [to_raw(array) for array in tensors.values()]
    parameters: dict[str, Any] = {"binary_data_output": True}
    if signature_name:
        parameters["signature_name"] = signature_name
    document: dict[str, Any] = {
        "parameters": parameters,
        "inputs": [
            {
                "name": name,
                "datatype": datatype_of(array.dtype),
                "shape": array.shape,
                "parameters": {"binary_data_size": len(content)},
            }
            for (name, array), content in zip(tensors.items(), contents, strict=True)
        ],
    }
    if outputs:
        document["outputs"] = [
            {"name": name, "parameters": {"binary_data": True}} for name in outputs
        ]
    text = orjson.dumps(document)
    return HttpRequest(
        method="POST",
        path=path,
        headers={
            "content-type": "application/octet-stream",
            JSON_LENGTH: str(len(text)),
        },
        content=b"".join((text, *contents)),
    )


def outputs(answer: httpx.Response) -> dict[str, Array]:
    """The outputs of an answer by name.

    Raises:
        RequestFailed: It is a failure, or cannot be read.
    """
    body = checked(answer).content
    with reading():
        at = int(answer.headers.get(JSON_LENGTH, len(body)))
        document = msgspec.json.decode(body[:at], type=_Answer)
        found = {}
        for output in document.outputs:
            start, at = at, at + output.parameters.binary_data_size
            dtype = dtype_of(output.datatype)
            found[output.name] = from_raw(body[start:at], dtype, output.shape)
        return found
