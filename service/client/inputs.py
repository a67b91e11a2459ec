"""What callers hand over, as protocols carry it: files as bytes, values as arrays."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from service.client.answers import TensorSpec
from service.client.errors import INVALID_ARGUMENT, RequestFailed
from service.open_inference.data_types import DTYPES
from service.tensors import Array

Image: TypeAlias = bytes | str | PathLike[str]

# What numbers become arrays of a kind: no float is cut off, no boolean is a number.
KINDS: Final[Mapping[str, str]] = {"b": "b", "i": "iu", "u": "iu", "O": "OSU"}
FLOATS: Final = "iuf"
CARRIED: Final = frozenset(DTYPES.values())
STRINGS: Final = "OSU"


def listed(images: Image | Sequence[Image]) -> Sequence[Image]:
    """One image or several, as several."""
    return (images,) if isinstance(images, bytes | str | PathLike) else images


def contents(images: Sequence[Image]) -> list[bytes]:
    """The images' bytes; a path's are those of its file.

    Raises:
        OSError: A file cannot be read.
    """
    return [
        image if isinstance(image, bytes) else Path(image).read_bytes()
        for image in images
    ]


def is_array(value: npt.ArrayLike) -> bool:
    """Whether a value has a dtype of its own, as lists and scalars do not."""
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def as_array(name: str, value: npt.ArrayLike) -> Array:
    """An array as it is sent: strings as objects, `bytes` each.

    Args:
        name: The input's, to name it in errors.
        value: An array.

    Raises:
        RequestFailed: No protocol carries its dtype.
    """
    array = np.asarray(value)
    if array.dtype.kind in STRINGS:
        return _strings(name, array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in CARRIED:
        raise _unfit(name, f"{array.dtype} arrays cannot be sent")
    return array


def converted(value: npt.ArrayLike, spec: TensorSpec) -> Array:
    """Lists or a scalar as an array of the dtype that an input has.

    Raises:
        RequestFailed: Not all values are of that type, or fit it.
    """
    dtype = spec.dtype
    try:
        array = np.asarray(value, object if dtype.hasobject else None)
    except ValueError as error:  # lists of different lengths
        raise _unfit(spec.name, str(error)) from error
    if array.size and array.dtype.kind not in KINDS.get(dtype.kind, FLOATS):
        raise _unfit(spec.name, f"not all values are {_called(dtype)}")
    if dtype.hasobject:
        return _strings(spec.name, array)
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise _unfit(spec.name, f"{dtype} holds {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _strings(name: str, array: Array) -> Array:
    strings = np.empty(array.size, object)
    for index, value in enumerate(array.ravel().tolist()):
        if not isinstance(value, bytes | str):
            raise _unfit(name, f"a string is bytes or str, not {type(value).__name__}")
        strings[index] = value.encode() if isinstance(value, str) else value
    return strings.reshape(array.shape)


def _called(dtype: np.dtype[Any]) -> str:
    return "strings" if dtype.hasobject else str(dtype)


def _unfit(name: str, reason: str) -> RequestFailed:
    return RequestFailed(INVALID_ARGUMENT, f"{name}: {reason}")
