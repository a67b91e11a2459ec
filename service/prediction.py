"""Tensors in, tensors out: the walk of a request that brings its own arrays."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from service.batching import Priority
from service.classification import Caller, Target
from service.metrics import RequestScope
from service.repository import Repository
from service.served_version import ServedVersion
from service.tensors import Array, Signature, Tensors

DEFAULT_SIGNATURE: Final = "serving_default"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What a model version answers.

    Attributes:
        model: Its name.
        version: Its number.
        signature: What was called.
        outputs: `{name: array}`, with as many rows as the inputs had.
    """

    model: str
    version: int
    signature: Signature
    outputs: dict[str, Array]


class Predictor:
    """Runs tensors in the batcher of the signature that a request names."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def check(self, target: Target, *, scope: RequestScope) -> None:
        """Refuse a request whose tensors need not be read: nobody would take them.

        Raises:
            BlockserveError: As `predict` would.
        """
        with self._lease(target) as served:
            scope.resolved(served.name, served.version)

    async def predict(
        self,
        read: Callable[[Signature], Awaitable[Tensors]],
        *,
        target: Target,
        signature_name: str | None,
        deadline: float,
        priority: Priority,
        caller: Caller,
        scope: RequestScope,
    ) -> Prediction:
        """Run one request.

        Args:
            read: Makes the inputs `{name: array[rows, …]}`, given the signature whose
                names and dtypes they are to have. Not called where the request would be
                refused anyway.
            target: The model that answers.
            signature_name: What to call; `None` or empty is `serving_default`.
            deadline: Moment of `time.monotonic`, in seconds.
            priority: Whose turn it is.
            caller: Who waits.
            scope: Told which version answers.

        Raises:
            BlockserveError: Any of the errors in `service.errors`.
        """
        with self._lease(target) as served:
            scope.resolved(served.name, served.version)
            signature, batcher = served.signature(signature_name or DEFAULT_SIGNATURE)
            batcher.check(rows=1, deadline=deadline, priority=priority)
            tensors = await read(signature)
            rows = signature.validate(tensors)
            answer = batcher.submit(
                tensors, rows=rows, deadline=deadline, priority=priority
            )
            outputs = await caller.unless_gone(answer)
        return Prediction(
            model=served.name,
            version=served.version,
            signature=signature,
            outputs=outputs,
        )

    def _lease(self, target: Target) -> AbstractContextManager[ServedVersion]:
        return self._repository.lease(
            target.name, version=target.version, label=target.label
        )
