"""The real gateway in a process of its own, as an operator would start it."""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loadtest.harness.processes import Server, ServerFailed, announced, server

PROGRAM: Final = ("-m", "service")
# The line is there to its end, and the ports to their last digits.
ANNOUNCEMENT: Final = re.compile(r"HTTP at (https?://\S+), gRPC at \S+\n")
GRPC_ANNOUNCEMENT: Final = re.compile(r"gRPC at (\S+)\n")


@contextmanager
def gateway(
    repository: Path,
    *flags: str,
    model: str,
    program: Sequence[str] = PROGRAM,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """`blockserve serve` on free ports until the block ends; its models are warm.

    Args:
        repository: Directory of models.
        flags: More of the command line, as in `"--max-batch-size", "8"`.
        model: The only one to serve, where the repository has others.
        program: What Python runs; another one than the gateway's must end in it.
        environment: Variables besides those of this process.

    Raises:
        ServerFailed: It did not start; says what it printed.
    """
    with repository_of(repository, model) as only:
        command = gateway_command(only, "--http-port", "0", *flags, program=program)
        ready = announced(ANNOUNCEMENT)
        with server(command, ready=ready, environment=environment) as started:
            yield started


def grpc_address(server: Server) -> str:
    """Where a server answers gRPC, as in `127.0.0.1:8001`.

    Raises:
        ServerFailed: It has not said so.
    """
    address = announced(GRPC_ANNOUNCEMENT)(server.printed)
    if address is None:
        raise ServerFailed(f"no address of gRPC in {server.printed!r}")
    return address


def gateway_command(
    repository: Path, *flags: str, program: Sequence[str] = PROGRAM
) -> list[str]:
    """The command line that serves a repository; `flags` choose the HTTP port."""
    command = [sys.executable, *program, "serve", "--grpc-port", "0"]
    return [*command, "--repository", str(repository), *flags]


@contextmanager
def repository_of(repository: Path, model: str) -> Iterator[Path]:
    """A repository that holds one of another's models, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        link = Path(folder, model)
        link.symlink_to((repository / model).absolute(), target_is_directory=True)
        yield Path(folder)
