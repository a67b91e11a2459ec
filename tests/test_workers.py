"""Several processes on one port: they share the work, and one answers for all."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.errors import InvalidSettings
from service.ports import reserved
from service.settings import DURATION_BUCKETS_SECONDS
from service.telemetry.access_log import AccessLog
from service.telemetry.metrics import Metrics, render
from service.telemetry.observation import Edge
from service.telemetry.request_ids import Identity
from service.telemetry.tracing import Operation
from service.workers.totals import Totals
from tests.support import (
    ANNOUNCEMENT,
    BLOCKSERVE,
    image_of_class,
    started,
    stub_version,
)

ROOT: Final = Path(__file__).parents[1]
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"
SERVED: Final = {"protocol": "http", "model": "stub", "version": "1"}


class Program:
    """A running gateway with two workers."""

    def __init__(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        found = ANNOUNCEMENT.search("".join(lines))
        assert found
        self.process = process
        self.url, self.grpc_address = found.groups()
        self.http_port = int(self.url.rsplit(":", 1)[1])
        self.grpc_port = int(self.grpc_address.rsplit(":", 1)[1])

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def classify(self) -> None:
        """Over a connection of its own."""
        answer = httpx.post(f"{self.url}/classify", content=image_of_class(3))
        assert answer.json()["results"][0]["predictions"][0]["label"] == "d"

    def connection_to(self, worker: psutil.Process) -> HTTPConnection:
        """The kernel chooses the worker by a hash of the ports: try until it fits."""
        while True:
            connection = HTTPConnection("127.0.0.1", self.http_port, timeout=10)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            port = connection.sock.getsockname()[1]
            peers = {it.raddr.port for it in worker.net_connections() if it.raddr}
            if port in peers:
                return connection
            connection.close()

    def sample(self, name: str, **labels: str) -> float | None:
        text = httpx.get(f"{self.url}/metrics").text
        return value(text_string_to_metric_families(text), name, **labels)


def value(families: Any, name: str, **labels: str) -> float | None:
    for family in families:
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


@pytest.fixture
def repository_of_stubs(tmp_path: Path) -> Path:
    stub_version(tmp_path / "repository")
    return tmp_path / "repository"


def arguments(repository: Path) -> tuple[str, ...]:
    return ("--engine", "stub", "--workers", "2", "--repository", str(repository))


@pytest.fixture(name="program")
def _program(repository_of_stubs: Path) -> Iterator[Program]:
    with started(*arguments(repository_of_stubs)) as (process, _, lines):
        yield Program(process, lines)


@pytest.fixture(scope="module", name="shared")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A program that no test ends."""
    repository = tmp_path_factory.mktemp("repository")
    stub_version(repository)
    with started(*arguments(repository)) as (process, _, lines):
        yield Program(process, lines)


def test_both_workers_listen_on_the_one_port_of_each_protocol(shared: Program) -> None:
    workers = shared.workers()
    assert len(workers) == 2
    for worker in workers:
        listening = {
            it.laddr.port for it in worker.net_connections() if it.status == "LISTEN"
        }
        assert listening == {shared.http_port, shared.grpc_port}


def test_either_worker_is_asked_for_the_metrics_of_both(shared: Program) -> None:
    before = shared.sample("blockserve_requests_total", **SERVED) or 0
    with ExitStack() as stack:
        connections = [shared.connection_to(worker) for worker in shared.workers()]
        for count, connection in enumerate(connections, 1):
            stack.callback(connection.close)
            for _ in range(10 * count):
                connection.request("POST", "/classify", image_of_class(1))
                assert connection.getresponse().read().startswith(b'{"model":"stub"')
        for connection in connections:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            families = list(text_string_to_metric_families(text))
            names = [family.name for family in families]
            assert len(names) == len(set(names))
            for name in (
                "blockserve_requests_total",
                "blockserve_request_duration_seconds_count",
            ):
                assert value(families, name, **SERVED) == before + 30
            memory = [
                value(families, "process_resident_memory_bytes", worker=worker)
                for worker in "12"
            ]
            assert None not in memory
            up = [value(families, "blockserve_worker_up", worker=it) for it in "12"]
            assert up == [1, 1]


def test_openmetrics_of_both_workers_can_be_parsed(shared: Program) -> None:
    shared.classify()
    answer = httpx.get(f"{shared.url}/metrics", headers={"accept": OPENMETRICS})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = list(openmetrics.text_string_to_metric_families(answer.text))
    assert (value(families, "blockserve_requests_total", **SERVED) or 0) >= 1
    assert value(families, "blockserve_worker_restarts_total") is not None


