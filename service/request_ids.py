"""Names of requests, unique among all processes."""

import re
import secrets
from itertools import count
from typing import Final

# What may go into a header and a line of the log as it is.
USABLE: Final = re.compile(r"[!-~]{1,128}")

# A process draws lots once, for it costs more than to count.
_PROCESS: Final = secrets.token_hex(8)
_NUMBERS: Final = count(1)


def new_request_id() -> str:
    """A name that no other request has."""
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def usable(text: str) -> str | None:
    """A client's name for its request, unless it is too long or not printable."""
    return text if USABLE.fullmatch(text) else None
