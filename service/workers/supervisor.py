"""Starts the workers, replaces those that end, and answers for their metrics."""

import asyncio
import logging
import operator
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.errors import BlockserveError, InvalidSettings
from service.ports import GRPC_FLAG, HTTP_FLAG, reserved
from service.settings import Settings
from service.telemetry.metrics import render
from service.workers.channel import (
    Assignment,
    Channel,
    Collect,
    Failed,
    Recall,
    Render,
    Started,
)
from service.workers.totals import Totals

# Without the working directory in the path, for it may hold a package `service` too.
COMMAND: Final = (sys.executable, "-P", "-m", "service.workers.worker")
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM)
SIGNALLED: Final = 128  # what shells add to the signal that has ended a program
RESTART_INTERVAL_SECONDS: Final = 1.0
COLLECT_TIMEOUT_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


async def supervise(settings: Settings, *, on_start: Callable[[int, int], None]) -> int:
    """Keep `settings.workers` processes serving until SIGTERM or SIGINT.

    They drain then; a second SIGINT kills them.

    Args:
        settings: How to run.
        on_start: Called with the ports of HTTP and gRPC once every worker has started.

    Returns:
        The exit status: 0 after a drain, that of a worker which could not start.

    Raises:
        InvalidSettings: A port is taken, or the platform has no shared ports.
        BlockserveError: What kept a worker from starting.
    """
    if sys.platform != "linux":
        raise InvalidSettings(
            "workers: several processes on one port need Linux; leave workers at 1"
        )
    with (
        reserved(settings.host, settings.http_port, HTTP_FLAG) as http_port,
        reserved(settings.host, settings.grpc_port, GRPC_FLAG) as grpc_port,
    ):
        ports = {"http_port": http_port, "grpc_port": grpc_port}
        return await _Supervisor(
            settings.model_copy(update=ports),
            on_start=lambda: on_start(http_port, grpc_port),
        ).run()


@dataclass(slots=True, kw_only=True, eq=False)
class _Worker:
    """A process that runs."""

    process: asyncio.subprocess.Process
    channel: Channel
    started: bool = False
    error: BlockserveError | None = None


class _Supervisor:
    def __init__(self, settings: Settings, *, on_start: Callable[[], None]) -> None:
        self._settings = settings
        self._on_start = on_start
        self._announced = False
        self._workers: dict[int, _Worker] = {}
        self._ending = asyncio.Event()
        self._status = 0
        self._error: BlockserveError | None = None

        self._registry = CollectorRegistry()
        self._totals = Totals()
        self._registry.register(self._totals)
        self._up = Gauge(
            "blockserve_worker_up",
            "Whether this worker reported its metrics; else they are from before.",
            ("worker",),
            registry=self._registry,
        )
        self._restarts = Counter(
            "blockserve_worker_restarts_total",
            "Workers started in place of one that had ended.",
            registry=self._registry,
        )

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in ENDINGS:
            loop.add_signal_handler(number, self._signalled, number)
        await asyncio.gather(*(self._keep(number) for number in self._numbers))
        if self._error is not None:
            raise self._error
        return self._status

    @property
    def _numbers(self) -> range:
        return range(1, self._settings.workers + 1)

    def _signalled(self, number: signal.Signals) -> None:
        if self._ending.is_set() and number == signal.SIGINT:
            self._status = SIGNALLED + number
            for worker in self._workers.values():
                with suppress(ProcessLookupError):
                    worker.process.kill()
        self._end()

    def _end(self) -> None:
        self._ending.set()
        for worker in self._workers.values():
            with suppress(ProcessLookupError):
                worker.process.terminate()

    def _fail(self, number: int, worker: _Worker) -> None:
        """End with what kept a worker from starting; all would meet it."""
        self._error = worker.error
        status = worker.process.returncode or 0
        self._status = status if status >= 0 else SIGNALLED - status
        if worker.error is None:
            logger.error("worker %d did not start: %s", number, _reason(worker))
        self._end()

    async def _keep(self, number: int) -> None:
        """Run worker `number`, again and again until the end."""
        loop = asyncio.get_running_loop()
        while not self._ending.is_set():
            not_before = loop.time() + RESTART_INTERVAL_SECONDS
            worker = await self._run(number)
            if self._ending.is_set():
                return
            if not worker.started and not self._others_serve:
                self._fail(number, worker)
                return
            logger.error(
                "worker %d ended: %s; starting another", number, _reason(worker)
            )
            self._restarts.inc()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(not_before):
                    await self._ending.wait()

    @property
    def _others_serve(self) -> bool:
        return self._announced and any(it.started for it in self._workers.values())

    async def _run(self, number: int) -> _Worker:
        """Run a process from its start to its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            # In a group of its own: Ctrl-C is for the supervisor to hand on.
            process = await asyncio.create_subprocess_exec(
                *COMMAND, stdin=theirs.fileno(), process_group=0
            )
        worker = _Worker(process=process, channel=await Channel.open(ours))
        self._workers[number] = worker
        if self._ending.is_set():  # since before there was a process to end
            process.terminate()
        worker.channel.send(Assignment(worker=number, settings=self._settings))
        await worker.channel.listen(partial(self._answer, worker))
        await process.wait()
        del self._workers[number]
        self._totals.end(number)
        return worker

    async def _answer(self, worker: _Worker, message: object) -> object:
        match message:
            case Started():
                worker.started = True
                self._announce()
            case Failed(error=error):
                worker.error = error
            case Render(accept=accept):
                await asyncio.gather(*map(self._collect, self._numbers))
                return render(self._registry, accept)
            case Recall():
                asked = [self._ask(number, message) for number in self._numbers]
                windows = [one for one in await asyncio.gather(*asked) if one]
                return reduce(operator.add, windows) if windows else None
        return None

    def _announce(self) -> None:
        started = [worker for worker in self._workers.values() if worker.started]
        if not self._announced and len(started) == self._settings.workers:
            self._announced = True
            self._on_start()

    async def _collect(self, number: int) -> None:
        families = await self._ask(number, Collect())
        if families is not None:
            self._totals.update(number, families)
        self._up.labels(str(number)).set(families is not None)

    async def _ask(self, number: int, question: object) -> Any:
        """What a worker answers; `None` if it does not."""
        worker = self._workers.get(number)
        if worker is None or not worker.started:
            return None
        try:
            async with asyncio.timeout(COLLECT_TIMEOUT_SECONDS):
                answer = await worker.channel.ask(question)
        except (TimeoutError, EOFError):
            return None
        return answer if self._workers.get(number) is worker else None


def _reason(worker: _Worker) -> str:
    if worker.error is not None:
        return worker.error.message
    status = worker.process.returncode or 0
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
