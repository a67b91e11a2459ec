"""The gRPC load generator, against a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from loadtest.harness.client import OK, Failure, GeneratorFailed, Measurement
from loadtest.harness.grpc_client import Message, closed_loop

PLEASE, REFUSE, OTHER, UNKNOWN = b"please", b"refuse", b"other", b"unknown"
UNAVAILABLE: int = grpc.StatusCode.UNAVAILABLE.value[0]
EXHAUSTED: int = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
UNARY, STREAM = "/test.Peer/Unary", "/test.Peer/Stream"
TAG_BYTES = 2
TOGETHER = 3


@dataclass
class Peer:
    """A server that does what each message asks for, and keeps count."""

    address: str = ""
    bodies: list[bytes] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)
    streams: int = 0
    under_way: int = 0
    most_under_way: int = 0
    enough_under_way: int = 1
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def unary(self, body: bytes, context: Any) -> bytes:
        self.bodies.append(body)
        self.clients.add(context.peer())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self.under_way == self.enough_under_way:
            self.enough.set()
        await self.enough.wait()
        self.under_way -= 1
        if body == REFUSE:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        return answer_to(body)

    async def stream(
        self, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        """Answer three at a time, the last first."""
        self.streams += 1
        waiting: list[bytes] = []
        async for message in requests:
            tag, body = message[:TAG_BYTES], message[TAG_BYTES:]
            self.bodies.append(body)
            if body == REFUSE:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
            if body == UNKNOWN:
                tag = b"??"
            waiting.append(tag + answer_to(body))
            if len(waiting) == TOGETHER:
                while waiting:
                    yield waiting.pop()
        while waiting:  # the client sends no more
            yield waiting.pop()


def right_answer_to(body: bytes) -> bytes:
    return b"the answer to " + body


def answer_to(body: bytes) -> bytes:
    return b"something else" if body == OTHER else right_answer_to(body)


@asynccontextmanager
async def listening() -> AsyncIterator[Peer]:
    peer = Peer()
    methods: Any = {
        "Unary": grpc.unary_unary_rpc_method_handler(peer.unary),
        "Stream": grpc.stream_stream_rpc_method_handler(peer.stream),
    }
    handler = grpc.method_handlers_generic_handler("test.Peer", methods)
    server = grpc.aio.server(handlers=[handler])
    peer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield peer
    await server.stop(grace=None)


async def driven(
    address: str, *bodies: bytes, calls: int = 1, streamed: bool = False, **more: Any
) -> Measurement:
    return await asyncio.to_thread(
        closed_loop,
        address,
        STREAM if streamed else UNARY,
        [Message(body, expect=right_answer_to(body)) for body in bodies],
        calls=calls,
        duration_seconds=0.3,
        warm_up_seconds=0,
        tags=[b"%02d" % number for number in range(calls)] if streamed else (),
        **more,
    )


async def test_messages_are_sent_in_turn_and_their_outcomes_counted() -> None:
    async with listening() as peer:
        result = await driven(peer.address, PLEASE, REFUSE, OTHER)
    counts = [result.count(one) for one in (OK, EXHAUSTED, Failure.WRONG_ANSWER)]
    assert sum(counts) == len(result.statuses)
    assert min(counts) > 0
    assert max(counts) - min(counts) <= 1
    assert result.failures == counts[1] + counts[2]
    assert peer.bodies[:6] == [PLEASE, REFUSE, OTHER] * 2
    assert (result.latencies_seconds > 0).all()
    assert result.cpu_seconds > 0


async def test_so_many_calls_are_under_way_over_one_connection() -> None:
    async with listening() as peer:
        peer.enough_under_way = 5
        result = await driven(peer.address, PLEASE, calls=5)
    assert (result.failures, peer.most_under_way) == (0, 5)
    assert len(peer.clients) == 1
    # The answer that opens the window is not counted, nor are those after its end.
    assert len(result.statuses) < len(peer.bodies)


async def test_answers_of_a_stream_belong_to_the_requests_with_their_tags() -> None:
    async with listening() as peer:
        result = await driven(
            peer.address, PLEASE, b"thank you", OTHER, calls=TOGETHER, streamed=True
        )
    assert peer.streams == 1
    assert peer.bodies[:6] == [PLEASE, b"thank you", OTHER] * 2
    wrong = result.count(Failure.WRONG_ANSWER)
    assert 0 < wrong == result.failures
    assert abs(result.count(OK) - 2 * wrong) <= 2


@pytest.mark.parametrize(
    ("body", "status"), [(REFUSE, EXHAUSTED), (UNKNOWN, Failure.WRONG_ANSWER)]
)
async def test_a_stream_that_breaks_fails_what_is_under_way_and_is_made_anew(
    body: bytes, status: int
) -> None:
    async with listening() as peer:
        result = await driven(
            peer.address, PLEASE, PLEASE, body, calls=TOGETHER, streamed=True
        )
    assert result.count(status) == len(result.statuses) > 0
    assert peer.streams > 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_without_a_server_every_request_fails(streamed: bool) -> None:
    async with listening() as peer:
        pass
    result = await driven(peer.address, PLEASE, streamed=streamed)
    assert result.count(UNAVAILABLE) == len(result.statuses) > 0


def test_a_generator_that_fails_says_why() -> None:
    with pytest.raises(GeneratorFailed, match="NoSuchProcess"):
        closed_loop(
            "127.0.0.1:9",
            UNARY,
            [Message(PLEASE)],
            calls=1,
            duration_seconds=0.1,
            warm_up_seconds=0,
            server_pid=2**22 + 1,  # more than any process can have
        )
