"""Who makes the batches before TensorFlow Serving: what the benchmark counts."""

from collections.abc import Sequence

import numpy as np
import pytest

from loadtest.harness.client import OK, Measurement
from loadtest.tfserving_batching import (
    DEFAULTS,
    SUBJECTS,
    Subject,
    Turn,
    outcomes_of,
    rows_and_calls,
)
from service.settings import DURATION_BUCKETS_SECONDS, Settings
from service.telemetry.metrics import Metrics, render


def turns(*answers: int, rows_per_call: float = 1) -> Sequence[Turn]:
    """A turn for each number of answers, in a second."""
    return [
        Turn(
            Measurement(
                statuses=np.full(one, OK, np.int16),
                latencies_seconds=np.full(one, 0.1),
                sent_at_seconds=np.zeros(one),
                wall_seconds=1,
                cpu_seconds=0.1,
                server_cpu_seconds=0.5,
            ),
            rows_per_call,
        )
        for one in answers
    ]


def test_a_subjects_rate_is_compared_with_that_of_the_defaults_in_the_same_round() -> (
    None
):
    other = Subject("server", 16)
    base, outcome = outcomes_of(
        {
            (DEFAULTS, 16): turns(100, 200, 400, rows_per_call=8),
            (other, 16): turns(50, 80, 300),
        }
    )
    assert (base.of_defaults, base.answers_per_second, base.rows_per_call) == (
        1,
        200,
        8,
    )
    assert outcome.of_defaults == pytest.approx(0.5)
    assert (outcome.answers_per_second, outcome.rows_per_call) == (80, 1)
    assert (outcome.batching, outcome.calls, outcome.failures) == ("server", 16, 0)


def test_rows_and_calls_are_those_that_the_gateway_exports() -> None:
    metrics = Metrics(DURATION_BUCKETS_SECONDS)
    version = metrics.version("inception", 1)
    before = render(metrics.registry, "text/plain")[0].decode()
    for rows in (8, 3):
        version.batch_size_rows.observe(rows)
    after = render(metrics.registry, "text/plain")[0].decode()
    assert [rows_and_calls(one) for one in (before, after)] == [(0, 0), (11, 2)]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.name)
def test_a_subjects_flags_are_settings_of_the_gateway(subject: Subject) -> None:
    flags = subject.flags("localhost:8500")
    given = zip(flags[::2], flags[1::2], strict=True)
    settings = Settings(
        **{flag.removeprefix("--").replace("-", "_"): value for flag, value in given}
    )
    assert settings.batching == subject.batching
    assert settings.tfserving_calls_per_replica == subject.calls


def test_the_defaults_are_among_the_subjects() -> None:
    assert DEFAULTS in SUBJECTS
