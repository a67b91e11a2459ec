"""A light gRPC load generator, in a process of its own.

    measurement = closed_loop(
        "127.0.0.1:8001", "/package.Service/Method", [Message(serialised)],
        calls=16, duration_seconds=10, warm_up_seconds=2,
    )

`grpc_generator` is the other end. Messages are bytes on both ways: nothing is
serialised or parsed while the load is on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest.harness.client import ClosedLoop, Measurement, measured_by


@dataclass(frozen=True, slots=True)
class Message:
    """A request, serialised.

    Attributes:
        expect: Bytes that the answer must contain, or it is a failure.
    """

    body: bytes
    expect: bytes | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcTask:
    """What the generator's process is told; see `closed_loop`."""

    address: str
    method: str
    messages: Sequence[Message]
    load: ClosedLoop
    tags: Sequence[bytes]
    server_pid: int | None


def closed_loop(
    address: str,
    method: str,
    messages: Sequence[Message],
    *,
    calls: int,
    duration_seconds: float,
    warm_up_seconds: float,
    tags: Sequence[bytes] = (),
    server_pid: int | None = None,
) -> Measurement:
    """Keep `calls` calls under way over one connection, and measure what is answered.

    What counts is the same as over HTTP; see `harness.client.closed_loop`.

    Args:
        address: As in `127.0.0.1:8001`.
        method: As in `/package.Service/Method`.
        messages: Sent in turn, over and over.
        calls: How many; each that ends makes place for the next.
        duration_seconds: Length of the window.
        warm_up_seconds: Time under load before the window.
        tags: All different and of one length, as many as `calls`: the method is a
            stream in both directions, and there is one call. What is under way are its
            requests; each goes with one of the tags before it, and its answer begins
            with the same.
        server_pid: Process whose time on the processor is taken in the same window.

    Raises:
        GeneratorFailed: It ended without a measurement; says what it printed.
    """
    task = GrpcTask(
        address=address,
        method=method,
        messages=messages,
        load=ClosedLoop(
            concurrency=calls,
            duration_seconds=duration_seconds,
            warm_up_seconds=warm_up_seconds,
        ),
        tags=tags,
        server_pid=server_pid,
    )
    seconds = duration_seconds + warm_up_seconds
    return measured_by("loadtest.harness.grpc_generator", task, seconds=seconds)
