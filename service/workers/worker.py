"""One of several gateway processes: what the supervisor starts.

It is told over its standard input which worker it is and how to serve, answers there
for its metrics, and drains if the supervisor ends.
"""

import asyncio
import os
import signal
import socket
import sys
from typing import Any, Final

from service.errors import BlockserveError, Unavailable
from service.gateway import Gateway
from service.monitoring.recent import Window
from service.server import Running, new_event_loop, run, spare_the_collector
from service.telemetry import logs
from service.workers.channel import (
    Assignment,
    Channel,
    Collect,
    Failed,
    Recall,
    Render,
    Started,
)

FAILED: Final = 1
ANSWER_TIMEOUT_SECONDS: Final = 5.0


class _Colleagues:
    """All workers; the supervisor asks them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """See `Colleagues`."""
        answer: tuple[bytes, str] = await self._ask(Render(accept=accept))
        return answer

    async def window(self) -> Window:
        """See `Colleagues`."""
        window: Window | None = await self._ask(Recall())
        if window is None:
            raise Unavailable("no worker answers yet")
        return window

    async def _ask(self, question: object) -> Any:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                return await self._channel.ask(question)
        except (TimeoutError, EOFError) as error:
            raise Unavailable("the workers' supervisor does not answer") from error


async def _work() -> int:
    # Standard input itself stays open, so that the channel ends with the process.
    channel = await Channel.open(socket.socket(fileno=os.dup(sys.stdin.fileno())))
    try:
        _, assignment = await channel.receive()
    except EOFError:  # the supervisor has ended already
        return FAILED
    assert isinstance(assignment, Assignment)  # noqa: S101, it is sent first
    settings = assignment.settings
    logs.configure(settings.log_level, settings.log_format, worker=assignment.worker)
    gateway: Gateway | None = None

    async def answer(question: object) -> object:
        assert gateway is not None  # noqa: S101, only who has started is asked
        if isinstance(question, Recall):
            return gateway.recent.window()
        assert isinstance(question, Collect)  # noqa: S101, nothing else is asked
        return list(gateway.metrics.registry.collect())

    def on_start(running: Running) -> None:
        nonlocal gateway
        gateway = running.gateway
        spare_the_collector()
        channel.send(Started())

    listening = asyncio.create_task(channel.listen(answer))
    listening.add_done_callback(_drain)
    try:
        await run(settings, on_start=on_start, colleagues=_Colleagues(channel))
    except BlockserveError as error:
        channel.send(Failed(error=error))
        await channel.close()
        return FAILED
    finally:
        listening.remove_done_callback(_drain)
        listening.cancel()
    return 0


def _drain(_: asyncio.Task[None]) -> None:
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sys.exit(runner.run(_work()))
