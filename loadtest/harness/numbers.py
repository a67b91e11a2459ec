"""Numbers of benchmarks: ratios within one round, and those that JSON does not know."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any


def median_ratio(values: Sequence[float], bases: Sequence[float]) -> float:
    """The median of ratios, each of what was measured in one round."""
    return median(one / base for one, base in zip(values, bases, strict=True))


def as_json(value: Any) -> Any:
    """What `json` can write: infinity and NaN become null, paths and keys text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
