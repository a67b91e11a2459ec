"""What the throughput curve learns, at warm-up and from the batches that run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import ThroughputCurve


def knee_at_four() -> ThroughputCurve:
    """Rates of 10, 18.2, 28.6, 29.1 and 29.1 rows a second."""
    return ThroughputCurve({1: 0.1, 2: 0.11, 4: 0.14, 8: 0.275, 16: 0.55})


def test_the_smallest_size_near_the_best_rate_is_preferred() -> None:
    assert knee_at_four().preferred_batch_size == 4


def test_a_flat_curve_prefers_single_rows() -> None:
    flat = ThroughputCurve({1: 0.1, 2: 0.195, 4: 0.385})
    assert flat.preferred_batch_size == 1


def test_where_a_call_is_short_what_it_costs_besides_counts() -> None:
    """Rates of 8,000 rows a second at 16 rows and at 32: alone, 16 would do."""
    short = ThroughputCurve({1: 0.0005, 16: 0.002, 32: 0.004})
    assert short.preferred_batch_size == 32


def test_a_curve_that_keeps_rising_prefers_the_largest_size() -> None:
    rising = ThroughputCurve({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1})
    assert rising.preferred_batch_size == 8


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(1, 0.1), (2, 0.11), (3, 0.125), (4, 0.14), (12, 0.4125), (32, 1.1)],
)
def test_times_lie_on_lines_between_the_measured_sizes(
    rows: int, seconds: float
) -> None:
    assert knee_at_four().seconds(rows) == pytest.approx(seconds)


def test_a_slower_machine_slows_all_sizes_and_leaves_the_preference() -> None:
    curve = knee_at_four()
    for _ in range(100):
        curve.observe(4, 0.28)
    assert curve.seconds(4) == pytest.approx(0.28, rel=0.01)
    assert curve.seconds(1) == pytest.approx(0.2, rel=0.01)
    assert curve.preferred_batch_size == 4


def test_batches_of_different_sizes_correct_the_curve_s_shape() -> None:
    """Measured wrongly, a size of eight is found to be worth it after all."""
    curve = knee_at_four()
    for _ in range(400):
        curve.observe(4, 0.14)
        curve.observe(8, 0.18)
    assert curve.seconds(8) == pytest.approx(0.18, rel=0.1)
    assert curve.seconds(4) == pytest.approx(0.14, rel=0.1)
    assert curve.preferred_batch_size == 8


def test_the_size_to_try_is_the_next_one_above_the_preferred() -> None:
    assert knee_at_four().size_to_try == 8
    assert ThroughputCurve({1: 1.0, 2: 1.0}).size_to_try is None


def test_one_batch_that_was_held_up_says_little() -> None:
    curve = knee_at_four()
    curve.observe(4, 100.0)
    assert curve.seconds(4) < 0.14 * 1.2
    assert curve.preferred_batch_size == 4


def test_what_was_not_measured_is_learned_from_scratch() -> None:
    curve = ThroughputCurve.unmeasured(16)
    assert curve.preferred_batch_size == 16
    for _ in range(100):
        curve.observe(3, 0.5)
    assert curve.seconds(3) == pytest.approx(0.5, rel=0.01)


def test_its_points_tell_sizes_times_and_rates() -> None:
    point = knee_at_four().points[2]
    assert point.batch_size_rows == 4
    assert point.seconds == pytest.approx(0.14)
    assert point.rows_per_second == pytest.approx(4 / 0.14)


@given(
    observations=st.lists(
        st.tuples(st.integers(1, 64), st.floats(1e-9, 1e6)), max_size=50
    )
)
def test_no_observation_makes_a_time_absurd(
    observations: list[tuple[int, float]],
) -> None:
    curve = knee_at_four()
    for rows, seconds in observations:
        curve.observe(rows, seconds)
    times = [curve.seconds(rows) for rows in range(1, 65)]
    assert all(0 < seconds < math.inf for seconds in times)
    assert curve.preferred_batch_size in {1, 2, 4, 8, 16}
