"""What carries requests to a server and answers back, with and without a thread."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import httpx

from service.client.errors import (
    UNAVAILABLE,
    RequestFailed,
    out_of_time,
    unreachable,
)
from service.client.grpc import Call
from service.client.http_requests import REQUEST_ID, HttpRequest

HTTP: Final = ("http", "https")
GRPC: Final = ("grpc", "grpcs")
SECURE: Final = ("https", "grpcs")
CHANNEL_OPTIONS: Final = (
    # The server limits what it takes; what it answers is wanted.
    ("grpc.max_receive_message_length", -1),
    # A server that is back is found, and not two minutes later.
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
PUSHBACK: Final = "grpc-retry-pushback-ms"
MILLISECONDS: Final = 1e-3
# How gRPC tells that it has reached nobody; servers say UNAVAILABLE, too.
NOBODY: Final = ("failed to connect", "errors resolving", "DNS resolution failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server is, and what it asks of its clients.

    Attributes:
        address: As the user gives it: `http://`, `https://`, `grpc://` or `grpcs://`.
        token: Bearer token.
        certificates: File with the certificates of authorities to trust; the usual
            ones if `None`.
    """

    address: str
    token: str | None
    certificates: Path | None

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in {*HTTP, *GRPC} or not parts.hostname:
            raise ValueError(
                "an address is http://HOST:PORT, https://…, grpc://HOST:PORT or "
                f"grpcs://…; got {self.address!r}"
            )
        if self.is_grpc and (not parts.port or parts.path.strip("/")):
            raise ValueError(
                "an address for gRPC is a host and a port, as in "
                f"grpc://127.0.0.1:8001; got {self.address!r}"
            )

    @property
    def is_grpc(self) -> bool:
        """Whether it is spoken to over gRPC."""
        return urlsplit(self.address).scheme in GRPC

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def http_options(self) -> dict[str, Any]:
        """How httpx makes a client of it."""
        trusted = self.certificates
        return {
            "base_url": self.address,
            "headers": self.headers,
            "verify": ssl.create_default_context(cafile=trusted) if trusted else True,
        }

    @property
    def target(self) -> str:
        """As gRPC names it."""
        return urlsplit(self.address).netloc

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a channel to it checks; `None` if it is not encrypted."""
        if urlsplit(self.address).scheme not in SECURE:
            return None
        trusted = self.certificates.read_bytes() if self.certificates else None
        return grpc.ssl_channel_credentials(trusted)


class HttpTransport:
    """Requests over HTTP."""

    def __init__(self, server: Server) -> None:
        self._address = server.address
        self._client = httpx.Client(**server.http_options)

    def __call__(self, request: HttpRequest, timeout_seconds: float) -> httpx.Response:
        """Send a request and wait for its answer."""
        with _http_errors(self._address):
            return self._client.request(**_arguments(request, timeout_seconds))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttpTransport:
    """Requests over HTTP, in an event loop."""

    def __init__(self, server: Server) -> None:
        self._address = server.address
        self._client = httpx.AsyncClient(**server.http_options)

    async def __call__(
        self, request: HttpRequest, timeout_seconds: float
    ) -> httpx.Response:
        """Send a request and wait for its answer."""
        with _http_errors(self._address):
            return await self._client.request(**_arguments(request, timeout_seconds))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class GrpcTransport:
    """Calls over gRPC."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._metadata = tuple(server.headers.items())
        if credentials := server.credentials:
            self._channel = grpc.secure_channel(
                server.target, credentials, CHANNEL_OPTIONS
            )
        else:
            self._channel = grpc.insecure_channel(server.target, CHANNEL_OPTIONS)

    def __call__(self, call: Call, timeout_seconds: float) -> Any:
        """Call a method and wait for its answer."""
        method: Any = self._channel.unary_unary(call.method)
        try:
            return method(
                call.message, timeout=timeout_seconds, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _grpc_failure(error, self._server.address) from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class AsyncGrpcTransport:
    """Calls over gRPC, in an event loop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._metadata = tuple(server.headers.items())
        self._credentials = server.credentials
        # Made by the first call: a channel belongs to the loop that it is made in.
        self._made: grpc.aio.Channel | None = None

    async def __call__(self, call: Call, timeout_seconds: float) -> Any:
        """Call a method and wait for its answer."""
        method: Any = self._channel.unary_unary(call.method)
        try:
            return await method(
                call.message, timeout=timeout_seconds, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _grpc_failure(error, self._server.address) from error

    async def close(self) -> None:
        """Close the connection."""
        if self._made:
            await self._made.close()

    @property
    def _channel(self) -> grpc.aio.Channel:
        if self._made is None:
            target = self._server.target
            self._made = (
                grpc.aio.secure_channel(target, self._credentials, CHANNEL_OPTIONS)
                if self._credentials
                else grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
            )
        return self._made


def _arguments(request: HttpRequest, timeout_seconds: float) -> dict[str, Any]:
    """What httpx takes; of the time, each of its waits may take all."""
    return {
        "method": request.method,
        "url": request.path,
        "params": request.params,
        "headers": {**request.headers, "x-request-timeout": f"{timeout_seconds:.6g}"},
        "content": request.content,
        "files": request.files or None,
        "timeout": timeout_seconds,
    }


@contextmanager
def _http_errors(address: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        if isinstance(error, httpx.ConnectTimeout):
            raise unreachable(address, error) from error
        raise out_of_time() from error
    except httpx.HTTPError as error:
        raise unreachable(address, str(error) or type(error).__name__) from error


def _grpc_failure(error: Any, address: str) -> RequestFailed:
    """What a call's error is to our callers."""
    status: str = error.code().name
    details: str = error.details() or ""
    if status == UNAVAILABLE and details.startswith(NOBODY):
        return unreachable(address, details)
    trailing = dict(error.trailing_metadata() or ())
    pushback = trailing.get(PUSHBACK, "")
    wait = int(pushback) * MILLISECONDS if pushback.isdecimal() else None
    return RequestFailed(status, details or status, wait, trailing.get(REQUEST_ID))
