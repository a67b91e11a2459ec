"""The gRPC server: the standard health protocol, following the gateway's readiness."""

import asyncio
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from service.gateway import Gateway

# The empty service name stands for the server as a whole.
WHOLE_SERVER: Final = ""


def create_server(gateway: Gateway) -> tuple[grpc.aio.Server, int]:
    """A server bound to its port, and the port; `start` it once the gateway has.

    Raises:
        RuntimeError: The port is taken.
    """
    settings = gateway.settings
    # Not by default: two gateways would share the port and each get half the calls.
    shared = int(settings.workers > 1)
    server = grpc.aio.server(options=[("grpc.so_reuseport", shared)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"{_bracketed(settings.host)}:{settings.grpc_port}"
    if settings.tls_certificate and settings.tls_key:
        pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    updates: set[asyncio.Task[None]] = set()

    def follow_readiness() -> None:
        serving = health_pb2.HealthCheckResponse.ServingStatus
        status = serving.NOT_SERVING if gateway.problem else serving.SERVING
        task = asyncio.ensure_future(servicer.set(WHOLE_SERVER, status))
        updates.add(task)
        task.add_done_callback(updates.discard)

    gateway.subscribe(follow_readiness)
    follow_readiness()  # the servicer would start with SERVING
    return server, port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