def test_what_the_supervisor_adds_is_documented(shared: Program) -> None:
    documented = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    text = httpx.get(f"{shared.url}/metrics").text
    names = set(re.findall(r"^# TYPE (blockserve_worker_\w+)", text, re.MULTILINE))
    assert len(names) == 2
    for name in names:
        assert f"| `{name}` |" in documented


def test_grpc_health_answers_whichever_worker_gets_the_call(shared: Program) -> None:
    for number in range(6):
        # Channels with equal options would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("number", number)]
        with grpc.insecure_channel(shared.grpc_address, options) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_killed_worker_is_replaced_and_what_it_counted_stays(
    shared: Program,
) -> None:
    requests, restarts = "blockserve_requests_total", "blockserve_worker_restarts_total"
    for _ in range(10):
        shared.classify()
    counted = shared.sample(requests, **SERVED)
    restarted = shared.sample(restarts)
    assert counted is not None
    assert restarted is not None
    killed = shared.workers()[0]
    killed.kill()
    killed.wait(timeout=20)
    while shared.sample(restarts) != restarted + 1:
        assert shared.process.poll() is None
    assert shared.sample(requests, **SERVED) == counted
    while not all(shared.sample("blockserve_worker_up", worker=it) for it in "12"):
        assert shared.process.poll() is None
    for _ in range(10):
        shared.classify()
    assert shared.sample(requests, **SERVED) == counted + 10


def test_sigterm_drains_every_worker_and_ends_with_status_0(program: Program) -> None:
    workers = program.workers()
    program.process.send_signal(signal.SIGTERM)
    output, _ = program.process.communicate(timeout=20)
    assert program.process.returncode == 0
    assert output.count("shutting down") == 2
    for worker in "12":
        assert f"[worker {worker}] service.repository  stub version 1 is unl" in output
    assert "Traceback" not in output
    assert not any(worker.is_running() for worker in workers)


def test_a_second_ctrl_c_does_not_wait_for_requests(program: Program) -> None:
    workers = program.workers()
    with ExitStack() as stack:
        for worker in workers:
            connection = program.connection_to(worker)
            stack.callback(connection.close)
            connection.putrequest("POST", "/classify")
            connection.putheader("Content-Length", "9")
            connection.endheaders(b"not all")
        program.process.send_signal(signal.SIGINT)
        output = program.process.stdout
        assert output is not None
        seen = [next(line for line in output if "shutting down" in line) for _ in "12"]
        assert {line.split("]")[0][-1] for line in seen} == set("12")
        assert program.process.poll() is None
        program.process.send_signal(signal.SIGINT)
        program.process.communicate(timeout=20)
    assert program.process.returncode == 128 + signal.SIGINT
    assert not any(worker.is_running() for worker in workers)


def test_workers_end_when_their_supervisor_is_killed(program: Program) -> None:
    workers = program.workers()
    program.process.kill()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert (len(gone), alive) == (2, [])


def serve_and_fail(*more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BLOCKSERVE, "serve", "--workers", "2", *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_what_keeps_workers_from_starting_is_told_once_and_ends_the_program(
    repository_of_stubs: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    done = serve_and_fail(
        *("--engine", "stub", "--repository", str(repository_of_stubs)),
        *("--http-port", "0", "--grpc-port", "0"),
        *("--tls-certificate", str(wrong), "--tls-key", str(wrong)),
    )
    assert done.returncode == 1
    assert done.stderr.count("not a PEM certificate") == 1
    assert "Traceback" not in done.stderr


def test_an_embedded_engine_gets_one_process(repository_of_stubs: Path) -> None:
    done = serve_and_fail("--repository", str(repository_of_stubs))
    assert done.returncode == 2
    assert "leave workers at 1" in done.stderr


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_of_another_program_is_refused_even_if_that_shares_it(
    option: int,
) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, option, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InvalidSettings, match=f"port {port}.*--http-port"),
            reserved("127.0.0.1", port, "--http-port"),
        ):
            pass


def test_the_supervisor_loads_no_server() -> None:
    code = "import sys, service.workers.supervisor; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"fastapi", "uvicorn", "grpc", "numpy"}


