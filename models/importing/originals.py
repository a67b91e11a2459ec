"""Models as their files tell them, whatever wrote them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensor = Any  # a KerasTensor or a backend tensor; Keras has no public type for both
FileKind = Literal[".keras", "h5"]
Kind = Literal[".keras", "h5", "SavedModel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input that the original declares; `None` is any size."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} [{sizes}]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Original:
    """A model as its file tells it.

    Attributes:
        kind: The format of the file.
        inputs: By name.
        connect: Adds the model to a graph of Keras calls, and answers its outputs.
        compute: Computes its outputs.
        is_keras: Whether Keras knows its layers.
    """

    kind: Kind
    inputs: Mapping[str, Input]
    connect: Callable[[Tensor], dict[str, Tensor]]
    compute: Callable[[Array], dict[str, Tensor]]
    is_keras: bool

    def run(self, images: Array) -> dict[str, Array]:
        """Its outputs in float32, for images as it takes them."""
        return {
            name: keras.ops.convert_to_numpy(tensor).astype(np.float32)
            for name, tensor in self.compute(images).items()
        }


def named(answer: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """Outputs by name, in whatever structure a model answers.

    A name that occurs again is numbered: a layer that is called twice has two outputs.
    """
    if isinstance(answer, Mapping):
        return dict(answer)
    answers = answer if isinstance(answer, list | tuple) else [answer]
    names = names or [f"output_{index}" for index in range(len(answers))]
    distinct = [
        name if name not in names[:index] else f"{name}_{names[:index].count(name)}"
        for index, name in enumerate(names)
    ]
    return dict(zip(distinct, answers, strict=True))
