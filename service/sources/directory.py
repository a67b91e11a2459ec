"""Versions in a directory, which an engine of this process loads."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from prometheus_client.registry import Collector
from watchfiles import awatch

from models.card import ModelCard, scan
from service import engines
from service.image_signature import check_card
from service.saved_model import signature_defs
from service.served_version import callable_signatures, infer_card
from service.settings import Settings
from service.sources.base import Loaded

logger = logging.getLogger(__name__)

# Where the file system sends no events (network volumes), this is how often we look.
RESCAN_MILLISECONDS: Final = 5_000
# With one, a model whose batches are short would wait for those of one whose are long.
LEAST_SHARED_SLOTS: Final = 2


class DirectorySource:
    """A `Source` that watches `settings.repository`."""

    needs: Final = "its directory needs a sub-directory with a number for a name"

    def __init__(self, settings: Settings) -> None:
        self.collectors: Sequence[Collector] = ()
        self._root = settings.repository
        self._engine = settings.engine
        self._engine_slots = settings.engine_slots
        cores = os.cpu_count() or 1
        self.slots = max(LEAST_SHARED_SLOTS, settings.engine_slots or cores // 4)
        self.problem: str | None = None

    async def scan(self) -> Mapping[str, Mapping[int, Path]]:
        """See `Source`."""
        return await asyncio.to_thread(scan, self._root)

    def may_take_over(self, name: str, number: int) -> bool:  # noqa: ARG002, all can
        """See `Source`."""
        return True

    async def fingerprint(self, name: str, number: int, path: Path) -> object:  # noqa: ARG002, files tell
        """See `Source`."""
        return await asyncio.to_thread(_fingerprint, path)

    async def load(self, name: str, number: int, path: Path) -> Loaded:
        """See `Source`."""
        return await asyncio.to_thread(self._load, name, number, path)

    async def changes(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """See `Source`."""
        self._root.mkdir(parents=True, exist_ok=True)
        changes = awatch(
            self._root,
            stop_event=stop,
            rust_timeout=RESCAN_MILLISECONDS,
            yield_on_timeout=True,
        )
        try:
            async for _ in changes:
                yield
        except (OSError, RuntimeError, ExceptionGroup) as error:
            logger.warning(
                "cannot watch %s (%s); looking every %d s instead",
                self._root,
                error,
                RESCAN_MILLISECONDS // 1000,
            )
            async for _ in ticks(RESCAN_MILLISECONDS / 1000, stop):
                yield

    async def close(self) -> None:
        """See `Source`."""

    def _load(self, name: str, number: int, path: Path) -> Loaded:
        engine = engines.load(self._engine, path, slots=self._engine_slots)
        try:
            card = ModelCard.read(path)
            if card is None:
                card = infer_card(engine.signatures)
                logger.warning(
                    "%s version %d has no model card; its image input and numbered "
                    "labels are inferred from its signature",
                    name,
                    number,
                )
            check_card(card, engine)
            definitions = signature_defs(path, callable_signatures(card, engine))
        except BaseException:
            engine.close()
            raise
        return Loaded(card=card, engine=engine, signature_defs=definitions)


async def ticks(seconds: float, stop: asyncio.Event) -> AsyncIterator[None]:
    """Yields every so many seconds, until `stop` is set."""
    while not stop.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stop.wait()
        yield


def _fingerprint(version_directory: Path) -> frozenset[tuple[str, int, int]]:
    """Changes when a file of the version does."""
    entries = set()
    for path in version_directory.rglob("*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            entries.add((str(path), stat.st_mtime_ns, stat.st_size))
    return frozenset(entries)
