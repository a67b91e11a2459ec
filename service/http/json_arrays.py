"""Long arrays of numbers in JSON, read without an object for each number.

They are taken out of the text and read at once; what is left is short, and any reader
may have it. Only dense arrays are taken: nested evenly, and of numbers alone. What is
not, or is not JSON, stays where it is, and the reader says what is wrong with it.

    parts = take_out(text)
    document = parts.document(orjson.loads)  # with a `NumberArray` here and there
    array = array_of(document["data"], dtype, booleans=...)
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import orjson
import simdjson

from service.tensors import Array, is_float

# The shortest that gains from it.
SHORTEST_BYTES: Final = 4 * 1024
# How much is read at a time: a processor's cache holds what the parser makes of it, and
# other threads have their turn in between.
PIECE_BYTES: Final = 64 * 1024
DEEPEST_NESTING: Final = 32

# Which numbers an array of a kind may come from.
_KINDS: Final[Mapping[str, str]] = {"b": "b", "i": "iu", "u": "iu"}
_NUMBERS: Final = "iuf"
_SPACE: Final = b" \n\r\t"
_ALL_BUT_NESTING: Final = b"0123456789+-.eE" + _SPACE
# What stands before an array that is a member of an object.
_COLON: Final = re.compile(rb"\s*:\s*(?=\[)")
_MARKS_OF_FLOATS: Final = (b".", b"e", b"E")
# No text without a backslash has a string that begins like those that stand for arrays.
_MARK: Final = "\0"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NumberArray:
    """A dense array of numbers in a document.

    Attributes:
        values: `int64`, or `float64` if one of them has a fraction or an exponent.
        text: What it was read from.
    """

    values: Array
    text: memoryview

    def tolist(self) -> list[Any]:
        """As any reader gives it: each number is of the type that it was written in."""
        found: list[Any] = orjson.loads(self.text)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """A text, and the arrays that were taken out of it.

    Attributes:
        text: The whole.
        rest: What is left of it, in which strings stand for the arrays.
        arrays: Those.
    """

    text: bytes
    rest: bytes
    arrays: Sequence[NumberArray]

    def document(self, loads: Callable[[bytes], Any]) -> Any:
        """The document that the text spells, with the arrays in their places.

        Args:
            loads: Reads what is left. It refuses strings with control characters.

        Raises:
            Exception: What `loads` raises for the whole text.
        """
        if not self.arrays:
            return loads(self.text)
        try:
            document = loads(self.rest)
        except Exception:
            return loads(self.text)  # where it is wrong is to be told of the whole
        self._put_back(document)
        return document

    def _put_back(self, document: Any) -> None:
        todo = [document]
        while todo:
            value = todo.pop()
            if isinstance(value, dict):
                for name, member in value.items():
                    if isinstance(member, str) and member.startswith(_MARK):
                        value[name] = self.arrays[int(member[len(_MARK) :])]
                todo += value.values()
            elif isinstance(value, list):
                todo += [one for one in value if isinstance(one, dict | list)]


def take_out(text: bytes) -> Parts:
    """Take the arrays out of a text that ought to be JSON.

    An array is taken where it is the member of an object and long.
    """
    arrays: list[NumberArray] = []
    rest: list[bytes] = []
    start = 0
    for begin, end in _members(text):
        array = _array(text, begin, end)
        if array is not None:
            rest += [text[start:begin], b'"\\u0000%d"' % len(arrays)]
            arrays.append(array)
            start = end
    rest.append(text[start:])
    return Parts(text=text, rest=b"".join(rest), arrays=arrays)


def number_array(text: bytes) -> NumberArray | None:
    """What a text spells, where that is a dense array of numbers, and a long one."""
    return _array(text, 0, len(text)) if len(text) >= SHORTEST_BYTES else None


def array_of(value: Any, dtype: np.dtype[Any], *, booleans: bool) -> Array | None:
    """A member of a document, or rows that are `stacked`, as an array of a type.

    Floats that are too large for theirs become infinite.

    Args:
        value: A scalar, a list, or what was taken out of the text.
        dtype: The array's.
        booleans: Whether there may be some in a list, among numbers. NumPy would make
            numbers of them.

    Returns:
        An array; `None` where the value is not dense, has values of another type (as a
        fraction is for an integer), or some that the type cannot hold.
    """
    if isinstance(value, NumberArray):
        value = value.values
    if isinstance(value, np.ndarray):
        return _cast(value, dtype)
    if dtype.hasobject or (booleans and dtype.kind != "b"):
        return None
    try:
        array = np.array(value)
        if dtype == np.uint64 and array.dtype.kind == "f":
            # NumPy has no type for what is beyond 63 bits and what is not.
            array = _integers(np.array(value, object))
    except ValueError:  # it is ragged, or nested too deeply
        return None
    return _cast(array, dtype)


def stacked(rows: Sequence[Any]) -> Sequence[Any] | Array:
    """Values of the same member in several objects, one below the other."""
    taken = [row.values for row in rows if isinstance(row, NumberArray)]
    if not taken:
        return rows
    if len(taken) == len(rows) and len({array.shape for array in taken}) == 1:
        return np.stack(taken)
    return [row.tolist() if isinstance(row, NumberArray) else row for row in rows]


def fits(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether an integer type can hold all integers of an array."""
    limits = np.iinfo(dtype)
    return not array.size or bool(
        array.min() >= limits.min and array.max() <= limits.max
    )


