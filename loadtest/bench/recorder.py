"""A locustfile without users: notes in files what becomes of each request.

    python -m locust -f USERS,loadtest/bench/recorder.py --samples DIRECTORY …

Locust's own history has one percentile of everything each few seconds. Here each
process writes one line of JSON a second and protocol, with a histogram; adding them up
is left to who reads. A request counts for the second in which it was due, for that is
when the load was what it was; so a slow one makes another line for an earlier second.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import gevent
from locust import events
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.bench.samples import BEGIN, END, STAGES_FILE
from loadtest.bench.sent import Sent
from loadtest.shapes.outcomes import REFUSED
from loadtest.shapes.staged import StagedShape

FLUSH_SECONDS: Final = 1.0
LONGEST_FAILURE: Final = 120
MILLISECONDS: Final = 1000


class Recorder:
    """Counts what one process sends, and writes it down.

    Args:
        directory: Where its file goes, named after the process.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"sent-{os.getpid()}.jsonl"
        self._sent: dict[tuple[int, str], Sent] = defaultdict(Sent)

    def request(
        self,
        *,
        request_type: str,
        name: str,
        response_time: float | None,
        exception: Exception | None,
        **_: Any,
    ) -> None:
        """Count one; Locust calls this for each that has ended."""
        seconds = (response_time or 0.0) / MILLISECONDS
        second = int(time.time() - seconds)
        failure = REFUSED.strip(" ()") if name.endswith(REFUSED) else None
        if exception is not None:
            failure = str(exception)[:LONGEST_FAILURE] or type(exception).__name__
        sent = self._sent[second, request_type]
        if failure is None:
            sent.latencies.add(seconds)
        else:
            sent.fail(failure)

    def flush(self) -> None:
        """Write what was counted since the last time."""
        counted, self._sent = self._sent, defaultdict(Sent)
        lines = [
            {"second": second, "protocol": protocol, "sent": asdict(sent)}
            for (second, protocol), sent in counted.items()
        ]
        if lines:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)

    def flush_always(self) -> None:
        """Write each second."""
        while True:
            gevent.sleep(FLUSH_SECONDS)
            self.flush()


@events.init_command_line_parser.add_listener
def _add_option(parser: Any) -> None:
    parser.add_argument(
        "--samples",
        default="",  # a text, for the master sends it to its workers
        include_in_web_ui=False,
        help="directory for lines of JSON with what became of the requests",
    )


@events.init.add_listener
def _listen(environment: Environment, **_: Any) -> None:
    options: Any = environment.parsed_options
    if not options.samples:
        return
    directory = Path(options.samples)
    recorder = Recorder(directory)
    environment.events.request.add_listener(recorder.request)
    environment.events.quitting.add_listener(lambda **_: recorder.flush())
    gevent.spawn(recorder.flush_always)
    shape = environment.shape_class
    # Workers only send; the other process has the shape.
    if isinstance(shape, StagedShape) and not isinstance(
        environment.runner, WorkerRunner
    ):
        path = directory / STAGES_FILE
        shape.tick = _noted(shape, path)  # type: ignore[method-assign]
        # Locust has looked at the shape once before, for the number of users.
        environment.events.test_start.add_listener(lambda **_: _note(path, BEGIN))


def _noted(shape: StagedShape, path: Path) -> Callable[[], Any]:
    """The shape's `tick`, which also writes which stage it is in from now on."""
    tick = shape.tick

    def noted() -> Any:
        users = tick()
        _note(path, END if users is None else shape.place)
        return users

    return noted


def _note(path: Path, place: tuple[int, int]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps([*place, time.time()]) + "\n")
