"""One of several gateway processes: what the supervisor starts.

It is told over its standard input which worker it is and how to serve, answers there
for its metrics, and drains if the supervisor ends.
"""

import asyncio
import os
import signal
import socket
import sys
from typing import Final

from service import logs
from service.errors import BlockserveError, Unavailable
from service.metrics import Metrics
from service.server import Running, new_event_loop, run, spare_the_collector
from service.settings import Settings
from service.workers.channel import (
    Assignment,
    Channel,
    Collect,
    Failed,
    Render,
    Started,
)

FAILED: Final = 1
RENDER_TIMEOUT_SECONDS: Final = 5.0


class _WorkerMetrics(Metrics):
    """Counts in this process and shows what all workers have counted."""

    def __init__(self, settings: Settings, channel: Channel) -> None:
        super().__init__(settings)
        self._channel = channel

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        try:
            async with asyncio.timeout(RENDER_TIMEOUT_SECONDS):
                body, content_type = await self._channel.ask(Render(accept=accept))
        except (TimeoutError, EOFError) as error:
            raise Unavailable("the workers' supervisor does not answer") from error
        return body, content_type


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
    metrics = _WorkerMetrics(settings, channel)

    async def answer(question: object) -> object:
        assert isinstance(question, Collect)  # noqa: S101, nothing else is asked
        return list(metrics.registry.collect())

    def on_start(_: Running) -> None:
        spare_the_collector()
        channel.send(Started())

    listening = asyncio.create_task(channel.listen(answer))
    listening.add_done_callback(_drain)
    try:
        await run(settings, on_start=on_start, metrics=metrics)
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
