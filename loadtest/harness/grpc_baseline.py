"""What no server of Python's gRPC library can beat by much: a method that does nothing.

It answers as much as the gateway's own API does with its five predictions.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
import uvloop

from loadtest.harness.baselines import PREDICTIONS
from loadtest.harness.gateway import GRPC_ANNOUNCEMENT
from loadtest.harness.processes import Server, announced, server
from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyResponse,
    Prediction,
    Result,
)

SERVICE: Final = "loadtest.Bare"
METHOD: Final = f"/{SERVICE}/Classify"
ANSWER: Final = ClassifyResponse(
    model="inception",
    version=1,
    results=[Result(predictions=[Prediction(**one) for one in PREDICTIONS])],
).SerializeToString()


async def classify(_: bytes, __: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    """Answer."""
    return ANSWER


async def serve() -> None:
    """Serve `classify` on a free port, and say where."""
    methods: Any = {"Classify": grpc.unary_unary_rpc_method_handler(classify)}
    running = grpc.aio.server(
        handlers=[grpc.method_handlers_generic_handler(SERVICE, methods)]
    )
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    print(f"gRPC at 127.0.0.1:{port}", flush=True)  # noqa: T201, read by `bare_grpc`
    await running.wait_for_termination()


@contextmanager
def bare_grpc() -> Iterator[Server]:
    """Serve in a process of its own until the block ends."""
    command = [sys.executable, "-m", "loadtest.harness.grpc_baseline"]
    with server(command, ready=announced(GRPC_ANNOUNCEMENT)) as started:
        yield started


if __name__ == "__main__":
    uvloop.run(serve())
