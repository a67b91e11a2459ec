"""The operations over gRPC: TensorFlow Serving's services and the gateway's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    Result,
)
from proto.google.protobuf.wrappers_pb2 import Int64Value
from proto.tensorflow.serving.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)
from proto.tensorflow.serving.get_model_status_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
)
from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.predict_pb2 import PredictRequest, PredictResponse
from proto.tensors import from_tensor_proto, to_tensor_proto
from service.client.answers import (
    Classification,
    Metadata,
    ModelChoice,
    Prediction,
    VersionStatus,
)
from service.client.conversations import Conversation
from service.client.errors import (
    DEADLINE_EXCEEDED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    RequestFailed,
    no_classifier,
    reading,
)
from service.client.operations import Operations, metadata_of
from service.tensors import Array

SIGNATURE_DEF: Final = "signature_def"
# The message of health that has the first field, `status`, at 1.
SERVING: Final = b"\x08\x01"


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a method with one message each way, both encoded."""

    method: str
    message: bytes


class GrpcOperations(Operations):
    """See `Operations`; requests are `Call`, answers are encoded messages."""

    def classify(
        self, images: Sequence[bytes], model: ModelChoice, top_k: int | None
    ) -> Conversation[Classification]:
        """`blockserve.v1.ImageClassifier.Classify`."""
        request = ClassifyRequest(
            images=images,
            top_k=top_k,
            model=model.name or "",
            version=model.version,
            version_label=model.label,
        )
        call = Call(
            "/blockserve.v1.ImageClassifier/Classify", request.SerializeToString()
        )
        try:
            answer = yield call
        except RequestFailed as error:
            if error.status == UNIMPLEMENTED:
                raise no_classifier() from error
            raise
        with reading():
            response = ClassifyResponse.FromString(answer)
        return Classification(
            model=response.model,
            version=response.version,
            results=tuple(map(_predictions, response.results)),
        )

    def status(self, model: ModelChoice) -> Conversation[Sequence[VersionStatus]]:
        """`tensorflow.serving.ModelService.GetModelStatus`."""
        request = GetModelStatusRequest(model_spec=_spec(model))
        answer = yield Call(
            "/tensorflow.serving.ModelService/GetModelStatus",
            request.SerializeToString(),
        )
        with reading():
            response = GetModelStatusResponse.FromString(answer)
            return [
                VersionStatus(
                    version=one.version,
                    state=ModelVersionStatus.State.Name(one.state),
                    error_message=one.status.error_message,
                )
                for one in response.model_version_status
            ]

    def is_ready(self) -> Conversation[bool]:
        """`grpc.health.v1.Health.Check`; without it, there is an answer at least."""
        try:
            answer: bytes = yield Call("/grpc.health.v1.Health/Check", b"")
        except RequestFailed as error:
            if error.status in {UNAVAILABLE, DEADLINE_EXCEEDED}:
                return False
            if error.status == UNIMPLEMENTED:
                return True
            raise
        return answer == SERVING

    def _metadata(self, model: ModelChoice) -> Conversation[Metadata]:
        request = GetModelMetadataRequest(
            model_spec=_spec(model), metadata_field=[SIGNATURE_DEF]
        )
        answer = yield Call(
            "/tensorflow.serving.PredictionService/GetModelMetadata",
            request.SerializeToString(),
        )
        with reading():
            response = GetModelMetadataResponse.FromString(answer)
            definitions = SignatureDefMap.FromString(
                response.metadata[SIGNATURE_DEF].value
            )
        spec = response.model_spec
        return metadata_of(spec.name, spec.version.value, definitions)

    def _run(
        self,
        tensors: Mapping[str, Array],
        model: ModelChoice,
        signature_name: str | None,
        outputs: Sequence[str] | None,
    ) -> Conversation[dict[str, Array]]:
        request = PredictRequest(
            model_spec=_spec(model, signature_name),
            inputs={name: to_tensor_proto(array) for name, array in tensors.items()},
            output_filter=outputs,
        )
        answer = yield Call(
            "/tensorflow.serving.PredictionService/Predict",
            request.SerializeToString(),
        )
        with reading():
            found = PredictResponse.FromString(answer).outputs
            return {name: from_tensor_proto(found[name]) for name in outputs or found}


def _predictions(result: Result) -> tuple[Prediction, ...]:
    return tuple(
        Prediction(label=one.label, index=one.index, probability=one.probability)
        for one in result.predictions
    )


def _spec(model: ModelChoice, signature_name: str | None = None) -> ModelSpec:
    return ModelSpec(
        name=model.name or "",
        version=None if model.version is None else Int64Value(value=model.version),
        version_label=model.label,
        signature_name=signature_name or "",
    )
