"""The gRPC server: TensorFlow Serving's API, and health that follows readiness."""

import asyncio
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from proto.tensorflow.serving.model_service_pb2_grpc import (
    add_ModelServiceServicer_to_server,
)
from proto.tensorflow.serving.prediction_service_pb2_grpc import (
    add_PredictionServiceServicer_to_server,
)
from service.gateway import Gateway
from service.grpc.auth import RequireToken
from service.grpc.tf_serving import ModelServicer, PredictionServicer
from service.token import Token

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
    limit = settings.max_message_bytes
    token = settings.token
    server = grpc.aio.server(
        interceptors=([RequireToken(Token(token.get_secret_value()))] if token else []),
        options=[
            ("grpc.so_reuseport", shared),
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
        ],
    )
    prediction, models = PredictionServicer(gateway), ModelServicer(gateway)
    add_PredictionServiceServicer_to_server(prediction, server)  # type: ignore[no-untyped-call]  # generated
    add_ModelServiceServicer_to_server(models, server)  # type: ignore[no-untyped-call]  # generated
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
