"""What no gateway can beat by much: applications that read a body and say the same.

`asgi` is the bare protocol of the server; `fastapi` is a route as its users write it.
Both answer as much as the gateway does with its five predictions.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

from loadtest.harness.processes import Server, announced, server

PREDICTIONS: Final[Sequence[Mapping[str, Any]]] = [
    {"label": str(index), "index": index, "probability": 0.1234567890123456 / index}
    for index in range(1, 6)
]
ANSWER: Final[dict[str, Any]] = {
    "model": "inception",
    "version": 1,
    "results": [{"predictions": PREDICTIONS}],
}
ANSWER_BODY: Final = orjson.dumps(ANSWER)
START: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(ANSWER_BODY)),
    ],
}
ANNOUNCEMENT: Final = re.compile(r"running on (http://\S+) ")


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, answer."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send(START)
    await send({"type": "http.response.body", "body": ANSWER_BODY})


fastapi = FastAPI()


@fastapi.post("/classify")
async def classify(request: Request) -> dict[str, Any]:
    """Read the body, answer."""
    await request.body()
    return ANSWER


@contextmanager
def baseline(application: str) -> Iterator[Server]:
    """Serve `asgi` or `fastapi` with the gateway's HTTP server until the block ends."""
    command = [sys.executable, "-m", "uvicorn", f"{__name__}:{application}"]
    command += ["--port", "0", "--no-access-log", "--lifespan", "off"]
    command += ["--loop", "uvloop", "--http", "httptools"]
    with server(command, ready=announced(ANNOUNCEMENT)) as started:
        yield started
