"""A model version that TensorFlow Serving runs."""

import math
from collections.abc import Callable, Mapping
from typing import Final

from proto.google.protobuf.wrappers_pb2 import Int64Value
from proto.tensorflow.serving.model_pb2 import ModelSpec
from service.engines.tfserving import messages
from service.engines.tfserving.pool import ReplicaPool
from service.event_loop import maybe_in_thread
from service.tensors import Array, Signature, Tensors, are_long_to_write

# About a millisecond of copying numbers.
LARGE_REQUEST_BYTES: Final = 4 * 1024 * 1024
# As much of reading typed fields.
LARGE_ANSWER_BYTES: Final = 4 * 1024 * 1024


class TfServingEngine:
    """An `Engine` of a version that the replicas of a pool serve.

    Args:
        pool: The replicas.
        model: The model's name, as they know it.
        version: Its number.
        signatures: What they tell of it.
        slots: Says how many calls may be under way now.
    """

    kind = "tfserving"
    stops = True
    casts = False

    def __init__(
        self,
        pool: ReplicaPool,
        model: str,
        version: int,
        signatures: Mapping[str, Signature],
        *,
        slots: Callable[[], int],
    ) -> None:
        self.signatures = signatures
        self._slots = slots
        self._pool = pool
        self._model = model
        self._version = version

    @property
    def slots(self) -> int:
        """See `Engine`: as many as the replicas take that are up."""
        return self._slots()

    async def infer(
        self, signature: str, tensors: Tensors, deadline: float = math.inf, /
    ) -> dict[str, Array]:
        """Run one batch; see `Engine.infer`."""
        spec = ModelSpec(
            name=self._model,
            version=Int64Value(value=self._version),
            signature_name=signature,
        )
        request = await maybe_in_thread(
            _are_large(tensors), messages.predict_request, spec, tensors
        )
        answer = await self._pool.predict(self._model, self._version, request, deadline)
        return await maybe_in_thread(
            len(answer) > LARGE_ANSWER_BYTES,
            messages.outputs,
            answer,
            self.signatures[signature].outputs.keys(),
        )

    def close(self) -> None:
        """Nothing to free: the servers keep it as long as they see fit."""


def _are_large(tensors: Tensors) -> bool:
    """Whether a request with these tensors takes long to write."""
    strings = [array for array in tensors.values() if array.dtype.hasobject]
    numbers = (array for array in tensors.values() if not array.dtype.hasobject)
    size_bytes = sum(array.nbytes for array in numbers)
    return size_bytes > LARGE_REQUEST_BYTES or are_long_to_write(strings)
