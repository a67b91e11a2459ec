"""The W3C's trace context: which trace a client's request belongs to.

It is read here, and not by OpenTelemetry, because it is of use without that: the log
and exemplars name the trace, whoever records it.
"""

import re
from typing import Final, NamedTuple, Self

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
SAMPLED: Final = 1
# Version 00 ends with the flags; later ones may go on. No id is all zeros.
_TRACEPARENT: Final = re.compile(
    r"(?:00|(?!ff)[0-9a-f]{2}(?=.{53}(?:-|$)))"
    r"-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)
_LENGTH: Final = 55
# What has to be handed on at least. More could be too much for who gets it: the headers
# of a call to TensorFlow Serving have 8 KB, and a batch is not one client's alone.
LONGEST_STATE: Final = 512


class TraceContext(NamedTuple):
    """The client's place in a trace.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 of them: what the client was doing when it asked.
        flags: A bit for what is recorded, see `is_sampled`.
        state: What tracing systems tell each other, `KEY=VALUE,…`; empty if it is
            longer than `LONGEST_STATE`.
    """

    trace_id: str
    span_id: str
    flags: int
    state: str = ""

    @classmethod
    def read(cls, traceparent: str, tracestate: str = "") -> Self | None:
        """What two headers say; `None` if the first is malformed."""
        text = traceparent.strip(" \t")
        found = _TRACEPARENT.match(text)
        if found is None or (len(text) > _LENGTH and text.startswith("00")):
            return None
        trace_id, span_id, flags = found.groups()
        state = tracestate if len(tracestate) <= LONGEST_STATE else ""
        return cls(trace_id, span_id, int(flags, 16), state)

    @property
    def is_sampled(self) -> bool:
        """Whether the client records the trace."""
        return bool(self.flags & SAMPLED)
