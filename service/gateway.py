"""The gateway without a protocol: what HTTP and gRPC share, started and ended once."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NoReturn, Protocol

from service.classification import Classifier
from service.errors import BlockserveError, Draining, InvalidRequest
from service.event_loop import EventLoopLag, observe_lag
from service.monitoring.live_metrics import LiveMetrics
from service.monitoring.recent import Recent, Window
from service.prediction import Predictor
from service.repository import Repository
from service.settings import Settings
from service.sources import source_of
from service.telemetry.access_log import AccessLog, Status
from service.telemetry.metrics import Metrics, ProtocolName, render, snapshot
from service.telemetry.observation import Edge
from service.telemetry.tracing import load_tracer

logger = logging.getLogger(__name__)


class Colleagues(Protocol):
    """The processes that serve together, this one among them."""

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics of all; see `Gateway.exposition`."""

    async def window(self) -> Window:
        """What all have done; see `Gateway.window`."""


class Gateway:
    """Repository, prediction and metrics of one process, and whether it is ready.

    Make it on the event loop that will run it.

    Args:
        settings: How it runs.
        colleagues: Who else serves with the same settings on the same ports.
    """

    def __init__(
        self, settings: Settings, colleagues: Colleagues | None = None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.duration_buckets_seconds)
        self._colleagues = colleagues
        scheme = "https" if settings.tls_certificate else "http"
        self._tracer = load_tracer(scheme=scheme) if settings.tracing else None
        source = source_of(settings)
        self.repository = Repository(
            settings,
            self.metrics,
            source,
            on_change=self._changed,
        )
        live_metrics = LiveMetrics(
            self.repository,
            is_ready=lambda: self.problem is None,
            engine=settings.engine,
        )
        for collector in (live_metrics, *source.collectors):
            self.metrics.registry.register(collector)
        self.recent = Recent(self.metrics, self.repository)
        self.predictor = Predictor(settings, self.repository)
        self.classifier = Classifier(self.predictor, top_k=settings.top_k)
        self.access_log = AccessLog(settings.access_log_share)
        self._observing: Sequence[asyncio.Task[NoReturn]] = ()
        self._draining = False
        self._drain_ends_at = math.inf
        self._refusal: asyncio.TimerHandle | None = None
        self._lag = EventLoopLag()
        self._listeners: list[Callable[[], None]] = []

    @property
    def problem(self) -> str | None:
        """Why the gateway is not ready; `None` if it is."""
        if self._draining:
            return "the gateway is shutting down"
        return self.repository.problem

    def edge(
        self,
        protocol: ProtocolName,
        *,
        answered: Status,
        status_of: Callable[[BlockserveError], Status],
    ) -> Edge:
        """Where requests of a protocol come in.

        Args:
            protocol: Its name.
            answered: Its status of a good answer.
            status_of: Its status of an error.
        """
        return Edge(
            protocol,
            metrics=self.metrics,
            access_log=self.access_log,
            answered=answered,
            status_of=status_of,
            tracer=self._tracer,
        )

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics of all processes that serve, and their content type.

        Args:
            accept: What the scraper accepts, as the header says it.

        Raises:
            Unavailable: The others cannot be asked.
        """
        if self._colleagues is None:
            # With a hundred versions it takes some tenths of a second.
            now = snapshot(self.metrics.registry)
            return await asyncio.to_thread(render, now, accept)
        return await self._colleagues.exposition(accept)

    async def window(self) -> Window:
        """What all processes that serve have done in the last minute.

        Raises:
            Unavailable: The others cannot be asked.
        """
        if self._colleagues is None:
            return self.recent.window()
        return await self._colleagues.window()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever readiness may have changed."""
        self._listeners.append(listener)

    def deadline(self, timeout_seconds: float | None) -> float:
        """The moment of `time.monotonic` at which a request's time is up.

        To be asked as it arrives: what it has waited to be read is part of its time.

        Args:
            timeout_seconds: What the client gives, and 0 where nothing of that is left;
                `None` is the default.
        """
        settings = self.settings
        timeout = (
            settings.request_timeout_seconds
            if timeout_seconds is None
            else timeout_seconds
        )
        allowed = min(timeout, settings.max_request_timeout_seconds)
        return monotonic() + allowed - self._lag.seconds_at_arrival()

    def admit(self) -> None:
        """Check that new work is taken.

        Raises:
            Draining: The process is shutting down.
        """
        if self._draining:
            raise Draining("the gateway is shutting down; try another or again later")

    def check_model_control(self) -> None:
        """Check that clients may say which models serve.

        Raises:
            InvalidRequest: They may not.
            Draining: The process is shutting down.
        """
        self.admit()
        if not self.settings.model_control:
            raise InvalidRequest(
                "clients do not load or unload models here; the setting model_control "
                "allows it"
            )

    async def start(self) -> None:
        """Load the models; returns when each has been tried once."""
        self._observing = (
            asyncio.create_task(observe_lag(self.metrics.event_loop_lag_seconds)),
            asyncio.create_task(self.recent.follow()),
        )
        await self.repository.start()

    def begin_drain(self) -> None:
        """Turn readiness off and refuse new work; accepted work goes on for a while."""
        if self._draining:
            return
        logger.info("shutting down: accepted requests finish, new ones are refused")
        self._draining = True
        seconds = self.settings.drain_timeout_seconds
        self._drain_ends_at = monotonic() + seconds
        # Whoever waits still is told, over whatever protocol, and not just cut off.
        loop = asyncio.get_running_loop()
        self._refusal = loop.call_later(seconds, self.repository.refuse)
        self.repository.stop_loading()
        self._changed()

    async def stop(self) -> None:
        """Drain, then unload everything."""
        self.begin_drain()
        seconds_left = max(0.0, self._drain_ends_at - monotonic())
        await self.repository.stop(drain_timeout_seconds=seconds_left)
        if self._refusal is not None:
            self._refusal.cancel()
        self.access_log.flush()
        for task in self._observing:
            task.cancel()
        self.predictor.close()
        if self._tracer is not None:
            await self._tracer.close()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
