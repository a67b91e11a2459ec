"""What a client asks for, and what it answers with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """The version of a model that a request is for.

    Attributes:
        name: The model's; `None` is the server's default model.
        version: Its number; `None` is the latest.
        label: A name that the server's settings give to a version, in its place.
    """

    name: str | None = None
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise ValueError("give a version or a label, not both")
        if self.name is None and (self.version is not None or self.label is not None):
            raise ValueError("a version or a label needs its model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One class of an image, its place in the model's output, how probable it is."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What a model sees in images.

    Attributes:
        model: The model that answered.
        version: Its version.
        results: For each image its predictions, most probable first.
    """

    model: str
    version: int
    results: Sequence[Sequence[Prediction]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
        name: As requests call it.
        dtype: Its elements; strings are objects, `bytes` each.
        shape: Its dimensions, `None` where one is free; `None` where not even their
            number is fixed.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One callable of a model: its inputs and outputs by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """A version of a model, and its signatures by name."""

    name: str
    version: int
    signatures: Mapping[str, Signature]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStatus:
    """A version and its state: `AVAILABLE`, `LOADING`, …; `END` when it has failed.

    Attributes:
        error_message: Why it failed; empty unless it has.
    """

    version: int
    state: str
    error_message: str
