"""A bootstrap interval for the difference of two means, of a few values each.

With as few repetitions as people run, the plain bootstrap is far too narrow: three
values can be drawn in ten ways only. So the difference is divided by its error, in each
draw anew; the residuals of both samples are pooled and made as wide as their spread
says; and a little noise makes up for their small number. Of pairs of samples of three
to eight values that differ by noise alone, 3 to 5 % seem to differ; 6 to 11 % where one
of the two is seven times as noisy as the other.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 20_000
SEED: Final = 0
# What comes of adding in another order is no difference.
NEGLIGIBLE: Final = 1e-9


def interval(
    old: NDArray[np.float64],
    new: NDArray[np.float64],
    *,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> tuple[float, float]:
    """An interval for the difference of the means of two samples.

    Args:
        old: At least two values.
        new: At least two values.
        confidence: The share of such intervals that hold the true difference.
        seed: The same seed gives the same interval.
    """
    random = np.random.default_rng(seed)
    difference = float(new.mean() - old.mean())
    error = _standard_error(old[None, :], new[None, :])[0]
    residuals = np.concatenate([_residuals(old), _residuals(new)])
    if residuals.std() < NEGLIGIBLE:
        return difference, difference
    # By Silverman's rule; without it a draw of equal residuals would have no error.
    bandwidth = 1.06 * residuals.std() * len(residuals) ** -0.2
    shrink = 1 / math.sqrt(1 + (bandwidth / residuals.std()) ** 2)

    def draw(count: int) -> NDArray[np.float64]:
        drawn = random.choice(residuals, (RESAMPLES, count))
        noise = random.normal(0.0, bandwidth, drawn.shape)
        smooth: NDArray[np.float64] = (drawn + noise) * shrink
        return smooth

    before, now = draw(len(old)), draw(len(new))
    studentised = (now.mean(axis=1) - before.mean(axis=1)) / _standard_error(
        before, now
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(studentised, (tail, 1 - tail))
    return difference - float(high) * error, difference - float(low) * error


def _residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Around their mean; a mean of few values is too near to them, which is undone."""
    widened: NDArray[np.float64] = (values - values.mean()) * math.sqrt(
        len(values) / (len(values) - 1)
    )
    return widened


def _standard_error(
    old: NDArray[np.float64], new: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of the difference of the means, for each row."""
    variance = sum(one.var(axis=1, ddof=1) / one.shape[1] for one in (old, new))
    error: NDArray[np.float64] = np.sqrt(variance)
    return error
