"""The replicas of TensorFlow Serving: where they are, what they serve, who is next.

The one with the fewest calls under way is next, and none has more than it can take. One
that is not there any more is taken out, and asked every second whether it is back.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import grpc

from proto.tensorflow.serving.get_model_metadata_pb2 import GetModelMetadataResponse
from service.engines.tfserving import failures, names
from service.engines.tfserving.call import Call
from service.engines.tfserving.replica import Replica, ReplicaFailed
from service.errors import BlockserveError, Unavailable

logger = logging.getLogger(__name__)

PROBE_SECONDS: Final = 1.0
PROBE_TIMEOUT_SECONDS: Final = 2.0
# One that is in doubt is asked again at once, but not more often than this.
SHORTEST_PROBE_SECONDS: Final = 0.05
RESOLVE_SECONDS: Final = 5.0
METADATA_SECONDS: Final = 10.0
# What is under way at a replica that its name does not lead to any more has this time.
REMOVAL_SECONDS: Final = 30.0
# How long a call waits for the first replica to come back, counted from when the last
# one went: later calls need not find out for themselves.
RECOVERY_SECONDS: Final = 1.0
# A silence of this share of a call's time is one too many where there are others, as is
# one that is so many times as long as the slowest answer of late.
PATIENCE_SHARE: Final = 0.5
PATIENCE_ANSWERS: Final = 4.0
LEAST_PATIENCE_SECONDS: Final = 0.5
# What is forgotten of the slowest answer with each that follows; and what it is before
# there was any.
FORGETTING: Final = 0.02
UNKNOWN_ANSWER_SECONDS: Final = 0.25
# Retries are free up to so many, and for each call under way at one time; then one call
# in so many may be tried again.
LEAST_RETRY_BURST: Final = 20.0
RETRIES_PER_CALL: Final = 0.2


class RetryBudget:
    """How many calls may be tried again: few, or a server in trouble gets no rest."""

    def __init__(self) -> None:
        self._retries = LEAST_RETRY_BURST

    def earn(self, burst: float) -> None:
        """A call was made; at most `burst` retries are saved up."""
        self._retries = min(
            max(burst, LEAST_RETRY_BURST), self._retries + RETRIES_PER_CALL
        )

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
            `None` is once the first is silent for too long.

    Attributes:
        changed: Set when a replica has come or gone, or serves other versions.
        retries_total: Calls that were made again after a failure.
        hedges_total: Calls that were made beside another.
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
        self.retries_total = 0
        self.hedges_total = 0
        self.hedge_seconds = hedge_seconds
        self._names = [one for one in addresses if names.is_name(one)]
        self._fixed = [one for one in addresses if not names.is_name(one)]
        self._models = models
        self._calls_per_replica = calls_per_replica
        self._credentials = (
            None
            if root_certificates is None
            else grpc.ssl_channel_credentials(root_certificates)
        )
        self._budget = RetryBudget()
        self._slowest_seconds = UNKNOWN_ANSWER_SECONDS
        self._replicas: dict[str, Replica] = {}
        self._resolved: dict[str, frozenset[str]] = {}
        self._unresolved: dict[str, str] = {}  # why
        self._turn = 0
        self._was_up = False
        self._down_since = monotonic()
        self._calls: dict[Call, None] = {}  # in their order
        self._following: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def replicas(self) -> Sequence[Replica]:
        """All that there are, up or not."""
        return tuple(self._replicas.values())

    @property
    def slots(self) -> int:
        """Calls that may be under way now; never none, for one may come back."""
        up = sum(replica.is_up for replica in self.replicas)
        return self._calls_per_replica * max(1, up)

    @property
    def problem(self) -> str | None:
        """Why nothing can be asked; `None` if a replica is up."""
        if any(replica.is_up for replica in self.replicas):
            return None
        reasons = [f"{r.target}: {r.problem}" for r in self.replicas]
        reasons += [f"{name}: {why}" for name, why in self._unresolved.items()]
        return f"no TensorFlow Serving is ready ({'; '.join(reasons)})"

    def versions(self, model: str) -> Mapping[int, frozenset[str]]:
        """The versions that replicas serve which are up, each with who serves it.

        A replica is told from what it was before it went and came back.
        """
        found: dict[int, set[str]] = {}
        for replica in self.replicas:
            if replica.is_up:
                for version in replica.available.get(model, ()):
                    who = f"{replica.target} {replica.times_up}"
                    found.setdefault(version, set()).add(who)
        return {version: frozenset(who) for version, who in found.items()}

    async def start(self) -> None:
        """Find the replicas and ask each once; then keep on."""
        for name in self._names:
            await self._resolve(name)
        self._follow_targets()
        for name in self._names:
            self._spawn(self._follow_name(name))
        await asyncio.gather(*(replica.probed.wait() for replica in self.replicas))

    async def close(self) -> None:
        """End all connections, and the calls that are left."""
        self._is_closed = True
        for call in self._calls:
            call.fail(_closed())
        tasks = (*self._following.values(), *self._tasks)
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
        raise failures.passing(failure) if failure else self._nobody(model, version)

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
            Overloaded: All replicas say that they are busy.
            VersionGone: None serves the version any more.
            Unavailable: None is up, or all fail.
            InvalidTensor: The server refused the values.
            TooLarge: The server takes no request of this size.
            EngineFailure: The server failed.
        """
        if self._is_closed:
            raise _closed()
        self._budget.earn(float(self._calls_per_replica * len(self._replicas)))
        call = Call(self, model, version, request, deadline)
        self._calls[call] = None
        try:
            return await call.answer()
        finally:
            del self._calls[call]

    def others(
        self, model: str, version: int, avoid: Mapping[Replica, float]
    ) -> Sequence[Replica]:
        """See `Replicas`: those in doubt only where there is nobody else."""
        now = monotonic()
        able = [r for r in self.replicas if r.serves(model, version) and r not in avoid]
        return [r for r in able if r.is_trusted(now)] or able

    def with_room(self, replicas: Sequence[Replica]) -> Replica | None:
        """See `Replicas`: one with the fewest calls, in turn."""
        able = [r for r in replicas if r.outstanding < self._calls_per_replica]
        if not able:
            return None
        self._turn += 1  # or the first of those that are idle would get all the work
        start = self._turn % len(able)
        return min(able[start:] + able[:start], key=lambda one: one.outstanding)

    def patience_seconds(self, remaining_seconds: float) -> float:
        """See `Replicas`."""
        long = max(LEAST_PATIENCE_SECONDS, PATIENCE_ANSWERS * self._slowest_seconds)
        return min(remaining_seconds * PATIENCE_SHARE, long)

    def may_try_again(self) -> bool:
        """See `Replicas`."""
        return self._budget.spend()

    def asked_again(self, *, beside_another: bool) -> None:
        """See `Replicas`."""
        if beside_another:
            self.hedges_total += 1
        else:
            self.retries_total += 1

    def why_hopeless(
        self, model: str, version: int, since: float
    ) -> BlockserveError | None:
        """See `Replicas`."""
        now = monotonic()
        if self.problem is not None:
            is_over = now >= self._down_since + RECOVERY_SECONDS
            return self._nobody(model, version) if is_over else None
        served = self.versions(model)
        if version in served:
            return None  # or else the next answer about it will say so
        # Another version tells that this one was replaced. Where there is none, the
        # server may be between two.
        is_over = now >= since + RECOVERY_SECONDS
        return failures.gone(model, version) if served or is_over else None

    def learn(
        self, replica: Replica, model: str, version: int, failure: ReplicaFailed
    ) -> None:
        """See `Replicas`: in any case it is asked at once what it serves."""
        if failure.is_lost:
            replica.take_out(failure.details)
        elif failure.code is grpc.StatusCode.NOT_FOUND:
            replica.miss(model, version)
        else:
            replica.rest()
        replica.doubted.set()

    def answered(self, seconds: float) -> None:
        """See `Replicas`."""
        faded = self._slowest_seconds * (1 - FORGETTING)
        self._slowest_seconds = max(seconds, faded)

    def ended(self) -> None:
        """See `Replicas`."""
        for call in self._calls:
            if call.wants_room:
                call.wake()

    def _nobody(self, model: str, version: int) -> Unavailable:
        problem = self.problem
        return Unavailable(problem) if problem else failures.gone(model, version)

    def _tell(self) -> None:
        is_up = self.problem is None
        if self._was_up and not is_up:
            self._down_since = monotonic()
        self._was_up = is_up
        self.changed.set()
        for call in self._calls:
            call.wake()

    def _follow_targets(self) -> None:
        """Have a replica for each target that an address stands for now."""
        hosts: dict[str, str | None] = dict.fromkeys(self._fixed)
        for name, targets in self._resolved.items():
            for target in targets:
                hosts.setdefault(target, names.host_of(name))
        for target in self._replicas.keys() - hosts.keys():
            replica = self._replicas.pop(target)
            self._following.pop(target).cancel()
            replica.take_out("no name leads to it any more")
            self._spawn(replica.close(REMOVAL_SECONDS))
        for target in hosts.keys() - self._replicas.keys():
            replica = self._replicas[target] = Replica(
                target,
                credentials=self._credentials,
                server_name=hosts[target],
                on_change=self._tell,
            )
            self._following[target] = asyncio.create_task(self._follow(replica))

    async def _follow(self, replica: Replica) -> None:
        while True:
            await self._probe(replica)
            replica.probed.set()
            await asyncio.sleep(SHORTEST_PROBE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS - SHORTEST_PROBE_SECONDS):
                    await replica.doubted.wait()
            replica.doubted.clear()

    async def _probe(self, replica: Replica) -> None:
        try:
            await replica.probe(self._models(), PROBE_TIMEOUT_SECONDS)
        except Exception as error:
            # Following must outlive whatever nobody has foreseen.
            replica.take_out(f"asking it has failed: {error!r}")

    async def _follow_name(self, name: str) -> None:
        while True:
            await asyncio.sleep(RESOLVE_SECONDS)
            await self._resolve(name)
            self._follow_targets()

    async def _resolve(self, name: str) -> None:
        """Look a name up; where that fails, what it stood for stays."""
        try:
            self._resolved[name] = await names.resolve(name)
        except OSError as error:
            if name not in self._unresolved:
                logger.warning("cannot resolve %s: %s", name, error)
            self._unresolved[name] = f"it cannot be resolved: {error}"
        else:
            self._unresolved.pop(name, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _closed() -> Unavailable:
    return Unavailable("the gateway is shutting down")
