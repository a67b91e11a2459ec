"""Which addresses a name stands for."""

import asyncio
import socket
from typing import Final
from urllib.parse import urlsplit

SCHEME: Final = "dns"


def is_name(address: str) -> bool:
    """Whether an address is a name, `dns:///NAME:PORT`, for all that it stands for."""
    return urlsplit(address).scheme == SCHEME


def host_of(address: str) -> str:
    """The host in `dns:///NAME:PORT`."""
    return _parts(address)[0]


async def resolve(address: str) -> frozenset[str]:
    """The addresses of `dns:///NAME:PORT`.

    Of two families only one is taken, for they lead to the same servers.

    Raises:
        OSError: They cannot be told at the moment.
    """
    host, port = _parts(address)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    hosts = {family: set[str]() for family, *_ in found}
    for family, *_, address_found in found:
        hosts[family].add(str(address_found[0]))
    if socket.AF_INET in hosts:
        return frozenset(f"{ip}:{port}" for ip in hosts[socket.AF_INET])
    return frozenset(f"[{ip}]:{port}" for ip in hosts.get(socket.AF_INET6, ()))


def _parts(address: str) -> tuple[str, int]:
    parts = urlsplit(f"//{urlsplit(address).path.lstrip('/')}")
    return parts.hostname or "", parts.port or 0
