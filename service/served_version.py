"""A loaded model version: its card, its engine, and a batcher for each signature."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np

from models.card import BYTES_SIGNATURE, ImageInput, ModelCard, OutputTensor
from proto.tensorflow.meta_graph_pb2 import SignatureDef
from service.batching import Batcher, BatchingOptions, Processor, ThroughputCurve
from service.engines import Engine
from service.errors import InvalidRequest, InvalidTensor, NotFound
from service.image_signature import image_signature
from service.settings import Settings
from service.telemetry.metrics import Metrics, VersionMetrics
from service.tensors import Signature, Tensors, TensorSpec, describe, is_float

IMAGE_RANK: Final = 4
# Rows, and in each of them a number for each class.
CLASSES_RANK: Final = 2


class ForImages(NamedTuple):
    """What an image becomes, and the signature with this as its only input."""

    image_input: ImageInput
    signature: Signature
    batcher: Batcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a version is at a moment, over all its signatures.

    Attributes:
        queue_depth: Requests that wait or are being decoded.
        queue_limit: Requests of a signature that wait at most.
        oldest_age_seconds: How long that one waits that waits longest for a slot.
        slots: Engine calls that may run at a time.
        calls_in_flight: Those that run.
        busy_seconds: Time that slots have been taken, all together, since the start.
    """

    queue_depth: int
    queue_limit: int
    oldest_age_seconds: float
    slots: int
    calls_in_flight: int
    busy_seconds: float

    def __add__(self, other: "Load") -> "Load":
        """Of the same version in another process, both together."""
        return Load(
            queue_depth=self.queue_depth + other.queue_depth,
            queue_limit=self.queue_limit + other.queue_limit,
            oldest_age_seconds=max(self.oldest_age_seconds, other.oldest_age_seconds),
            slots=self.slots + other.slots,
            calls_in_flight=self.calls_in_flight + other.calls_in_flight,
            busy_seconds=self.busy_seconds + other.busy_seconds,
        )


