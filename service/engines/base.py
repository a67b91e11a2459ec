"""What an engine is: one loaded model version that runs batches."""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from service.tensors import Array, Signature, Tensors


class Engine(Protocol):
    """Runs batches of one model version. Knows no images, no queues and no protocol."""

    @property
    def kind(self) -> str:
        """The engine's name, as in `--engine`."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The model's callables that this engine can run."""

    @property
    def slots(self) -> int:
        """Calls that may be under way at a time; as many as there is for them now."""

    @property
    def stops(self) -> bool:
        """Whether a call that is cancelled ends at once, with all that it costs."""

    @property
    def casts(self) -> bool:
        """Whether it takes numbers of any dtype, and makes them what it needs."""

    async def infer(
        self, signature: str, tensors: Tensors, deadline: float = math.inf, /
    ) -> dict[str, Array]:
        """Run one batch.

        Args:
            signature: A key of `signatures`.
            tensors: `{input: array[rows, …]}` that the signature has validated.
            deadline: Moment of `time.monotonic` after which nobody wants the answer;
                for engines that can tell others.

        Returns:
            `{output: array[rows, …]}`, owned by the caller.

        Raises:
            Unavailable: Not at the moment, whatever the batch.
            DeadlineExceeded: The deadline has passed.
        """

    def close(self) -> None:
        """Free what the model holds; no call may be under way."""


class InProcessEngine(ABC):
    """An engine that computes in threads of this process, one a slot."""

    kind: str
    stops = False  # a thread runs on
    casts = False

    def __init__(self, signatures: Mapping[str, Signature], *, slots: int) -> None:
        self.signatures = signatures
        self.slots = slots
        self._executor = ThreadPoolExecutor(slots, thread_name_prefix=self.kind)

    async def infer(
        self, signature: str, tensors: Tensors, _deadline: float = math.inf, /
    ) -> dict[str, Array]:
        """Run one batch in a free thread; see `Engine.infer`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._executor, self._compute, signature, tensors
        )

    def close(self) -> None:
        """End the threads; see `Engine.close`."""
        self._executor.shutdown(wait=True)

    @abstractmethod
    def _compute(self, signature: str, tensors: Tensors) -> dict[str, Array]:
        """Run one batch in the calling thread."""
