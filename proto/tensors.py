"""Arrays to `TensorProto` and back, as TensorFlow does it, without TensorFlow."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from proto.tensorflow.tensor_pb2 import DataType, TensorProto, TensorShapeProto
from proto.wire import Part, length_delimited

Array = npt.NDArray[Any]

# Protobuf's own limit for a message, and so for a tensor that is written in full.
MAX_TENSOR_BYTES: Final = 2**31 - 1
# NumPy's limit.
MAX_RANK: Final = 64


class InvalidTensorProto(ValueError):
    """A `TensorProto` that contradicts itself or uses what is not supported here."""


class _Element(NamedTuple):
    """How elements of one data type travel.

    Attributes:
        dtype: What an array has; little-endian, as `tensor_content` holds it.
        field: The typed field.
        number: What the typed field's numbers are: the elements or, for float16 and
            bfloat16, the bits of one.
        carrier: The typed field's own dtype.
    """

    dtype: np.dtype[Any]
    field: str
    number: np.dtype[Any]
    carrier: np.dtype[Any]


_CARRIERS: Final = {
    "bool_val": np.dtype("?"),
    "double_val": np.dtype("<f8"),
    "float_val": np.dtype("<f4"),
    "half_val": np.dtype("<i4"),
    "int64_val": np.dtype("<i8"),
    "int_val": np.dtype("<i4"),
    "string_val": np.dtype("O"),
    "uint32_val": np.dtype("<u4"),
    "uint64_val": np.dtype("<u8"),
}

# Fields whose packed form is the array's own: numbers of a fixed width.
_PACKED_AS_THEY_ARE: Final = {_CARRIERS["float_val"], _CARRIERS["double_val"]}


# NumPy has no letter for it: it counts as two bytes of unknown kind, `V2`, and yet
# differs from those, and has a byte order like any number.
_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16).newbyteorder("<")


def _element(
    dtype: str | np.dtype[Any], field: str, number: str | None = None
) -> _Element:
    return _Element(
        dtype=np.dtype(dtype),
        field=field,
        number=np.dtype(number or dtype),
        carrier=_CARRIERS[field],
    )


_ELEMENTS: Final = {
    DataType.DT_BFLOAT16: _element(_BFLOAT16, "half_val", number="<u2"),
    DataType.DT_BOOL: _element("?", "bool_val"),
    DataType.DT_DOUBLE: _element("<f8", "double_val"),
    DataType.DT_FLOAT: _element("<f4", "float_val"),
    DataType.DT_HALF: _element("<f2", "half_val", number="<u2"),
    DataType.DT_INT8: _element("<i1", "int_val"),
    DataType.DT_INT16: _element("<i2", "int_val"),
    DataType.DT_INT32: _element("<i4", "int_val"),
    DataType.DT_INT64: _element("<i8", "int64_val"),
    DataType.DT_STRING: _element("O", "string_val"),
    DataType.DT_UINT8: _element("<u1", "int_val"),
    DataType.DT_UINT16: _element("<u2", "int_val"),
    DataType.DT_UINT32: _element("<u4", "uint32_val"),
    DataType.DT_UINT64: _element("<u8", "uint64_val"),
}
_DATA_TYPES: Final = {element.dtype: kind for kind, element in _ELEMENTS.items()}


def dtype_of(data_type: DataType) -> np.dtype[Any] | None:
    """The dtype of a `DataType`, in native byte order; `None` if it has none here."""
    element = _ELEMENTS.get(data_type)
    return None if element is None else element.dtype.newbyteorder("=")


def to_tensor_proto(array: Array, *, typed: bool = False) -> TensorProto:
    """Write an array of any shape and memory layout.

    Args:
        array: bool, (u)int8 to (u)int64, float16 to float64, bfloat16; or strings:
            `bytes` or `str` elements (the latter become UTF-8) of an object, `S` or `U`
            array.
        typed: Whether numbers go to the typed field, as TensorFlow Serving answers, and
            not to the faster `tensor_content`.

    Raises:
        TypeError: The dtype, or an element of an object array, is none of these.
    """
    message = _without_values(array)
    if message.dtype == DataType.DT_STRING:
        message.string_val.extend(_encoded(value) for value in array.ravel().tolist())
    elif typed:
        _extend(message, _little_endian(array))
    else:
        message.tensor_content = _little_endian(array).tobytes()
    return message


def tensor_parts(array: Array) -> list[Part]:
    """The bytes of what `to_tensor_proto` writes, numbers as they lie in memory.

    Args:
        array: As `to_tensor_proto` takes it; to be left alone until the parts are used.

    Raises:
        TypeError: As `to_tensor_proto` does.
    """
    message = _without_values(array)
    if message.dtype == DataType.DT_STRING:
        return [to_tensor_proto(array).SerializeToString()]
    numbers = np.ascontiguousarray(_little_endian(array)).reshape(-1).view(np.uint8)
    return [
        message.SerializeToString(),
        *length_delimited(TensorProto.TENSOR_CONTENT_FIELD_NUMBER, [numbers.data]),
    ]


def _without_values(array: Array) -> TensorProto:
    strings = array.dtype.kind in "OSU"
    dtype = np.dtype("O") if strings else array.dtype.newbyteorder("<")
    if dtype not in _DATA_TYPES:
        raise TypeError(f"a {array.dtype} array has no TensorProto form here")
    return TensorProto(dtype=_DATA_TYPES[dtype], tensor_shape=_shape_proto(array))


def _little_endian(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _extend(message: TensorProto, array: Array) -> None:
    """Put an array's elements into the typed field of a message."""
    element = _ELEMENTS[message.dtype]
    numbers = array.ravel().view(element.number).astype(element.carrier, copy=False)
    field = TensorProto.DESCRIPTOR.fields_by_name[element.field]
    if element.carrier in _PACKED_AS_THEY_ARE:
        # Such a field holds the numbers as they lie in memory.
        packed = length_delimited(field.number, [numbers.tobytes()])
        message.MergeFromString(b"".join(packed))
    else:
        getattr(message, element.field).extend(numbers.tolist())


