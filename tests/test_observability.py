"""What telling of requests costs: what the benchmark counts."""

from collections.abc import Sequence

import numpy as np
import pytest

from loadtest.harness.client import OK, Measurement
from loadtest.observability import METRICS, UNOBSERVED, costs_of
from loadtest.unobserved import NOTES


def rounds(*cpu_seconds: float) -> Sequence[Measurement]:
    return [
        Measurement(
            statuses=np.full(10, OK, np.int16),
            latencies_seconds=np.full(10, 0.1),
            sent_at_seconds=np.zeros(10),
            wall_seconds=1,
            cpu_seconds=0.1,
            server_cpu_seconds=one,
        )
        for one in cpu_seconds
    ]


def test_what_is_added_is_added_in_the_same_round() -> None:
    base, metrics = costs_of(
        {UNOBSERVED: rounds(1, 2, 4), METRICS: rounds(1.5, 2.2, 4.1)}
    )
    assert (base.cpu_seconds_per_request, base.added_seconds) == (0.2, 0)
    assert metrics.added_seconds == pytest.approx(0.02)
    assert (metrics.answers_per_second, metrics.failures) == (10, 0)


def test_all_notes_that_are_taken_out_are_there() -> None:
    assert all(callable(getattr(kind, name)) for kind, name in NOTES)
