"""The same 28×28 image over each protocol that the gateway speaks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import grpc

from loadtest.harness import client, grpc_baseline, grpc_client
from loadtest.harness import protocol_answers as answers
from loadtest.harness import protocol_requests as requests
from loadtest.harness.client import Measurement, Request
from loadtest.harness.gateway import grpc_address
from loadtest.harness.grpc_client import Message
from loadtest.harness.image_requests import raw
from loadtest.harness.processes import Server
from loadtest.harness.workloads import ANSWER_SECONDS, post
from loadtest.overhead import CLASSIFY
from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyStreamRequest,
    ClassifyStreamResponse,
)

OPEN_INFERENCE_GRPC: Final = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject(ABC):
    """A protocol, and one of the ways to say with it what an image is.

    Attributes:
        best: The most probable class that an answer tells.
    """

    name: str
    best: Callable[[bytes], int]

    @abstractmethod
    def body(self, image: bytes) -> bytes:
        """What is sent for a JPEG, without what HTTP and gRPC put around it."""

    @abstractmethod
    def answers(self, server: Server, images: Sequence[bytes]) -> list[bytes]:
        """What the server answers to each image, asked alone."""

    @abstractmethod
    def drive(
        self,
        server: Server,
        images: Sequence[bytes],
        answers: Sequence[bytes],
        *,
        concurrency: int,
        **window: Any,
    ) -> Measurement:
        """Keep so many requests under way, whose answers are to be these.

        Args:
            server: Who answers.
            images: Sent in turn.
            answers: What each must get.
            concurrency: How many.
            window: Its length and the warm-up's; see `harness.client.closed_loop`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OverHttp(Subject):
    """One request for each image, over connections that are kept."""

    request: Callable[[bytes], Request]

    def body(self, image: bytes) -> bytes:
        """See `Subject`."""
        return self.request(image).body

    def answers(self, server: Server, images: Sequence[bytes]) -> list[bytes]:
        """See `Subject`."""
        return [
            post(server.address, self.request(image)).raise_for_status().content
            for image in images
        ]

    def drive(
        self,
        server: Server,
        images: Sequence[bytes],
        answers: Sequence[bytes],
        *,
        concurrency: int,
        **window: Any,
    ) -> Measurement:
        """See `Subject`."""
        requests = [
            replace(self.request(image), expect=answer)
            for image, answer in zip(images, answers, strict=True)
        ]
        return client.closed_loop(
            server.address,
            requests,
            connections=concurrency,
            server_pid=server.pid,
            **window,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OverGrpc(Subject):
    """One call for each image, over one connection."""

    method: str
    message: Callable[[bytes], bytes]

    def body(self, image: bytes) -> bytes:
        """See `Subject`."""
        return self.message(image)

    def answers(self, server: Server, images: Sequence[bytes]) -> list[bytes]:
        """See `Subject`."""
        with grpc.insecure_channel(grpc_address(server)) as channel:
            ask: Any = channel.unary_unary(self.method)
            return [
                ask(self.message(image), timeout=ANSWER_SECONDS) for image in images
            ]

    def drive(
        self,
        server: Server,
        images: Sequence[bytes],
        answers: Sequence[bytes],
        *,
        concurrency: int,
        **window: Any,
    ) -> Measurement:
        """See `Subject`."""
        messages = [
            Message(self.message(image), expect=answer)
            for image, answer in zip(images, answers, strict=True)
        ]
        return grpc_client.closed_loop(
            grpc_address(server),
            self.method,
            messages,
            calls=concurrency,
            tags=self.tags(concurrency),
            server_pid=server.pid,
            **window,
        )

    def tags(self, _: int) -> Sequence[bytes]:
        """See `harness.grpc_client.closed_loop`."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OverStream(OverGrpc):
    """All images over one call, as messages with an id."""

    def answers(self, server: Server, images: Sequence[bytes]) -> list[bytes]:
        """See `Subject`; without the ids."""
        (tag,) = self.tags(1)
        with grpc.insecure_channel(grpc_address(server)) as channel:
            ask: Any = channel.stream_stream(self.method)
            answers = []
            for image in images:
                asked = iter([tag + self.message(image)])
                (answer,) = ask(asked, timeout=ANSWER_SECONDS)
                answers.append(answer.removeprefix(tag))
            return answers

    def tags(self, count: int) -> Sequence[bytes]:
        """The field `id`, which is the first of a message on both ways."""
        return [
            ClassifyStreamRequest(id=f"{number:03}").SerializeToString()
            for number in range(count)
        ]


RAW_JPEG: Final = "HTTP, JPEG"
SUBJECTS: Final[Sequence[Subject]] = (
    OverHttp(
        name=RAW_JPEG,
        request=raw(CLASSIFY),
        best=answers.of_predictions,
    ),
    OverHttp(
        name="TF Serving REST, JSON",
        request=requests.tf_serving,
        best=answers.of_tf_serving,
    ),
    OverHttp(
        name="Open Inference REST, JSON",
        request=requests.open_inference,
        best=answers.of_open_inference,
    ),
    OverHttp(
        name="Open Inference REST, binary",
        request=requests.open_inference_binary,
        best=answers.of_open_inference_binary,
    ),
    OverGrpc(
        name="TF Serving gRPC, pixels",
        method="/tensorflow.serving.PredictionService/Predict",
        message=requests.predict,
        best=answers.of_predict,
    ),
    OverGrpc(
        name="Open Inference gRPC, pixels",
        method=OPEN_INFERENCE_GRPC,
        message=requests.model_infer,
        best=answers.of_model_infer,
    ),
    OverGrpc(
        name="Open Inference gRPC, JPEG",
        method=OPEN_INFERENCE_GRPC,
        message=requests.model_infer_file,
        best=answers.of_model_infer,
    ),
    OverGrpc(
        name="own gRPC, JPEG",
        method="/blockserve.v1.ImageClassifier/Classify",
        message=requests.classify,
        best=answers.of_classify,
    ),
    OverStream(
        name="own gRPC, JPEG, stream",
        method="/blockserve.v1.ImageClassifier/ClassifyStream",
        message=requests.classify_in_stream,
        best=lambda answer: answers.of_response(
            ClassifyStreamResponse.FromString(answer).response
        ),
    ),
)
# No subject of the gateway, but what is left of one without it.
BARE_GRPC: Final = OverGrpc(
    name="bare grpc.aio",
    method=grpc_baseline.METHOD,
    message=requests.classify,
    best=answers.of_classify,
)