def from_tensor_proto(
    message: TensorProto, *, max_bytes: int = MAX_TENSOR_BYTES
) -> Array:
    """Read a tensor from its content or from its typed field.

    A typed field with fewer values than elements repeats the last one; an empty one
    means zeros or empty strings.

    Args:
        message: A tensor of a type that `to_tensor_proto` writes.
        max_bytes: The largest array to make; a few bytes can ask for a huge one.

    Returns:
        The array, in native byte order; strings are `bytes` in an object array. It may
        be read-only.

    Raises:
        InvalidTensorProto: The data type is not supported, the shape is not known, the
            values do not fit them, or the array is larger than `max_bytes`.
    """
    element = _ELEMENTS.get(message.dtype)
    if element is None:
        raise InvalidTensorProto(
            f"data type {_name(message.dtype)} is not supported; "
            f"expected one of {', '.join(map(_name, _ELEMENTS))}"
        )
    shape = _known_shape(message.tensor_shape)
    size = math.prod(shape)
    needed = size * element.dtype.itemsize
    if needed > max_bytes:
        raise InvalidTensorProto(
            f"a {_name(message.dtype)} tensor of shape {shape} takes {needed} bytes; "
            f"at most {max_bytes} are allowed"
        )
    if message.tensor_content:
        values = _content(message, element, needed)
    else:
        values = _padded(_typed_values(message, element), size, element)
    native = values.astype(element.dtype.newbyteorder("="), copy=False)
    try:
        return native.reshape(shape)
    except ValueError as error:
        raise InvalidTensorProto(f"no array has the shape {shape}: {error}") from error


def _shape_proto(array: Array) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in array.shape])


def _encoded(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"a string tensor holds bytes or str, not {type(value).__name__}")


def _name(data_type: int) -> str:
    known = data_type in DataType.values()
    return DataType.Name(data_type) if known else str(data_type)


def _known_shape(shape: TensorShapeProto) -> tuple[int, ...]:
    if len(shape.dim) > MAX_RANK:
        raise InvalidTensorProto(
            f"a tensor has at most {MAX_RANK} dimensions; got {len(shape.dim)}"
        )
    sizes = tuple(dim.size for dim in shape.dim)
    if shape.unknown_rank or any(size < 0 for size in sizes):
        raise InvalidTensorProto("every dimension of a tensor's shape must be known")
    return sizes


def _content(message: TensorProto, element: _Element, needed: int) -> Array:
    if element.field == "string_val":
        raise InvalidTensorProto("strings are read from string_val, not tensor_content")
    content = message.tensor_content
    if len(content) != needed:
        raise InvalidTensorProto(
            f"tensor_content has {len(content)} bytes; dtype and shape need {needed}"
        )
    return np.frombuffer(content, element.dtype)


def _typed_values(message: TensorProto, element: _Element) -> Array:
    field: Sequence[Any] = getattr(message, element.field)
    # Asking for the carrier keeps large uint64 from becoming floats.
    carried = np.asarray(field, element.carrier)
    values = carried.astype(element.number, copy=False)
    if element.number != element.carrier and not np.array_equal(values, carried):
        raise InvalidTensorProto(
            f"{element.field} holds numbers that {_name(message.dtype)} cannot"
        )
    return values.view(element.dtype)


def _padded(values: Array, size: int, element: _Element) -> Array:
    if values.size == size:
        return values
    if values.size > size:
        raise InvalidTensorProto(
            f"{element.field} has {values.size} values; the shape needs {size}"
        )
    empty: object = b"" if element.field == "string_val" else 0
    padded = np.full(size, values[-1] if values.size else empty, element.dtype)
    padded[: values.size] = values
    return padded
