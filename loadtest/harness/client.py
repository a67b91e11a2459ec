"""A light HTTP/1.1 load generator, in a process of its own.

    measurement = closed_loop(
        "http://127.0.0.1:8000", [Request("/classify", headers, jpeg)],
        connections=64, duration_seconds=10, warm_up_seconds=2,
    )

A closed loop keeps a fixed number of requests under way and finds the throughput. An
open loop sends at random moments that do not depend on the answers, as people do, and
finds the latency: it counts from the moment at which a request was to be sent, so that
a server that stalls cannot hide the requests that it kept from being sent on time.
`generator` is the other end, and sends what it is told from here.
"""

import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

OK: Final = 200
# Time that the generator has beyond its load: to start, to drain and to report.
SPARE_SECONDS: Final = 90


class Failure(IntEnum):
    """What stands for a status where there is none that counts."""

    CONNECTION = 0
    """The connection could not be made, broke, or spoke no HTTP."""
    TIMEOUT = -1
    """No answer within the client's patience."""
    WRONG_ANSWER = -2
    """Status 200, and a body without the bytes that were expected."""


@dataclass(frozen=True, slots=True)
class Request:
    """A POST; `Host` and `Content-Length` are added.

    Attributes:
        expect: Bytes that the body of a 200 must contain, or it is a failure.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes
    expect: bytes | None = field(default=None, kw_only=True)

    def encoded(self, host: str) -> bytes:
        """The request as it goes over the wire."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"host: {host}",
            f"content-length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """So many requests under way: each that is answered makes place for the next."""

    concurrency: int
    duration_seconds: float
    warm_up_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Requests at random moments, whatever becomes of those before."""

    rate_per_second: float
    duration_seconds: float
    timeout_seconds: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the generator's process is told."""

    host: str
    port: int
    requests: Sequence[tuple[bytes, bytes | None]]
    """Each as it goes over the wire, and what its answer must contain."""
    load: ClosedLoop | OpenLoop
    server_pid: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """What became of every request, one row each, in the order of their outcomes.

    Attributes:
        statuses: int16, an HTTP status or a `Failure`; over gRPC 200, the number of a
            status that is an error (1 to 16), or a `Failure`.
        latencies_seconds: float64; in an open loop from the intended moment.
        sent_at_seconds: float64, since the start of the window; intended as above.
            Negative where a closed loop sent during its warm-up.
        wall_seconds: The window: in a closed loop from an answer to an answer, in an
            open loop until the last request has its outcome.
        cpu_seconds: What the generator took of the processor in the window.
        server_cpu_seconds: What the server and its children took; 0 if not asked for.
    """

    statuses: NDArray[np.int16]
    latencies_seconds: NDArray[np.float64]
    sent_at_seconds: NDArray[np.float64]
    wall_seconds: float
    cpu_seconds: float
    server_cpu_seconds: float = 0.0

    @property
    def answered_at_seconds(self) -> NDArray[np.float64]:
        """When each had its outcome, since the start of the window."""
        return self.sent_at_seconds + self.latencies_seconds

    @property
    def failures(self) -> int:
        """How many were anything but a 200 with the right answer."""
        return len(self.statuses) - self.count(OK)

    @property
    def server_cpu_seconds_per_request(self) -> float:
        """What one took of the processor at the server, whatever became of it."""
        return self.server_cpu_seconds / len(self.statuses)

    @property
    def p50_seconds(self) -> float:
        """Median latency of the 200s; NaN if there are none."""
        return self._percentiles[0]

    @property
    def p95_seconds(self) -> float:
        """95th percentile, as `p50_seconds`."""
        return self._percentiles[1]

    @property
    def p99_seconds(self) -> float:
        """99th percentile, as `p50_seconds`."""
        return self._percentiles[2]

    def count(self, status: int) -> int:
        """How many had this status or this `Failure`."""
        return int(np.count_nonzero(self.statuses == status))

    def per_second(self, status: int = OK) -> float:
        """Answers of a status per second of the window."""
        return self.count(status) / self.wall_seconds

    def latencies_of(self, status: int) -> NDArray[np.float64]:
        """Seconds, of the answers of a status."""
        latencies: NDArray[np.float64] = self.latencies_seconds[self.statuses == status]
        return latencies

    @cached_property
    def _percentiles(self) -> tuple[float, float, float]:
        latencies = self.latencies_of(OK)
        if not len(latencies):
            return float("nan"), float("nan"), float("nan")
        p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
        return float(p50), float(p95), float(p99)


