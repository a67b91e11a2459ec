"""The values of a tensor as JSON has them: a list in row-major order, maybe nested."""

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson

from service.errors import InvalidTensor
from service.open_inference.data_types import datatype_of, shaped
from service.tensors import Array

# Which numbers an array of a kind may come from.
KINDS: Final[Mapping[str, str]] = {"b": "b", "i": "iu", "u": "iu"}
FLOATS: Final = "iuf"


def read(
    text: bytes, dtype: np.dtype[Any], shape: Sequence[int], *, base64: bool = False
) -> Array:
    """An array from its values.

    Args:
        text: A list.
        dtype: What its elements become.
        shape: What they are arranged to, however the list is nested.
        base64: Whether strings are encoded so, and not text.

    Raises:
        InvalidTensor: They are of another type, or not as many as the shape needs.
    """
    values = orjson.loads(text)
    if not isinstance(values, list):
        raise InvalidTensor("data: expected a list")
    if dtype.hasobject:
        read_one = _of_base64 if base64 else str.encode
        strings = [read_one(one) for one in _strings(values)]
        return shaped(strings, dtype, shape)
    if dtype.kind != "b" and (b"true" in text or b"false" in text):
        raise InvalidTensor(f"data: a boolean is no {datatype_of(dtype)}")
    try:
        array = np.array(values)
    except ValueError:
        raise InvalidTensor("data: the nested lists are not all as long") from None
    if array.size and array.dtype.kind not in KINDS.get(dtype.kind, FLOATS):
        raise InvalidTensor(f"data: not all values are {datatype_of(dtype)}")
    if dtype.kind in "iu" and not _fits(array, dtype):
        limits = np.iinfo(dtype)
        raise InvalidTensor(
            f"data: {datatype_of(dtype)} holds {limits.min} to {limits.max}"
        )
    with np.errstate(over="ignore"):
        return shaped(array.ravel(), dtype, shape)


def _fits(array: Array, dtype: np.dtype[Any]) -> bool:
    limits = np.iinfo(dtype)
    return not array.size or bool(
        array.min() >= limits.min and array.max() <= limits.max
    )


def _strings(values: Sequence[Any]) -> Iterator[str]:
    waiting = [iter(values)]
    while waiting:
        for value in waiting[-1]:
            if isinstance(value, list):
                waiting.append(iter(value))
                break
            if not isinstance(value, str):
                raise InvalidTensor("data: BYTES are strings in JSON")
            yield value
        else:
            waiting.pop()


def _of_base64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidTensor(f"data: it is not base64: {error}") from error