class ServedVersion:
    """A model version that answers requests; stays loaded while blocks with it last.

    Args:
        card: What the model is.
        engine: What runs it.
        signature_defs: Its signatures in TensorFlow's form.
        curves: What its batches cost, by signature.
        processor: The slots that it shares with others.
        metrics: Where it registers its time series.
        settings: How to batch.
        on_crash: Called when one of its batchers has failed for good.
    """

    def __init__(
        self,
        *,
        card: ModelCard,
        engine: Engine,
        signature_defs: Mapping[str, SignatureDef],
        curves: Mapping[str, ThroughputCurve],
        processor: Processor,
        metrics: Metrics,
        settings: Settings,
        on_crash: Callable[[], None],
    ) -> None:
        self.name = card.name
        self.version = card.version
        self.card = card
        self.engine = engine
        self.signatures = callable_signatures(card, engine)
        self.signature_defs = signature_defs
        self._curves = curves
        self.metrics: VersionMetrics = metrics.version(card.name, card.version)
        self.batchers: Mapping[str, Batcher] = {
            name: Batcher(
                partial(engine.infer, name),
                options=_options(engine, signature, settings),
                curve=curves[name],
                processor=processor,
                metrics=self.metrics,
                on_crash=on_crash,
            )
            for name, signature in engine.signatures.items()
        }
        self._leases = 0
        self._closing = False
        self._unused = asyncio.Event()

    @cached_property
    def _image_signature(self) -> Signature | None:
        return image_signature(self.card, self.engine)

    @cached_property
    def for_images(self) -> ForImages:
        """What an image becomes, and what runs it.

        Raises:
            InvalidRequest: The model has no signature for it.
        """
        signature = self._image_signature
        if signature is None or self.card.image_input is None:
            raise InvalidRequest(
                f"model {self.name!r} version {self.version} has no image input to "
                "classify with",
                code="not_an_image_model",
            )
        batcher = self.batchers[signature.name]
        return ForImages(self.card.image_input, signature, batcher)

    def encoded_images(
        self, signature: Signature, tensors: Tensors
    ) -> list[bytes] | None:
        """The images that a request brings for the gateway to decode, if it does.

        Args:
            signature: What the request calls.
            tensors: What it brings: where its only input is that of images, or of
                encoded images, and holds strings, these are decoded.

        Raises:
            InvalidTensor: They are not one for each row.
        """
        if len(tensors) != 1:
            return None
        ((name, array),) = tensors.items()
        if not array.dtype.hasobject or not self._decodes(signature, name):
            return None
        if array.shape not in {(array.size,), (array.size, 1)}:
            raise InvalidTensor(
                f"expected encoded images as {name} string[batch], got "
                f"{describe(array.dtype, array.shape)}"
            )
        images: list[bytes] = array.ravel().tolist()
        return images

    def _decodes(self, signature: Signature, name: str) -> bool:
        image_input = self.card.image_input
        if image_input is None or name not in {
            image_input.tensor,
            self.card.encoded_input,
        }:
            return False
        # What the engine does not run is the signature of encoded images.
        runs = signature.name in self.engine.signatures
        return not runs or signature is self._image_signature

    def signature(self, name: str) -> tuple[Signature, Batcher]:
        """A signature and its queue.

        Raises:
            NotFound: The model has no such signature, or nothing here can run it.
        """
        signature = self.signatures.get(name)
        if signature is None:
            raise NotFound(
                f"model {self.name!r} version {self.version} has no signature {name!r} "
                f"that the engine {self.engine.kind!r} runs; there is "
                f"{', '.join(map(repr, sorted(self.signatures)))}",
                code="signature_not_found",
            )
        return signature, self.batchers.get(name) or self.for_images.batcher

    def curves_for(self, engine: Engine) -> dict[str, ThroughputCurve]:
        """What is known here of signatures that another engine has as well."""
        return {
            name: curve
            for name, curve in self._curves.items()
            if engine.signatures.get(name) == self.engine.signatures[name]
        }

    @property
    def load(self) -> Load:
        """How busy it is."""
        batchers = self.batchers.values()
        return Load(
            queue_depth=sum(one.queue_depth for one in batchers),
            queue_limit=max(one.max_queue_depth for one in batchers),
            oldest_age_seconds=max(one.oldest_age_seconds for one in batchers),
            slots=max(one.slots for one in batchers),
            calls_in_flight=sum(one.calls_in_flight for one in batchers),
            busy_seconds=sum(one.busy_seconds for one in batchers),
        )

    def resize(self) -> None:
        """Follow the engine, which may have more slots now, or fewer."""
        for batcher in self.batchers.values():
            batcher.resize(self.engine.slots)

    @property
    def crashed(self) -> bool:
        """Whether a batcher has failed for good."""
        return any(batcher.crashed for batcher in self.batchers.values())

    def __enter__(self) -> Self:
        """Keep the version loaded while a request uses it."""
        self._leases += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leases -= 1
        if not self._leases and self._closing:
            self._unused.set()

    def refuse(self) -> None:
        """Refuse requests that come, and those that have no answer yet."""
        for batcher in self.batchers.values():
            batcher.close()

    async def close(self, *, drain_timeout_seconds: float) -> None:
        """Wait for the requests that use the version, then free it."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_seconds):
                if self._leases:
                    await self._unused.wait()
        self.refuse()
        await asyncio.to_thread(self.engine.close)


def callable_signatures(card: ModelCard, engine: Engine) -> dict[str, Signature]:
    """What requests can call.

    That is what the engine runs and, where it cannot decode images, the signature of
    encoded ones: the gateway decodes these.
    """
    signatures = dict(engine.signatures)
    of_images = image_signature(card, engine)
    name = card.encoded_input
    if name and of_images and BYTES_SIGNATURE not in signatures:
        encoded = TensorSpec(name=name, dtype=np.dtype(object), shape=(None,))
        signatures[BYTES_SIGNATURE] = Signature(
            name=BYTES_SIGNATURE, inputs={name: encoded}, outputs=of_images.outputs
        )
    return signatures


def _options(
    engine: Engine, signature: Signature, settings: Settings
) -> BatchingOptions:
    return BatchingOptions(
        slots=engine.slots,
        max_queue_depth=settings.max_queue_depth,
        max_batch_size=settings.max_batch_size,
        max_queue_delay_seconds=settings.max_queue_delay_seconds,
        allowed_batch_sizes=settings.allowed_batch_sizes,
        free_inputs=tuple(
            name for name, spec in signature.inputs.items() if None in spec.shape[1:]
        ),
        batched=signature.batched,
        cancels=engine.stops,
        gathers=settings.batching == "gateway",
    )


def infer_card(signatures: Mapping[str, Signature]) -> ModelCard:
    """A card for a SavedModel that came without one; name and version are left open.

    The image input is the only input of `serving_default`, if it has the shape of
    images. Probabilities are the first output of fractions `[rows, classes]`, if there
    is one, and classes get their numbers as labels.
    """
    signature = signatures.get("serving_default") or next(iter(signatures.values()))
    image = _image_input(signature)
    tables = (
        spec
        for spec in signature.outputs.values()
        if len(spec.shape) == CLASSES_RANK and is_float(spec.dtype)
    )
    scores = next(tables, None)
    classes = scores.shape[1] if scores else None
    return ModelCard(
        name="unnamed",
        version=1,
        architecture="unknown",
        created=datetime.now(UTC),
        image_input=image,
        outputs=tuple(
            OutputTensor(name=name, role="probabilities" if spec is scores else "other")
            for name, spec in signature.outputs.items()
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
