"""Logging of the program, the same for each of its processes.

A record whose message is a mapping has fields: JSON takes them as they are, and text
has them as `key=value`. One whose message is `Lines` is as many lines.
"""

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from threading import Condition, Thread
from typing import Any, Final, NamedTuple

from pythonjsonlogger.orjson import OrjsonFormatter

from service.settings import LogFormat

# From names of attributes of records to those of JSON's fields.
JSON_FIELDS: Final[Mapping[str, str]] = {"levelname": "level", "name": "logger"}
MILLISECONDS: Final = 1000
# What waits for a reader that is slow; some thousand lines of requests.
MAX_WAITING_CHARACTERS: Final = 1_000_000
# What a reader that reads nothing may delay the end of the process by.
FLUSH_SECONDS: Final = 1.0


class Line(NamedTuple):
    """One of `Lines`: when it came, in seconds since 1970, and its fields."""

    at: float
    fields: dict[str, Any]


class Lines(tuple[Line, ...]):
    """The message of a record that stands for many: one would cost several times more.

    What logging does for a record takes longer than to write a line, and so does the
    system for each write.
    """

    __slots__ = ()


class TextFormatter(logging.Formatter):
    """For people: one line a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return "\n".join(map(super().format, _single(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, its name
        """The line of a record."""
        if isinstance(record.msg, Mapping):
            fields = dict(record.msg)
            message = str(fields.pop("message", ""))
            told = (f"{key}={value}" for key, value in fields.items())
            record.message = " ".join((message, *told))
        return super().formatMessage(record)


class JsonFormatter(OrjsonFormatter):
    """For programs: an object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return "\n".join(map(super().format, _single(record)))


class PatientHandler(logging.Handler):
    """Writes to a file in a thread, so that nobody else waits for who reads it.

    A pipe that is full takes no more until it is read, and whoever writes to it waits:
    were that the event loop, a log that nobody reads would stop the gateway. logging's
    own `QueueListener` waits as long as it takes when it ends, and counts no losses.

    Args:
        descriptor: The file's; `None` is standard error.
        max_waiting: Most characters that wait; more are left out, and the log says so.
    """

    def __init__(
        self,
        descriptor: int | None = None,
        *,
        max_waiting: int = MAX_WAITING_CHARACTERS,
    ) -> None:
        super().__init__()
        # Past Python's buffer: at its end it waits for whoever is writing to that.
        self._file = sys.stderr.fileno() if descriptor is None else descriptor
        self._max_waiting = max_waiting
        self._waiting: deque[str] = deque()  # with what is being written, the first
        self._waiting_characters = 0
        self._left_out = 0
        self._is_closed = False
        self._changed = Condition()
        Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if self._waiting_characters + len(text) > self._max_waiting:
                self._left_out += text.count("\n") + 1
                return
            self._put(text)

    def flush(self) -> None:
        """Wait until all is written, but not for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, FLUSH_SECONDS)

    def close(self) -> None:
        """Take nothing more, and end the thread once it has written."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    def _put(self, text: str) -> None:
        self._waiting.append(text)
        self._waiting_characters += len(text)
        self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                text = self._waiting[0]
            with suppress(OSError):  # there is nowhere to say so
                self._write_out(f"{text}\n".encode(errors="backslashreplace"))
            with self._changed:
                self._waiting.popleft()
                self._waiting_characters -= len(text)
                if self._left_out:
                    self._put(self.format(_left_out(self._left_out)))
                    self._left_out = 0
                self._changed.notify_all()

    def _write_out(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._file, line) :]


def configure(level: str, form: LogFormat, *, worker: int | None = None) -> None:
    """Log to standard error from `level` on; what is left is written at the end.

    Args:
        level: A level's name, as the settings spell it.
        form: How a record looks.
        worker: The number of this process where there are several.
    """
    handler = PatientHandler()
    handler.setFormatter(formatter(form, worker))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level != "debug":
        # What clients do wrong is told to them, and no news for the operator.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        logging.getLogger("watchfiles").setLevel(logging.WARNING)


def flush() -> None:
    """Let what has been logged be written before what comes by another way."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def formatter(form: LogFormat, worker: int | None = None) -> logging.Formatter:
    """What makes lines of records; see `configure`."""
    if form == "json":
        return JsonFormatter(
            "%(levelname)s %(name)s %(message)s",
            rename_fields=JSON_FIELDS,
            static_fields={} if worker is None else {"worker": worker},
            timestamp="time",
        )
    who = "" if worker is None else f"[worker {worker}] "
    return TextFormatter(f"%(asctime)s %(levelname)-7s {who}%(name)s  %(message)s")


def _left_out(lines: int) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "%d lines are left out: the log was not read",
            "args": (lines,),
        }
    )


def _single(record: logging.LogRecord) -> Iterator[logging.LogRecord]:
    """The record, or one after the other those that it stands for."""
    lines = record.msg
    if not isinstance(lines, Lines):
        yield record
        return
    for line in lines:
        record.msg = line.fields
        record.created = line.at
        record.msecs = line.at % 1 * MILLISECONDS
        yield record
    record.msg = lines
