"""A client of the gateway, and of TensorFlow Serving, that needs no TensorFlow."""

from service.client.answers import (
    Classification,
    Metadata,
    Prediction,
    Signature,
    TensorSpec,
    VersionStatus,
)
from service.client.client import AsyncClient, Client
from service.client.errors import RequestFailed, ServerUnreachable

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "Metadata",
    "Prediction",
    "RequestFailed",
    "ServerUnreachable",
    "Signature",
    "TensorSpec",
    "VersionStatus",
]
