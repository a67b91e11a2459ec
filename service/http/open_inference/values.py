"""The values of a tensor as JSON has them: a list in row-major order, maybe nested."""

import binascii
from base64 import b64decode
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson

from service.errors import InvalidTensor
from service.http.json_arrays import array_of, number_array
from service.open_inference.data_types import datatype_of, shaped
from service.tensors import Array


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
        InvalidTensor: They are of another type, or not as many as the shape needs; or
            there is a number that no float is as large as, or a string that is no text.
    """
    values: Any = None if dtype.hasobject else number_array(text)
    if values is None:
        try:
            values = orjson.loads(text)
        except orjson.JSONDecodeError as error:  # what has only been skipped so far
            raise InvalidTensor(f"data: {error.msg}") from error
        if not isinstance(values, list):
            raise InvalidTensor("data: expected a list")
    if dtype.hasobject:
        read_one = _of_base64 if base64 else str.encode
        return shaped([read_one(one) for one in _strings(values)], dtype, shape)
    booleans = isinstance(values, list) and (b"true" in text or b"false" in text)
    array = array_of(values, dtype, booleans=booleans)
    if array is None:
        raise InvalidTensor(
            f"data: expected a list of {datatype_of(dtype)}, nested evenly if at all"
            + (f", of {_limits(dtype)}" if dtype.kind in "iu" else "")
        )
    return shaped(array.ravel(), dtype, shape)


def _limits(dtype: np.dtype[Any]) -> str:
    limits = np.iinfo(dtype)
    return f"integers from {limits.min} to {limits.max}"


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
