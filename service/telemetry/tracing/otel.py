"""Traces as OpenTelemetry records and exports them.

Sampler, exporter, resource and limits are what the OTEL_* variables say. The provider
is ours alone: were it the process', the web framework would record spans as well.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from threading import Thread
from time import monotonic, time_ns
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import BlockserveError, InvalidSettings
from service.telemetry.access_log import Status
from service.telemetry.trace_context import TraceContext
from service.telemetry.tracing import ENGINE_SPAN, Operation, RequestSpan, Stage

EXPORTERS: Final = "opentelemetry_traces_exporter"
EXPORTER_OF_PROTOCOL: Final = {
    "grpc": "otlp_proto_grpc",
    "http/protobuf": "otlp_proto_http",
}
DEFAULT_PROTOCOL: Final = "http/protobuf"
# What a collector that does not answer may delay the end of the process by.
FLUSH_SECONDS: Final = 3.0
# A collector that is away is told of once in so long, in each of its ways to fail.
LOG_INTERVAL_SECONDS: Final = 60.0
NANOSECONDS: Final = 1e9
SERVER_ERROR: Final = 500
# Those of the gRPC statuses that are the server's fault, as the conventions see it.
SERVER_ERRORS: Final = frozenset(
    {
        *("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL"),
        *("UNAVAILABLE", "DATA_LOSS"),
    }
)
NOWHERE: Final = Context()
PROPAGATOR: Final = TraceContextTextMapPropagator()

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | int]


class OtelTracer:
    """A `Tracer` that exports what it records.

    Args:
        scheme: Of the gateway's URL.

    Raises:
        InvalidSettings: An OTEL_* variable says what cannot be.
    """

    def __init__(self, *, scheme: str) -> None:
        self._scheme = scheme
        self._exporters = _exporters()
        try:
            self._ids = _TraceIds()
            self._provider = TracerProvider(
                resource=_resource(), id_generator=self._ids, shutdown_on_exit=False
            )
            for exporter in self._exporters:
                self._provider.add_span_processor(BatchSpanProcessor(exporter))
        except ValueError as error:
            raise InvalidSettings(f"tracing: {error}") from error
        self._sampler = self._provider.sampler
        self._provider.sampler = self._decided = _Decided()
        self._tracer = self._provider.get_tracer("blockserve", version("blockserve"))
        self._log = _Seldom()

    def request(
        self, operation: Operation, *, path: str, context: TraceContext | None
    ) -> "_RequestSpan | None":
        """See `Tracer`."""
        attributes = operation.attributes
        # The sampler is asked before there is a span, which would cost as much again.
        # What a request goes through shares its fate.
        if context is None:
            parent, trace_id = NOWHERE, self._ids.draw()
        else:
            parent, trace_id = _remote(context), int(context.trace_id, 16)
        result = self._sampler.should_sample(
            parent, trace_id, operation.name, SpanKind.SERVER, attributes
        )
        if result.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        self._decided.result = result
        if path:
            attributes = {**attributes, "url.path": path, "url.scheme": self._scheme}
        started_ns = time_ns()
        span = self._tracer.start_span(
            operation.name,
            parent,
            SpanKind.SERVER,
            attributes,
            start_time=started_ns,
        )
        if not span.is_recording():  # the SDK is disabled
            return None
        return _RequestSpan(self._tracer, span, started_ns)

    async def close(self) -> None:
        """See `Tracer`."""
        # Not in a thread that the process would wait for at its end.
        flushing = Thread(target=self._flush, daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)
        if flushing.is_alive():
            logger.warning("the last spans are lost: the collector does not take them")
            self._log.is_muted = True
            for exporter in self._exporters:
                exporter.shutdown()

    def _flush(self) -> None:
        self._provider.shutdown()
        self._log.close()


class _TraceIds(RandomIdGenerator):
    """Gives the trace that begins the id that its sampler was asked about."""

    def __init__(self) -> None:
        self._drawn = 0

    def draw(self) -> int:
        """The id of the next trace."""
        self._drawn = super().generate_trace_id()
        return self._drawn

    def generate_trace_id(self) -> int:
        return self._drawn


class _Decided(Sampler):
    """What is begun here is sampled: the sampler has been asked about its request.

    Attributes:
        result: What the sampler said of the request whose span comes next.
    """

    def __init__(self) -> None:
        self.result: SamplingResult | None = None

    def should_sample(  # noqa: PLR0917, fixed signature
        self,
        parent_context: Context | None,
        trace_id: int,  # noqa: ARG002, as above
        name: str,  # noqa: ARG002
        kind: SpanKind | None = None,  # noqa: ARG002
        attributes: Any = None,
        links: Any = None,  # noqa: ARG002
        trace_state: TraceState | None = None,  # noqa: ARG002
    ) -> SamplingResult:
        result, self.result = self.result, None
        if result is not None:
            own = {**(attributes or {}), **result.attributes}
            return SamplingResult(result.decision, own, result.trace_state)
        parent = get_current_span(parent_context).get_span_context()
        return SamplingResult(
            Decision.RECORD_AND_SAMPLE, attributes, parent.trace_state
        )

    def get_description(self) -> str:
        return type(self).__name__


class _RequestSpan:
    """See `RequestSpan`."""

    __slots__ = ("_inside", "_span", "_started_ns", "_tracer", "context", "trace_id")

    def __init__(self, tracer: Tracer, span: Span, started_ns: int) -> None:
        self.context = span.get_span_context()
        self.trace_id = format_trace_id(self.context.trace_id)
        self._tracer = tracer
        self._span = span
        self._inside = set_span_in_context(span, NOWHERE)
        self._started_ns = started_ns

    def batch(
        self, requests: Sequence[RequestSpan], attributes: Attributes
    ) -> "_BatchSpan":
        """See `RequestSpan`."""
        span = self._tracer.start_span(
            "batch",
            self._inside,
            attributes=attributes,
            links=[Link(one.context) for one in requests],
        )
        for one in requests:
            if one is not self:
                one.ran_in(span.get_span_context())
        return _BatchSpan(self._tracer, span)

    def ran_in(self, batch: SpanContext) -> None:
        """See `RequestSpan`."""
        self._span.add_link(batch)

    def end(
        self,
        stages: Iterable[Stage],
        attributes: Attributes,
        *,
        seconds: float,
        status: Status,
        error: BlockserveError | None,
    ) -> None:
        """See `RequestSpan`."""
        # Nothing was done for stages while they went on: they are made now.
        for name, start, end in stages:
            self._tracer.start_span(
                name, self._inside, start_time=self._moment(start)
            ).end(self._moment(end))
        self._span.set_attributes(attributes)
        if isinstance(status, int):
            self._span.set_attribute("http.response.status_code", status)
            is_fault = status >= SERVER_ERROR
        else:
            self._span.set_attribute("rpc.response.status_code", status)
            is_fault = status in SERVER_ERRORS
        if error is not None:
            self._span.set_attribute("error.type", error.code)
            if is_fault:
                self._span.set_status(StatusCode.ERROR, error.message)
        self._span.end(self._moment(seconds))

    def _moment(self, seconds: float) -> int:
        return self._started_ns + round(seconds * NANOSECONDS)


class _BatchSpan:
    """See `BatchSpan`."""

    __slots__ = ("_span", "_tracer", "trace_id")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        self._tracer = tracer
        self._span = span

    @contextmanager
    def engine(self) -> Iterator[None]:
        """See `BatchSpan`."""
        inside = set_span_in_context(self._span, NOWHERE)
        span = self._tracer.start_span("engine", inside)
        token = ENGINE_SPAN.set(_EngineSpan(self._tracer, span))
        try:
            yield
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            ENGINE_SPAN.reset(token)
            span.end()

    def end(self, error: BaseException | None) -> None:
        """See `BatchSpan`."""
        if error is not None:
            _fail(self._span, error)
        self._span.end()


class _EngineSpan:
    """See `EngineSpan`."""

    __slots__ = ("_inside", "_tracer")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._inside = set_span_in_context(span, NOWHERE)

    def call(self, operation: Operation, target: str) -> "_CallSpan":
        """See `EngineSpan`."""
        span = self._tracer.start_span(
            operation.name,
            self._inside,
            SpanKind.CLIENT,
            {**operation.attributes, **_server(target)},
        )
        return _CallSpan(span)


class _CallSpan:
    """See `CallSpan`."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: Span) -> None:
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier, set_span_in_context(span, NOWHERE))
        self.headers: Sequence[tuple[str, str]] = tuple(carrier.items())
        self._span = span

    def end(self, status: str, *, is_error: bool) -> None:
        """See `CallSpan`."""
        self._span.set_attribute("rpc.response.status_code", status)
        if is_error:
            self._span.set_attribute("error.type", status)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _Seldom(logging.Handler):
    """Passes on what OpenTelemetry logs, but the same only once in a while.

    An exporter whose collector is away says so several times for each batch of spans.

    Attributes:
        is_muted: Whether nothing is passed on any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_muted = False
        self._told_at: dict[object, float] = {}
        self._logger = logging.getLogger("opentelemetry")
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.is_muted:
            return
        now = monotonic()
        told_at = self._told_at.get(record.msg)
        if told_at is None or now >= told_at + LOG_INTERVAL_SECONDS:
            self._told_at[record.msg] = now
            logging.getLogger().handle(record)

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True
        super().close()


def _resource() -> Resource:
    """Who records the spans, where the variables do not say otherwise."""
    ours = {SERVICE_NAME: "blockserve", SERVICE_VERSION: version("blockserve")}
    told = OTELResourceDetector().detect().attributes
    return Resource.create({k: v for k, v in ours.items() if k not in told})


def _exporters() -> list[SpanExporter]:
    """Where spans go.

    Raises:
        InvalidSettings: There is no such way.
    """
    names = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    wanted = [name.strip() for name in names.split(",")]
    return [_exporter(name) for name in wanted if name != "none"]


def _exporter(name: str) -> SpanExporter:
    told, name = name, _protocols_exporter() if name == "otlp" else name
    found = entry_points(group=EXPORTERS, name=name)
    if not found:
        known = ", ".join(sorted(entry_points(group=EXPORTERS).names))
        raise InvalidSettings(
            f"tracing: OTEL_TRACES_EXPORTER: there is no exporter {told!r}; "
            f"there is otlp, none, {known}"
        )
    try:
        exporter: SpanExporter = next(iter(found)).load()()
    except (ImportError, OSError, ValueError) as error:
        raise InvalidSettings(
            f"tracing: the exporter {name!r} cannot start: {error}"
        ) from error
    return exporter


def _protocols_exporter() -> str:
    """The exporter that speaks the protocol which the variables name."""
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or DEFAULT_PROTOCOL
    )
    exporter = EXPORTER_OF_PROTOCOL.get(protocol.strip())
    if exporter is None:
        raise InvalidSettings(
            f"tracing: OTEL_EXPORTER_OTLP_PROTOCOL: expected "
            f"{' or '.join(EXPORTER_OF_PROTOCOL)}, got {protocol!r}"
        )
    return exporter


def _remote(context: TraceContext) -> Context:
    """A client's span as the parent of what comes."""
    parent = SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(context.flags),
        trace_state=TraceState.from_header([context.state]) if context.state else None,
    )
    return set_span_in_context(NonRecordingSpan(parent), NOWHERE)


def _server(target: str) -> dict[str, Any]:
    """Address and port, as the conventions have them."""
    host, _, port = target.rpartition(":")
    if target.startswith("unix:") or not port.isdecimal():
        return {"server.address": target.removeprefix("unix:")}
    return {"server.address": host.strip("[]"), "server.port": int(port)}


def _fail(span: Span, error: BaseException) -> None:
    kind = error.code if isinstance(error, BlockserveError) else type(error).__name__
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, str(error))
