"""Runs the gateway's two servers in one process, from first bind to last answer."""

import asyncio
import gc
import math
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

import uvicorn

from service.app import create_asgi
from service.errors import InvalidSettings
from service.gateway import Colleagues, Gateway
from service.grpc.server import create_server
from service.http.protocol import http_protocol
from service.ports import BACKLOG, GRPC_FLAG, HTTP_FLAG, cannot_listen, join, listen
from service.settings import Settings

GRPC_GRACE_SECONDS: Final = 0.5
HTTP_GRACE_SECONDS: Final = 1.0
ACCEPTS_PER_TURN: Final = 16


class _HttpServer(uvicorn.Server):
    """Ends with exit status 0 after a drain, and says when it has started."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_start: Callable[[], Awaitable[None]],
        on_exit: Callable[[], None],
        held: Sequence[int],
    ) -> None:
        super().__init__(config)
        self._held = held
        self._on_start = on_start
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # By now the signals come to `handle_exit`; these came before.
        if self._held:
            self.stop()
        await super().startup(sockets)
        if not self.should_exit:
            await self._on_start()

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        # uvicorn's own handler would die of the signal once the drain is over.
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Refuse new work and end when accepted work is done."""
        self._on_exit()
        self.should_exit = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Servers that have started; `stop` is what SIGTERM does."""

    gateway: Gateway
    http_port: int
    grpc_port: int
    stop: Callable[[], None]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop that this platform has."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop  # noqa: PLC0415, it does not exist everywhere

    return uvloop.new_event_loop()


def spare_the_collector() -> None:
    """Keep what there is now from all collections: most stays as long as the process.

    To look at all of it stops every request for a tenth of a second, and under load
    that happens every few seconds. What is garbage already is freed first.
    """
    gc.collect()
    gc.freeze()


async def run(
    settings: Settings,
    *,
    on_start: Callable[[Running], None],
    colleagues: Colleagues | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted.

    Args:
        settings: How to run; with several workers, this is one and shares its ports.
        on_start: Called once both ports are open and every model has been tried.
        colleagues: Who else serves, where there are several workers.

    Raises:
        InvalidSettings: A port is taken, or the TLS files are not what they should be.
    """
    with _signals_held() as held:
        await _run(settings, on_start, colleagues, held)


async def _run(
    settings: Settings,
    on_start: Callable[[Running], None],
    colleagues: Colleagues | None,
    held: Sequence[int],
) -> None:
    _check_tls(settings)
    gateway = Gateway(settings, colleagues)
    take_port = listen if settings.workers == 1 else join
    listener = take_port(settings.host, settings.http_port, HTTP_FLAG)
    try:
        grpc_server, grpc_port = create_server(gateway)
    except RuntimeError as error:
        listener.close()
        raise cannot_listen(settings.host, settings.grpc_port, GRPC_FLAG) from error

    async def start_grpc() -> None:
        await grpc_server.start()
        on_start(
            Running(
                gateway=gateway,
                http_port=listener.getsockname()[1],
                grpc_port=grpc_port,
                stop=server.stop,
            )
        )

    application = create_asgi(gateway)
    config = uvicorn.Config(
        application,
        http=http_protocol(application),  # type: ignore[arg-type]  # only called
        ws="none",
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        lifespan="on",
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        # By then the gateway has answered all: what is cut off has not been read.
        timeout_graceful_shutdown=math.ceil(
            settings.drain_timeout_seconds + HTTP_GRACE_SECONDS
        ),
    )
    server = _HttpServer(
        config, on_start=start_grpc, on_exit=gateway.begin_drain, held=held
    )
    # The event loop accepts one connection a turn from each. From one alone, a burst of
    # new ones fills the backlog, and clients try again only after a second.
    listeners = [listener, *(listener.dup() for _ in range(ACCEPTS_PER_TURN - 1))]
    try:
        await server.serve(sockets=listeners)
    finally:
        # Calls that had been accepted have ended with the versions that answered them,
        # and a client that watches health never stops.
        await grpc_server.stop(grace=GRPC_GRACE_SECONDS)


@contextmanager
def _signals_held() -> Iterator[Sequence[int]]:
    """The signals that come before the server can handle them, as they come.

    Without this, one that comes while the server is made ends in a traceback.
    """
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    previous = {
        number: signal.signal(number, lambda number, _: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield held
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_tls(settings: Settings) -> None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except ssl.SSLError as error:
        raise InvalidSettings(
            f"tls_certificate, tls_key: not a PEM certificate and its key: {error}"
        ) from error
