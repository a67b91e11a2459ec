"""A loaded model version: its card, its engine, and a batcher for each signature."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from service.metrics import Metrics, VersionMetrics
from service.settings import Settings
from service.tensors import Signature, Tensors, TensorSpec, describe

IMAGE_RANK: Final = 4


class ForImages(NamedTuple):
    """What an image becomes, and the signature with this as its only input."""

    image_input: ImageInput
    signature: Signature
    batcher: Batcher


class ServedVersion:
    """A model version that answers requests; stays loaded while blocks with it last.

    Args:
        card: What the model is.
        engine: What runs it.
        signature_defs: Its signatures in TensorFlow's form. Where `serving_bytes` is
            among them and the engine does not run it, the gateway decodes its images.
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
        self.metrics: VersionMetrics = metrics.version(
            card.name, card.version, queue_depth=lambda: self.queue_depth
        )
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
        self._decoded_here = self._decodable(signature_defs.get(BYTES_SIGNATURE))
        self.signature_defs = {
            name: definition
            for name, definition in signature_defs.items()
            if name in engine.signatures or self._decoded_here is not None
        }
        self._leases = 0
        self._closing = False
        self._unused = asyncio.Event()

    @cached_property
    def for_images(self) -> ForImages:
        """What an image becomes, and what runs it.

        Raises:
            InvalidRequest: The model has no signature for it.
        """
        image_input = self.card.image_input
        if image_input is not None:
            for name, signature in self.engine.signatures.items():
                if signature.inputs.keys() == {image_input.tensor}:
                    return ForImages(image_input, signature, self.batchers[name])
        raise InvalidRequest(
            f"model {self.name!r} version {self.version} has no image input to "
            "classify with",
            code="not_an_image_model",
        )

    def encoded_images(
        self, signature: Signature, tensors: Tensors
    ) -> list[bytes] | None:
        """The images that a request brings for the gateway to decode, if it does.

        That is where strings stand in place of the image input's pixels, and where the
        signature takes strings that the engine cannot decode.

        Args:
            signature: What the request calls.
            tensors: What it brings.
        """
        if len(tensors) != 1:
            return None
        ((name, array),) = tensors.items()
        if not array.dtype.hasobject:
            return None
        if signature is self._decoded_here:
            decodes = name in signature.inputs
        else:
            image_input = self.card.image_input
            decodes = (
                image_input is not None
                and name == image_input.tensor
                and signature is self.for_images.signature
            )
        if not decodes:
            return None
        if array.shape not in {(array.size,), (array.size, 1)}:
            raise InvalidTensor(
                f"expected encoded images as {name} string[batch], got "
                f"{describe(array.dtype, array.shape)}"
            )
        return array.ravel().tolist()

    def signature(self, name: str) -> tuple[Signature, Batcher]:
        """A signature and its queue.

        Raises:
            NotFound: The model has no such signature, or its engine cannot run it.
        """
        signature = self.engine.signatures.get(name)
        if signature is None and name == BYTES_SIGNATURE and self._decoded_here:
            return self._decoded_here, self.for_images.batcher
        if signature is None:
            raise NotFound(
                f"model {self.name!r} version {self.version} has no signature {name!r} "
                f"that the engine {self.engine.kind!r} runs; there is "
                f"{', '.join(map(repr, sorted(self.engine.signatures)))}",
                code="signature_not_found",
            )
        return signature, self.batchers[name]

    @property
    def queue_depth(self) -> int:
        """Requests that wait, over all signatures."""
        return sum(batcher.queue_depth for batcher in self.batchers.values())

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

    def _decodable(self, definition: SignatureDef | None) -> Signature | None:
        """`serving_bytes`, where its images are to be decoded by the gateway."""
        if definition is None or BYTES_SIGNATURE in self.engine.signatures:
            return None
        try:
            outputs = self.for_images.signature.outputs
        except InvalidRequest:
            return None
        if len(definition.inputs) != 1 or definition.outputs.keys() != outputs.keys():
            return None
        (name,) = definition.inputs
        images = TensorSpec(name=name, dtype=np.dtype(object), shape=(None,))
        return Signature(name=BYTES_SIGNATURE, inputs={name: images}, outputs=outputs)

    async def close(self, *, drain_timeout_seconds: float) -> None:
        """Wait for the requests that use the version, then free it."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_seconds):
                if self._leases:
                    await self._unused.wait()
        for batcher in self.batchers.values():
            batcher.close()
        await asyncio.to_thread(self.engine.close)


def _options(
    engine: Engine, signature: Signature, settings: Settings
) -> BatchingOptions:
    return BatchingOptions(
        slots=engine.slots,
        max_queue_depth=settings.max_queue_depth,
        max_batch_size=settings.max_batch_size,
        max_queue_delay_seconds=settings.max_queue_delay_seconds,
        allowed_batch_sizes=settings.allowed_batch_sizes,
        batched=signature.batched,
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
