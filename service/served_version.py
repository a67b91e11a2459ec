"""A loaded model version: its card, its engine, and a batcher for each signature."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final, Self

import numpy as np

from models.card import ImageInput, ModelCard, OutputTensor
from service.batching import Batcher
from service.engines import Engine
from service.metrics import Metrics, VersionMetrics
from service.settings import Settings
from service.tensors import Array, Signature

IMAGE_RANK: Final = 4


class ServedVersion:
    """A model version that answers requests, kept loaded while leases are out.

    `on_crash` is called when one of its batchers has failed for good.
    """

    def __init__(
        self,
        *,
        card: ModelCard,
        engine: Engine,
        metrics: Metrics,
        settings: Settings,
        on_crash: Callable[[], None],
    ) -> None:
        self.name = card.name
        self.version = card.version
        self.card = card
        self.engine = engine
        self.metrics: VersionMetrics = metrics.version(
            card.name, card.version, queue_depth=lambda: self.queue_depth
        )
        self.batchers: Mapping[str, Batcher] = {
            name: self._batcher(signature, settings, on_crash)
            for name, signature in engine.signatures.items()
        }
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def queue_depth(self) -> int:
        """Requests that wait, over all signatures."""
        return sum(batcher.queue_depth for batcher in self.batchers.values())

    @property
    def crashed(self) -> bool:
        """Whether a batcher has failed for good."""
        return any(batcher.crashed for batcher in self.batchers.values())

    @contextmanager
    def lease(self) -> Iterator[Self]:
        """Keep the version loaded while a request uses it."""
        self._leases += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._leases -= 1
            if not self._leases:
                self._unused.set()

    async def warm_up(self, *, max_batch_size: int) -> None:
        """Run zeros at each power of two up to the largest batch.

        The first call at a new size is many times slower than those that follow.
        """
        for name, signature in self.engine.signatures.items():
            if not _can_fill(signature):
                continue
            size = 1
            while size <= max_batch_size:
                await self.engine.infer(name, _zeros(signature, rows=size))
                size *= 2

    async def close(self, *, drain_timeout_seconds: float) -> None:
        """Wait for the requests that use the version, then free it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_seconds):
                await self._unused.wait()
        for batcher in self.batchers.values():
            batcher.close()
        await asyncio.to_thread(self.engine.close)

    def _batcher(
        self, signature: Signature, settings: Settings, on_crash: Callable[[], None]
    ) -> Batcher:
        return Batcher(
            partial(self.engine.infer, signature.name),
            slots=self.engine.slots,
            max_batch_size=settings.max_batch_size,
            max_queue_depth=settings.max_queue_depth,
            batched=signature.batched,
            metrics=self.metrics,
            on_crash=on_crash,
        )


def infer_card(signatures: Mapping[str, Signature]) -> ModelCard:
    """A card for a SavedModel that came without one; name and version are left open.

    The image input is the only input of `serving_default`, if it has the shape of
    images, and classes get their numbers as labels.
    """
    signature = signatures.get("serving_default") or next(iter(signatures.values()))
    image = _image_input(signature)
    classes = next(
        (spec.shape[1] for spec in signature.outputs.values() if len(spec.shape) > 1),
        None,
    )
    return ModelCard(
        name="unnamed",
        version=1,
        architecture="unknown",
        created=datetime.now(UTC),
        image_input=image,
        outputs=tuple(
            OutputTensor(name=name, role="probabilities" if index == 0 else "other")
            for index, name in enumerate(signature.outputs)
        ),
        labels=tuple(str(index) for index in range(classes or 0)),
    )


def _image_input(signature: Signature) -> ImageInput | None:
    if len(signature.inputs) != 1:
        return None
    (spec,) = signature.inputs.values()
    if len(spec.shape) != IMAGE_RANK or spec.dtype.name not in {"uint8", "float32"}:
        return None
    _, height, width, channels = spec.shape
    if not height or not width or channels not in {1, 3}:
        return None
    return ImageInput.model_validate(
        {
            "tensor": spec.name,
            "height": height,
            "width": width,
            "channels": channels,
            "dtype": spec.dtype.name,
            "colour_order": "grey" if channels == 1 else "rgb",
        }
    )


def _can_fill(signature: Signature) -> bool:
    return signature.batched and not any(
        spec.dtype.hasobject or None in spec.shape[1:]
        for spec in signature.inputs.values()
    )


def _zeros(signature: Signature, *, rows: int) -> dict[str, Array]:
    return {
        name: np.zeros([rows, *(size or 1 for size in spec.shape[1:])], spec.dtype)
        for name, spec in signature.inputs.items()
    }
