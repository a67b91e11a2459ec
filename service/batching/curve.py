"""How long a batch takes by its size, and the size that is worth waiting for.

The curve is measured at warm-up and corrected by every batch since. When a batch takes
longer than expected, either everything is slower at the moment, since other work shares
the processor, or batches of its size are slower than thought. The first is assumed, and
quickly. The second shows only where two batches of different sizes follow each other:
what slows both cancels out in the comparison.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

# The smallest size with this share of the best rate is preferred: a larger one would
# cost latency for nothing.
GOOD_ENOUGH: Final = 0.95
# What each call costs besides under load, and not at warm-up: threads hand the
# interpreter to each other, and the event loop comes late to what has ended. Where a
# row takes microseconds, that makes the difference between 16 rows and 32.
CALL_SECONDS: Final = 0.001
# How much of an observation is believed at once, in the logarithm of time.
SPEED_STEP: Final = 0.1
SHAPE_STEP: Final = 0.01
# One batch that was held up says little: it counts as this many times too slow at most.
MAX_SURPRISE: Final = 4.0
# Where nothing could be measured, no deadline is refused for a guess.
UNMEASURED_SECONDS: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What a batch of a size takes now, as far as is known."""

    batch_size_rows: int
    seconds: float
    rows_per_second: float


class ThroughputCurve:
    """Seconds that a batch takes, at any number of rows.

    Args:
        measured: Seconds by rows, at one size or more.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self._sizes = sorted(measured)
        self._seconds = [measured[size] for size in self._sizes]
        self._slowness = 1.0  # how many times longer all sizes take by now
        self._previous = (0, 0.0)  # rows of the last batch, and how it surprised
        self._preferred = self._smallest_good_enough()

    @classmethod
    def unmeasured(cls, batch_size_rows: int) -> Self:
        """The curve of a signature that was not warmed up; it learns as it runs."""
        return cls({batch_size_rows: UNMEASURED_SECONDS})

    @property
    def preferred_batch_size(self) -> int:
        """The smallest measured size within a few percent of the best rate."""
        return self._preferred

    @property
    def size_to_try(self) -> int | None:
        """The measured size above the preferred one; `None` if that is the largest."""
        above = bisect_right(self._sizes, self._preferred)
        return self._sizes[above] if above < len(self._sizes) else None

    @property
    def points(self) -> tuple[CurvePoint, ...]:
        """The sizes that were measured, with what they take now."""
        return tuple(
            CurvePoint(
                batch_size_rows=size,
                seconds=self.seconds(size),
                rows_per_second=size / self.seconds(size),
            )
            for size in self._sizes
        )

    def seconds(self, rows: int) -> float:
        """The time that a batch of `rows` rows is expected to take."""
        sizes, seconds = self._sizes, self._seconds
        if rows <= sizes[0]:
            return seconds[0] * self._slowness
        if rows >= sizes[-1]:
            return seconds[-1] * self._slowness * rows / sizes[-1]
        high, share = self._between(rows)
        low = seconds[high - 1]
        return (low + share * (seconds[high] - low)) * self._slowness

    def observe(self, rows: int, seconds: float) -> None:
        """Correct the curve by what a batch has really taken."""
        ratio = seconds / self.seconds(rows)
        surprise = math.log(min(max(ratio, 1 / MAX_SURPRISE), MAX_SURPRISE))
        self._slowness *= math.exp(SPEED_STEP * surprise)
        previous_rows, previous_surprise = self._previous
        self._previous = (rows, surprise)
        if previous_rows and previous_rows != rows:
            difference = SHAPE_STEP * (surprise - previous_surprise)
            self._shift(rows, difference)
            self._shift(previous_rows, -difference)
            self._preferred = self._smallest_good_enough()

    def _shift(self, rows: int, difference: float) -> None:
        """Make a size slower, and so the measured sizes on both sides of it."""
        sizes, seconds = self._sizes, self._seconds
        if rows <= sizes[0]:
            seconds[0] *= math.exp(difference)
        elif rows >= sizes[-1]:
            seconds[-1] *= math.exp(difference)
        else:
            high, share = self._between(rows)
            seconds[high - 1] *= math.exp(difference * (1 - share))
            seconds[high] *= math.exp(difference * share)

    def _between(self, rows: int) -> tuple[int, float]:
        """The index of the next larger size, and how far `rows` is on the way to it."""
        sizes = self._sizes
        high = bisect_left(sizes, rows)
        return high, (rows - sizes[high - 1]) / (sizes[high] - sizes[high - 1])

    def _smallest_good_enough(self) -> int:
        rates = {
            size: size / (seconds + CALL_SECONDS)
            for size, seconds in zip(self._sizes, self._seconds, strict=True)
        }
        wanted = GOOD_ENOUGH * max(rates.values())
        return next(size for size, rate in rates.items() if rate >= wanted)
