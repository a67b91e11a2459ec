"""What requests are called: by their names here, and in a client's trace."""

import re
import secrets
from itertools import count
from typing import Final, NamedTuple

from service.telemetry.trace_context import TraceContext

# What may go into a header and a line of the log as it is.
USABLE: Final = re.compile(r"[!-~]{1,128}")

# A process draws lots once, for it costs more than to count.
_PROCESS: Final = secrets.token_hex(8)
_NUMBERS: Final = count(1)


class Identity(NamedTuple):
    """What a request is called.

    Attributes:
        request_id: By the client, or by us where it does not say.
        context: The trace that it belongs to, if the client says so.
    """

    request_id: str
    context: TraceContext | None = None

    @classmethod
    def said(
        cls, *, request_id: str = "", traceparent: str = "", tracestate: str = ""
    ) -> "Identity":
        """What the client's headers make of it; empty is one that it did not send."""
        return cls(
            (request_id and usable(request_id)) or new_request_id(),
            TraceContext.read(traceparent, tracestate) if traceparent else None,
        )


def new_request_id() -> str:
    """A name that no other request has."""
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def usable(text: str) -> str | None:
    """A client's name for its request, unless it is too long or not printable."""
    return text if USABLE.fullmatch(text) else None
