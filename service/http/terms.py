"""What the headers of a request say of its time and its turn."""

import math
from collections.abc import Mapping
from typing import Final

from service.batching import Priority
from service.errors import InvalidRequest

TIMEOUT: Final = b"x-request-timeout"
PRIORITY: Final = b"x-request-priority"
PRIORITIES: Final = {priority.name.lower().encode(): priority for priority in Priority}
SHOWN_CHARACTERS: Final = 40


def priority(headers: Mapping[bytes, bytes]) -> Priority:
    """Whose turn it is.

    Raises:
        InvalidRequest: It is none that there is.
    """
    text = headers.get(PRIORITY)
    if text is None:
        return Priority.INTERACTIVE
    found = PRIORITIES.get(text.lower())
    if found is None:
        raise InvalidRequest(
            "X-Request-Priority: expected 'interactive' or 'batch', got "
            f"{text[:SHOWN_CHARACTERS].decode('latin-1')!r}"
        )
    return found


def timeout_seconds(headers: Mapping[bytes, bytes]) -> float | None:
    """The time that the client gives; `None` if it does not say.

    Raises:
        InvalidRequest: It is no positive number.
    """
    text = headers.get(TIMEOUT)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(
            "X-Request-Timeout: expected a positive number of seconds, got "
            f"{text[:SHOWN_CHARACTERS].decode('latin-1')!r}"
        )
    return seconds
