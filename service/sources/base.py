"""What a source of model versions is."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prometheus_client.registry import Collector

from models.card import ModelCard
from proto.tensorflow.meta_graph_pb2 import SignatureDef
from service.engines import Engine


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A version that can run.

    Attributes:
        card: What it is; name and version are not set yet.
        engine: What runs it.
        signature_defs: What requests can call, in TensorFlow's form.
        is_warm: Whether it runs already, somewhere else, and need not be warmed up.
    """

    card: ModelCard
    engine: Engine
    signature_defs: Mapping[str, SignatureDef]
    is_warm: bool = False


class Source(Protocol):
    """Knows which versions there are, and how each is loaded.

    Attributes:
        collectors: What Prometheus is told of it.
    """

    collectors: Sequence[Collector]

    @property
    def slots(self) -> int:
        """Batches that may run at a time, over all versions; may change with `scan`."""

    @property
    def needs(self) -> str:
        """What a model lacks that has no version."""

    @property
    def problem(self) -> str | None:
        """Why nothing that it has loaded can run at the moment, if so."""

    async def scan(self) -> Mapping[str, Mapping[int, Path]]:
        """The versions that there are now: by model and number, where its files are.

        Raises:
            OSError: That cannot be told at the moment.
        """

    def may_take_over(self, name: str, number: int) -> bool:
        """Whether a version of the last `scan` can take the load of the one before."""

    async def fingerprint(self, name: str, number: int, path: Path) -> object:
        """Changes when the version does; one that could not be loaded is tried again.

        Raises:
            FileNotFoundError: It has just been removed.
            OSError: It cannot be read.
        """

    async def load(self, name: str, number: int, path: Path) -> Loaded:
        """Load a version.

        Raises:
            UnsupportedModel: It cannot be, or is not what its card tells.
            CardError: Its card cannot be read.
        """

    def changes(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Yields whenever `scan` may find something else, until `stop` is set."""

    async def close(self) -> None:
        """Free what all versions share; none is loaded any more."""
