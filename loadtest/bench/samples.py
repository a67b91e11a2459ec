"""What the processes of Locust have written so far, added up by second."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtest.bench.sent import Sent

# Beside the files of `recorder.Recorder`: a line for each look that Locust takes at the
# shape.
STAGES_FILE: Final = "stages.jsonl"
SENT_FILES: Final = "sent-*.jsonl"
# Where the load begins in earnest, and where it ends.
BEGIN: Final = (1, 0)
END: Final = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """When the shape did what.

    Attributes:
        tries: Number and start of each stage that began, in the order of time; one
            that was taken once more is there twice. Seconds of the wall clock.
        end: Of the last one; `None` while the shape runs.
    """

    tries: Sequence[tuple[int, float]]
    end: float | None = None

    @classmethod
    def read(cls, directory: Path) -> "Course | None":
        """Read what the recorders have written; `None` before the shape has begun."""
        try:
            text = (directory / STAGES_FILE).read_text(encoding="utf-8")
        except OSError:
            return None
        tries: list[tuple[int, float]] = []
        end = None
        known = 0
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            number, begun, at = json.loads(line)
            if (number, begun) == END:
                end = at
            elif (number, begun) == BEGIN:
                tries = [(number, at)]
                known = 1
            elif begun > known:
                tries.append((number, at))
                known = begun
        return cls(tries=tries, end=end)

    def stage_at(self, second: float) -> tuple[int, float]:
        """Number and start of the stage that runs at a moment after the start."""
        return max(one for one in self.tries if one[1] <= second)

    def windows(self) -> dict[int, tuple[float, float]]:
        """Start and end of each stage; of one that was taken twice the second time."""
        ends = [start for _, start in self.tries[1:]] + [self.end or math.inf]
        return {
            number: (start, end)
            for (number, start), end in zip(self.tries, ends, strict=True)
        }


class Samples:
    """Reads what is new in the files of a directory; see `recorder` for their lines.

    Args:
        directory: Where the recorders write.

    Attributes:
        by_second: By seconds of the wall clock, and then by protocols.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read_bytes: dict[Path, int] = {}
        self.by_second: dict[int, dict[str, Sent]] = {}

    def poll(self) -> None:
        """Read the lines that were added since the last time."""
        for path in self._directory.glob(SENT_FILES):
            start = self._read_bytes.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                added = file.read()
            # A line that is being written has no end yet and waits for the next time.
            whole = added[: added.rfind(b"\n") + 1]
            self._read_bytes[path] = start + len(whole)
            for line in whole.splitlines():
                self._add(json.loads(line))

    def second(self, second: int) -> Sent:
        """What was sent in a second, over all protocols."""
        return Sent.together(self.by_second.get(second, {}).values())

    def between(self, start: float, end: float) -> tuple[dict[str, Sent], int]:
        """What was sent in the whole seconds of a time, and how many these are.

        Seconds in which nothing was sent count as well.

        Returns:
            What was sent, by protocols, and the number of seconds.
        """
        found: dict[str, Sent] = {}
        first, last = math.ceil(start), math.floor(end)
        for second in range(first, last):
            for protocol, sent in self.by_second.get(second, {}).items():
                found.setdefault(protocol, Sent()).merge(sent)
        return found, max(0, last - first)

    def _add(self, line: Mapping[str, Any]) -> None:
        protocols = self.by_second.setdefault(line["second"], {})
        protocols.setdefault(line["protocol"], Sent()).merge(Sent.read(line["sent"]))
