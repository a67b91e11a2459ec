"""The two clients: one waits, one is awaited; what they ask is written once."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import numpy.typing as npt

from service.client.answers import (
    Classification,
    Metadata,
    ModelChoice,
    VersionStatus,
)
from service.client.conversations import Conversation, hold, hold_async
from service.client.grpc import GrpcOperations
from service.client.http import HttpOperations
from service.client.inputs import Image, contents, listed
from service.client.operations import Operations
from service.client.transports import (
    AsyncGrpcTransport,
    AsyncHttpTransport,
    GrpcTransport,
    HttpTransport,
    Server,
)
from service.tensors import Array

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 30.0


class Client:
    """A client of a blockserve gateway or a TensorFlow Serving; threads may share it.

    Its methods raise `RequestFailed`, and `ServerUnreachable` where nobody answers.
    `timeout_seconds` is what a method may take; the server is told, and stops when the
    time is up.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        certificates: str | PathLike[str] | None = None,
    ) -> None:
        """Make a client; the server is not asked yet.

        Args:
            address: `http://HOST:PORT` or `grpc://HOST:PORT`; encrypted, `https://…` or
                `grpcs://…`.
            token: Bearer token, where the server asks for one.
            timeout_seconds: What a method may take that is not told otherwise.
            certificates: PEM file of the authorities to trust, in place of the usual
                ones.

        Raises:
            ValueError: The address is none of these.
            OSError: The file of certificates cannot be read.
        """
        server = _server(address, token, certificates)
        self._timeout_seconds = _checked(timeout_seconds)
        self._operations = _operations(server)
        self._transport = (
            GrpcTransport(server) if server.is_grpc else HttpTransport(server)
        )

    def classify(
        self,
        images: Image | Sequence[Image],
        *,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        top_k: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Classification:
        """Classify image files, all in one batch.

        A TensorFlow Serving cannot; its models take images as `predict`'s inputs.

        Args:
            images: One or several: the bytes of a file, or its path.
            model: The model's name; the server's default model if not given.
            version: Its version; the latest if not given.
            label: A label of a version, in place of its number.
            top_k: Predictions wanted for each image.
            timeout_seconds: What it may take; what the client was made with if not
                given.
        """
        asked = self._operations.classify(
            contents(listed(images)),
            ModelChoice(name=model, version=version, label=label),
            top_k,
        )
        return self._hold(asked, timeout_seconds)

    def predict(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        model: str,
        version: int | None = None,
        label: str | None = None,
        signature_name: str | None = None,
        outputs: Sequence[str] | None = None,
        timeout_seconds: float | None = None,
    ) -> dict[str, Array]:
        """Run a model on tensors.

        Args:
            inputs: Tensors by name. Arrays go as they are; lists and scalars get the
                dtype of the model's input. Strings are `bytes` or `str`.
            model: The model's name.
            version: Its version; the latest if not given.
            label: A label of a version, in place of its number.
            signature_name: What to run; `serving_default` if not given.
            outputs: Names of the outputs that are wanted; all if not given.
            timeout_seconds: What it may take; see `classify`.

        Returns:
            The outputs by name, which may be read-only; strings are `bytes` in an array
            of objects.
        """
        asked = self._operations.predict(
            inputs,
            ModelChoice(name=model, version=version, label=label),
            signature_name,
            outputs,
        )
        return self._hold(asked, timeout_seconds)

    def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Metadata:
        """Tell the signatures of a model.

        Args:
            model: The model's name.
            version: Its version; the latest if not given.
            label: A label of a version, in place of its number.
            timeout_seconds: What it may take; see `classify`.
        """
        asked = self._operations.metadata(
            ModelChoice(name=model, version=version, label=label)
        )
        return self._hold(asked, timeout_seconds)

    def status(
        self,
        model: str,
        *,
        version: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Sequence[VersionStatus]:
        """Tell the states of a model's versions, the latest first.

        Args:
            model: The model's name.
            version: The only version to tell of.
            timeout_seconds: What it may take; see `classify`.
        """
        asked = self._operations.status(ModelChoice(name=model, version=version))
        return self._hold(asked, timeout_seconds)

    def is_ready(self, *, timeout_seconds: float | None = None) -> bool:
        """Whether the server is there and serves.

        A TensorFlow Serving does not say: it listens once it has loaded its models, and
        so is ready if it answers at all.

        Args:
            timeout_seconds: What it may take; see `classify`.
        """
        return self._hold(self._operations.is_ready(), timeout_seconds)

    def close(self) -> None:
        """Close the connections; `with` does."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _hold(self, asked: Conversation[T], timeout_seconds: float | None) -> T:
        seconds = _seconds(timeout_seconds, self._timeout_seconds)
        return hold(asked, self._transport, seconds)


class AsyncClient:
    """`Client` for an event loop: its methods are coroutines, `aclose` closes it."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        certificates: str | PathLike[str] | None = None,
    ) -> None:
        """Make a client; see `Client`."""
        server = _server(address, token, certificates)
        self._timeout_seconds = _checked(timeout_seconds)
        self._operations = _operations(server)
        self._transport = (
            AsyncGrpcTransport(server) if server.is_grpc else AsyncHttpTransport(server)
        )

    async def classify(
        self,
        images: Image | Sequence[Image],
        *,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        top_k: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Classification:
        """Classify image files, all in one batch; see `Client.classify`."""
        given = listed(images)
        are_there = all(isinstance(image, bytes) for image in given)
        asked = self._operations.classify(
            contents(given) if are_there else await asyncio.to_thread(contents, given),
            ModelChoice(name=model, version=version, label=label),
            top_k,
        )
        return await self._hold(asked, timeout_seconds)

    async def predict(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        model: str,
        version: int | None = None,
        label: str | None = None,
        signature_name: str | None = None,
        outputs: Sequence[str] | None = None,
        timeout_seconds: float | None = None,
    ) -> dict[str, Array]:
        """Run a model on tensors; see `Client.predict`."""
        asked = self._operations.predict(
            inputs,
            ModelChoice(name=model, version=version, label=label),
            signature_name,
            outputs,
        )
        return await self._hold(asked, timeout_seconds)

    async def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Metadata:
        """Tell the signatures of a model; see `Client.metadata`."""
        asked = self._operations.metadata(
            ModelChoice(name=model, version=version, label=label)
        )
        return await self._hold(asked, timeout_seconds)

    async def status(
        self,
        model: str,
        *,
        version: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Sequence[VersionStatus]:
        """Tell the states of a model's versions; see `Client.status`."""
        asked = self._operations.status(ModelChoice(name=model, version=version))
        return await self._hold(asked, timeout_seconds)

    async def is_ready(self, *, timeout_seconds: float | None = None) -> bool:
        """Whether the server is there and serves; see `Client.is_ready`."""
        return await self._hold(self._operations.is_ready(), timeout_seconds)

    async def aclose(self) -> None:
        """Close the connections; `async with` does."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _hold(self, asked: Conversation[T], timeout_seconds: float | None) -> T:
        seconds = _seconds(timeout_seconds, self._timeout_seconds)
        return await hold_async(asked, self._transport, seconds)


def _server(
    address: str, token: str | None, certificates: str | PathLike[str] | None
) -> Server:
    trusted = None if certificates is None else Path(certificates)
    return Server(address=address, token=token, certificates=trusted)


def _operations(server: Server) -> Operations:
    return GrpcOperations() if server.is_grpc else HttpOperations()


def _seconds(timeout_seconds: float | None, default: float) -> float:
    return default if timeout_seconds is None else _checked(timeout_seconds)


def _checked(timeout_seconds: float) -> float:
    if not 0 < timeout_seconds < math.inf:
        raise ValueError(
            f"timeout_seconds: expected a positive number, got {timeout_seconds!r}"
        )
    return timeout_seconds
