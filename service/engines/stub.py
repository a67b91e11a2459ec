"""An engine that computes next to nothing: for tests, and to measure the gateway alone.

It answers with a probability that depends on the row's own bytes, so that an answer
given to the wrong request shows.
"""

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import numpy as np

from models.card import ModelCard
from service.errors import UnsupportedModel
from service.tensors import Array, Signature, Tensors, TensorSpec

SIGNATURE: Final = "serving_default"


class StubEngine:
    """Class `sum(row) % classes` gets probability 0.9, the others share the rest.

    Attributes:
        gate: Cleared, it holds every call until it is set again.
        batches: The inputs of each call so far, where `record` is true.
        failure: Raised by each call while it is not `None`.
    """

    kind = "stub"
    stops = True
    casts = False

    def __init__(
        self, signature: Signature, *, slots: int = 1, record: bool = False
    ) -> None:
        self.signatures: Mapping[str, Signature] = {signature.name: signature}
        self.slots = slots
        self.gate = asyncio.Event()
        self.gate.set()
        self.batches: list[Tensors] = []
        self.failure: Exception | None = None
        self._record = record

    @classmethod
    def load(cls, version_directory: Path, *, slots: int | None) -> Self:
        """Make a stub with the image input and the classes of the version's card.

        Raises:
            UnsupportedModel: There is no card, or it names no image input.
        """
        card = ModelCard.read(version_directory)
        if card is None or card.image_input is None:
            raise UnsupportedModel("the stub engine needs a card with an image input")
        image = card.image_input
        images = TensorSpec(
            name=image.tensor,
            dtype=np.dtype(image.dtype),
            shape=(None, image.height, image.width, image.channels),
        )
        outputs = {
            output.name: TensorSpec(
                name=output.name,
                dtype=np.dtype("float32"),
                shape=(None, len(card.labels)),
            )
            for output in card.outputs
        }
        signature = Signature(
            name=SIGNATURE, inputs={images.name: images}, outputs=outputs
        )
        return cls(signature, slots=slots or 1)

    async def infer(
        self, signature: str, tensors: Tensors, _deadline: float = math.inf, /
    ) -> dict[str, Array]:
        """Answer as the class describes; see `Engine.infer`."""
        if self._record:
            self.batches.append(tensors)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        (rows,) = tensors.values()
        return {
            name: _probabilities(rows, classes=spec.shape[-1] or 1)
            for name, spec in self.signatures[signature].outputs.items()
        }

    def close(self) -> None:
        """Nothing to free."""


def _probabilities(rows: Array, *, classes: int) -> Array:
    sums = rows.reshape(len(rows), -1).sum(axis=1, dtype=np.int64)
    answer = np.full((len(rows), classes), 0.1 / max(1, classes - 1), np.float32)
    answer[np.arange(len(rows)), sums % classes] = 0.9
    return answer
