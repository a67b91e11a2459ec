"""Turns requests into engine calls: few enough for speed, early enough for latency.

`Batcher` holds the queue of one signature, `ThroughputCurve` what its batches cost, and
`Processor` the slots that several batchers share.
"""

from service.batching.batcher import Batcher, BatchingOptions, BatchingState
from service.batching.curve import CurvePoint, ThroughputCurve
from service.batching.processor import Processor
from service.batching.request import Priority, expired

__all__ = [
    "Batcher",
    "BatchingOptions",
    "BatchingState",
    "CurvePoint",
    "Priority",
    "Processor",
    "ThroughputCurve",
    "expired",
]
