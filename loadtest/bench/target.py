"""The gateway under load: one that runs, or one that is started for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from loadtest.harness.gateway import ANNOUNCEMENT, gateway_command, grpc_address
from loadtest.harness.processes import ServerFailed, announced, server
from service.cli.serve import build_demo_if_empty
from service.errors import BlockserveError

DEFAULT_GRPC_PORT: Final = 8001
ANSWER_SECONDS: Final = 10.0


class NoTarget(BlockserveError):
    """There is no gateway to load; says why, and what to do."""

    code = "no_target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is loaded.

    Attributes:
        url: Where it answers HTTP, as in `http://127.0.0.1:8000`.
        grpc: Where it answers gRPC, as in `127.0.0.1:8001`.
        description: Its engine and its version of the model, in words.
    """

    url: str
    grpc: str
    model: str
    description: str


@contextmanager
def running(
    *,
    url: str | None,
    grpc: str | None,
    repository: Path,
    model: str | None,
    token: str | None,
) -> Iterator[Target]:
    """The gateway at an address, or one that is started and ended with the block.

    Raises:
        NoTarget: It cannot be reached or started, or has no such model.
    """
    if url is not None:
        address = url.rstrip("/")
        host = urlsplit(address).hostname
        if urlsplit(address).scheme not in {"http", "https"} or host is None:
            raise NoTarget(f"--url: expected http://HOST:PORT, got {url!r}")
        yield _target(address, grpc or f"{host}:{DEFAULT_GRPC_PORT}", model, token)
        return
    build_demo_if_empty(repository)
    command = gateway_command(repository, "--http-port", "0")
    # The token that requests carry is the one that the gateway is to ask for.
    environment = {"BLOCKSERVE_TOKEN": token} if token else {}
    try:
        with server(
            command, ready=announced(ANNOUNCEMENT), environment=environment
        ) as started:
            yield _target(started.address, grpc_address(started), model, token)
    except ServerFailed as error:
        raise NoTarget(str(error)) from error


def generator_processes() -> int:
    """Half of the cores, for the gateway needs the others."""
    return max(1, (os.cpu_count() or 1) // 2)


def _target(url: str, grpc: str, model: str | None, token: str | None) -> Target:
    models = _models(url, token)
    if model is None:
        if len(models) != 1:
            raise NoTarget(f"--model: choose one of {', '.join(models) or 'none'}")
        model = next(iter(models))
    if model not in models:
        raise NoTarget(
            f"--model: {url} has no {model!r}, but {', '.join(models) or 'nothing'}"
        )
    versions = [
        f"version {one['version']} on {one['engine']}"
        for one in models[model]
        if one["state"] == "AVAILABLE"
    ]
    return Target(url=url, grpc=grpc, model=model, description=", ".join(versions))


def _models(url: str, token: str | None) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{url}/models", headers=headers, timeout=ANSWER_SECONDS)
        answer.raise_for_status()
        return {one["name"]: one["versions"] for one in answer.json()["models"]}
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise NoTarget(f"--url: {url}/models answers {status}") from error
    except httpx.HTTPError as error:
        raise NoTarget(
            f"--url: nobody answers at {url} ({error}); start a gateway with "
            "`blockserve serve`, or leave --url out"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise NoTarget(f"--url: {url} is no gateway of blockserve") from error
