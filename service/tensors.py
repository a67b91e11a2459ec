"""Named tensors: what a signature promises, and whether a request keeps to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from service.errors import InvalidTensor

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

# At most a few milliseconds of writing them one by one, and of copying strings.
MANY_ELEMENTS: Final = 4 * 1024
MANY_STRING_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor's name, dtype and shape; `None` marks a dimension that may vary.

    Strings have NumPy's object dtype, with one `bytes` an element.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {describe(self.dtype, self.shape)}"

    def accepts(self, array: Array) -> bool:
        """Whether dtype, rank and every fixed dimension fit."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(
                want is None or want == have
                for want, have in zip(self.shape, array.shape, strict=True)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One callable of a model: its named inputs and outputs.

    Attributes:
        batched: Whether requests can share a call: every first dimension is free.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    batched: bool = field(init=False)

    def __post_init__(self) -> None:
        specs = (*self.inputs.values(), *self.outputs.values())
        batched = all(spec.shape and spec.shape[0] is None for spec in specs)
        object.__setattr__(self, "batched", batched)

    def validate(self, tensors: Tensors) -> int:
        """Check a request's tensors and return its number of rows.

        Raises:
            InvalidTensor: A name, dtype or shape is not what the signature says.
        """
        if tensors.keys() != self.inputs.keys():
            raise InvalidTensor(
                f"signature {self.name!r} takes the inputs "
                f"{', '.join(map(repr, sorted(self.inputs)))}; "
                f"got {', '.join(map(repr, sorted(tensors))) or 'none'}"
            )
        for name, spec in self.inputs.items():
            array = tensors[name]
            if not spec.accepts(array):
                raise InvalidTensor(
                    f"expected {spec}, got {describe(array.dtype, array.shape)}"
                )
        if not self.batched:
            return 1
        rows = {name: tensors[name].shape[0] for name in self.inputs}
        counts = set(rows.values())
        if len(counts) != 1:
            raise InvalidTensor(
                f"all inputs of signature {self.name!r} need the same number of rows; "
                f"got {', '.join(f'{name}: {n}' for name, n in rows.items())}"
            )
        count: int = counts.pop()
        if count == 0:
            raise InvalidTensor("expected at least one row, got an empty batch")
        return count


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether it holds fractions; NumPy itself does not count bfloat16 among these."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def are_long_to_write(arrays: Iterable[Array]) -> bool:
    """Whether writing the elements of arrays takes so long that others should not wait.

    Args:
        arrays: Of any dtype and shape; strings are `bytes` in object arrays.
    """
    arrays = tuple(arrays)
    if sum(array.size for array in arrays) > MANY_ELEMENTS:
        return True
    strings = (array.ravel().tolist() for array in arrays if array.dtype.hasobject)
    return sum(len(one) for some in strings for one in some) > MANY_STRING_BYTES


def describe(dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> str:
    """Spell a dtype and shape as in `uint8[batch,28,28,1]`."""
    kind = "string" if dtype.hasobject else dtype.name
    dims = (
        ("batch" if axis == 0 else "any") if size is None else str(size)
        for axis, size in enumerate(shape)
    )
    return f"{kind}[{','.join(dims)}]"
