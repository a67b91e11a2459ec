"""What a model version has done since it was loaded, told to clients that ask.

Prometheus' buckets do not tell batches of 3 rows from those of 4, nor the time of
requests that succeeded from that of others.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from time import time
from typing import Final

# Where the server makes the batches, clients choose how many rows a call has: larger
# ones are told together, or there would be no end of sizes.
MOST_TOLD_APART_ROWS: Final = 256


@dataclass(slots=True)
class Tally:
    """How often something happened, and the seconds that it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, *, count: int = 1) -> None:
        """It happened again; `seconds` is what each of `count` took."""
        self.count += count
        self.seconds += seconds * count


@dataclass(slots=True, kw_only=True)
class VersionStatistics:
    """Numbers that only grow.

    Attributes:
        success: Requests that were answered, from arrival to answer.
        failure: Requests that ended with an error, those that were refused included.
        inference: Requests that an engine has run, each with the time of its batch.
        rows: Rows that an engine has run.
        batches: Engine calls by their number of rows; above `MOST_TOLD_APART_ROWS` by
            the next power of two.
        last_inference_at: When the last engine call ended, in seconds since 1970; 0 if
            there was none.
    """

    success: Tally = field(default_factory=Tally)
    failure: Tally = field(default_factory=Tally)
    inference: Tally = field(default_factory=Tally)
    rows: int = 0
    batches: defaultdict[int, Tally] = field(default_factory=lambda: defaultdict(Tally))
    last_inference_at: float = 0.0

    def executed(self, *, rows: int, requests: int, seconds: float) -> None:
        """An engine call has ended well."""
        self.inference.add(seconds, count=requests)
        self.rows += rows
        if rows > MOST_TOLD_APART_ROWS:
            rows = 1 << (rows - 1).bit_length()
        self.batches[rows].add(seconds)
        self.last_inference_at = time()
