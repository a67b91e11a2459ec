"""What a service is to reach, as in `p99<50ms,errors<0.1%,rps>200`.

Latencies are those of right answers; what failed counts among the errors.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from loadtest.bench.results import MEASURES, StageSummary

Bound = Literal["<", ">"]
TERM: Final = re.compile(
    r"(?P<measure>[a-z0-9]+)\s*(?P<bound>[<>])\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>\S*)"
)
LATENCY_UNITS: Final = {"ms": 1e-3, "s": 1.0}
ALLOWED: Final = (
    "allowed are p50<20ms (also p90, p95, p99 and mean; in ms or s), errors<0.1% and "
    "rps>200, with commas between them"
)


class WrongObjective(ValueError):
    """A text that names no objective; says what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One of the things to be reached.

    Attributes:
        text: As it was written, for people.
        measure: One of `MEASURES`.
        limit: In seconds, as a share of 1, or in answers a second.
    """

    text: str
    measure: str
    bound: Bound
    limit: float

    def is_met(self, value: float) -> bool:
        """Whether a value is within the limit; what was not measured is not."""
        return value < self.limit if self.bound == "<" else value > self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A term that was missed, and where.

    Attributes:
        stage: Its number, from 1; `None` for the highest load of a capacity run.
    """

    term: Term
    stage: int | None
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the objective was reached.

    Attributes:
        stage_is_met: For each stage, whether it meets the terms that each must meet.
        highest: The stage of a capacity run with the highest load that meets them:
            its number, from 1, or `None`.
    """

    misses: Sequence[Miss]
    stage_is_met: Sequence[bool]
    highest: int | None = None

    @property
    def is_met(self) -> bool:
        """Whether nothing was missed."""
        return not self.misses


def parse(text: str) -> Sequence[Term]:
    """Read an objective.

    Raises:
        WrongObjective: It is none; says what is allowed.
    """
    return [_term(one.strip()) for one in text.split(",")]


def judge(
    terms: Sequence[Term], stages: Sequence[StageSummary], *, finds_capacity: bool
) -> Verdict:
    """Compare what was measured with what was to be reached.

    Each stage must meet each term, in the median of its repetitions. A run that looks
    for the capacity goes beyond it on purpose: there latencies and errors tell which
    loads are carried, `rps` is asked of the highest of these, and without it one
    carried load is enough.

    Args:
        terms: What `parse` read.
        stages: In the order of the shape.
        finds_capacity: Whether the shape looks for the capacity.
    """
    each = [one for one in terms if one.measure != "rps"] if finds_capacity else terms
    misses = _misses(each, stages)
    missed = {one.stage for one in misses}
    met = [stage.number not in missed and stage.is_usual for stage in stages]
    if not finds_capacity:
        return Verdict(misses=misses, stage_is_met=met)
    carried = [stage for stage, is_met in zip(stages, met, strict=True) if is_met]
    if not carried:
        first = [one for one in misses if one.stage == stages[0].number]
        return Verdict(misses=first, stage_is_met=met)
    best = max(carried, key=lambda stage: stage.measure("rps"))
    rps = best.measure("rps")
    return Verdict(
        misses=[
            Miss(term=one, stage=None, value=rps)
            for one in terms
            if one.measure == "rps" and not one.is_met(rps)
        ],
        stage_is_met=met,
        highest=best.number,
    )


def _misses(terms: Sequence[Term], stages: Sequence[StageSummary]) -> list[Miss]:
    return [
        Miss(term=term, stage=stage.number, value=stage.measure(term.measure))
        for stage in stages
        for term in terms
        if not term.is_met(stage.measure(term.measure))
    ]


def _term(text: str) -> Term:
    found = TERM.fullmatch(text)
    if found is None:
        raise WrongObjective(f"{text!r} is no objective; {ALLOWED}")
    measure, bound, unit = (
        found["measure"],
        cast("Bound", found["bound"]),
        found["unit"],
    )
    if measure not in MEASURES:
        raise WrongObjective(f"{measure!r} is not measured; {ALLOWED}")
    if bound != (">" if measure == "rps" else "<"):
        raise WrongObjective(f"{text!r} has its sign the wrong way; {ALLOWED}")
    units = {"rps": {"": 1.0}, "errors": {"%": 0.01}}.get(measure, LATENCY_UNITS)
    if unit not in units:
        raise WrongObjective(f"{text!r} has the unit {unit!r}; {ALLOWED}")
    limit = float(found["number"]) * units[unit]
    return Term(text=text, measure=measure, bound=bound, limit=limit)
