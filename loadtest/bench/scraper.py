"""Asks the gateway for its metrics each second while the load runs."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from loadtest.bench.results import GatewayNumbers

INTERVAL_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the gateway told at a moment; NaN where it told nothing.

    Attributes:
        at: Second of the wall clock.
        rows: In all engine calls since its start.
        calls: Of the engine, since its start.
        busy_seconds: Time that slots were taken, all together, since its start.
        errors: Requests answered with an error since its start.
        generator_cpu_seconds: Time that each process of Locust has taken so far.
    """

    at: float
    rows: float = math.nan
    calls: float = math.nan
    busy_seconds: float = math.nan
    slots: float = math.nan
    queue_depth: float = math.nan
    errors: float = math.nan
    generator_cpu_seconds: Sequence[float] = ()


def parse(text: str, model: str, *, at: float) -> Reading:
    """Read an exposition.

    Args:
        text: In Prometheus' text format.
        model: The one that counts.
        at: When it was told.
    """
    samples: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("model") == model:
                samples.setdefault(sample.name, []).append(sample)

    def total(name: str) -> float:
        return sum(one.value for one in samples.get(f"blockserve_{name}", ()))

    return Reading(
        at=at,
        rows=total("batch_size_rows_sum"),
        calls=total("batch_size_rows_count"),
        busy_seconds=total("engine_busy_seconds_total"),
        slots=total("engine_slots"),
        queue_depth=total("queue_depth_requests"),
        errors=total("errors_total"),
    )


def numbers(readings: Sequence[Reading]) -> GatewayNumbers:
    """What readings tell of the time between the first and the last."""
    told = [one for one in readings if not math.isnan(one.calls)]
    if len(told) < 2:  # noqa: PLR2004, a difference has two ends
        return GatewayNumbers()
    first, last = told[0], told[-1]
    seconds = last.at - first.at
    slots = _mean([one.slots for one in told])
    return GatewayNumbers(
        batch_rows=_ratio(last.rows - first.rows, last.calls - first.calls),
        queue_depth=_mean([one.queue_depth for one in told]),
        engine_busy=_ratio(last.busy_seconds - first.busy_seconds, seconds * slots),
        errors_per_second=_ratio(last.errors - first.errors, seconds),
    )


def generator_busy(readings: Sequence[Reading]) -> float:
    """Share of a core that the busiest process of Locust took; NaN if not known."""
    known = [one for one in readings if one.generator_cpu_seconds]
    if len(known) < 2:  # noqa: PLR2004, as above
        return math.nan
    first, last = known[0], known[-1]
    shares = [
        (after - before) / (last.at - first.at)
        for before, after in zip(
            first.generator_cpu_seconds, last.generator_cpu_seconds, strict=False
        )
    ]
    return max(shares)


class Scraper:
    """Scrapes in a thread of its own until the block ends.

    Args:
        url: The server's, as in `http://127.0.0.1:8000`.
        model: The one that counts.
        token: Bearer token, where the gateway asks for one.
        generator_cpu_seconds: What each process of the load generator has taken.

    Attributes:
        readings: In the order of time.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        token: str | None = None,
        generator_cpu_seconds: Callable[[], Sequence[float]] = tuple,
    ) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=ANSWER_SECONDS
        )
        self._model = model
        self._generator_cpu_seconds = generator_cpu_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.readings: list[Reading] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def scrape(self) -> Reading:
        """Ask once.

        Raises:
            httpx.HTTPError: The gateway does not answer, or refuses.
        """
        text = self._client.get("/metrics").raise_for_status().text
        return parse(text, self._model, at=time.time())

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due += INTERVAL_SECONDS
            try:
                reading = self.scrape()
            except httpx.HTTPError:
                # An overloaded gateway may not answer, and TensorFlow Serving alone has
                # no such page; the load goes on without.
                reading = Reading(at=time.time())
            used = self._generator_cpu_seconds()
            self.readings.append(replace(reading, generator_cpu_seconds=used))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
