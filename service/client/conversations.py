"""Operations as conversations: each is written once, for every way to hold one.

A conversation is a generator. It yields a request, is sent the answer or thrown the
`RequestFailed` that came in its place, may yield another, and returns its result. It
does no input or output: what carries requests to the server is called a transport.
"""

from collections.abc import Awaitable, Callable, Generator
from time import monotonic
from typing import Any, TypeAlias, TypeVar, cast

from service.client.errors import RequestFailed, out_of_time

T = TypeVar("T")

Conversation: TypeAlias = Generator[Any, Any, T]


def hold(
    conversation: Conversation[T],
    transport: Callable[[Any, float], Any],
    timeout_seconds: float,
) -> T:
    """Hold a conversation to its end.

    Args:
        conversation: Yields requests.
        transport: Takes a request and the seconds it has, and returns its answer.
        timeout_seconds: What all requests have together.

    Raises:
        RequestFailed: There is no answer.
    """
    deadline = monotonic() + timeout_seconds
    try:
        request = next(conversation)
        while True:
            try:
                answer = transport(request, _left(deadline))
            except RequestFailed as error:
                request = conversation.throw(error)
            else:
                request = conversation.send(answer)
    except StopIteration as end:
        return cast("T", end.value)


async def hold_async(
    conversation: Conversation[T],
    transport: Callable[[Any, float], Awaitable[Any]],
    timeout_seconds: float,
) -> T:
    """Hold a conversation to its end; see `hold`."""
    deadline = monotonic() + timeout_seconds
    try:
        request = next(conversation)
        while True:
            try:
                answer = await transport(request, _left(deadline))
            except RequestFailed as error:
                request = conversation.throw(error)
            else:
                request = conversation.send(answer)
    except StopIteration as end:
        return cast("T", end.value)


def _left(deadline: float) -> float:
    seconds = deadline - monotonic()
    if seconds <= 0:
        raise out_of_time()
    return seconds
