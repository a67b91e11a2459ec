"""Sockets to listen on: of one process alone, or shared by several."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service.errors import InvalidSettings

BACKLOG: Final = 2048
HTTP_FLAG: Final = "--http-port"
GRPC_FLAG: Final = "--grpc-port"


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket whose port no other socket may have.

    Args:
        host: Address or name of this machine.
        port: 0 takes a free one.
        flag: The setting to name if it fails.

    Raises:
        InvalidSettings: The port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise cannot_listen(host, port, flag) from error


@contextmanager
def reserved(host: str, port: int, flag: str) -> Iterator[int]:
    """Keep a port for this user's processes that `join` it; gives its number.

    Raises:
        InvalidSettings: As `listen`.
    """
    try:
        held = _bound(host, port)
    except OSError as error:
        raise cannot_listen(host, port, flag) from error
    with held:
        # Only now: bound with it, a port that others share would not be refused.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield held.getsockname()[1]


def join(host: str, port: int, flag: str) -> socket.socket:
    """A socket on a reserved port. New connections come once it is told to listen.

    Raises:
        InvalidSettings: As `listen`.
    """
    try:
        return _bound(host, port, socket.SO_REUSEPORT)
    except OSError as error:
        raise cannot_listen(host, port, flag) from error


def cannot_listen(host: str, port: int, flag: str) -> InvalidSettings:
    """What to tell the operator about a port that is not to be had."""
    return InvalidSettings(
        f"cannot listen on {host} port {port}: another program does, or the address is "
        f"not this machine's; choose another with {flag} or --host"
    )


def _bound(host: str, port: int, *options: int) -> socket.socket:
    family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
        0
    ]
    bound = socket.socket(family, kind)
    try:
        for option in (socket.SO_REUSEADDR, *options):
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:  # as `create_server` has it
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
