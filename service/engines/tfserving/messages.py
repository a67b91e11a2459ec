"""The bytes of requests and answers."""

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError

from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.predict_pb2 import PredictRequest, PredictResponse
from proto.tensors import InvalidTensorProto, from_tensor_proto, tensor_parts
from proto.wire import Part, length_delimited
from service.errors import EngineFailure
from service.tensors import Array, Tensors

# Of a map's entry, as protobuf writes it.
KEY: Final = 1
VALUE: Final = 2


def predict_request(spec: ModelSpec, tensors: Tensors) -> bytes:
    """A `PredictRequest`.

    It is put together from the arrays as they lie in memory. A message that is filled
    and then written would have copied a batch of images five times.
    """
    parts: list[Part] = [PredictRequest(model_spec=spec).SerializeToString()]
    for name, array in tensors.items():
        entry = [
            *length_delimited(KEY, [name.encode()]),
            *length_delimited(VALUE, tensor_parts(array)),
        ]
        parts += length_delimited(PredictRequest.INPUTS_FIELD_NUMBER, entry)
    return b"".join(parts)


def outputs(answer: bytes, names: Iterable[str]) -> dict[str, Array]:
    """The outputs of a `PredictResponse`.

    Raises:
        EngineFailure: One of them is missing, or cannot be read.
    """
    try:
        found = PredictResponse.FromString(answer).outputs
        missing = [name for name in names if name not in found]
        if missing:
            raise EngineFailure(
                f"TensorFlow Serving answered without {', '.join(missing)}"
            )
        return {name: from_tensor_proto(found[name]) for name in names}
    except (DecodeError, InvalidTensorProto) as error:
        raise EngineFailure(
            f"TensorFlow Serving answered what cannot be read: {error}"
        ) from error
