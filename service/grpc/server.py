"""The gRPC server: all services on one port, with health and reflection."""

import asyncio
from collections.abc import Sequence
from typing import Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from proto.blockserve.v1 import image_classifier_pb2
from proto.blockserve.v1.image_classifier_pb2_grpc import (
    add_ImageClassifierServicer_to_server,
)
from proto.inference import grpc_inference_service_pb2
from proto.inference.grpc_inference_service_pb2_grpc import (
    add_GRPCInferenceServiceServicer_to_server,
)
from proto.pool import POOL
from proto.tensorflow.serving import model_service_pb2, prediction_service_pb2
from proto.tensorflow.serving.model_service_pb2_grpc import (
    add_ModelServiceServicer_to_server,
)
from proto.tensorflow.serving.prediction_service_pb2_grpc import (
    add_PredictionServiceServicer_to_server,
)
from service.gateway import Gateway
from service.grpc.auth import RequireToken
from service.grpc.image_classifier import ImageClassifierServicer
from service.grpc.methods import Methods
from service.grpc.open_inference import InferenceServicer
from service.grpc.tf_serving import ModelServicer, PredictionServicer
from service.settings import Settings
from service.token import Token

# The empty service name stands for the server as a whole.
WHOLE_SERVER: Final = ""
KEEPALIVE_MILLISECONDS: Final = 60_000
KEEPALIVE_TIMEOUT_MILLISECONDS: Final = 20_000
SHORTEST_PING_MILLISECONDS: Final = 10_000
_SERVICES: Final[Sequence[ServiceDescriptor]] = tuple(
    service
    for module in (
        prediction_service_pb2,
        model_service_pb2,
        grpc_inference_service_pb2,
        image_classifier_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)


def create_server(gateway: Gateway) -> tuple[grpc.aio.Server, int]:
    """A server bound to its port, and the port; `start` it once the gateway has.

    Raises:
        RuntimeError: The port is taken.
    """
    settings = gateway.settings
    token = settings.token
    server = grpc.aio.server(
        interceptors=([RequireToken(Token(token.get_secret_value()))] if token else []),
        options=_options(settings),
    )
    methods = Methods(server)
    for add, servicer in (
        (add_PredictionServiceServicer_to_server, PredictionServicer(gateway)),
        (add_ModelServiceServicer_to_server, ModelServicer(gateway)),
        (add_GRPCInferenceServiceServicer_to_server, InferenceServicer(gateway)),
        (add_ImageClassifierServicer_to_server, ImageClassifierServicer(gateway)),
    ):
        add(servicer, methods)  # type: ignore[no-untyped-call]  # generated
    names = [service.full_name for service in _SERVICES]
    _follow_readiness(gateway, methods, names)
    _tell_of(server, names)
    address = f"{_bracketed(settings.host)}:{settings.grpc_port}"
    if settings.tls_certificate and settings.tls_key:
        pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    return server, port


def _options(settings: Settings) -> list[tuple[str, int]]:
    limit = settings.max_message_bytes
    return [
        # Not by default: two gateways would share the port and get half the calls each.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        # A connection whose client has vanished is closed, and clients that look after
        # theirs may do so this often.
        ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MILLISECONDS),
        ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_MILLISECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _follow_readiness(gateway: Gateway, methods: Methods, names: Sequence[str]) -> None:
    """Add the service of health, which says of each service whether it is ready."""
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, methods)
    updates: set[asyncio.Task[None]] = set()

    async def update() -> None:
        serving = health_pb2.HealthCheckResponse.ServingStatus
        status = serving.NOT_SERVING if gateway.problem else serving.SERVING
        for name in (WHOLE_SERVER, *names):
            await servicer.set(name, status)

    def changed() -> None:
        task = asyncio.ensure_future(update())
        updates.add(task)
        task.add_done_callback(updates.discard)

    gateway.subscribe(changed)
    changed()  # the servicer would start with SERVING


def _tell_of(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Add the service of reflection, which tells clients what there is."""
    # Not ours, and so not in our pool.
    for theirs in (health_pb2, reflection_pb2):
        POOL.AddSerializedFile(theirs.DESCRIPTOR.serialized_pb)
    reflection.enable_server_reflection(
        (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server, pool=POOL
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
