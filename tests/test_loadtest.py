"""The load generator against real servers, and the sums that the benchmarks make."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from loadtest import compare_report, engine, latency_under_load, overload
from loadtest.__main__ import budgets_in
from loadtest.harness.client import (
    OK,
    Failure,
    GeneratorFailed,
    Measurement,
    Request,
    closed_loop,
    open_loop,
    poisson_arrivals,
)
from loadtest.harness.gateway import gateway
from loadtest.harness.image_requests import base64_json, multipart, raw
from loadtest.harness.processes import cpu_seconds
from loadtest.harness.report import Budget, Report, shown
from loadtest.harness.workloads import (
    IMAGES_OF,
    version_directory,
    with_expected_answers,
)
from tests.support import image_of_class, stub_version

REFUSE, HANG_UP, SAY_GOODBYE, OTHER = b"refuse", b"hang up", b"goodbye", b"other"
ANSWER = b"the answer"


@dataclass
class Peer:
    """A server that does what each body asks for, and keeps count."""

    address: str = ""
    connections: int = 0
    open_now: int = 0
    most_open: int = 0
    bodies: list[bytes] = field(default_factory=list)
    tasks: set[asyncio.Task[Any] | None] = field(default_factory=set)
    before_answer: Callable[[], Awaitable[Any]] | None = None

    async def handle(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.tasks.add(asyncio.current_task())
        self.connections += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_now -= 1
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.partition("content-length: ")[2].split("\r\n")[0])
        body = await reader.readexactly(length)
        self.bodies.append(body)
        if self.before_answer is not None:
            await self.before_answer()
        if body == HANG_UP:
            return False
        status = "503 Busy" if body == REFUSE else "200 OK"
        answer = b"something else" if body == OTHER else ANSWER
        ending = "connection: close\r\n" if body == SAY_GOODBYE else ""
        head = f"HTTP/1.1 {status}\r\n{ending}content-length: {len(answer)}\r\n\r\n"
        writer.write(head.encode() + answer)
        return body != SAY_GOODBYE


@asynccontextmanager
async def listening() -> AsyncIterator[Peer]:
    peer = Peer()
    server = await asyncio.start_server(peer.handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        peer.address = f"http://127.0.0.1:{port}"
        yield peer
        for task in peer.tasks:
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})


def asking(*bodies: bytes, expect: bytes | None = None) -> list[Request]:
    headers = {"content-type": "text/plain"}
    return [Request("/path", headers, body, expect=expect) for body in bodies]


async def closed(
    peer: Peer, *bodies: bytes, connections: int = 1, expect: bytes | None = None
) -> Measurement:
    return await asyncio.to_thread(
        closed_loop,
        peer.address,
        asking(*bodies, expect=expect),
        connections=connections,
        duration_seconds=0.3,
        warm_up_seconds=0,
    )


async def opened(
    address: str, *, seed: int = 0, patience_seconds: float = 5
) -> Measurement:
    return await asyncio.to_thread(
        open_loop,
        address,
        asking(b"please"),
        rate_per_second=100,
        duration_seconds=0.5,
        timeout_seconds=patience_seconds,
        seed=seed,
    )


def arrivals(seed: int = 0) -> Any:
    """Those of `opened`."""
    return poisson_arrivals(100, 0.5, seed=seed)


def measured(statuses: list[int], latencies: list[float], **more: Any) -> Measurement:
    return Measurement(
        **{
            "statuses": np.array(statuses, np.int16),
            "latencies_seconds": np.array(latencies),
            "sent_at_seconds": np.zeros(len(statuses)),
            "wall_seconds": 2.0,
            "cpu_seconds": 0.1,
            **more,
        }
    )


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_request_is_what_http_wants() -> None:
    (request,) = asking(b"body")
    assert request.encoded("host:1") == (
        b"POST /path HTTP/1.1\r\nhost: host:1\r\ncontent-length: 4\r\n"
        b"content-type: text/plain\r\n\r\nbody"
    )


async def test_a_closed_loop_sends_the_requests_in_turn_and_counts_statuses() -> None:
    async with listening() as peer:
        result = await closed(peer, b"please", REFUSE)
    refused = result.count(503)
    assert refused > 0
    assert abs(result.count(OK) - refused) <= 1
    assert result.failures == refused
    assert len(result.statuses) == result.count(OK) + refused
    assert peer.bodies[:4] == [b"please", REFUSE] * 2
    assert result.per_second() == result.count(OK) / result.wall_seconds
    assert (result.latencies_seconds > 0).all()
    assert result.cpu_seconds > 0


async def test_a_closed_loop_keeps_its_connections_and_no_others() -> None:
    async with listening() as peer:
        await closed(peer, b"please", connections=3)
    assert (peer.connections, peer.most_open) == (3, 3)
    assert len(peer.bodies) > 3


async def test_a_closed_loop_waits_for_what_is_under_way() -> None:
    """So that the next measurement finds the server idle."""
    async with listening() as peer:
        result = await closed(peer, b"please", connections=3)
    # The answer that opens the window is not counted, nor are those after its end.
    assert len(result.statuses) < len(peer.bodies)
    assert result.count(Failure.TIMEOUT) == 0


async def test_a_connection_that_breaks_is_a_failure_and_made_anew() -> None:
    async with listening() as peer:
        result = await closed(peer, HANG_UP)
    assert result.count(Failure.CONNECTION) == len(result.statuses) > 0
    assert peer.connections >= 2


async def test_a_server_that_says_goodbye_has_not_failed() -> None:
    async with listening() as peer:
        result = await closed(peer, SAY_GOODBYE)
    assert result.failures == 0
    assert peer.connections == len(peer.bodies) >= 2


async def test_a_wrong_answer_is_a_failure() -> None:
    async with listening() as peer:
        result = await closed(peer, b"please", OTHER, REFUSE, expect=ANSWER)
    found = set(result.statuses.tolist())
    assert found == {OK, Failure.WRONG_ANSWER, 503}
    assert result.failures == len(result.statuses) - result.count(OK)


async def test_nothing_but_http_is_a_failed_connection() -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"no HTTP at all\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        result = await opened(f"http://127.0.0.1:{port}")
    assert result.count(Failure.CONNECTION) == len(arrivals())


async def test_without_a_server_every_request_fails() -> None:
    result = await opened(unused_address())
    assert result.count(Failure.CONNECTION) == len(result.statuses) == len(arrivals())
    assert math.isnan(result.p50_seconds)
    peer = Peer(address=unused_address())
    assert (await closed(peer, b"please")).count(Failure.CONNECTION) > 0


async def test_an_open_loop_counts_from_the_intended_moment() -> None:
    """The server answers none before all are sent, so the first waits the longest."""
    expected = arrivals(seed=3)
    async with listening() as peer:
        all_have_come = asyncio.Event()

        async def wait_for_all() -> None:
            if len(peer.bodies) == len(expected):
                all_have_come.set()
            await all_have_come.wait()

        peer.before_answer = wait_for_all
        result = await opened(peer.address, seed=3)
    assert result.failures == 0
    order = np.argsort(result.sent_at_seconds)
    assert result.sent_at_seconds[order] == pytest.approx(expected)
    assert (result.answered_at_seconds >= expected[-1]).all()
    assert peer.connections == len(expected)


async def test_an_open_loop_uses_idle_connections_again() -> None:
    async with listening() as peer:
        result = await opened(peer.address)
    assert result.count(OK) == len(arrivals())
    assert peer.connections < len(arrivals())


async def test_an_open_loop_gives_up_on_a_silent_server() -> None:
    async with listening() as peer:
        peer.before_answer = asyncio.Event().wait
        result = await opened(peer.address, patience_seconds=0.2)
        assert result.count(Failure.TIMEOUT) == len(arrivals())
    assert (result.latencies_seconds >= 0.2).all()


def test_arrivals_are_a_poisson_process_and_the_same_each_time() -> None:
    times = poisson_arrivals(50, 400, seed=1)
    # Five standard deviations of a count whose mean is 20,000.
    assert abs(len(times) - 20_000) < 5 * math.sqrt(20_000)
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 400
    # What is exponentially distributed has a deviation as large as its mean.
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)
    assert np.array_equal(times, poisson_arrivals(50, 400, seed=1))
    assert not np.array_equal(times[:5], poisson_arrivals(50, 400, seed=2)[:5])


def test_an_address_must_be_complete() -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        closed_loop(
            "localhost",
            asking(b""),
            connections=1,
            duration_seconds=1,
            warm_up_seconds=0,
        )


def test_a_generator_that_fails_says_why() -> None:
    with pytest.raises(GeneratorFailed, match="NoSuchProcess"):
        closed_loop(
            unused_address(),
            asking(b""),
            connections=1,
            duration_seconds=0.1,
            warm_up_seconds=0,
            server_pid=2**22 + 1,  # more than any process can have
        )


def test_percentiles_are_of_the_good_answers() -> None:
    result = measured([200] * 101 + [503], [one / 100 for one in range(101)] + [9])
    assert result.p50_seconds == pytest.approx(0.50)
    assert result.p95_seconds == pytest.approx(0.95)
    assert result.p99_seconds == pytest.approx(0.99)
    assert result.per_second() == 50.5
    assert result.per_second(503) == 0.5
    assert result.latencies_of(503).tolist() == [9]


def test_a_failed_request_is_infinitely_late() -> None:
    rounds = [measured([200] * 98, [0.1] * 98), measured([200, 503], [0.2, 0.001])]
    assert latency_under_load.percentiles(rounds) == {50: 0.1, 95: 0.1, 99: math.inf}


def test_the_default_settings_are_compared_with_the_best() -> None:
    points = [
        latency_under_load.Point(
            setting=name,
            load=0.5,
            latency_seconds={50: seconds},
            failures=0,
            generator_share=0,
        )
        for name, seconds in (("default settings", 0.3), ("batch 1", 0.2))
    ]
    assert latency_under_load.of_best(points, 0.5, 50) == pytest.approx(1.5)
    assert latency_under_load.of_best(points[:1], 0.5, 50) == 1


def test_a_lucky_round_makes_no_configuration_the_fastest() -> None:
    def rounds(*answers: int) -> list[Measurement]:
        return [measured([200] * many, [0.1] * many) for many in answers]

    loops = {"lucky": rounds(900, 100, 110), "steady": rounds(190, 200, 210)}
    lucky, steady = compare_report.trials_of("any", 64, loops)
    assert (lucky.answers_per_second, lucky.is_fastest) == (55, False)
    assert (steady.answers_per_second, steady.is_fastest) == (100, True)


def test_with_one_connection_the_fastest_is_that_which_answers_first() -> None:
    loops = {
        "waits": [measured([200] * 9, [0.006] * 9)],
        "at once": [measured([200] * 5, [0.004] * 5)],
    }
    trials = compare_report.trials_of("any", 1, loops)
    assert [one.variant for one in trials if one.is_fastest] == ["at once"]


def test_the_floor_is_a_rival_for_throughput_only() -> None:
    def outcome(title: str, connections: int, rate: float, p50: float) -> Any:
        return compare_report.Outcome(
            title=title,
            variant="any",
            connections=connections,
            answers_per_second=rate,
            p50_seconds=p50,
            p99_seconds=p50,
            failures=0,
            server_share=0,
            generator_share=0,
        )

    outcomes = [
        outcome(title, connections, rate, p50)
        for title, rate, p50 in (
            ("blockserve", 2000, 0.001),
            ("FastAPI, OpenVINO", 1600, 0.0009),
            ("LitServe, OpenVINO", 800, 0.004),
            ("MLServer, OpenVINO", 1000, 0.008),
        )
        for connections in (1, 64)
    ]
    throughput, latency = compare_report.budgets(outcomes)
    assert (throughput.measured, throughput.met) == (1.25, False)
    assert (latency.measured, latency.met) == (0.25, True)
    assert compare_report.budgets(outcomes[:4]) == []


def test_overload_counts_what_came_in_time() -> None:
    """Ten good answers in the second between the start and the end, at capacity 20."""
    statuses = [200] * 13 + [503, 503, 504, Failure.TIMEOUT, Failure.CONNECTION]
    latencies = [0.5] * 11 + [1.005, 1.1] + [0.001, 0.003, 1, 4, 0.1]
    sent_at = [0.0] + [1.0] * 10 + [0.5, 0.5] + [1.0] * 5
    outcome = overload.summarise(
        measured(statuses, latencies, sent_at_seconds=np.array(sent_at)),
        model="any",
        timeout_seconds=1,
        duration_seconds=2,
        capacities_per_second=(18, 22),
    )
    assert outcome.goodput_per_second == 10
    assert outcome.goodput == 0.5
    assert outcome.capacity_spread == pytest.approx(0.2)
    assert (outcome.answered, outcome.late, outcome.late_beyond_allowance) == (13, 2, 1)
    assert (outcome.refused, outcome.expired) == (2, 1)
    assert (outcome.unanswered, outcome.failures) == (1, 1)
    assert outcome.refusal_p50_seconds == pytest.approx(0.002)
    assert outcome.refusal_max_seconds == 0.003


def test_what_could_not_be_measured_misses_its_budget() -> None:
    def budget(measured: float, bound: Any) -> Budget:
        return Budget(
            name="any", measured=measured, limit=2, bound=bound, format="ratio"
        )

    assert budget(2, "at most").met
    assert budget(2, "at least").met
    assert not budget(2.1, "at most").met
    assert not budget(1.9, "at least").met
    assert not budget(math.nan, "at most").met
    assert not budget(math.nan, "at least").met
    assert not budget(math.inf, "at most").met


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    budgets = [
        Budget(
            name="one",
            measured=value,
            limit=0.9,
            bound="at least",
            format="percent",
        )
        for value in (0.95, math.nan)
    ]
    report = Report(
        name="example",
        settings={"repository": Path("there")},
        results=[{"rates": {1: 2.5}, "p50_seconds": math.nan}],
        budgets=budgets,
    )
    path = report.write(tmp_path / "results")
    assert path == tmp_path / "results" / "example.json"
    read = Report.read(path)
    assert read.settings == {"repository": "there"}
    assert read.results == [{"rates": {"1": 2.5}, "p50_seconds": None}]
    assert [one.met for one in read.budgets] == [True, False]
    assert read.budgets[0] == budgets[0]
    found = budgets_in(path.parent, ["example", "broken"], without=["broken"])
    assert found["example"][0] == budgets[0]
    assert "broken" not in found


def test_numbers_are_shown_with_their_units() -> None:
    assert shown(0.0123456, "milliseconds") == "12.35 ms"
    assert shown(0.0001994, "microseconds") == "199 µs"
    assert shown(0.9512, "percent") == "95.1%"
    assert shown(1.104, "ratio") == "1.10"
    assert shown(1.234, "seconds") == "1.23 s"
    assert shown(173_400_000, "megabytes") == "173 MB"
    assert shown(12345, "count") == "12,345"
    assert shown(math.inf, "milliseconds") == "-"


def test_a_model_without_images_is_told_with_those_that_have_some(
    tmp_path: Path,
) -> None:
    with pytest.raises(SystemExit, match="vgg; there are inception, googlenet"):
        version_directory(tmp_path, "vgg")


def test_the_latest_version_is_measured(tmp_path: Path) -> None:
    stub_version(tmp_path, "inception", version=2)
    newest = stub_version(tmp_path, "inception", version=10)
    assert version_directory(tmp_path, "inception") == newest


@pytest.mark.slow
def test_a_missing_model_is_built(tmp_path: Path) -> None:
    directory = version_directory(tmp_path / "models", "googlenet")
    assert directory == tmp_path / "models/googlenet/1"
    assert (directory / "saved_model.pb").is_file()


@pytest.mark.parametrize(
    ("model", "mode", "size"),
    [("inception", "L", (28, 28)), ("googlenet", "RGB", (500, 375))],
)
def test_images_are_real_and_different(
    model: str, mode: str, size: tuple[int, int]
) -> None:
    images = IMAGES_OF[model]()
    assert len(set(images)) == len(images) == 16
    for one in images:
        decoded = Image.open(BytesIO(one))
        assert (decoded.format, decoded.mode, decoded.size) == ("JPEG", mode, size)


def test_the_raw_engine_is_measured_at_every_batch_size(tmp_path: Path) -> None:
    speed = engine.measure(stub_version(tmp_path), engine="stub", seconds=0.05)
    assert list(speed.images_per_second) == [1, 2, 4, 8, 16, 32]
    assert all(rate > 0 for rate in speed.images_per_second.values())
    assert speed.best_images_per_second == max(speed.images_per_second.values())
    assert speed.single_seconds > 0


def test_the_gateway_runs_while_its_block_does(tmp_path: Path) -> None:
    for name in ("stub", "other"):
        stub_version(tmp_path, name)
    image = image_of_class(3)
    with gateway(tmp_path, "--engine", "stub", model="stub") as server:
        models = httpx.get(f"{server.address}/models").text
        assert "stub" in models
        assert "other" not in models
        assert cpu_seconds(server.pid) > 0
        forms = [raw, multipart, base64_json]
        requests = [form("/models/stub/classify")(image) for form in forms]
        expecting = with_expected_answers(server.address, requests)
        assert {one.expect for one in expecting} == {b'[{"label":"d"'}
    assert not psutil.pid_exists(server.pid)
