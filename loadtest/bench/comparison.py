"""What changed between two runs, and how sure that is.

Only whole repetitions are resampled. The seconds of one are no independent samples: a
queue that has built up is there in the next second as well, and what differs most, such
as what else the machine does, is the same for all seconds of a repetition. Resampling
seconds would give intervals that are far too narrow.

A run has many stages and measures, so that some seem to differ by chance. Each measure
is compared once for all stages together, and the intervals of its single stages are so
wide that 95 % of the times all of them hold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from loadtest.bench.bootstrap import CONFIDENCE, NEGLIGIBLE, interval
from loadtest.bench.histogram import GROWTH
from loadtest.bench.results import MEASURES, PERCENTILES, Repetition, Run
from loadtest.shapes import SHAPES

FEWEST_REPETITIONS: Final = 3
# What must be alike for a comparison to mean anything, and how it is called.
COMPARABLE: Final[Mapping[str, str]] = {
    **{name: name for name in ("shape", "protocols", "model", "rate")},
    "duration_seconds": "duration_seconds",
    "broken_seconds": "a search that ends at a p99 in seconds of",
}
HIGHER_IS_BETTER: Final = ("rps", "peak")
# Latencies are known by their bucket: less than that is no change.
RESOLUTION: Final = GROWTH - 1
# Of an interval that tells nothing; what is larger would overflow.
LARGEST_LOGARITHM: Final = 50.0

Verdict = Literal["better", "worse", "cannot tell"]
CANNOT_TELL: Final = "cannot tell"


class NotComparable(ValueError):
    """Two runs did not measure the same; says what differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How a measure of a stage has changed.

    Attributes:
        stage: Its number, from 1; 0 for what is of the whole run.
        old: Mean of the repetitions, in the measure's own unit; the geometric one,
            but for errors.
        new: As `old`.
        change: Of new to old, as a share: 0.1 is 10 % more. Of `errors`, which may be
            none at all, the difference.
        low: Lower end of the interval; NaN if there is none.
        high: Upper end.
    """

    stage: int
    measure: str
    old: float
    new: float
    change: float
    low: float
    high: float
    verdict: Verdict


def check_comparable(old: Run, settings: Mapping[str, Any]) -> None:
    """Refuse to compare what is not alike.

    Raises:
        NotComparable: It says what differs.
    """
    for name, title in COMPARABLE.items():
        before, now = _wanted(old.settings, name), _wanted(settings, name)
        if before != now:
            raise NotComparable(
                f"the old run has {title} {_told(before)}, this one {_told(now)}"
            )


def machine_differences(old: Run, new: Run) -> list[str]:
    """What of the machines differs, in words: their kind, and how fast they were."""
    found = [
        f"{name}: {_told(before)} before, {_told(now)} now"
        for name in ("processor", "cores", "system", "python")
        if (before := old.machine.get(name)) != (now := new.machine.get(name))
    ]
    own_time = _own_time(old, new)
    if own_time.verdict != CANNOT_TELL:
        found.append(
            f"its own time for the same computation changed by {own_time.change:+.0%}, "
            "and what was measured with it"
        )
    return found


def changes(old: Run, new: Run) -> list[Change]:
    """Compare each measure, for all stages and for each, and the machine's own speed.

    A run that looks for the capacity has one more: the most that a stage answered.
    Values are compared by their logarithms, errors as they are.
    """
    runs = (old.repetitions, new.repetitions)
    found = [_own_time(old, new)]
    if SHAPES[new.settings["shape"]].until_broken:
        found.append(_change(0, "peak", *(list(map(_peak, run)) for run in runs)))
    stages = range(min(len(one.stages) for run in runs for one in run))
    for measure in MEASURES:
        together = [[_overall(one, stages, measure) for one in run] for run in runs]
        found.append(_change(0, measure, *together))
    for index in stages:
        for measure in MEASURES:
            values = [
                [one.stages[index].measure(measure) for one in run] for run in runs
            ]
            found.append(_change(index + 1, measure, *values, among=len(stages)))
    return found


def _wanted(settings: Mapping[str, Any], name: str) -> Any:
    """A setting as far as it makes a difference."""
    if name == "broken_seconds" and not SHAPES[settings["shape"]].until_broken:
        return None
    value = settings.get(name)
    return sorted(value) if isinstance(value, list) else value


def _own_time(old: Run, new: Run) -> Change:
    before, now = (
        [one.reference_seconds for one in run.repetitions] for run in (old, new)
    )
    return _change(0, "reference", before, now)


def _change(
    stage: int,
    measure: str,
    old: Sequence[float],
    new: Sequence[float],
    *,
    among: int = 1,
) -> Change:
    """The intervals of so many, `among`, hold together as often as one alone."""
    confidence = 1 - (1 - CONFIDENCE) / among
    before, now = np.asarray(old, float), np.asarray(new, float)
    relative = measure != "errors"
    usable = bool(np.isfinite(before).all() and np.isfinite(now).all())
    if relative:
        usable = usable and bool((before > 0).all() and (now > 0).all())
    if not usable:
        change = low = high = math.nan
    elif relative:
        before, now = np.log(before), np.log(now)
        change = math.expm1(now.mean() - before.mean())
        low, high = map(_share, _interval(before, now, confidence))
    else:
        change = float(now.mean() - before.mean())
        low, high = _interval(before, now, confidence)
    return Change(
        stage=stage,
        measure=measure,
        old=_typical(measure, old),
        new=_typical(measure, new),
        change=change,
        low=low,
        high=high,
        verdict=_verdict(measure, change, low, high),
    )


def _interval(
    old: NDArray[np.float64], new: NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    if min(len(old), len(new)) < FEWEST_REPETITIONS:
        return math.nan, math.nan
    return interval(old, new, confidence=confidence)


def _verdict(measure: str, change: float, low: float, high: float) -> Verdict:
    if not (low > NEGLIGIBLE or high < -NEGLIGIBLE):  # NaN is neither
        return CANNOT_TELL
    if measure in PERCENTILES and abs(change) < RESOLUTION:
        return CANNOT_TELL
    more = low > 0
    return "better" if more == (measure in HIGHER_IS_BETTER) else "worse"


def _peak(repetition: Repetition) -> float:
    return max(stage.measure("rps") for stage in repetition.stages)


def _overall(repetition: Repetition, stages: Sequence[int], measure: str) -> float:
    """A repetition's mean over stages: of ratios, but for errors."""
    return _typical(
        measure, [repetition.stages[index].measure(measure) for index in stages]
    )


def _share(logarithm: float) -> float:
    return math.expm1(min(logarithm, LARGEST_LOGARITHM))


def _typical(measure: str, values: Sequence[float]) -> float:
    """The mean, of ratios where ratios are compared."""
    if measure == "errors":
        return float(np.mean(values))
    known = all(value > 0 for value in values)
    return math.exp(float(np.mean(np.log(values)))) if known else math.nan


def _told(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "not given" if value is None else str(value)
