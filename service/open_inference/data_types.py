"""How the protocol names the types of tensors, and how their bytes lie."""

import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import ml_dtypes
import numpy as np

from service.errors import InvalidTensor
from service.tensors import Array

BYTES: Final = "BYTES"
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(bool),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    BYTES: np.dtype(object),
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
# NumPy has no arrays of more.
MOST_DIMENSIONS: Final = 64
# Each element of BYTES comes after its length.
LENGTH: Final = struct.Struct("<I")


def datatype_of(dtype: np.dtype[Any]) -> str:
    """As the protocol names it: `UINT8`, `FP32`, `BYTES`."""
    return _NAMES[dtype]


def dtype_of(datatype: str) -> np.dtype[Any]:
    """What the protocol means by a name; strings are objects, `bytes` each.

    Raises:
        InvalidTensor: It has no such type.
    """
    found = DTYPES.get(datatype)
    if found is None:
        raise InvalidTensor(
            f"there is no datatype {datatype[:40]!r}; there is {', '.join(DTYPES)}"
        )
    return found


def from_raw(content: bytes, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """An array from its elements in row-major order, little-endian.

    Args:
        content: The elements; those of strings with 4 bytes of length before each.
        dtype: What they are.
        shape: Their dimensions.

    Returns:
        The array; it is read-only where it needs no copy.

    Raises:
        InvalidTensor: The bytes are not as many as the shape needs, or there is no
            such shape.
    """
    elements = _elements(shape)
    if dtype.hasobject:
        return shaped(_strings(content, elements), dtype, shape)
    expected = elements * dtype.itemsize
    if len(content) != expected:
        raise InvalidTensor(
            f"{datatype_of(dtype)} of shape {list(shape)} takes {expected} bytes; got "
            f"{len(content)}"
        )
    return _arranged(np.frombuffer(content, dtype.newbyteorder("<")), shape)


def slow_bytes(content: bytes, datatype: str, shape: Sequence[int]) -> int:
    """How much of a tensor's bytes `from_raw` reads element by element."""
    if datatype != BYTES or len(shape) > MOST_DIMENSIONS:
        return 0
    return min(len(content), LENGTH.size * abs(prod(shape)))


def to_raw(array: Array) -> bytes:
    """The elements of an array; see `from_raw`."""
    if not array.dtype.hasobject:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return b"".join(LENGTH.pack(len(text)) + text for text in array.ravel().tolist())


def shaped(
    values: Sequence[Any] | Array, dtype: np.dtype[Any], shape: Sequence[int]
) -> Array:
    """Values in row-major order as an array.

    Raises:
        InvalidTensor: They are not as many as the shape needs, or there is no such
            shape.
    """
    expected = _elements(shape)
    if len(values) != expected:
        raise InvalidTensor(
            f"{datatype_of(dtype)} of shape {list(shape)} has {expected} elements; "
            f"got {len(values)}"
        )
    array = np.empty(len(values), dtype)
    array[:] = values
    return _arranged(array, shape)


def _elements(shape: Sequence[int]) -> int:
    """How many a tensor has."""
    # The product of very many sizes is a number that takes seconds to compute.
    if len(shape) > MOST_DIMENSIONS:
        raise InvalidTensor(
            f"expected at most {MOST_DIMENSIONS} dimensions, got {len(shape)}"
        )
    if min(shape, default=0) < 0:
        raise InvalidTensor(f"a shape has no negative sizes; got {list(shape)}")
    return prod(shape)


def _arranged(array: Array, shape: Sequence[int]) -> Array:
    try:
        return array.reshape(tuple(shape))
    except ValueError as error:  # beside a 0 other sizes may be beyond all limits
        raise InvalidTensor(f"shape {list(shape)}: {error}") from error


def _strings(content: bytes, count: int) -> list[bytes]:
    """At most so many; there are no more."""
    strings: list[bytes] = []
    at = 0
    while at < len(content) and len(strings) < count:
        start = at + LENGTH.size
        if start > len(content):
            raise InvalidTensor("BYTES end inside the length of an element")
        at = start + LENGTH.unpack_from(content, start - LENGTH.size)[0]
        if at > len(content):
            raise InvalidTensor("BYTES end before an element does")
        strings.append(content[start:at])
    if at < len(content):
        raise InvalidTensor(
            f"{len(content) - at} bytes are left behind the last of {count} elements"
        )
    return strings
