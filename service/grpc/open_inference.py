"""The Open Inference Protocol's gRPC API: `inference.GRPCInferenceService`."""

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from google.protobuf.json_format import ParseDict

from proto.inference import grpc_inference_service_pb2_grpc
from proto.inference.health_pb2 import (
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from proto.inference.infer_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from proto.inference.metadata_pb2 import (
    ModelMetadataRequest,
    ModelMetadataResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
)
from proto.inference.model_config_pb2 import ModelConfigRequest, ModelConfigResponse
from proto.inference.repository_pb2 import (
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
)
from proto.inference.statistics_pb2 import (
    ModelStatisticsRequest,
    ModelStatisticsResponse,
)
from service.errors import BlockserveError, InvalidRequest, InvalidTensor
from service.event_loop import maybe_in_thread
from service.gateway import Gateway
from service.grpc import calls
from service.grpc.calls import Context
from service.grpc.streams import answer_each
from service.open_inference import documents
from service.open_inference.data_types import (
    dtype_of,
    from_raw,
    shaped,
    slow_bytes,
    to_raw,
)
from service.open_inference.inference import (
    MANY_BYTES,
    InferAnswer,
    InferRequest,
    InputTensor,
    WantedOutput,
    check_number,
    infer,
)
from service.telemetry.observation import Observation
from service.telemetry.tracing import Operation
from service.tensors import Array

T = TypeVar("T")

MODEL_INFER: Final = Operation.of_grpc("inference.GRPCInferenceService/ModelInfer")
MODEL_STREAM_INFER: Final = Operation.of_grpc(
    "inference.GRPCInferenceService/ModelStreamInfer"
)
WANTS_FINAL: Final = "triton_enable_empty_final_response"
IS_FINAL: Final = "triton_final_response"
# Where elements travel that are not raw. The 16 bits of the other types have no field.
FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
CARRIERS: Final = {"int_contents": np.dtype("i4"), "uint_contents": np.dtype("u4")}


class InferenceServicer(grpc_inference_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers `inference.GRPCInferenceService`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._edge = calls.edge_of(gateway, "open_inference_grpc")
        self._repository = gateway.repository

    async def ServerLive(  # noqa: N802, the service's name
        self, _: ServerLiveRequest, __: Context
    ) -> ServerLiveResponse:
        """Say that the server answers."""
        return ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802, the service's name
        self, _: ServerReadyRequest, __: Context
    ) -> ServerReadyResponse:
        """Say whether a model serves."""
        return ServerReadyResponse(ready=self._gateway.problem is None)

    async def ModelReady(  # noqa: N802, the service's name
        self, request: ModelReadyRequest, _: Context
    ) -> ModelReadyResponse:
        """Say whether a version serves; one that there is not does not."""
        target = documents.target(request.name, request.version)
        try:
            with self._repository.lease(target):
                return ModelReadyResponse(ready=True)
        except BlockserveError:
            return ModelReadyResponse(ready=False)

    async def ServerMetadata(  # noqa: N802, the service's name
        self, _: ServerMetadataRequest, __: Context
    ) -> ServerMetadataResponse:
        """Tell what the server is."""
        return ParseDict(documents.server(), ServerMetadataResponse())

    async def ModelMetadata(  # noqa: N802, the service's name
        self, request: ModelMetadataRequest, context: Context
    ) -> ModelMetadataResponse:
        """Tell a version's inputs and outputs."""
        target = documents.target(request.name, request.version)
        document = await _told(context, documents.model, self._repository, target)
        return ParseDict(document, ModelMetadataResponse())

    async def ModelConfig(  # noqa: N802, the service's name
        self, request: ModelConfigRequest, context: Context
    ) -> ModelConfigResponse:
        """Tell how a version is run."""
        target = documents.target(request.name, request.version)
        config = await _told(context, documents.configuration, self._gateway, target)
        return ParseDict({"config": config}, ModelConfigResponse())

    async def ModelStatistics(  # noqa: N802, the service's name
        self, request: ModelStatisticsRequest, context: Context
    ) -> ModelStatisticsResponse:
        """Tell what versions have done."""
        target = documents.target(request.name, request.version)
        document = await _told(context, documents.statistics, self._repository, target)
        return ParseDict(document, ModelStatisticsResponse())

    async def RepositoryIndex(  # noqa: N802, the service's name
        self, request: RepositoryIndexRequest, _: Context
    ) -> RepositoryIndexResponse:
        """List all versions with their states."""
        models = documents.index(self._repository, only_ready=request.ready)
        return ParseDict({"models": models}, RepositoryIndexResponse())

    async def RepositoryModelLoad(  # noqa: N802, the service's name
        self, request: RepositoryModelLoadRequest, context: Context
    ) -> RepositoryModelLoadResponse:
        """Load a model, where clients may."""
        await calls.answer(
            context,
            lambda: documents.load(
                self._gateway, request.model_name, request.parameters
            ),
        )
        return RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802, the service's name
        self, request: RepositoryModelUnloadRequest, context: Context
    ) -> RepositoryModelUnloadResponse:
        """Unload a model, where clients may."""
        await calls.answer(
            context, lambda: documents.unload(self._gateway, request.model_name)
        )
        return RepositoryModelUnloadResponse()

    async def ModelInfer(  # noqa: N802, the service's name
        self, request: ModelInferRequest, context: Context
    ) -> ModelInferResponse:
        """Run a model."""
        return await calls.answer(
            context, lambda: self._infer(MODEL_INFER, request, context)
        )

    async def ModelStreamInfer(  # noqa: N802, the service's name
        self, requests: AsyncIterator[ModelInferRequest], context: Context
    ) -> AsyncIterator[ModelStreamInferResponse]:
        """Run a model for each request of a stream; see `answer_each`."""

        async def answer(request: ModelInferRequest) -> ModelStreamInferResponse:
            response = await calls.outcome(
                lambda: self._infer(MODEL_STREAM_INFER, request, context)
            )
            if isinstance(response, BlockserveError):
                return ModelStreamInferResponse(
                    error_message=response.message,
                    infer_response=ModelInferResponse(id=request.id),
                )
            if _values(request.parameters).get(WANTS_FINAL) is True:
                response.parameters[IS_FINAL].bool_param = True
            return ModelStreamInferResponse(infer_response=response)

        async for one in answer_each(context, requests, answer):
            yield one

    async def _infer(
        self, operation: Operation, request: ModelInferRequest, context: Context
    ) -> ModelInferResponse:
        work = partial(self._run, request, context)
        return await calls.observed(self._gateway, self._edge, operation, context, work)

    async def _run(
        self, request: ModelInferRequest, context: Context, observation: Observation
    ) -> ModelInferResponse:
        gateway = self._gateway
        target = documents.target(request.model_name, request.model_version)
        call = calls.call_of(gateway, context, target, observation)
        raw = request.raw_input_contents
        is_long = request.ByteSize() - sum(map(len, raw)) > MANY_BYTES
        asked = await maybe_in_thread(is_long, _request, request)
        observation.has_been_parsed()
        answer = await infer(gateway, asked, call)
        return await maybe_in_thread(
            answer.is_long, partial(_response, answer, request.id, raw=bool(raw))
        )


