"""A model version that TensorFlow Serving runs."""

import math
from collections.abc import Mapping
from typing import Final

from proto.tensorflow.serving.predict_pb2 import PredictRequest, PredictResponse
from proto.tensors import InvalidTensorProto, from_tensor_proto, to_tensor_proto
from service.engines.tfserving.pool import ReplicaPool
from service.errors import EngineFailure
from service.event_loop import maybe_in_thread
from service.tensors import Array, Signature, Tensors

# About a millisecond of copying.
LARGE_BATCH_BYTES: Final = 1024 * 1024


class TfServingEngine:
    """An `Engine` of a version that the replicas of a pool serve."""

    kind = "tfserving"

    def __init__(
        self,
        pool: ReplicaPool,
        model: str,
        version: int,
        signatures: Mapping[str, Signature],
        *,
        slots: int,
    ) -> None:
        self.signatures = signatures
        self.slots = slots
        self._pool = pool
        self._model = model
        self._version = version

    async def infer(
        self, signature: str, tensors: Tensors, deadline: float = math.inf, /
    ) -> dict[str, Array]:
        """Run one batch; see `Engine.infer`."""
        size = sum(array.nbytes for array in tensors.values())
        is_long = size > LARGE_BATCH_BYTES
        request = await maybe_in_thread(is_long, self._request, signature, tensors)
        answer = await self._pool.predict(self._model, self._version, request, deadline)
        return await maybe_in_thread(
            len(answer) > LARGE_BATCH_BYTES, self._outputs, signature, answer
        )

    def close(self) -> None:
        """Nothing to free: the servers keep it as long as they see fit."""

    def _request(self, signature: str, tensors: Tensors) -> bytes:
        request = PredictRequest()
        request.model_spec.name = self._model
        request.model_spec.version.value = self._version
        request.model_spec.signature_name = signature
        for name, array in tensors.items():
            request.inputs[name].CopyFrom(to_tensor_proto(array))
        return request.SerializeToString()

    def _outputs(self, signature: str, answer: bytes) -> dict[str, Array]:
        outputs = PredictResponse.FromString(answer).outputs
        try:
            return {
                name: from_tensor_proto(outputs[name])
                for name in self.signatures[signature].outputs
            }
        except InvalidTensorProto as error:
            raise EngineFailure(
                f"TensorFlow Serving answered what cannot be read: {error}"
            ) from error
