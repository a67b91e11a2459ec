"""What several tests need: repositories, images and running servers."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from PIL import Image

from models.card import ImageInput, ModelCard, OutputTensor
from service.client import AsyncClient, Client
from service.server import Running, run
from service.settings import Settings

LABELS: Final = tuple("abcdefghij")
BLOCKSERVE: Final = (sys.executable, "-m", "service")
ANNOUNCEMENT: Final = re.compile(r"HTTP at (http://\S+), gRPC at (\S+)")


def stub_version(
    repository: Path, name: str = "stub", version: int = 1, *, side: int = 4
) -> Path:
    """A version directory that the stub engine loads: a card and an empty model."""
    card = ModelCard(
        name=name,
        version=version,
        architecture="stub",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        image_input=ImageInput(
            tensor="images",
            height=side,
            width=side,
            channels=1,
            colour_order="grey",
        ),
        outputs=(OutputTensor(name="probabilities", role="probabilities"),),
        labels=LABELS,
    )
    directory = repository / name / str(version)
    directory.mkdir(parents=True)
    card.write(directory)
    (directory / "saved_model.pb").touch()
    return directory


def encode(pixels: Any, form: str = "PNG", **options: Any) -> bytes:
    """Encode an array or a Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def image_of_class(index: int) -> bytes:
    """A 4×4 grey PNG to which the stub engine gives the class `index`."""
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0, 0] = index
    return encode(pixels)


@dataclass(frozen=True, slots=True)
class Served:
    """A running gateway and an HTTP client of it."""

    running: Running
    client: httpx.AsyncClient


@asynccontextmanager
async def serving(repository: Path, **settings: Any) -> AsyncIterator[Served]:
    """Run both servers on free ports, over real sockets, until the block ends."""
    started: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
    chosen = Settings(
        repository=repository,
        **{"engine": "stub", "http_port": 0, "grpc_port": 0, **settings},
    )
    server = asyncio.create_task(run(chosen, on_start=started.set_result))
    await asyncio.wait({server, started}, return_when=asyncio.FIRST_COMPLETED)
    if server.done():
        server.result()
    running = started.result()
    url = f"http://127.0.0.1:{running.http_port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            yield Served(running, client)
    finally:
        running.stop()
        await server


@dataclass(frozen=True, slots=True)
class Asked:
    """A client of either kind, whose methods are awaited in any case."""

    client: Client | AsyncClient

    async def __call__(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method; a client that waits does so in a thread."""
        bound = getattr(self.client, method)
        if isinstance(self.client, AsyncClient):
            return await bound(*arguments, **options)
        return await asyncio.to_thread(bound, *arguments, **options)


@asynccontextmanager
async def asking(kind: str, address: str, **options: Any) -> AsyncIterator[Asked]:
    """A client that waits, or is awaited if `kind` is `async`, until the block ends."""
    if kind == "async":
        async with AsyncClient(address, **options) as awaited:
            yield Asked(awaited)
    else:
        with Client(address, **options) as waiting:
            yield Asked(waiting)


def address_of(served: Served, scheme: str) -> str:
    """Where a running gateway answers `http`, `https`, `grpc` or `grpcs`."""
    running = served.running
    port = running.http_port if scheme.startswith("http") else running.grpc_port
    return f"{scheme}://127.0.0.1:{port}"


@contextmanager
def started(
    *arguments: str, cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """`blockserve serve` on free ports: process, address and first lines."""
    command = [*BLOCKSERVE, "serve", "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    ) as process:
        try:
            lines = []
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if "curl" in line:
                    break
            found = ANNOUNCEMENT.search("".join(lines))
            assert found, "".join(lines)
            yield process, found[1], lines
        finally:
            process.kill()


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """The key and the chain of a certificate for this machine that signs itself."""
    key, chain = directory / f"{name}.key.pem", directory / f"{name}.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(chain), "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        capture_output=True,
        check=True,
    )
    return key, chain


def only(items: Any) -> Any:
    """The single item of a collection."""
    (item,) = items
    return item