class Worker:
    """A registry with one metric of each kind, as a worker has it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.done = Counter("done", "d", ("kind",), registry=self.registry)
        self.waiting = Gauge("waiting", "w", registry=self.registry)
        self.took = Histogram("took", "t", buckets=(1, 2), registry=self.registry)
        ProcessCollector(registry=self.registry)

    def families(self) -> list[Metric]:
        return list(self.registry.collect())


def test_counters_histograms_and_gauges_are_summed() -> None:
    totals, workers = Totals(), (Worker(), Worker())
    for number, worker in enumerate(workers, 1):
        worker.done.labels("both").inc(number)
        worker.done.labels(f"only {number}").inc()
        worker.waiting.set(number)
        worker.took.observe(number - 0.5)
        totals.update(number, worker.families())
    families = list(totals.collect())
    assert value(families, "done_total", kind="both") == 3
    assert value(families, "done_total", kind="only 2") == 1
    assert value(families, "waiting") == 3
    buckets = [value(families, "took_bucket", le=le) for le in ("1.0", "2.0", "+Inf")]
    assert buckets == [1, 2, 2]
    assert value(families, "took_sum") == 2
    assert value(families, "process_open_fds", worker="2") is not None
    assert value(families, "process_open_fds") is None


def test_what_all_workers_tell_of_the_same_thing_is_told_once() -> None:
    totals = Totals()
    for number, (age, ready) in enumerate(((3, 1), (5, 0)), 1):
        registry = CollectorRegistry()
        Gauge("blockserve_queue_oldest_age_seconds", "a", registry=registry).set(age)
        Gauge("blockserve_ready", "r", registry=registry).set(ready)
        totals.update(number, registry.collect())
    families = list(totals.collect())
    assert value(families, "blockserve_queue_oldest_age_seconds") == 5
    assert value(families, "blockserve_ready") == 0


def test_the_newest_exemplar_of_a_bucket_is_shown() -> None:
    totals = Totals()
    for number, trace in ((2, "early"), (1, "late")):
        worker = Worker()
        worker.took.observe(0.5, {"trace": trace})
        totals.update(number, worker.families())
    text = exposition(totals, OPENMETRICS)
    assert re.findall(r'trace="(\w+)"', text) == ["late"]
    assert list(openmetrics.text_string_to_metric_families(text))


def test_an_ended_worker_leaves_its_counts_and_no_gauges() -> None:
    totals, staying, ending = Totals(), Worker(), Worker()
    for number, worker in ((1, staying), (2, ending)):
        worker.done.labels("both").inc(5)
        worker.waiting.set(1)
        worker.took.observe(0.5)
        totals.update(number, worker.families())
    totals.end(2)
    totals.update(2, Worker().families())  # its successor, who has done nothing yet
    families = list(totals.collect())
    assert value(families, "done_total", kind="both") == 10
    assert value(families, "took_count") == 2
    assert value(families, "waiting") == 1


def test_a_series_that_no_worker_has_any_more_is_dropped() -> None:
    totals, staying, ending = Totals(), Worker(), Worker()
    for number, worker in ((1, staying), (2, ending)):
        worker.done.labels("unloaded").inc(5)
        totals.update(number, worker.families())
    totals.end(2)
    staying.done.remove("unloaded")
    totals.update(1, staying.families())
    assert value(totals.collect(), "done_total", kind="unloaded") is None
    staying.done.labels("unloaded").inc()
    totals.update(1, staying.families())
    assert value(totals.collect(), "done_total", kind="unloaded") == 1


def test_one_worker_is_shown_as_a_process_alone_shows_itself() -> None:
    metrics = Metrics(DURATION_BUCKETS_SECONDS)
    edge = Edge(
        "http",
        metrics=metrics,
        access_log=AccessLog(0),
        answered=200,
        status_of=lambda _: 500,
    )
    operation = Operation.of_http("POST", "/classify")
    with edge.observe(Identity("request"), operation) as observation:
        observation.version = metrics.version("stub", 1)
    totals = Totals()
    totals.update(1, metrics.registry.collect())
    for accept in ("", OPENMETRICS):
        ours = re.findall(
            r"^.*blockserve_.*$", exposition(totals, accept), re.MULTILINE
        )
        text = render(metrics.registry, accept)[0].decode()
        assert ours == re.findall(r"^.*blockserve_.*$", text, re.MULTILINE)


def exposition(collector: Collector, accept: str) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return render(registry, accept)[0].decode()
