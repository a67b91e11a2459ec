"""A `:predict` document to tensors, in row format (`instances`) or columns (`inputs`).

What is dense and of the right type becomes an array at once. Only where that fails is
the document walked element by element, to say as TensorFlow Serving does which one is
wrong: its errors are what the clients of its users match against.
"""

import math
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from service.data_types import type_name
from service.errors import InvalidTensor
from service.http import json_arrays
from service.http.json_arrays import NumberArray
from service.http.tf_serving import documents
from service.http.tf_serving.documents import quote
from service.tensors import Array, Signature, TensorSpec, is_float

BASE64_KEY: Final = "b64"
BASE64_QUANTUM: Final = 4
DEEPEST_NESTING: Final = 32

# Makes an array of a value that is dense and of the right type; `None` of any other.
Dense = Callable[[Any, TensorSpec], Array | None]


class PredictError(InvalidTensor):
    """The document does not hold the tensors that the signature takes."""

    code = "invalid_tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """What a `:predict` document asks for.

    Attributes:
        signature_name: As it was given; empty means the default.
        rows: Whether it is in row format, and so is the answer.
        document: The member that holds the tensors.
        booleans: Whether there are some in it.
    """

    signature_name: str
    rows: bool
    document: Any
    booleans: bool

    @classmethod
    def read(cls, body: bytes) -> "PredictRequest":
        """What the body of a request asks for.

        Raises:
            DocumentError: It is not JSON.
            PredictError: As `of`.
        """
        parts = json_arrays.take_out(body)
        document = parts.document(documents.read)
        booleans = documents.may_hold_booleans(parts.rest)
        return cls.of(document, booleans=booleans)

    @classmethod
    def of(cls, document: Any, *, booleans: bool) -> "PredictRequest":
        """What the document of a request asks for.

        Args:
            document: The request's.
            booleans: Whether there may be some in it. Among numbers, an array would
                make numbers of them.

        Raises:
            PredictError: It asks for nothing, or for two things.
        """
        if not isinstance(document, dict):
            raise PredictError(f"JSON Value: {quote(document)} Is not object")
        name = document.get("signature_name", "")
        if not isinstance(name, str):
            raise PredictError(
                f"JSON Value: {quote(document)} not formatted correctly. "
                "'signature_name' key must be a string value."
            )
        if "instances" in document and "inputs" in document:
            raise PredictError(
                f"JSON Value: {quote(document)} Not formatted correctly expecting "
                "only one of 'inputs' or 'instances' keys to exist "
            )
        if "inputs" in document:
            return cls(
                signature_name=name,
                rows=False,
                document=document["inputs"],
                booleans=booleans,
            )
        if "instances" not in document:
            raise PredictError("Missing 'inputs' or 'instances' key")
        instances = document["instances"]
        if not isinstance(instances, list | NumberArray):
            raise PredictError(
                f"JSON Value: {quote(document)} Expecting 'instances' to be an "
                "list/array"
            )
        if not instances:
            raise PredictError(
                f"JSON Value: {quote(document)} No values in 'instances' array"
            )
        return cls(
            signature_name=name, rows=True, document=instances, booleans=booleans
        )

    def tensors(self, signature: Signature) -> dict[str, Array]:
        """The tensors for a signature's inputs; their shapes are not checked.

        Raises:
            PredictError: Names, types or nesting are not what the signature takes.
        """
        read = _from_rows if self.rows else _from_columns
        return read(self.document, signature.inputs, self._dense)

    def _dense(self, value: Any, spec: TensorSpec) -> Array | None:
        return json_arrays.array_of(value, spec.dtype, booleans=self.booleans)


def signature_of_examples(document: Any, method: str) -> str:
    """The signature that a request with `examples` names.

    Args:
        document: The request's.
        method: `classify` or `regress`.

    Raises:
        PredictError: It has no examples.
    """
    if not isinstance(document, dict):
        raise PredictError(f"JSON Value: {quote(document)} Is not object")
    if "examples" not in document:
        raise PredictError(
            f"JSON Value: {quote(document)} When method is {method}, key 'examples' is "
            "expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise PredictError(
            f"JSON Value: {quote(document)} Expecting 'examples' value to be an "
            "list/array"
        )
    if not examples:
        raise PredictError(
            f"JSON Value: {quote(document)} 'examples' value is an empty array"
        )
    name = document.get("signature_name", "")
    return name if isinstance(name, str) else ""


def _from_rows(
    rows: Sequence[Any] | NumberArray, specs: Mapping[str, TensorSpec], dense: Dense
) -> dict[str, Array]:
    if isinstance(rows, NumberArray) or not _is_named(rows[0]):
        if len(specs) != 1:
            raise PredictError(
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map"
            )
        (spec,) = specs.values()
        array = dense(rows, spec)
        return {spec.name: _walk_plain(rows, spec) if array is None else array}
    if all(isinstance(row, dict) and row.keys() == specs.keys() for row in rows):
        arrays = {}
        for name, spec in specs.items():
            array = dense(json_arrays.stacked([row[name] for row in rows]), spec)
            if array is None:
                break
            arrays[name] = array
        else:
            return arrays
    return _walk_named(rows, specs)


def _from_columns(
    value: Any, specs: Mapping[str, TensorSpec], dense: Dense
) -> dict[str, Array]:
    if not _is_named(value):
        if len(specs) != 1:
            raise PredictError(
                "inputs is a plain value/list, but expecting an object/map as multiple "
                "input tensors required as per tensorinfo_map"
            )
        (spec,) = specs.values()
        return {spec.name: _whole(value, spec, dense)}
    for name in specs:
        if name not in value:
            raise PredictError(f"Missing named input: {name} in 'inputs' object.")
    return {name: _whole(value[name], spec, dense) for name, spec in specs.items()}


def _is_named(value: Any) -> bool:
    """Whether it has a member for each input, and is not an encoded string."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return len(value) == 1 and isinstance(value.get(BASE64_KEY), str)


