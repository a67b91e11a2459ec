"""What tests of the images and of Compose's files need: both, as data."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.support import only

ROOT: Final = Path(__file__).parents[1]
PROGRAMS: Final = Path(sys.executable).parent
COMPOSE_FILES: Final = ("docker-compose.yml", "docker-compose.cpu.yml")
HTTP_PORT, GRPC_PORT, LOCUST_PORT = 8000, 8001, 8089
# Tests look at all services; this is how they are asked for.
ALL_SERVICES: Final = {"COMPOSE_PROFILES": "loadtest"}


def compose(
    *command: str, files: tuple[str, ...] = COMPOSE_FILES[:1], **environment: str
) -> str:
    """What Compose says, which no setting of the developer's own changes."""
    named = [option for file in files for option in ("--file", file)]
    done = subprocess.run(
        [PROGRAMS / "docker-compose", "--env-file", os.devnull, *named, *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **ALL_SERVICES, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def services(
    *, files: tuple[str, ...] = COMPOSE_FILES[:1], **environment: str
) -> dict[str, Any]:
    text = compose("config", "--format", "json", files=files, **environment)
    found: dict[str, Any] = json.loads(text)["services"]
    return found


def flags_of(command: list[str]) -> dict[str, str]:
    """Flags without their dashes, with their values."""
    matches = [re.fullmatch(r"--([\w.-]+)(?:=(.*))?", one) for one in command]
    assert all(matches), command
    return {match[1]: match[2] or "true" for match in matches if match}


@dataclass
class Stage:
    """A stage of the Dockerfile: its instructions in order, each with its text."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.instructions if name == instruction]


def dockerfile() -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments before the first stage, and the stages."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(name, base)
        elif instruction and not stages:
            assert instruction == "ARG"
            name, _, default = rest.partition("=")
            arguments[name] = default
        elif instruction:
            stage.instructions.append((instruction, rest.strip()))
    return arguments, stages


def health_check(url: str) -> subprocess.CompletedProcess[str]:
    """The gateway image's own, with the address of a gateway here."""
    _, stages = dockerfile()
    text = only(stages["gateway"].all("HEALTHCHECK"))
    program, *arguments = json.loads(text.partition("CMD ")[2])
    assert program == "python"
    code = arguments[-1]
    port = f"'127.0.0.1', {HTTP_PORT}"
    assert code.count(port) == 1
    code = code.replace(port, f"'127.0.0.1', {urlsplit(url).port}")
    return subprocess.run(
        [sys.executable, *arguments[:-1], code],
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server that gives every GET the same status: its port, and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"x " * 100_000)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()
