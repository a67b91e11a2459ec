"""One line in the log for each request, or for a share of them.

Lines tell who asked what and how it went, never what was in an image.
"""

import asyncio
import logging
from collections.abc import Mapping
from random import random
from time import time
from typing import Final

from service.errors import (
    BlockserveError,
    ClientDisconnected,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from service.telemetry.logs import Line, Lines

logger = logging.getLogger("blockserve.access")

Status = int | str

# What happens every day. All else is the server's fault, and none of it is left out.
EVERYDAY: Final = (
    InvalidRequest,
    NotFound,
    Unavailable,
    DeadlineExceeded,
    ClientDisconnected,
)
MICROSECOND_DIGITS: Final = 6
GATHERING_SECONDS: Final = 0.05


class AccessLog:
    """Writes lines, some moments later and together.

    Args:
        share: Of the requests, from 0 to 1. Those that fail through a fault of the
            server are all written.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._lines: list[Line] = []

    def takes(self, error: BlockserveError | None) -> bool:
        """Whether to write a request that ended with an error, or with none."""
        if not logger.isEnabledFor(logging.INFO):
            return False
        if error is not None and not isinstance(error, EVERYDAY):
            return True
        return random() < self._share  # noqa: S311, a sample; it is never 1

    def write(
        self,
        *,
        request_id: str,
        trace_id: str | None,
        protocol: str,
        model: str,
        version: str,
        status: Status,
        error: str | None,
        seconds: float,
        stages_seconds: Mapping[str, float],
    ) -> None:
        """Write a request down.

        Args:
            request_id: What the client calls it, or was told to.
            trace_id: The trace that it is in, if it is in one.
            protocol: How it came.
            model: What answers, or nothing if that was not found out.
            version: As `model`.
            status: What the client was told, in its protocol.
            error: The code of the error, if it was one.
            seconds: From its arrival to its answer.
            stages_seconds: What of that was spent where.
        """
        line: dict[str, object] = {
            "message": "request",
            "protocol": protocol,
            "model": model,
            "version": version,
            "status": status,
        }
        if error is not None:
            line["error"] = error
        line["seconds"] = round(seconds, MICROSECOND_DIGITS)
        for stage, taken in stages_seconds.items():
            line[f"{stage}_seconds"] = round(taken, MICROSECOND_DIGITS)
        line["request_id"] = request_id
        if trace_id is not None:
            line["trace_id"] = trace_id
        if not self._lines:
            asyncio.get_running_loop().call_later(GATHERING_SECONDS, self.flush)
        self._lines.append(Line(time(), line))

    def flush(self) -> None:
        """Write what has been gathered."""
        lines, self._lines = Lines(self._lines), []
        if lines:
            logger.info(lines)