def _whole(value: Any, spec: TensorSpec, dense: Dense) -> Array:
    found = dense(value, spec)
    if found is not None:
        return found
    column = _Column(spec)
    try:
        column.add(value)
    except _ElementError as error:
        raise PredictError(str(error)) from None
    array = column.array()
    return array.reshape(array.shape[1:])


def _walk_plain(rows: Sequence[Any] | NumberArray, spec: TensorSpec) -> Array:
    column = _Column(spec)
    for index, row in enumerate(_list_of(rows)):
        try:
            column.add(row)
        except _ElementError as error:
            raise _failed_at(index, error) from None
    return column.array()


def _walk_named(
    rows: Sequence[Any], specs: Mapping[str, TensorSpec]
) -> dict[str, Array]:
    columns = {name: _Column(spec) for name, spec in specs.items()}
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            kind = "list" if isinstance(row, list) else "value"
            raise PredictError(
                f"Expecting object but got {kind} at item {index} of input list"
            )
        for name, value in row.items():
            column = columns.get(name)
            if column is None:
                reason = _ElementError(
                    f"JSON object: does not have named input: {name}"
                )
                raise _failed_at(index, reason, f" key: {name}")
            try:
                column.add(value)
            except _ElementError as error:
                raise _failed_at(index, error, f" key: {name}") from None
        if row.keys() != specs.keys():
            raise PredictError(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{quote(row)} keys must be equal to: {','.join(sorted(specs))}"
            )
    return {name: column.array() for name, column in columns.items()}


def _list_of(value: Any) -> Any:
    return value.tolist() if isinstance(value, NumberArray) else value


class _ElementError(ValueError):
    """What is wrong with a value; where it stands is not said."""


def _failed_at(index: int, error: _ElementError, key: str = "") -> PredictError:
    return PredictError(
        f"Failed to process element: {index}{key} of 'instances' list. "
        f"Error: INVALID_ARGUMENT: {error}"
    )


class _Column:
    """The values of one input, row after row."""

    def __init__(self, spec: TensorSpec) -> None:
        self._dtype = spec.dtype
        self._values: list[Any] = []
        self._rows = 0
        self._shape: tuple[int, ...] | None = None

    def add(self, row: Any) -> None:
        """Add a row, which is as long as those before.

        Raises:
            _ElementError: It is not, or a value in it is of another type.
        """
        row = _list_of(row)
        shape = _shape_of(row)
        before = len(self._values)
        self._fill(row, shape, 0)
        size = len(self._values) - before
        if self._shape is None:
            self._shape = shape
        expected = math.prod(self._shape)
        if size != expected:
            raise _ElementError(f"Expecting tensor size: {expected} but got: {size}")
        if shape != self._shape:
            raise _ElementError(
                f"Expecting tensor shape: {list(self._shape)} but got: {list(shape)}"
            )
        self._rows += 1

    def array(self) -> Array:
        """All rows."""
        assert self._shape is not None  # noqa: S101, there is a row at least
        array = np.empty(len(self._values), self._dtype)
        with np.errstate(over="ignore"):
            array[:] = self._values
        return array.reshape(self._rows, *self._shape)

    def _fill(self, value: Any, shape: tuple[int, ...], level: int) -> None:
        if not isinstance(value, list):
            if level != len(shape):
                raise _ElementError(
                    f"JSON Value: {quote(value)} found at incorrect level: {level + 1} "
                    f"in the JSON DOM. Expected at level: {len(shape)}"
                )
            self._values.append(self._element(value))
            return
        if level >= len(shape):
            raise _ElementError(
                f"Encountered list at unexpected level: {level} expected < {len(shape)}"
            )
        if len(value) != shape[level]:
            raise _ElementError(
                f"Encountered list at unexpected size: {len(value)} at level: {level} "
                f"expected size: {shape[level]}"
            )
        for one in value:
            self._fill(one, shape, level + 1)

    def _element(self, value: Any) -> Any:
        kind = self._dtype.kind
        fractions = is_float(self._dtype)
        if kind == "O":
            if isinstance(value, str):
                return value.encode(errors="surrogateescape")
            if isinstance(value, dict) and _is_base64(value):
                return _decoded(value[BASE64_KEY])
        elif kind == "b":
            if isinstance(value, bool):
                return value
        elif isinstance(value, int) and not isinstance(value, bool):
            if fractions or json_arrays.fits(np.array([value]), self._dtype):
                return value
            limits = np.iinfo(self._dtype)
            raise _ElementError(
                f"JSON Value: {value} does not fit {self._dtype.name}: expected "
                f"{limits.min} to {limits.max}"
            )
        elif isinstance(value, float) and fractions:
            return value
        raise _ElementError(
            f"JSON Value: {quote(value)} Type: {_type_name(value)} is not of expected "
            f"type: {type_name(self._dtype)}"
        )


def _shape_of(value: Any) -> tuple[int, ...]:
    """What the first elements say of the shape."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > DEEPEST_NESTING:
            raise _ElementError(f"lists are nested more than {DEEPEST_NESTING} deep")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _decoded(text: str) -> bytes:
    try:
        encoded = text.encode("ascii")
        padding = b"=" * (-len(encoded) % BASE64_QUANTUM)
        return b64decode(encoded + padding, validate=True)
    except ValueError:
        raise _ElementError("Unable to base64 decode") from None


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "Null"
        case bool():
            return str(value)
        case str():
            return "String"
        case list():
            return "Array"
        case dict():
            return "Object"
    return "Number"
