"""`blockserve serve`: the gateway."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

from cyclopts import Parameter
from rich.console import Console

from models.card import SAMPLE_FILE, scan
from service.errors import InvalidSettings
from service.settings import Settings
from service.telemetry import logs

# What to dial for an address that means every interface.
ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104, not bound
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM)
SIGNALLED: Final = 128  # what shells add to the signal that has ended a program


def serve(*, settings: Annotated[Settings | None, Parameter(name="*")] = None) -> None:
    """Serve the repository's models over HTTP and gRPC.

    An empty repository gets the demo model first.
    """
    settings = settings or Settings()
    if settings.engine != "tfserving":
        build_demo_if_empty(settings.repository)
    logs.configure(settings.log_level, settings.log_format)
    # Imported late: the servers are not needed to say what is wrong with a setting.
    if settings.workers == 1:
        _serve_alone(settings)
    else:
        _serve_with_workers(settings)


def build_demo_if_empty(repository: Path) -> None:
    """Build the demo model where a repository holds nothing.

    Raises:
        InvalidSettings: It is no directory, or the build step is not installed.
        SystemExit: The build has failed, and said why.
    """
    if _is_empty(repository):
        _build_demo(repository)


def _serve_alone(settings: Settings) -> None:
    from service.server import (  # noqa: PLC0415
        Running,
        new_event_loop,
        run,
        spare_the_collector,
    )

    def on_start(running: Running) -> None:
        spare_the_collector()
        _announce(settings, running.http_port, running.grpc_port)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run(settings, on_start=on_start))


def _serve_with_workers(settings: Settings) -> None:
    from service.workers.supervisor import supervise  # noqa: PLC0415

    status = asyncio.run(supervise(settings, on_start=partial(_announce, settings)))
    sys.exit(status)


def _is_empty(repository: Path) -> bool:
    if not repository.exists():
        return True
    if not repository.is_dir():
        raise InvalidSettings(f"repository: {repository} is not a directory")
    return not any(entry.name[0] != "." for entry in repository.iterdir())


def _build_demo(repository: Path) -> None:
    """Build in a process of its own, so that the gateway never holds TensorFlow."""
    if find_spec("keras") is None:
        raise InvalidSettings(
            f"repository: {repository} is empty and the build step is not installed. "
            "Put a model there, or pip install 'blockserve[build]' to get the demo"
        )
    _say(f"[bold]{repository}[/bold] is empty: building the demo model first")
    command = [sys.executable, "-m", "service", "build"]
    command += ["--repository", str(repository)]
    status = _run_until_signalled(command)
    if status != 0:
        sys.exit(status)


def _run_until_signalled(command: Sequence[str]) -> int:
    """Run a command; the first Ctrl-C or SIGTERM ends it, the second kills it.

    Answers its exit status, or what shells make of the signal.
    """
    signals: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def end(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        for process in started:
            process.terminate() if len(signals) == 1 else process.kill()

    before = {number: signal.signal(number, end) for number in ENDINGS}
    try:
        # In a group of its own: to a build, Ctrl-C means to finish its training early.
        # Flags of our own program and a path, without a shell.
        started.append(subprocess.Popen(command, process_group=0))  # noqa: S603
        if signals:  # it came before there was anything to end
            started[0].terminate()
        status = started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return SIGNALLED + signals[0] if signals else status


def _announce(settings: Settings, http_port: int, grpc_port: int) -> None:
    scheme = "https" if settings.tls_certificate else "http"
    host = ANY_ADDRESS.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{host}:{http_port}"
    sample = _sample(settings.repository)
    logs.flush()
    _say(f"[bold green]Serving[/bold green] HTTP at {url}, gRPC at {host}:{grpc_port}")
    _say(f"  Look at {url}/docs, {url}/models, {url}/metrics")
    _say(
        f"  Try     curl -H 'Content-Type: image/png' --data-binary @{sample} "
        f"{url}/classify"
    )


def _sample(repository: Path) -> Path:
    """An image to try, as the build step leaves one beside the latest version."""
    found: dict[str, dict[int, Path]] = {}
    with suppress(OSError):  # the repository may be away; serving goes on
        found = scan(repository)
    versions = found[min(found)] if found else {}
    if versions:
        sample = versions[max(versions)] / SAMPLE_FILE
        if sample.is_file():
            return sample
    return Path("IMAGE.png")


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, highlight=False)
