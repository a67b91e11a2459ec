"""The body of an answer: JSON, with the bytes of tensors behind it where wanted."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import orjson

from service.errors import InvalidRequest
from service.http.open_inference.requests import BINARY, BINARY_OUTPUTS, BINARY_SIZE
from service.open_inference.data_types import to_raw
from service.open_inference.inference import (
    InferAnswer,
    InferRequest,
    OutputTensor,
)
from service.tensors import Array


@dataclass(frozen=True, slots=True)
class Body:
    """The whole body, and how much of it is JSON; `None` if all is."""

    content: bytes
    json_length: int | None = None


def write(answer: InferAnswer, request: InferRequest, request_id: str) -> Body:
    """The body of an answer.

    Args:
        answer: What it tells.
        request: What it answers.
        request_id: The id that the client gave, or nothing.

    Raises:
        InvalidRequest: An output holds strings that are no text for JSON.
    """
    binary_by_default = request.parameters.get(BINARY_OUTPUTS, False)
    document: dict[str, Any] = {
        "model_name": answer.model,
        "model_version": answer.version,
    }
    if request_id:
        document["id"] = request_id
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for output in answer.outputs:
        written: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.shape,
        }
        asked = output.wanted.parameters if output.wanted else {}
        if asked.get(BINARY, binary_by_default):
            content = to_raw(output.array)
            written["parameters"] = {BINARY_SIZE: len(content)}
            behind.append(content)
        else:
            written["data"] = _for_json(output)
        outputs.append(written)
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not behind:
        return Body(text)
    return Body(b"".join((text, *behind)), len(text))


def _for_json(output: OutputTensor) -> Array | list[str]:
    """The elements in row-major order."""
    array = output.array
    if array.dtype.hasobject:
        try:
            return [text.decode() for text in array.ravel().tolist()]
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"the output {output.name!r} holds bytes that are no text; ask for "
                f"{BINARY}"
            ) from None
    if array.dtype == ml_dtypes.bfloat16:
        array = array.astype(np.float32)
    return np.ascontiguousarray(array).ravel()
