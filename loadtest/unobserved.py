"""The gateway with nothing noted of requests, to tell what that costs.

`python -m loadtest.unobserved serve …` takes what `blockserve serve` takes. Nothing is
counted or timed, and nothing is written down.
"""

from service.cli import main
from service.telemetry.observation import Observation
from service.telemetry.series import Counter, Gauge, Histogram
from service.telemetry.statistics import VersionStatistics

NOTES = (
    (Counter, "inc"),
    (Gauge, "dec"),
    (Gauge, "inc"),
    (Histogram, "observe"),
    (Observation, "_end"),
    (Observation, "has_been_decoded"),
    (Observation, "has_been_parsed"),
    (Observation, "has_been_predicted"),
    (Observation, "has_been_read"),
    (VersionStatistics, "executed"),
)


def nothing(*_: object, **__: object) -> None:
    """Stand for a note that is not taken."""


if __name__ == "__main__":
    for kind, name in NOTES:
        setattr(kind, name, nothing)
    main()
