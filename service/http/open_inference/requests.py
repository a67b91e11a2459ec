"""The body of an inference request: JSON, with the bytes of its tensors behind it."""

import reprlib
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Annotated, Any, Final, TypeVar

import msgspec

from service.errors import InvalidRequest, InvalidTensor
from service.http.open_inference import values
from service.open_inference.data_types import (
    dtype_of,
    from_raw,
    shaped,
    slow_bytes,
)
from service.open_inference.inference import (
    InferRequest,
    InputTensor,
    WantedOutput,
    check_number,
)
from service.tensors import Array, Signature, TensorSpec

T = TypeVar("T")

JSON_LENGTH: Final = b"inference-header-content-length"
BINARY_SIZE: Final = "binary_data_size"
BINARY: Final = "binary_data"
BINARY_OUTPUTS: Final = "binary_data_output"
# More than any length has; Python refuses to read numbers of thousands.
LENGTH_DIGITS: Final = 18
CONTENT_TYPE: Final = "content_type"
BASE64: Final = "base64"
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
NOTHING: Final = msgspec.Raw(b"null")


class _Tensor(msgspec.Struct, kw_only=True):
    name: str
    datatype: str
    shape: list[Size]
    data: msgspec.Raw = NOTHING
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct, kw_only=True):
    name: str
    parameters: dict[str, Any] = {}


class Document(msgspec.Struct, kw_only=True):
    """What the JSON of a request holds."""

    inputs: list[_Tensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


class IndexDocument(msgspec.Struct):
    """What the JSON of a request for the repository's index holds."""

    ready: bool = False


class ControlDocument(msgspec.Struct):
    """What the JSON of a request to load or unload a model holds."""

    parameters: dict[str, Any] = {}


def json_length(headers: Mapping[bytes, bytes], body: bytes) -> int:
    """How many bytes of the body are JSON; all, where the header does not say.

    Raises:
        InvalidRequest: The header says no number, or more than there are.
    """
    text = headers.get(JSON_LENGTH)
    if text is None:
        return len(body)
    if not text.isdigit() or len(text) > LENGTH_DIGITS or int(text) > len(body):
        raise InvalidRequest(
            "Inference-Header-Content-Length: expected a number up to the length of "
            f"the body, {len(body)}, got {text[:40].decode('latin-1')!r}"
        )
    return int(text)


def read(body: bytes, length: int) -> tuple[str, InferRequest]:
    """The id of a request, which may be empty, and the request.

    Args:
        body: JSON, and behind it the values that the JSON does not hold.
        length: How many bytes of it are JSON.

    Raises:
        InvalidRequest: It is not what the protocol says.
    """
    document = parsed(body[:length], Document)
    check_number(inputs=document.inputs, outputs=document.outputs)
    inputs = []
    at = length
    for tensor in document.inputs:
        size = tensor.parameters.get(BINARY_SIZE)
        if size is None:
            reader, slow = partial(_of_json, tensor), memoryview(tensor.data).nbytes
        else:
            # A boolean is an integer, too, but no size.
            if type(size) is not int or not 0 <= size <= len(body) - at:
                raise InvalidRequest(
                    f"{tensor.name}: {BINARY_SIZE} is {reprlib.repr(size)}; "
                    f"{len(body) - at} bytes are left in the body"
                )
            content = body[at : at + size]
            reader = partial(_of_bytes, tensor, content)
            slow = slow_bytes(content, tensor.datatype, tensor.shape)
            at += size
        inputs.append(
            InputTensor(
                name=tensor.name,
                read=reader,
                slow_bytes=slow,
                parameters=tensor.parameters,
            )
        )
    if at < len(body):
        raise InvalidRequest(
            f"the body has {len(body) - at} bytes that belong to no input; "
            f"{BINARY_SIZE} says how many do, and Inference-Header-Content-Length "
            "where they begin"
        )
    _check_flag(document.parameters, BINARY_OUTPUTS)
    for one in document.outputs:
        _check_flag(one.parameters, BINARY)
    outputs = [
        WantedOutput(name=one.name, parameters=one.parameters)
        for one in document.outputs
    ]
    request = InferRequest(
        inputs=inputs, outputs=outputs, parameters=document.parameters
    )
    return document.id, request


def _check_flag(parameters: Mapping[str, Any], name: str) -> None:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(
            f"the parameter {name}: expected true or false, got {reprlib.repr(value)}"
        )


def parsed(text: bytes, kind: type[T]) -> T:
    """The document that a text spells.

    Raises:
        InvalidRequest: It is not JSON, or not such a document.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"the JSON is not as the protocol has it: {error}"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"the body is not JSON: {error}", code="invalid_json"
        ) from error


def only_input(body: bytes, signature: Signature) -> InferRequest:
    """A request whose body is nothing but the values of the signature's only input.

    As many rows as there are; a string is the whole body, without a length before it.

    Raises:
        InvalidRequest: There are several inputs, or the sizes of one are not known.
    """
    specs = tuple(signature.inputs.values())
    if len(specs) != 1 or specs[0].shape.count(None) > 1:
        raise InvalidRequest(
            f"signature {signature.name!r} does not have one input of a fixed size; "
            "send JSON that names the inputs"
        )
    (spec,) = specs
    return InferRequest(
        inputs=[
            InputTensor(name=spec.name, read=partial(_whole, body, spec), slow_bytes=0)
        ],
        parameters={BINARY_OUTPUTS: True},
    )


def _whole(body: bytes, spec: TensorSpec) -> Array:
    if spec.dtype.hasobject:
        return shaped([body], spec.dtype, [1] * len(spec.shape))
    known = prod(size for size in spec.shape if size is not None)
    free = len(body) // max(1, known * spec.dtype.itemsize)
    shape = [free if size is None else size for size in spec.shape]
    return from_raw(body, spec.dtype, shape)


def _of_bytes(tensor: _Tensor, content: bytes) -> Array:
    if tensor.data != NOTHING:
        raise InvalidTensor(f"give data or {BINARY_SIZE}, not both")
    return from_raw(content, dtype_of(tensor.datatype), tensor.shape)


def _of_json(tensor: _Tensor) -> Array:
    if tensor.data == NOTHING:
        raise InvalidTensor(f"has neither data nor {BINARY_SIZE}")
    dtype = dtype_of(tensor.datatype)
    encoded = tensor.parameters.get(CONTENT_TYPE) == BASE64
    return values.read(bytes(tensor.data), dtype, tensor.shape, base64=encoded)
