"""TensorFlow in this process: every signature and every operation, on CPU or GPU."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import tensorflow as tf

from service.engines.base import InProcessEngine
from service.errors import InvalidTensor, UnsupportedModel
from service.tensors import Array, Signature, Tensors, TensorSpec

# TensorFlow spreads one call over all cores; a second call only fills its gaps.
DEFAULT_SLOTS: Final = 1
# In an error, what is wrong stands before the node of the graph that found it.
_BEFORE_NODE: Final = re.compile(r"([^\n]+)\s*\[\[\{\{")


class TensorFlowEngine(InProcessEngine):
    """A SavedModel loaded by TensorFlow."""

    kind = "tensorflow"

    def __init__(
        self, functions: Mapping[str, Callable[..., Any]], model: Any, *, slots: int
    ) -> None:
        super().__init__(
            {name: _signature(name, function) for name, function in functions.items()},
            slots=slots,
        )
        self._functions = functions
        self._model = model  # the functions refer to its variables only weakly

    @classmethod
    def load(cls, version_directory: Path, *, slots: int | None) -> Self:
        """Load a SavedModel.

        Raises:
            UnsupportedModel: TensorFlow cannot load it, or it has no signature.
        """
        try:
            model = tf.saved_model.load(str(version_directory))
        except Exception as error:
            # What a damaged SavedModel raises is not documented and varies widely.
            raise UnsupportedModel(f"TensorFlow cannot load it: {error}") from error
        if not model.signatures:
            raise UnsupportedModel("the SavedModel has no signature to serve")
        return cls(dict(model.signatures), model, slots=slots or DEFAULT_SLOTS)

    def _compute(self, signature: str, tensors: Tensors) -> dict[str, Array]:
        function = self._functions[signature]
        try:
            results = function(**{k: tf.constant(v) for k, v in tensors.items()})
        except tf.errors.InvalidArgumentError as error:
            # An image that cannot be decoded, say: the values and not the model.
            raise InvalidTensor(_reason(error.message)) from error
        return {name: result.numpy() for name, result in results.items()}


def _reason(message: str) -> str:
    """What an error says, without the graph around it."""
    found = _BEFORE_NODE.search(message)
    return (found[1] if found else message.partition("\n")[0]).strip()


def _signature(name: str, function: Any) -> Signature:
    _, inputs = function.structured_input_signature
    return Signature(
        name=name,
        inputs={key: _spec(key, spec) for key, spec in inputs.items()},
        outputs={
            key: _spec(key, spec) for key, spec in function.structured_outputs.items()
        },
    )


def _spec(name: str, spec: Any) -> TensorSpec:
    if spec.shape.rank is None:
        raise UnsupportedModel(f"tensor {name!r} has no fixed rank")
    return TensorSpec(
        name=name,
        dtype=np.dtype(spec.dtype.as_numpy_dtype),
        shape=tuple(spec.shape.as_list()),
    )
