"""The gateway's own gRPC API: `blockserve.v1.ImageClassifier`."""

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Final

from proto.blockserve.v1 import image_classifier_pb2_grpc
from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    ClassifyStreamRequest,
    ClassifyStreamResponse,
    Error,
)
from service.classification import Classification
from service.errors import BlockserveError, InvalidRequest, Unavailable
from service.gateway import Gateway
from service.grpc import calls
from service.grpc.calls import Context
from service.grpc.streams import answer_each
from service.repository import Target
from service.telemetry.observation import Observation
from service.telemetry.tracing import Operation

CLASSIFY: Final = Operation.of_grpc("blockserve.v1.ImageClassifier/Classify")
CLASSIFY_STREAM: Final = Operation.of_grpc(
    "blockserve.v1.ImageClassifier/ClassifyStream"
)


class ImageClassifierServicer(image_classifier_pb2_grpc.ImageClassifierServicer):
    """Answers `blockserve.v1.ImageClassifier`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._edge = calls.edge_of(gateway, "grpc")

    async def Classify(  # noqa: N802, the service's name
        self, request: ClassifyRequest, context: Context
    ) -> ClassifyResponse:
        """Classify images, all in one batch."""
        return await calls.answer(
            context, lambda: self._classify(CLASSIFY, request, context)
        )

    async def ClassifyStream(  # noqa: N802, the service's name
        self, requests: AsyncIterator[ClassifyStreamRequest], context: Context
    ) -> AsyncIterator[ClassifyStreamResponse]:
        """Classify the images of each request of a stream; see `answer_each`."""

        async def answer(asked: ClassifyStreamRequest) -> ClassifyStreamResponse:
            seconds = asked.timeout_seconds
            found = await calls.outcome(
                lambda: self._classify(CLASSIFY_STREAM, asked.request, context, seconds)
            )
            if isinstance(found, BlockserveError):
                return ClassifyStreamResponse(id=asked.id, error=_error(found))
            return ClassifyStreamResponse(id=asked.id, response=found)

        async for one in answer_each(context, requests, answer):
            yield one

    async def _classify(
        self,
        operation: Operation,
        request: ClassifyRequest,
        context: Context,
        timeout_seconds: float = 0,
    ) -> ClassifyResponse:
        work = partial(self._run, request, context, timeout_seconds)
        return await calls.observed(self._gateway, self._edge, operation, context, work)

    async def _run(
        self,
        request: ClassifyRequest,
        context: Context,
        timeout_seconds: float,
        observation: Observation,
    ) -> ClassifyResponse:
        gateway = self._gateway
        call = calls.call_of(gateway, context, _target(request), observation)
        if not timeout_seconds >= 0:  # neither negative nor no number
            raise InvalidRequest(
                f"timeout_seconds: expected a positive number, got {timeout_seconds}"
            )
        if timeout_seconds:
            end = gateway.deadline(timeout_seconds)
            call = replace(call, deadline=min(call.deadline, end))
        classification = await gateway.classifier.classify(
            request.images,
            call,
            top_k=request.top_k if request.HasField("top_k") else None,
        )
        return _response(classification)


def _target(request: ClassifyRequest) -> Target:
    """The model that a request means; a version of 0 is asked for as any other."""
    choice = request.WhichOneof("version_choice")
    return Target(
        name=request.model or None,
        version=request.version if choice == "version" else None,
        label=request.version_label if choice == "version_label" else None,
    )


def _response(classification: Classification) -> ClassifyResponse:
    response = ClassifyResponse(
        model=classification.model, version=classification.version
    )
    for row in zip(
        classification.indices.tolist(),
        classification.probabilities.tolist(),
        strict=True,
    ):
        # Added in place: what is made apart would be copied.
        predictions = response.results.add().predictions
        for index, probability in zip(*row, strict=True):
            predictions.add(
                label=classification.label(index),
                index=index,
                probability=probability,
            )
    return response


def _error(error: BlockserveError) -> Error:
    number, _ = calls.status_of(error).value
    wait = error.retry_after_seconds if isinstance(error, Unavailable) else None
    return Error(
        code=number,
        reason=error.code,
        message=error.message,
        retry_after_seconds=wait,
    )
