"""Versions that replicas of TensorFlow Serving run, with cards from a directory."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from prometheus_client.registry import Collector

from models.card import CARD_FILE, ModelCard, scan
from proto.tensorflow.meta_graph_pb2 import SignatureDef
from proto.tensorflow.serving.get_model_metadata_pb2 import (
    GetModelMetadataResponse,
    SignatureDefMap,
)
from service.engines.tfserving import ReplicaMetrics, ReplicaPool, TfServingEngine
from service.errors import UnsupportedModel
from service.image_signature import check_card
from service.saved_model import signature_of
from service.served_version import callable_signatures, infer_card
from service.settings import Settings
from service.sources.base import Loaded

logger = logging.getLogger(__name__)

# For names of models that come to the repository.
RESCAN_SECONDS: Final = 5.0


class TfServingSource:
    """A `Source` that follows what the replicas at some addresses serve.

    Its models are those of `tfserving_models` and those that have a directory in the
    repository, where it is mounted: TensorFlow Serving tells nobody which it has.
    """

    needs: Final = "no TensorFlow Serving serves one"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._configured = frozenset(settings.tfserving_models)
        self._names = self._configured
        certificates = settings.tfserving_certificates
        self._pool = ReplicaPool(
            settings.tfserving,
            models=self._models,
            calls_per_replica=settings.tfserving_calls_per_replica,
            root_certificates=certificates.read_bytes() if certificates else None,
            hedge_seconds=settings.tfserving_hedge_seconds,
        )
        self.collectors: Sequence[Collector] = (ReplicaMetrics(self._pool),)
        self._started = False
        self._last: Mapping[str, Mapping[int, frozenset[str]]] = {}

    @property
    def slots(self) -> int:
        """See `Source`."""
        return self._settings.engine_slots or self._pool.slots

    @property
    def problem(self) -> str | None:
        """See `Source`."""
        if not self._names:
            return (
                f"{self._settings.repository} holds no model and tfserving_models "
                "names none"
            )
        return self._pool.problem

    async def scan(self) -> Mapping[str, Mapping[int, Path]]:
        """See `Source`."""
        await asyncio.to_thread(self._look_for_names)
        if not self._started:
            self._started = True
            await self._pool.start()
        if self._pool.problem is None:
            # Versions stay while nobody can be asked: they are there again with the
            # first replica that comes back.
            self._last = {name: self._pool.versions(name) for name in self._names}
        root = self._settings.repository
        return {
            name: {number: root / name / str(number) for number in versions}
            for name, versions in self._last.items()
        }

    def may_take_over(self, name: str, number: int) -> bool:
        """See `Source`: once half of those replicas have it that serve the model.

        Where each comes to a new version at its own time, the first to have it could
        not answer for all.
        """
        versions = self._last[name]
        most = max(map(len, versions.values()))
        everybody = len(frozenset().union(*versions.values()))
        return len(versions[number]) >= min(most, everybody / 2)

    async def fingerprint(self, name: str, number: int, path: Path) -> object:
        """See `Source`: it changes with its card and with the servers that have it."""
        card = await asyncio.to_thread(_fingerprint_of_card, path)
        return card, self._pool.versions(name).get(number)

    async def load(self, name: str, number: int, path: Path) -> Loaded:
        """See `Source`."""
        written = _signature_defs(await self._pool.metadata(name, number))
        found = (signature_of(key, one) for key, one in written.items())
        signatures = {one.name: one for one in found if one is not None}
        if not signatures:
            raise UnsupportedModel("it has no signature that takes and gives tensors")
        engine = TfServingEngine(
            self._pool, name, number, signatures, slots=lambda: self.slots
        )
        card = await asyncio.to_thread(ModelCard.read, path)
        if card is None:
            card = infer_card(engine.signatures)
            logger.warning(
                "%s version %d has no model card below %s; its image input and "
                "numbered labels are inferred from its signature",
                name,
                number,
                self._settings.repository,
            )
        check_card(card, engine)
        return Loaded(
            card=card,
            engine=engine,
            is_warm=True,
            signature_defs={
                key: written[key] for key in callable_signatures(card, engine)
            },
        )

    async def changes(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """See `Source`."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                changed = asyncio.ensure_future(self._pool.changed.wait())
                await asyncio.wait(
                    {stopped, changed},
                    timeout=RESCAN_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                changed.cancel()
                self._pool.changed.clear()
                yield
        finally:
            stopped.cancel()

    async def close(self) -> None:
        """See `Source`."""
        await self._pool.close()

    def _models(self) -> Iterable[str]:
        return self._names

    def _look_for_names(self) -> None:
        with suppress(OSError):  # it need not be mounted, and may be away for a moment
            self._names = self._configured.union(scan(self._settings.repository))


def _signature_defs(metadata: GetModelMetadataResponse) -> Mapping[str, SignatureDef]:
    written = SignatureDefMap()
    with suppress(DecodeError):  # it is as good as empty
        written.MergeFromString(metadata.metadata["signature_def"].value)
    return written.signature_def


def _fingerprint_of_card(path: Path) -> object:
    with suppress(OSError):
        stat = (path / CARD_FILE).stat()
        return stat.st_mtime_ns, stat.st_size
    return None
