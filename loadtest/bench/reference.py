"""How fast the machine is at the moment: a fixed computation, timed.

A machine that others share is faster at some times than at others. Beside two runs this
number tells whether it was the machine that changed.
"""

import hashlib
import statistics
import time
from typing import Final

TIMES: Final = 9
STEPS: Final = 200_000
BLOCK: Final = bytes(4_000_000)


def reference_seconds() -> float:
    """The median time of some Python and some native code, alike every time."""
    return statistics.median(_timed() for _ in range(TIMES))


def _timed() -> float:
    start = time.perf_counter()
    total = 0
    for step in range(STEPS):
        total += step & 7
    hashlib.sha256(BLOCK).digest()
    return time.perf_counter() - start
