"""All replicas of TensorFlow Serving: which one is asked, and what if it fails.

The one with the fewest calls under way is next, and none has more than it can take.
What fails for no fault of its own is tried elsewhere, while time and a budget allow. A
replica that does not answer is taken out, and is asked every second whether it is back.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

import grpc

from proto.tensorflow.serving.get_model_metadata_pb2 import GetModelMetadataResponse
from service.engines.tfserving.replica import Replica, ReplicaFailed
from service.errors import (
    BlockserveError,
    DeadlineExceeded,
    EngineFailure,
    InvalidTensor,
    Overloaded,
    Unavailable,
    VersionGone,
)

logger = logging.getLogger(__name__)

PROBE_SECONDS: Final = 1.0
PROBE_TIMEOUT_SECONDS: Final = 2.0
RESOLVE_SECONDS: Final = 5.0
METADATA_SECONDS: Final = 10.0
# How long a call waits for a replica where none is ready, if its time allows; and how
# long before it looks again.
RECOVERY_SECONDS: Final = 1.0
BACKOFF_SECONDS: Final = 0.05
# Of its time a call gives one replica this share, where there is another.
PATIENCE_SHARE: Final = 0.5
# Retries are free up to so many; then one call in so many may be tried again.
RETRY_BURST: Final = 20.0
RETRIES_PER_CALL: Final = 0.2
RETRIED: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.CANCELLED,
    }
)
DNS: Final = "dns"
# What stands for no deadline.
LONGEST_SECONDS: Final = 600.0


class RetryBudget:
    """How many calls may be tried again: few, or a server in trouble gets no rest."""

    def __init__(self) -> None:
        self._retries = RETRY_BURST

    def earn(self) -> None:
        """A call was made."""
        self._retries = min(RETRY_BURST, self._retries + RETRIES_PER_CALL)

    def spend(self) -> bool:
        """Whether one may be tried again."""
        if self._retries < 1:
            return False
        self._retries -= 1
        return True


class ReplicaPool:
    """The replicas that some addresses stand for.

    Args:
        addresses: Each `HOST:PORT`, `unix:PATH`, or `dns:///NAME:PORT`, which stands
            for all addresses that the name has.
        models: Says which models the replicas are asked about.
        calls_per_replica: Most calls that one has under way.
        root_certificates: Of TLS, where they speak that.
        hedge_seconds: After this time without an answer a second replica is asked;
            `None` is half of the time that a call has.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        models: Callable[[], Iterable[str]],
        calls_per_replica: int,
        root_certificates: bytes | None = None,
        hedge_seconds: float | None = None,
    ) -> None:
        self.changed = asyncio.Event()
        self._addresses = addresses
        self._models = models
        self._calls_per_replica = calls_per_replica
        self._credentials = (
            None
            if root_certificates is None
            else grpc.ssl_channel_credentials(root_certificates)
        )
        self._hedge_seconds = hedge_seconds
        self._budget = RetryBudget()
        self._replicas: dict[str, Replica] = {}
        self._resolved: dict[str, set[str]] = {}
        self._turn = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def replicas(self) -> Sequence[Replica]:
        """All that there are, up or not."""
        return tuple(self._replicas.values())

    @property
    def problem(self) -> str | None:
        """Why nothing can be asked; `None` if a replica is up."""
        if any(replica.is_up for replica in self.replicas):
            return None
        reasons = "; ".join(f"{r.target}: {r.problem}" for r in self.replicas)
        return f"no TensorFlow Serving is ready ({reasons or 'no address is known'})"

    def versions(self, model: str) -> frozenset[int]:
        """The versions that a replica which is up serves."""
        return frozenset().union(
            *(r.available.get(model, ()) for r in self.replicas if r.is_up)
        )

    async def start(self) -> None:
        """Find the replicas and ask each once; then keep on."""
        fixed = [one for one in self._addresses if urlsplit(one).scheme != DNS]
        for address in fixed:
            self._add(address)
        for address in self._addresses:
            if address not in fixed:
                await self._resolve(address)
                self._tasks[address] = asyncio.create_task(self._follow_name(address))
        await asyncio.gather(*(self._probe(replica) for replica in self.replicas))

    async def close(self) -> None:
        """End all connections."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self.replicas))

    async def metadata(self, model: str, version: int) -> GetModelMetadataResponse:
        """The signatures of a version, from any replica that serves it.

        Raises:
            Unavailable: None of them answers.
        """
        failure: ReplicaFailed | None = None
        for replica in self.replicas:
            if replica.serves(model, version):
                try:
                    return await replica.metadata(model, version, METADATA_SECONDS)
                except ReplicaFailed as error:
                    failure = error
        raise self._unavailable(model, version, failure)

    async def predict(
        self, model: str, version: int, request: bytes, deadline: float
    ) -> bytes:
        """Run a request on a replica that serves a version.

        Args:
            model: The model's name.
            version: Its number.
            request: A `PredictRequest` for that version.
            deadline: Moment of `time.monotonic`, in seconds.

        Returns:
            A `PredictResponse`.

        Raises:
            DeadlineExceeded: There was no answer in time.
            Overloaded: All replicas are busy.
            VersionGone: None serves the version any more.
            Unavailable: None is up.
            InvalidTensor: The server refused the values.
            EngineFailure: The server failed.
        """
        self._budget.earn()
        attempts = 0
        tried: list[Replica] = []
        running: dict[asyncio.Task[bytes], Replica] = {}
        failure: ReplicaFailed | None = None
        give_up_at = min(deadline, monotonic() + RECOVERY_SECONDS)
        try:
            while True:
                remaining = min(deadline - monotonic(), LONGEST_SECONDS)
                if remaining <= 0:
                    raise _too_late()
                replica = self._choose(model, version, avoid=tried)
                if replica is not None and (not attempts or self._budget.spend()):
                    attempts += 1
                    tried.append(replica)
                    call = replica.predict(request, remaining)
                    running[asyncio.create_task(call)] = replica
                if not running:
                    is_over = monotonic() >= give_up_at and failure is not None
                    if is_over or self._gone(model, version):
                        raise self._unavailable(model, version, failure)
                    await self._change(min(BACKOFF_SECONDS, remaining))
                    tried.clear()  # whoever is back may be asked again
                    continue
                done, _ = await asyncio.wait(
                    running,
                    timeout=self._patience(model, version, remaining, tried),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    self._wake()
                    replica = running.pop(task)
                    try:
                        return task.result()
                    except ReplicaFailed as error:
                        failure = error
                        self._learn(replica, model, version, error)
        finally:
            for task in running:
                task.cancel()

    def _patience(
        self, model: str, version: int, remaining: float, tried: Sequence[Replica]
    ) -> float:
        """How long to wait before another replica is asked as well."""
        if self._choose(model, version, avoid=tried) is None:
            return remaining
        if self._hedge_seconds is not None:
            return min(self._hedge_seconds, remaining)
        return remaining * PATIENCE_SHARE

    def _choose(
        self, model: str, version: int, *, avoid: Sequence[Replica]
    ) -> Replica | None:
        able = [
            replica
            for replica in self.replicas
            if replica.serves(model, version)
            and replica not in avoid
            and replica.outstanding < self._calls_per_replica
        ]
        if not able:
            return None
        self._turn += 1  # or the first of those that are idle would get all the work
        start = self._turn % len(able)
        return min(able[start:] + able[:start], key=lambda one: one.outstanding)

    def _learn(
        self, replica: Replica, model: str, version: int, failure: ReplicaFailed
    ) -> None:
        """Take note of a failure.

        Raises:
            BlockserveError: It would fail elsewhere, too.
        """
        if failure.code not in RETRIED:
            raise _as_ours(failure)
        if failure.code is grpc.StatusCode.UNAVAILABLE:
            replica.take_out(failure.details)
        elif failure.code is grpc.StatusCode.NOT_FOUND:
            replica.forget(model, version)

    def _gone(self, model: str, version: int) -> bool:
        """Whether those that are up serve the model, but not this version."""
        served = self.versions(model)
        return bool(served) and version not in served

    def _unavailable(
        self, model: str, version: int, failure: ReplicaFailed | None
    ) -> Unavailable:
        if failure and failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(f"TensorFlow Serving is busy ({failure.details})")
        if problem := self.problem:
            return Unavailable(problem)
        if self._gone(model, version) or not self.versions(model):
            return VersionGone(
                f"no TensorFlow Serving serves {model} version {version} any more"
            )
        if failure is not None:
            return Unavailable(f"TensorFlow Serving failed: {failure.details}")
        return Overloaded("all replicas of TensorFlow Serving have as much as they can")

    def _add(self, target: str, server_name: str | None = None) -> None:
        replica = Replica(
            target,
            credentials=self._credentials,
            server_name=server_name,
            on_change=self._tell,
        )
        self._replicas[target] = replica
        self._tasks[target] = asyncio.create_task(self._follow(replica))

    async def _remove(self, target: str) -> None:
        replica = self._replicas.pop(target)
        task = self._tasks.pop(target)
        task.cancel()
        replica.take_out("its name does not lead to it any more")
        await replica.close()

    async def _follow(self, replica: Replica) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await self._probe(replica)

    async def _probe(self, replica: Replica) -> None:
        try:
            await replica.probe(self._models(), PROBE_TIMEOUT_SECONDS)
        except Exception as error:
            # Probing must outlive whatever a server answers.
            logger.exception("probing %s has failed", replica.target)
            replica.take_out(f"it answers what cannot be read: {error}")

    async def _follow_name(self, address: str) -> None:
        while True:
            await asyncio.sleep(RESOLVE_SECONDS)
            await self._resolve(address)

    async def _resolve(self, address: str) -> None:
        """Follow the addresses of a name; where it has none, those from before stay."""
        parts = urlsplit(f"//{urlsplit(address).path.lstrip('/')}")
        host, port = parts.hostname or "", parts.port
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=1)
        except OSError as error:
            logger.warning("cannot resolve %s: %s", address, error)
            return
        targets = {
            f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
            for ip in (str(address[0]) for *_, address in found)
        }
        for target in targets - self._replicas.keys():
            self._add(target, host)
        for target in self._resolved.get(address, set()) - targets:
            await self._remove(target)
        self._resolved[address] = targets

    def _tell(self) -> None:
        self.changed.set()
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self, seconds: float) -> None:
        """Wait until a replica has come, gone or got room."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, seconds)):
                    await waiter
        finally:
            self._waiting.discard(waiter)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the request's time ran out before TensorFlow Serving had answered"
    )


def _as_ours(failure: ReplicaFailed) -> BlockserveError:
    """A failure that would be the same elsewhere."""
    match failure.code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return _too_late()
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidTensor(f"TensorFlow Serving refused it: {failure.details}")
    logger.error("TensorFlow Serving: %s: %s", failure.code.name, failure.details)
    return EngineFailure(
        "TensorFlow Serving failed at this request; the server's log says why"
    )
