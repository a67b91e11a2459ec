"""Ports for servers that cannot choose one themselves."""

import socket


def free_port() -> int:
    """A port of this machine that nobody listens on at present."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
