"""A collector of OpenTelemetry that a test is in charge of."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A span as it came over the network."""

    span: trace_pb2.Span
    resource: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def span_id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def linked(self) -> set[tuple[str, str]]:
        return {(one.trace_id.hex(), one.span_id.hex()) for one in self.span.links}

    @property
    def place(self) -> tuple[str, str]:
        return self.trace_id, self.span_id

    @property
    def attributes(self) -> dict[str, Any]:
        return _plain(self.span.attributes)

    @property
    def is_error(self) -> bool:
        return self.span.status.code == trace_pb2.Status.STATUS_CODE_ERROR

    def covers(self, other: "Recorded") -> bool:
        """Whether another began and ended while it went on."""
        begin = self.span.start_time_unix_nano <= other.span.start_time_unix_nano
        return begin and other.span.end_time_unix_nano <= self.span.end_time_unix_nano


class Collector:
    """Takes what is exported.

    Attributes:
        spans: All that have come.
        endpoint: Where it listens.
    """

    def __init__(self) -> None:
        self.spans: list[Recorded] = []
        self.endpoint = ""

    def named(self, *names: str) -> list[Recorded]:
        """The spans of these names, in the order in which they began."""
        found = [one for one in self.spans if one.name in names]
        return sorted(found, key=lambda one: one.span.start_time_unix_nano)

    def take(self, message: bytes) -> bytes:
        """Note a message's spans; the answer to it."""
        for one in ExportTraceServiceRequest.FromString(message).resource_spans:
            resource = _plain(one.resource.attributes)
            self.spans += [
                Recorded(span, resource)
                for scope in one.scope_spans
                for span in scope.spans
            ]
        return ExportTraceServiceResponse().SerializeToString()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector over HTTP, until the block ends."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            answer = collector.take(body)
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield collector
        server.shutdown()


class GrpcCollector(Collector, grpc.GenericRpcHandler):
    """The same over gRPC; add it to a server."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method != EXPORT:
            return None

        async def export(message: bytes, _: Any) -> bytes:
            return self.take(message)

        return grpc.unary_unary_rpc_method_handler(export)


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value"))