class GeneratorFailed(RuntimeError):
    """The generator's process ended without a measurement."""


def closed_loop(
    address: str,
    requests: Sequence[Request],
    *,
    connections: int,
    duration_seconds: float,
    warm_up_seconds: float,
    server_pid: int | None = None,
) -> Measurement:
    """Keep `connections` requests under way, and measure what is answered.

    The window opens with the first answer after the warm-up and closes with the first
    after the duration: from batch to batch, so that none is counted by half. Then the
    requests under way are waited for, and counted only if they get no answer.

    Args:
        address: As in `http://127.0.0.1:8000`.
        requests: Sent in turn, over and over.
        connections: How many, kept alive; a broken one is a failure and made anew.
        duration_seconds: Length of the window.
        warm_up_seconds: Time under load before the window.
        server_pid: Process whose time on the processor is taken in the same window.

    Raises:
        GeneratorFailed: It ended without a measurement; says what it printed.
    """
    load = ClosedLoop(
        concurrency=connections,
        duration_seconds=duration_seconds,
        warm_up_seconds=warm_up_seconds,
    )
    return _generate(
        address, requests, load, server_pid, seconds=duration_seconds + warm_up_seconds
    )


def open_loop(
    address: str,
    requests: Sequence[Request],
    *,
    rate_per_second: float,
    duration_seconds: float,
    timeout_seconds: float,
    seed: int,
    server_pid: int | None = None,
) -> Measurement:
    """Send at the moments of a Poisson process, and measure each request's latency.

    Each takes an idle connection, the latest used first, or opens one.

    Args:
        address: As in `http://127.0.0.1:8000`.
        requests: Sent in turn, over and over.
        rate_per_second: Mean rate.
        duration_seconds: Time in which requests are sent.
        timeout_seconds: The client's patience, from the intended moment on.
        seed: The same seed, rate and duration give the same moments.
        server_pid: Process whose time on the processor is taken in the same window.

    Raises:
        GeneratorFailed: It ended without a measurement; says what it printed.
    """
    load = OpenLoop(
        rate_per_second=rate_per_second,
        duration_seconds=duration_seconds,
        timeout_seconds=timeout_seconds,
        seed=seed,
    )
    return _generate(
        address, requests, load, server_pid, seconds=duration_seconds + timeout_seconds
    )


def poisson_arrivals(
    rate_per_second: float, duration_seconds: float, *, seed: int
) -> NDArray[np.float64]:
    """Moments of a Poisson process, in seconds from 0 to the duration, in order.

    Given their number, the arrivals of such a process are uniformly distributed.
    """
    random = np.random.default_rng(seed)
    count = random.poisson(rate_per_second * duration_seconds)
    arrivals: NDArray[np.float64] = random.uniform(0, duration_seconds, count)
    arrivals.sort()
    return arrivals


def _generate(
    address: str,
    requests: Sequence[Request],
    load: ClosedLoop | OpenLoop,
    server_pid: int | None,
    *,
    seconds: float,
) -> Measurement:
    url = urlsplit(address)
    if url.scheme != "http" or url.hostname is None or url.port is None:
        raise ValueError(f"expected an address http://HOST:PORT, got {address!r}")
    task = Task(
        host=url.hostname,
        port=url.port,
        requests=[(one.encoded(url.netloc), one.expect) for one in requests],
        load=load,
        server_pid=server_pid,
    )
    return measured_by("loadtest.harness.generator", task, seconds=seconds)


def measured_by(generator: str, task: object, *, seconds: float) -> Measurement:
    """What a generator's process makes of a task.

    Args:
        generator: The module that it runs.
        task: What it is told.
        seconds: How long its load lasts.

    Raises:
        GeneratorFailed: It ended without a measurement; says what it printed.
    """
    done = subprocess.run(  # noqa: S603, our own modules
        [sys.executable, "-m", generator],
        input=pickle.dumps(task),
        capture_output=True,
        check=False,
        timeout=seconds + SPARE_SECONDS,
    )
    if done.returncode != 0:
        raise GeneratorFailed(done.stderr.decode(errors="replace"))
    measurement: Measurement = pickle.loads(done.stdout)  # noqa: S301, our own
    return measurement
