"""Servers as child processes: started, watched and ended by their ids."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

POLL_SECONDS: Final = 0.01
START_SECONDS: Final = 180
END_SECONDS: Final = 15

# Given what a server has printed so far: its address, as in `http://HOST:PORT`, or
# `None` while it is not ready.
Ready = Callable[[str], str | None]


class ServerFailed(RuntimeError):
    """A server did not start, or does not answer as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs.

    Attributes:
        printed: What it had printed when it was ready.
        ready_seconds: How long that took from its start.
    """

    address: str
    pid: int
    printed: str = ""
    ready_seconds: float = 0.0

    def memory_bytes(self) -> int:
        """What it and its children hold; what they share counts once."""
        total = 0
        for one in _family(self.pid):
            with suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().pss
        return total


def announced(address: re.Pattern[str]) -> Ready:
    """Ready once it has printed what `address` finds; the first group counts."""

    def ready(printed: str) -> str | None:
        found = address.search(printed)
        return found[1] if found else None

    return ready


@contextmanager
def server(
    command: Sequence[str],
    *,
    ready: Ready,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Iterator[Server]:
    """Run a server, and what it starts itself, until the block ends.

    Args:
        command: Program and arguments.
        ready: Asked again and again, until it gives an address.
        environment: Variables besides those of this process.
        directory: Where it runs.

    Raises:
        ServerFailed: It ended or was not ready in time; says what it printed.
    """
    # A file and not a pipe, which a server that logs much would fill, and then wait.
    with tempfile.TemporaryFile() as printed:
        started_at = time.monotonic()
        process = subprocess.Popen(  # noqa: S603, programs that the benchmarks name
            command,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        try:
            address, text = _wait(process, printed, ready)
            yield Server(
                address=address,
                pid=process.pid,
                printed=text,
                ready_seconds=time.monotonic() - started_at,
            )
        finally:
            end(process)


def cpu_seconds(pid: int) -> float:
    """Time that a process and its living children have computed since their start."""
    total = 0.0
    for one in _family(pid):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def _family(pid: int) -> Sequence[psutil.Process]:
    """A process, and the living ones that it or they have started."""
    process = psutil.Process(pid)
    return (process, *process.children(recursive=True))


def _wait(
    process: subprocess.Popen[bytes], printed: IO[bytes], ready: Ready
) -> tuple[str, str]:
    """Its address, and what it has printed."""
    give_up = time.monotonic() + START_SECONDS
    while True:
        running = process.poll() is None and time.monotonic() < give_up
        printed.seek(0)
        text = printed.read().decode(errors="replace")
        if address := ready(text):
            return address, text
        if not running:
            raise ServerFailed(f"{process.args!r} did not start:\n{text}")
        time.sleep(POLL_SECONDS)


def end(
    process: subprocess.Popen[bytes], *, patience_seconds: float = END_SECONDS
) -> None:
    """End a process, and then those that it has started, which some leave behind.

    Args:
        process: It may have ended already.
        patience_seconds: How long each may take before it is killed.
    """
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(family, patience_seconds)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