def _integers(objects: Array) -> Array:
    """Objects as unsigned integers of 64 bits; as floats where one is none."""
    if all(isinstance(one, int) and 0 <= one < 2**64 for one in objects.flat):
        return objects.astype(np.uint64)
    return objects.astype(np.float64)


def _cast(array: Array, dtype: np.dtype[Any]) -> Array | None:
    # Where there is nothing, there is nothing that could be of the wrong type.
    kinds = _NUMBERS if is_float(dtype) else _KINDS.get(dtype.kind, "")
    if array.dtype.kind not in kinds and array.size:
        return None
    if dtype.kind in "iu" and not fits(array, dtype):
        return None
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _members(text: bytes) -> Iterator[tuple[int, int]]:
    """Where there may be an array.

    That is between two quotation marks, of which one ends a name. If it is within a
    string, what stands for the array ends that too early, and what is left of the text
    is not JSON: then the whole is read as if there was no array.
    """
    if b"\\" in text:  # it may be in front of a quotation mark
        return
    start = 0
    while start + SHORTEST_BYTES <= len(text):
        quote = text.rfind(b'"', start, start + SHORTEST_BYTES)
        if quote >= 0:
            start = quote + 1
            continue
        end = text.find(b'"', start)
        end = len(text) if end < 0 else end
        if colon := _COLON.match(text, start, end):
            brace = text.find(b"}", start, end)
            last = text.rfind(b"]", start, end if brace < 0 else brace)
            yield colon.end(), last + 1
        start = end + 1


def _array(text: bytes, begin: int, end: int) -> NumberArray | None:
    """What a part of a text spells, if it is a dense array of numbers."""
    nesting = b"".join(
        text[start : min(start + PIECE_BYTES, end)].translate(None, _ALL_BUT_NESTING)
        for start in range(begin, end, PIECE_BYTES)
    )
    shape = _shape(nesting)
    if shape is None:
        return None
    is_float = any(text.find(mark, begin, end) >= 0 for mark in _MARKS_OF_FLOATS)
    values = np.empty(math.prod(shape), np.float64 if is_float else np.int64)
    try:
        _fill(values, _pieces(text, begin, end, len(shape)))
    except (ValueError, RuntimeError):  # the parser has many words for what is wrong
        return None
    return NumberArray(values=values.reshape(shape), text=memoryview(text)[begin:end])


def _shape(nesting: bytes) -> tuple[int, ...] | None:
    """The shape of an array of which only brackets and commas are left.

    That of its first elements; what is nested in the same way throughout looks like so
    many repetitions of them.
    """
    head = nesting[: DEEPEST_NESTING + 1]
    depth = len(head) - len(head.lstrip(b"["))
    if not 0 < depth <= DEEPEST_NESTING:
        return None
    shape: list[int] = []
    element = b""
    end = 0
    for begin in reversed(range(depth)):
        size = len(element) + 1
        behind_each = nesting[begin + size :: size]
        count = behind_each.find(b"]") + 1
        elements = (element + b",") * (count - 1) + element + b"]"
        if count < 1 or not nesting.startswith(elements, begin + 1):
            return None
        shape.insert(0, count)
        end = begin + 1 + len(elements)
        element = nesting[begin:end]
    return tuple(shape) if end == len(nesting) else None


def _pieces(text: bytes, begin: int, end: int, depth: int) -> Iterator[bytes]:
    """Short arrays, with the numbers of a long one in turn.

    A piece ends at any comma; the lists that are open there are closed, and opened in
    the next. All are valid exactly if the whole is, but for where its brackets stand.
    """
    opened = 0
    while end - begin > PIECE_BYTES:
        comma = text.rindex(b",", begin, begin + PIECE_BYTES)
        piece = text[begin:comma]
        behind = piece[len(piece.rstrip(b"]" + _SPACE)) :]
        left_open = depth - behind.count(b"]")
        piece = b"[" * opened + piece + b"]" * left_open
        # The parser makes room anew for each that is longer than those before.
        yield piece.ljust(PIECE_BYTES + 2 * DEEPEST_NESTING)
        opened = left_open
        begin = comma + 1
    yield b"[" * opened + text[begin:end]


def _fill(values: Array, pieces: Iterable[bytes]) -> None:
    """Read numbers from arrays.

    Raises:
        ValueError: Something is no JSON; there are not as many numbers as there is room
            for, as where lists are empty; or one is an integer of more than 63 bits. Of
            those NumPy makes now floats and now integers, and shall go on to.
        RuntimeError: As `ValueError`.
    """
    parser = simdjson.Parser()
    letter: Literal["i", "d"] = "i" if values.dtype == np.int64 else "d"
    filled = 0
    for piece in pieces:
        array = cast("simdjson.Array", parser.parse(piece))
        found = np.frombuffer(array.as_buffer(of_type=letter), values.dtype)
        del array  # or the parser would read no other
        values[filled : filled + found.size] = found
        filled += found.size
    if filled != values.size:
        raise ValueError("these are other numbers than commas tell")
