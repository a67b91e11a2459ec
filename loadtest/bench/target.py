"""The server under load: one that runs, or a gateway that is started for it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args
from urllib.parse import urlsplit

import httpx

from loadtest.commands import Protocol
from loadtest.harness.gateway import ANNOUNCEMENT, gateway_command, grpc_address
from loadtest.harness.processes import ServerFailed, announced, server
from service.cli.serve import build_demo_if_empty
from service.errors import BlockserveError

GRPC_PORT: Final = 8001
TF_SERVING_GRPC_PORT: Final = 8500
TF_SERVING_PROTOCOLS: Final = ("tf_serving_http", "tf_serving_grpc")
ANSWER_SECONDS: Final = 10.0


class NoTarget(BlockserveError):
    """There is no server to load; says why, and what to do."""

    code = "no_target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is loaded.

    Attributes:
        url: Where it answers HTTP, as in `http://127.0.0.1:8000`.
        grpc: Where it answers gRPC, as in `127.0.0.1:8001`.
        description: What it is, and its version of the model, in words.
        protocols: Tags of those that it answers.
    """

    url: str
    grpc: str
    model: str
    description: str
    protocols: Sequence[str] = get_args(Protocol)


@contextmanager
def running(
    *,
    url: str | None,
    grpc: str | None,
    repository: Path,
    model: str | None,
    token: str | None,
) -> Iterator[Target]:
    """The server at an address, or a gateway that is started and ended with the block.

    At the address may also be TensorFlow Serving alone; it has to be told which model.

    Raises:
        NoTarget: It cannot be reached or started, or has no such model.
    """
    if url is not None:
        address = url.rstrip("/")
        host = urlsplit(address).hostname
        if urlsplit(address).scheme not in {"http", "https"} or host is None:
            raise NoTarget(f"--url: expected http://HOST:PORT, got {url!r}")
        yield _target(address, grpc, model, token)
        return
    build_demo_if_empty(repository)
    command = gateway_command(repository, "--http-port", "0")
    # The token that requests carry is the one that the gateway is to ask for.
    environment = {"BLOCKSERVE_TOKEN": token} if token else {}
    try:
        with server(
            command, ready=announced(ANNOUNCEMENT), environment=environment
        ) as started:
            if started.address.startswith("https:"):
                raise NoTarget(
                    "the settings make a gateway with TLS, which is not loaded from "
                    "here: leave tls_certificate and tls_key out, or start it yourself "
                    "and give --url"
                )
            yield _target(started.address, grpc_address(started), model, token)
    except ServerFailed as error:
        raise NoTarget(str(error)) from error


def generator_processes() -> int:
    """Half of the cores, for the gateway needs the others."""
    return max(1, (os.cpu_count() or 1) // 2)


def _target(url: str, grpc: str | None, model: str | None, token: str | None) -> Target:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(
            base_url=url, headers=headers, timeout=ANSWER_SECONDS
        ) as client:
            answer = client.get("/models")
            if answer.status_code == httpx.codes.NOT_FOUND:
                return _tf_serving(client, url, grpc, model)
            answer.raise_for_status()
            models = {one["name"]: one["versions"] for one in answer.json()["models"]}
    except httpx.HTTPStatusError as error:
        refused = error.response
        raise NoTarget(f"--url: {refused.url} answers {refused.status_code}") from error
    except httpx.HTTPError as error:
        raise NoTarget(
            f"--url: nobody answers at {url} ({error}); start a gateway with "
            "`blockserve serve`, or leave --url out"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise NoTarget(
            f"--url: {url} is neither a gateway of blockserve nor TensorFlow Serving"
        ) from error
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
    return Target(
        url=url,
        grpc=grpc or _beside(url, GRPC_PORT),
        model=model,
        description=", ".join(versions),
    )


def _tf_serving(
    client: httpx.Client, url: str, grpc: str | None, model: str | None
) -> Target:
    """TensorFlow Serving alone, which does not tell what models it has."""
    if model is None:
        raise NoTarget(
            f"--model: {url} is no gateway; if it is TensorFlow Serving, say which "
            "model to ask"
        )
    answer = client.get(f"/v1/models/{model}")
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise NoTarget(
            f"--model: {url} is no gateway, and if it is TensorFlow Serving, it has no "
            f"{model!r}"
        )
    status = answer.raise_for_status().json()
    versions = [
        f"version {one['version']}"
        for one in status["model_version_status"]
        if one["state"] == "AVAILABLE"
    ]
    return Target(
        url=url,
        grpc=grpc or _beside(url, TF_SERVING_GRPC_PORT),
        model=model,
        description=", ".join(("TensorFlow Serving", *versions)),
        protocols=TF_SERVING_PROTOCOLS,
    )


def _beside(url: str, port: int) -> str:
    """Another port of the same host, as in `127.0.0.1:8001`."""
    host = urlsplit(url).hostname or ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
