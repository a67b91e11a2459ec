"""Logging of the program, the same for each of its processes.

A record whose message is a mapping has fields: JSON takes them as they are, and text
has them as `key=value`. One whose message is `Lines` is as many lines.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from pythonjsonlogger.orjson import OrjsonFormatter

from service.settings import LogFormat

# From names of attributes of records to those of JSON's fields.
JSON_FIELDS: Final[Mapping[str, str]] = {"levelname": "level", "name": "logger"}
MILLISECONDS: Final = 1000


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


def configure(level: str, form: LogFormat, *, worker: int | None = None) -> None:
    """Log to standard error from `level` on.

    Args:
        level: A level's name, as the settings spell it.
        form: How a record looks.
        worker: The number of this process where there are several.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(form, worker))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level != "debug":
        # What clients do wrong is told to them, and no news for the operator.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        logging.getLogger("watchfiles").setLevel(logging.WARNING)


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