async def _told(context: Context, tell: Callable[..., T], *about: Any) -> T:
    async def work() -> T:
        return tell(*about)

    return await calls.answer(context, work)


def _request(message: ModelInferRequest) -> InferRequest:
    """What a message asks for.

    Raises:
        InvalidRequest: It has raw values, but not one for each input; or too many
            inputs or outputs.
    """
    check_number(inputs=message.inputs, outputs=message.outputs)
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} values for {len(message.inputs)} "
            "inputs; send one for each, or contents in the inputs themselves"
        )
    return InferRequest(
        inputs=[
            _input(tensor, raw[index] if raw else None)
            for index, tensor in enumerate(message.inputs)
        ],
        outputs=[
            WantedOutput(name=one.name, parameters=_values(one.parameters))
            for one in message.outputs
        ],
        parameters=_values(message.parameters),
    )


def _input(
    tensor: ModelInferRequest.InferInputTensor, raw: bytes | None
) -> InputTensor:
    slow = (
        tensor.ByteSize()
        if raw is None
        else slow_bytes(raw, tensor.datatype, tensor.shape)
    )
    return InputTensor(
        name=tensor.name,
        read=partial(_array, tensor, raw),
        slow_bytes=slow,
        parameters=_values(tensor.parameters),
    )


def _values(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            values[name] = getattr(parameter, choice)
    return values


def _array(tensor: ModelInferRequest.InferInputTensor, raw: bytes | None) -> Array:
    dtype = dtype_of(tensor.datatype)
    shape = tensor.shape
    if raw is not None:
        if tensor.HasField("contents"):
            raise InvalidTensor("give contents or raw_input_contents, not both")
        return from_raw(raw, dtype, shape)
    field = FIELDS.get(tensor.datatype)
    if field is None:
        raise InvalidTensor(f"{tensor.datatype} travels in raw_input_contents only")
    values = getattr(tensor.contents, field)
    if dtype.hasobject:
        return shaped(values, dtype, shape)
    carried = np.asarray(values, CARRIERS.get(field, dtype))
    array = carried.astype(dtype, copy=False)
    if array.dtype != carried.dtype and not np.array_equal(array, carried):
        limits = np.iinfo(dtype)
        raise InvalidTensor(f"{tensor.datatype} holds {limits.min} to {limits.max}")
    return shaped(array, dtype, shape)


def _response(answer: InferAnswer, request_id: str, *, raw: bool) -> ModelInferResponse:
    """The answer as a message, with values as those of the request came."""
    raw = raw or any(output.datatype not in FIELDS for output in answer.outputs)
    response = ModelInferResponse(
        model_name=answer.model, model_version=answer.version, id=request_id
    )
    for output in answer.outputs:
        tensor = response.outputs.add(
            name=output.name, datatype=output.datatype, shape=output.shape
        )
        if raw:
            response.raw_output_contents.append(to_raw(output.array))
        else:
            values = output.array.ravel().tolist()
            getattr(tensor.contents, FIELDS[output.datatype]).extend(values)
    return response
