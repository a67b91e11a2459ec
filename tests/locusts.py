"""Runs of the real Locust, and servers that it cannot be content with."""

import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import grpc
import httpx
import numpy as np

from loadtest.shapes.outcomes import REFUSED
from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
)
from tests.deployment import PROGRAMS, ROOT

LOCUST: Final = PROGRAMS / "locust"
HTTP_ENTRY: Final = "/models/inception/classify"
GRPC_ENTRY: Final = "/blockserve.v1.ImageClassifier/Classify"
# A run that hangs fails.
MOST_SECONDS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of Locust's statistics."""

    requests: int
    failures: int
    milliseconds: Mapping[float, int]

    def percentile_seconds(self, percent: float) -> float:
        """So many percent take no longer."""
        times = list(self.milliseconds)
        every = np.repeat(times, list(self.milliseconds.values()))
        return float(np.percentile(every, percent)) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run left: its status, its log and its statistics by type and name."""

    status: int
    log: str
    entries: Mapping[tuple[str, str], Entry]

    def __getitem__(self, entry: tuple[str, str]) -> Entry:
        return self.entries[entry]


def locust(*arguments: str, host: str, grpc_host: str = "127.0.0.1:9") -> Run:
    """Run Locust without its web UI, as a reader of docs/loadtest.md would."""
    addresses = ["--host", host]
    if "--locustfile" not in arguments:
        addresses += ["--grpc-host", grpc_host]
    done = subprocess.run(
        [LOCUST, "--headless", "--json", *addresses, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=MOST_SECONDS,
    )
    # Worker processes print lists of their own before it, which are empty; the ends of
    # their lines may come later.
    text = re.sub(r"^(\s*\[\])*\s*", "", done.stdout) or "[]"
    entries = {
        (one["method"], one["name"]): Entry(
            requests=one["num_requests"],
            failures=one["num_failures"],
            milliseconds={float(k): v for k, v in one["response_times"].items()},
        )
        for one in json.loads(text)
    }
    return Run(status=done.returncode, log=done.stderr, entries=entries)


@dataclass(frozen=True, slots=True)
class Answer:
    """A class, or a status that is an error."""

    index: int = 0
    status: int = 200
    retry_after: bool = False


# Given the number of a request, from 0, and its image.
Behaviour = Callable[[int, bytes], Answer]


def class_of(image: bytes) -> int:
    """Any; the same for the same image."""
    return sum(image) % 10


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one piece, or the second waits for an ACK.
    wbufsize = -1

    def body(self) -> bytes:
        """What was sent."""
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def send(self, status: int, body: Any, *, retry_after: bool = False) -> None:
        """Answer with JSON."""
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        if retry_after:
            self.send_header("retry-after", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@contextmanager
def _listening(handler: type[_Handler]) -> Iterator[str]:
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def answering_http(behaviour: Behaviour) -> Iterator[str]:
    """A server that knows a model `inception` and answers `/classify`: its address."""
    counter, lock = iter(range(10**9)), threading.Lock()

    class Handler(_Handler):
        def do_GET(self) -> None:
            shape = [-1, 28, 28, 1]
            self.send(200, {"inputs": [{"name": "images", "shape": shape}]})

        def do_POST(self) -> None:
            image = self.body()
            with lock:
                number = next(counter)
            answer = behaviour(number, image)
            predictions = [{"index": answer.index}]
            self.send(
                answer.status,
                {"results": [{"predictions": predictions}]},
                retry_after=answer.retry_after,
            )

    with _listening(Handler) as address:
        yield address


@contextmanager
def answering_as_tf_serving(gateway: str) -> Iterator[str]:
    """TensorFlow Serving alone: what a gateway answers below `/v1`, and no more."""

    class Handler(_Handler):
        def do_GET(self) -> None:
            self.pass_on()

        def do_POST(self) -> None:
            self.pass_on()

        def pass_on(self) -> None:
            body = self.body()
            if not self.path.startswith("/v1/"):
                self.send(404, {"error": "Not Found"})
                return
            answer = client.request(self.command, self.path, content=body)
            self.send(answer.status_code, answer.json())

    with httpx.Client(base_url=gateway) as client, _listening(Handler) as address:
        yield address


@contextmanager
def answering_grpc(behaviour: Behaviour) -> Iterator[str]:
    """The same for `ImageClassifier.Classify`; statuses are those of gRPC, 0 is OK."""
    counter, lock = iter(range(10**9)), threading.Lock()
    codes = {code.value[0]: code for code in grpc.StatusCode}

    def classify(
        request: ClassifyRequest, context: grpc.ServicerContext
    ) -> ClassifyResponse:
        with lock:
            number = next(counter)
        answer = behaviour(number, request.images[0])
        if answer.status:
            if answer.retry_after:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", "10"),))
            context.abort(codes[answer.status], "as the test wants it")
        response = ClassifyResponse()
        response.results.add().predictions.add(index=answer.index)
        return response

    handler = grpc.unary_unary_rpc_method_handler(
        classify,
        request_deserializer=ClassifyRequest.FromString,
        response_serializer=ClassifyResponse.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service = GRPC_ENTRY.split("/")[1]
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"Classify": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Locust as it is started by hand, until the block ends; it has a minute."""
    with subprocess.Popen(
        [LOCUST, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        alarm = threading.Timer(MOST_SECONDS, process.kill)
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()
            process.kill()


def logged(process: subprocess.Popen[str], text: str) -> str:
    """The line of its log in which the text comes first.

    Raises:
        AssertionError: It ended without it; says what it logged.
    """
    assert process.stderr is not None
    before = []
    for line in process.stderr:
        if text in line:
            return line
        before.append(line)
    raise AssertionError("".join(before))


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def refused(entry: str) -> str:
    """The name under which refusals are counted."""
    return entry + REFUSED
