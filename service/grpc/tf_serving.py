"""TensorFlow Serving's gRPC API: `PredictionService` and `ModelService`."""

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Literal, NoReturn, TypeVar

import grpc

from proto.google.protobuf.any_pb2 import Any as AnyMessage
from proto.google.protobuf.wrappers_pb2 import Int64Value
from proto.tensorflow.serving import (
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from proto.tensorflow.serving.examples_pb2 import (
    ClassificationRequest,
    MultiInferenceRequest,
    RegressionRequest,
)
from proto.tensorflow.serving.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)
from proto.tensorflow.serving.get_model_status_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
    StatusProto,
)
from proto.tensorflow.serving.model_management_pb2 import (
    ReloadConfigRequest,
    ReloadConfigResponse,
)
from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.predict_pb2 import PredictRequest, PredictResponse
from proto.tensorflow.tensor_pb2 import TensorProto
from proto.tensors import (
    MAX_RANK,
    InvalidTensorProto,
    dtype_of,
    from_tensor_proto,
    to_tensor_proto,
)
from service.data_types import type_name
from service.errors import BlockserveError, InvalidRequest, InvalidTensor
from service.event_loop import maybe_in_thread
from service.gateway import Gateway
from service.grpc import calls
from service.grpc.calls import Context
from service.prediction import Prediction
from service.repository import Target
from service.served_version import ServedVersion
from service.telemetry.observation import Observation
from service.telemetry.tracing import Operation
from service.tensors import Array, Signature, are_long_to_write
from service.tf_serving import examples, reloading, states
from service.tf_serving.errors import is_not_found, words

T = TypeVar("T")

# About a millisecond of reading numbers one by one, out of typed fields.
MANY_TYPED_BYTES: Final = 64 * 1024
# As much of copying them as they lie in memory.
LARGE_TENSOR_BYTES: Final = 4 * 1024 * 1024
SIGNATURE_DEF: Final = "signature_def"
SIGNATURE_NOT_FOUND: Final = "signature_not_found"
LABEL_NOT_FOUND: Final = "label_not_found"
MAP_TYPE: Final = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
OPERATIONS: Final = {
    method: Operation.of_grpc(f"tensorflow.serving.PredictionService/{method}")
    for method in ("Predict", "Classify", "Regress", "MultiInference")
}


