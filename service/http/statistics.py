"""`GET /statistics`: the last minute, for people who have no Prometheus."""

from collections import defaultdict

from fastapi import APIRouter
from pydantic import BaseModel

from service.gateway import Gateway
from service.monitoring.recent import (
    BATCHES,
    BUSY,
    ERRORS,
    PADDING,
    REQUESTS,
    STAGES,
    Window,
)
from service.telemetry.metrics import UNRESOLVED, Metrics
from service.telemetry.series import Buckets, Labels, Numbers


class Durations(BaseModel):
    """How often something happened in a second, and how long it took."""

    per_second: float
    mean_seconds: float
    p50_seconds: float
    p90_seconds: float
    p95_seconds: float
    p99_seconds: float


class Requests(Durations):
    """Requests of one protocol; `errors` counts those that failed, by code."""

    errors: dict[str, int]


class Batches(BaseModel):
    """Engine calls; `padding_share` is that of their rows which nobody had sent."""

    per_second: float
    mean_rows: float
    padding_share: float


class Queue(BaseModel):
    """What waits now."""

    depth: int
    limit: int
    oldest_age_seconds: float


class Slots(BaseModel):
    """What the engine can do at a time, and does; `utilisation` is of the window."""

    total: int
    taken: int
    utilisation: float


class VersionActivity(BaseModel):
    """A version: its requests by protocol, what they spend where, and its engine."""

    model: str
    version: int
    requests: dict[str, Requests]
    stages: dict[str, Durations]
    batches: Batches | None
    queue: Queue
    engine: Slots


class Activity(BaseModel):
    """What was done in the last `seconds`; `unresolved` is for no model that serves."""

    seconds: float
    versions: list[VersionActivity]
    unresolved: dict[str, Requests]


def router(gateway: Gateway) -> APIRouter:
    """The gateway's own view of itself."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/statistics", summary="Rates and percentiles of the last minute")
    async def statistics() -> Activity:
        return document(await gateway.window(), gateway.metrics)

    return routes


def document(window: Window, metrics: Metrics) -> Activity:
    """A window as a document; `metrics` have the buckets that it counts in."""
    durations = metrics.duration_buckets
    requests = _requests(window, durations)
    stages = _stages(window, durations)
    batches = _batches(window)
    busy = dict(window.of(BUSY))
    return Activity(
        seconds=window.seconds,
        versions=[
            VersionActivity(
                model=labels[0],
                version=int(labels[1]),
                requests=requests.get(labels, {}),
                stages=stages.get(labels, {}),
                batches=batches.get(labels),
                queue=Queue(
                    depth=load.queue_depth,
                    limit=load.queue_limit,
                    oldest_age_seconds=load.oldest_age_seconds,
                ),
                engine=Slots(
                    total=load.slots,
                    taken=load.calls_in_flight,
                    utilisation=sum(busy.get(labels, ()))
                    / (window.seconds * load.slots),
                ),
            )
            for labels, load in sorted(window.loads.items())
        ],
        unresolved=requests.get(UNRESOLVED, {}),
    )


def _requests(window: Window, buckets: Buckets) -> dict[Labels, dict[str, Requests]]:
    """By model and version, and then by protocol."""
    errors: defaultdict[Labels, dict[str, int]] = defaultdict(dict)
    for (*whose, code), (count,) in window.of(ERRORS):
        errors[tuple(whose)][code] = int(count)
    found: defaultdict[Labels, dict[str, Requests]] = defaultdict(dict)
    for labels, numbers in window.of(REQUESTS):
        protocol, *version = labels
        durations = _durations(numbers, window.seconds, buckets)
        found[tuple(version)][protocol] = Requests(
            **durations.model_dump(), errors=errors[labels]
        )
    return found


def _stages(window: Window, buckets: Buckets) -> dict[Labels, dict[str, Durations]]:
    """By model and version, and then by stage."""
    found: defaultdict[Labels, dict[str, Durations]] = defaultdict(dict)
    for (*version, stage), numbers in window.of(STAGES):
        found[tuple(version)][stage] = _durations(numbers, window.seconds, buckets)
    return found


def _durations(numbers: Numbers, seconds: float, buckets: Buckets) -> Durations:
    *counts, total = numbers
    count = sum(counts)
    return Durations(
        per_second=count / seconds,
        mean_seconds=total / count,
        p50_seconds=buckets.quantile(0.5, counts),
        p90_seconds=buckets.quantile(0.9, counts),
        p95_seconds=buckets.quantile(0.95, counts),
        p99_seconds=buckets.quantile(0.99, counts),
    )


def _batches(window: Window) -> dict[Labels, Batches]:
    """By model and version."""
    padding = dict(window.of(PADDING))
    found = {}
    for labels, (*counts, rows) in window.of(BATCHES):
        padded = sum(padding.get(labels, ()))
        found[labels] = Batches(
            per_second=sum(counts) / window.seconds,
            mean_rows=rows / sum(counts),
            padding_share=padded / (rows + padded),
        )
    return found
