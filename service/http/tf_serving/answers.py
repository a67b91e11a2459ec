"""What TensorFlow Serving's REST API answers, to the letter.

It writes with RapidJSON's pretty writer, and shortens numbers as TensorFlow does: six
significant digits where they spell the number exactly, else as many as it takes at
most. The arrays of a row format stand on one line, but for their end.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson

from service.errors import EngineFailure
from service.tensors import Array, is_float

# The decimal digits that a type always holds, and that always spell it.
DIGITS: Final = {"float32": (6, 9), "float64": (15, 17)}
# Strings of outputs with such names are bytes, and so written in base64.
BYTES_SUFFIX: Final = "_bytes"
INDENT: Final = "    "
SPECIAL: Final = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}


def error(message: str) -> bytes:
    """`{"error": …}`."""
    return b'{\n    "error": %b\n}' % _string(message).encode()


def predictions(outputs: Mapping[str, Array]) -> bytes:
    """The answer to a request in row format: one element for each row.

    Args:
        outputs: `{name: array[rows, …]}`.

    Raises:
        EngineFailure: An output has no rows, or they have different numbers of them.
    """
    rows = _count_rows(outputs)
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        values = _lines(array, name, depth=2)
        body = f"[{', '.join(values)}\n{INDENT}]"
    else:
        columns = {
            name: _lines(array, name, depth=4) for name, array in outputs.items()
        }
        items = [
            ",\n".join(
                f"{3 * INDENT}{_string(name)}: {column[row]}"
                for name, column in columns.items()
            )
            for row in range(rows)
        ]
        objects = (f"\n{2 * INDENT}{{\n{item}\n{2 * INDENT}}}" for item in items)
        body = f"[{','.join(objects)}\n{INDENT}]"
    return f'{{\n{INDENT}"predictions": {body}\n}}'.encode()


def outputs(outputs: Mapping[str, Array]) -> bytes:
    """The answer to a request in column format: one tensor, or one by name."""
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        body = _pretty(array, name, depth=1)
    else:
        members = ",\n".join(
            f"{2 * INDENT}{_string(name)}: {_pretty(array, name, depth=2)}"
            for name, array in outputs.items()
        )
        body = f"{{\n{members}\n{INDENT}}}"
    return f'{{\n{INDENT}"outputs": {body}\n}}'.encode()


def _count_rows(outputs: Mapping[str, Array]) -> int:
    rows: int | None = None
    for name, array in outputs.items():
        if not array.ndim:
            raise EngineFailure(f"Tensor name: {name} has no shape information ")
        if rows is None:
            rows = len(array)
        elif len(array) != rows:
            raise EngineFailure(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} "
                f"expecting: {rows}"
            )
    return rows or 0


def _lines(array: Array, name: str, *, depth: int) -> list[str]:
    """Each row of an array on one line."""
    texts = _texts(array, name, depth)
    for size in reversed(array.shape[1:]):
        texts = (
            [
                f"[{', '.join(texts[start : start + size])}]"
                for start in range(0, len(texts), size)
            ]
            if size
            else ["[]"] * len(array)
        )
    return texts


def _pretty(array: Array, name: str, *, depth: int) -> str:
    """An array with each element on a line of its own."""
    texts = _texts(array, name, depth + array.ndim)
    for level, size in reversed(list(enumerate(array.shape))):
        outer, inner = (depth + level) * INDENT, (depth + level + 1) * INDENT
        if size == 0:
            return "[]"
        texts = [
            "[\n"
            + ",\n".join(inner + text for text in texts[start : start + size])
            + f"\n{outer}]"
            for start in range(0, len(texts), size)
        ]
    return texts[0]


def _texts(array: Array, name: str, depth: int) -> list[str]:
    """Each element as JSON; an object stands at `depth`."""
    flat = array.ravel()
    kind = array.dtype.kind
    if is_float(array.dtype):
        return _floats(flat)
    if kind == "b":
        return ["true" if value else "false" for value in flat.tolist()]
    if kind != "O":
        return [str(value) for value in flat.tolist()]
    if not name.endswith(BYTES_SUFFIX):
        return [_string(_decoded(value)) for value in flat.tolist()]
    inner, outer = (depth + 1) * INDENT, depth * INDENT
    return [
        f'{{\n{inner}"b64": "{b64encode(value).decode()}"\n{outer}}}'
        for value in flat.tolist()
    ]


def _floats(flat: Array) -> list[str]:
    if flat.dtype.name not in DIGITS:
        flat = flat.astype(np.float32)
    few, many = DIGITS[flat.dtype.name]
    values: Sequence[float] = flat.tolist()
    texts = [f"{value:.{few}g}" for value in values]
    with np.errstate(over="ignore"):
        inexact = np.array(texts, "U").astype(np.float64).astype(flat.dtype) != flat
    for index in np.flatnonzero(inexact).tolist():
        texts[index] = f"{values[index]:.{many}g}"
    return [text if "." in text or "e" in text else _point(text) for text in texts]


def _point(text: str) -> str:
    """A number without a fraction, so that it is read as a float."""
    return SPECIAL.get(text) or text + ".0"


def _decoded(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _string(text: str) -> str:
    """A JSON string; what is not UTF-8 in it is replaced."""
    readable = text.encode(errors="surrogateescape").decode(errors="replace")
    return orjson.dumps(readable).decode()