class _Servicer:
    """What both services do with a call."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def _answer(
        self, context: Context, spec: ModelSpec, work: Callable[[], Awaitable[T]]
    ) -> T:
        def told(error: BlockserveError) -> tuple[grpc.StatusCode, str]:
            if error.code == SIGNATURE_NOT_FOUND:
                details = f'Serving signature key "{spec.signature_name}" not found.'
            else:
                details = words(error, _target(spec))
            return _status_of(error), details

        return await calls.answer(context, work, told=told)


class PredictionServicer(
    _Servicer, prediction_service_pb2_grpc.PredictionServiceServicer
):
    """Answers `tensorflow.serving.PredictionService`."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self._edge = calls.edge_of(gateway, "tf_serving_grpc", _status_of)

    async def Predict(  # noqa: N802, the service's name
        self, request: PredictRequest, context: Context
    ) -> PredictResponse:
        """Run a signature."""
        work = partial(self._predict, request, context)
        return await self._infer("Predict", context, request.model_spec, work)

    async def GetModelMetadata(  # noqa: N802, the service's name
        self, request: GetModelMetadataRequest, context: Context
    ) -> GetModelMetadataResponse:
        """Tell a version's signatures."""
        work = partial(self._metadata, request)
        return await self._answer(context, request.model_spec, work)

    async def Classify(  # noqa: N802, the service's name
        self, request: ClassificationRequest, context: Context
    ) -> Any:
        """Say why examples cannot be classified."""
        work = partial(self._refuse_examples, request, "classification")
        return await self._infer("Classify", context, request.model_spec, work)

    async def Regress(  # noqa: N802, the service's name
        self, request: RegressionRequest, context: Context
    ) -> Any:
        """Say why there is no regression of examples."""
        work = partial(self._refuse_examples, request, "regression")
        return await self._infer("Regress", context, request.model_spec, work)

    async def MultiInference(  # noqa: N802, the service's name
        self, request: MultiInferenceRequest, context: Context
    ) -> Any:
        """Say why examples cannot be classified."""
        spec = request.tasks[0].model_spec if request.tasks else ModelSpec()
        work = partial(self._refuse_tasks, spec)
        return await self._infer("MultiInference", context, spec, work)

    async def _infer(
        self,
        method: str,
        context: Context,
        spec: ModelSpec,
        work: Callable[[Observation], Awaitable[T]],
    ) -> T:
        operation = OPERATIONS[method]
        observed = partial(
            calls.observed, self._gateway, self._edge, operation, context, work
        )
        return await self._answer(context, spec, observed)

    async def _predict(
        self, request: PredictRequest, context: Context, observation: Observation
    ) -> PredictResponse:
        gateway = self._gateway
        spec = _spec_of(request)
        call = calls.call_of(gateway, context, _target(spec), observation)
        prediction = await gateway.predictor.predict(
            partial(_read, request), call, signature_name=spec.signature_name
        )
        outputs = _wanted(request.output_filter, prediction.outputs)
        return await maybe_in_thread(
            are_long_to_write(outputs.values()), _response, prediction, outputs
        )

    async def _metadata(
        self, request: GetModelMetadataRequest
    ) -> GetModelMetadataResponse:
        self._gateway.admit()
        spec = _spec_of(request)
        if not request.metadata_field:
            raise InvalidRequest(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise InvalidRequest(f"Metadata field {field} is not supported")
        with self._lease(spec) as served:
            definitions = SignatureDefMap(signature_def=served.signature_defs)
            return GetModelMetadataResponse(
                model_spec=ModelSpec(
                    name=served.name, version=Int64Value(value=served.version)
                ),
                metadata={
                    SIGNATURE_DEF: AnyMessage(
                        type_url=MAP_TYPE, value=definitions.SerializeToString()
                    )
                },
            )

    async def _refuse_examples(
        self,
        request: ClassificationRequest | RegressionRequest,
        kind: Literal["classification", "regression"],
        _: Observation,
    ) -> None:
        self._refuse(_spec_of(request), kind)

    async def _refuse_tasks(self, spec: ModelSpec, _: Observation) -> None:
        self._refuse(_named(spec), "classification")

    def _refuse(
        self, spec: ModelSpec, kind: Literal["classification", "regression"]
    ) -> NoReturn:
        repository = self._gateway.repository
        examples.refuse(repository, _target(spec), spec.signature_name, kind)

    def _lease(self, spec: ModelSpec) -> AbstractContextManager[ServedVersion]:
        return self._gateway.repository.lease(_target(spec))


class ModelServicer(_Servicer, model_service_pb2_grpc.ModelServiceServicer):
    """Answers `tensorflow.serving.ModelService`."""

    async def GetModelStatus(  # noqa: N802, the service's name
        self, request: GetModelStatusRequest, context: Context
    ) -> GetModelStatusResponse:
        """Tell the states of a model's versions."""
        work = partial(self._status, request)
        return await self._answer(context, request.model_spec, work)

    async def HandleReloadConfigRequest(  # noqa: N802, the service's name
        self, request: ReloadConfigRequest, context: Context
    ) -> ReloadConfigResponse:
        """Serve the models that a client lists, where clients may say so."""
        await calls.answer(context, partial(self._reload, request))
        return ReloadConfigResponse(status=StatusProto())

    async def _reload(self, request: ReloadConfigRequest) -> None:
        self._gateway.check_model_control()
        configs = reloading.configs(request)
        await self._gateway.repository.configure(configs)

    async def _status(self, request: GetModelStatusRequest) -> GetModelStatusResponse:
        self._gateway.admit()
        target = _target(_spec_of(request))
        found = states.statuses(self._gateway.repository, target)
        return GetModelStatusResponse(
            model_version_status=[
                ModelVersionStatus(
                    version=one.version,
                    state=one.state.value,
                    status=StatusProto(
                        error_code=one.error_code,
                        error_message=one.error_message,
                    ),
                )
                for one in found
            ]
        )


def _status_of(error: BlockserveError) -> grpc.StatusCode:
    if error.code == SIGNATURE_NOT_FOUND:
        return grpc.StatusCode.FAILED_PRECONDITION
    if is_not_found(error):
        return grpc.StatusCode.NOT_FOUND
    if error.code == LABEL_NOT_FOUND:
        return grpc.StatusCode.INVALID_ARGUMENT
    return calls.status_of(error)


def _spec_of(request: Any) -> ModelSpec:
    if not request.HasField("model_spec"):
        raise InvalidRequest("Missing ModelSpec")
    return _named(request.model_spec)


def _named(spec: ModelSpec) -> ModelSpec:
    if not spec.name:
        raise InvalidRequest("ModelSpec has no name specified.")
    return spec


def _target(spec: ModelSpec) -> Target:
    return Target(
        name=spec.name,
        version=spec.version.value if spec.HasField("version") else None,
        label=spec.version_label or None,
    )


async def _read(request: PredictRequest, signature: Signature) -> dict[str, Array]:
    return await maybe_in_thread(_is_long(request), _tensors, request, signature)


def _is_long(request: PredictRequest) -> bool:
    """Whether a request takes long to read."""
    tensors = request.inputs.values()
    # First what they say of themselves: to look at their content is to copy it.
    if sum(map(_declared_bytes, tensors)) > LARGE_TENSOR_BYTES:
        return True
    typed = any(not tensor.tensor_content for tensor in tensors)
    return typed and request.ByteSize() > MANY_TYPED_BYTES


def _declared_bytes(tensor: TensorProto) -> int:
    """What a tensor of its shape takes, if there is such a tensor."""
    dtype = dtype_of(tensor.dtype)
    sizes = (dim.size for dim in tensor.tensor_shape.dim[:MAX_RANK])
    return 0 if dtype is None else dtype.itemsize * math.prod(sizes)


def _tensors(request: PredictRequest, signature: Signature) -> dict[str, Array]:
    """The inputs of a request, where they are those of the signature."""
    given, wanted = sorted(request.inputs), sorted(signature.inputs)
    if len(given) != len(wanted):
        raise InvalidTensor(
            f"input size does not match signature: {len(given)}!={len(wanted)} "
            f"len({_set(given)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(name for name in given if name not in wanted)}. "
            "Missing but required: "
            f"{_set(name for name in wanted if name not in given)}."
        )
    for name in wanted:
        if name not in request.inputs:
            raise InvalidTensor(
                f"Signature input alias: {name} not found in request and no default "
                f"value provided. Inputs expected to be in the request {_set(given)}, "
                "or default input alias set: "
            )
    tensors = {}
    for index, name in enumerate(wanted):
        try:
            array = from_tensor_proto(request.inputs[name])
        except InvalidTensorProto as error:
            raise InvalidTensor(f"tensor parsing error: {name}: {error}") from error
        expected = signature.inputs[name].dtype
        if array.dtype != expected:
            raise InvalidTensor(
                f"Expects arg[{index}] to be {type_name(expected)} but "
                f"{type_name(array.dtype)} is provided"
            )
        tensors[name] = array
    return tensors


def _response(prediction: Prediction, outputs: Mapping[str, Array]) -> PredictResponse:
    return PredictResponse(
        model_spec=ModelSpec(
            name=prediction.card.name,
            version=Int64Value(value=prediction.card.version),
            signature_name=prediction.signature.name,
        ),
        outputs={
            name: to_tensor_proto(array, typed=True) for name, array in outputs.items()
        },
    )


def _wanted(names: Sequence[str], outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """The outputs that a filter names; all where it names none."""
    if not names:
        return outputs
    wanted: dict[str, Array] = {}
    for name in names:
        if name not in outputs:
            raise InvalidRequest(
                f"output tensor alias not found in signature: {name} Outputs expected "
                f"to be in the set {_set(sorted(outputs))}."
            )
        if name in wanted:
            raise InvalidRequest(f"duplicate output tensor alias: {name}")
        wanted[name] = outputs[name]
    return wanted


def _set(names: Iterable[str]) -> str:
    return f"{{{','.join(names)}}}"
