"""Locust's users: the real Locust, for a second or two, against real servers."""

import re
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from typing import Any, Final

import pytest

from loadtest.harness.protocol_requests import Model, pixels
from loadtest.harness.workloads import digits
from loadtest.shapes import SHAPES
from loadtest.users.command_line import add_options, weights_of
from loadtest.users.pacing import Pace
from loadtest.users.subject import IMAGES
from tests.deployment import ROOT
from tests.locusts import (
    GRPC_ENTRY,
    HTTP_ENTRY,
    Answer,
    Entry,
    answering_as_tf_serving,
    answering_grpc,
    answering_http,
    class_of,
    locust,
    refused,
)
from tests.support import ANNOUNCEMENT, only, started, stub_version

ENTRIES: Final = {
    "http": HTTP_ENTRY,
    "tf_serving_http": "/v1/models/inception:predict",
    "open_inference_http": "/v2/models/inception/infer",
    "grpc": GRPC_ENTRY,
    "tf_serving_grpc": "/tensorflow.serving.PredictionService/Predict",
    "open_inference_grpc": "/inference.GRPCInferenceService/ModelInfer",
}
# Each image is asked about alone before a run.
ASKED_BEFORE: Final = len(digits())
STALL_SECONDS, STALL_AFTER_SECONDS = 0.5, 0.5
FORGETFUL: Final = """
from locust import FastHttpUser, constant_throughput, tag, task

class Forgetful(FastHttpUser):
    wait_time = constant_throughput(20)

    @tag("http")
    @task
    def classify(self):
        self.client.post("/models/inception/classify", data=b"0")
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Where a gateway with the stub engine answers HTTP and gRPC."""
    repository = tmp_path_factory.mktemp("repository")
    stub_version(repository, "inception", side=28)
    flags = ("--engine", "stub", "--repository", str(repository))
    with started(*flags) as (_, _, lines):
        found = ANNOUNCEMENT.search("".join(lines))
        assert found
        yield found[1], found[2]


def test_users_of_every_protocol_get_right_answers(stub: tuple[str, str]) -> None:
    host, grpc_host = stub
    load = ("--users", "12", "--spawn-rate", "12", "--run-time", "1s")
    run = locust(*load, "--user-rate", "10", host=host, grpc_host=grpc_host)
    assert run.status == 0, run.log
    assert run.entries.keys() == set(ENTRIES.items())
    for entry in run.entries.values():
        assert entry.requests >= 5
        assert entry.failures == 0


def test_tensorflow_serving_alone_is_asked_over_its_own_protocols(
    stub: tuple[str, str],
) -> None:
    users = ("--users", "4", "--spawn-rate", "4")
    load = (*users, "--run-time", "1s", "--user-rate", "10")
    tags = ("--tags", "tf_serving_http", "tf_serving_grpc")
    with answering_as_tf_serving(stub[0]) as host:
        run = locust(*load, *tags, host=host, grpc_host=stub[1])
    assert run.status == 0, run.log
    assert {protocol for protocol, _ in run.entries} == set(tags[1:])
    assert all(entry.requests >= 5 for entry in run.entries.values())


def test_tags_and_weights_choose_who_asks(stub: tuple[str, str]) -> None:
    host, grpc_host = stub
    load = ("--users", "8", "--spawn-rate", "8", "--run-time", "1s")
    mix = ("--mix", "http=3,grpc=1,tf_serving_http=9", "--exclude-tags")
    run = locust(
        *(*load, "--user-rate", "20", *mix, "tf_serving_http"),
        host=host,
        grpc_host=grpc_host,
    )
    assert run.status == 0, run.log
    http, grpc = run["http", HTTP_ENTRY], run["grpc", GRPC_ENTRY]
    assert len(run.entries) == 2
    assert 2 < http.requests / grpc.requests < 4.5


def test_as_many_processes_as_are_wanted_ask_over_grpc(stub: tuple[str, str]) -> None:
    host, grpc_host = stub
    load = ("--users", "4", "--spawn-rate", "4", "--run-time", "3s", "--tags", "grpc")
    run = locust(*load, "--processes", "2", host=host, grpc_host=grpc_host)
    assert run.status == 0, run.log
    assert run["grpc", GRPC_ENTRY].requests >= 4
    assert "2 workers connected" in run.log


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 48, 3), (32, 48, 1)])
def test_a_model_gets_pixels_of_its_own_size(shape: tuple[int, int, int]) -> None:
    model = Model(name="any", shape=shape)
    for images in IMAGES.values():
        assert pixels(images()[0], model).shape == (1, *shape)


def test_answers_that_are_mixed_up_are_failures() -> None:
    def behave(number: int, image: bytes) -> Answer:
        mixed_up = number >= ASKED_BEFORE and number % 2
        return Answer(class_of(image) + (1 if mixed_up else 0))

    load = ("--users", "2", "--run-time", "1s", "--user-rate", "20", "--tags", "http")
    with answering_http(behave) as host:
        run = locust(*load, host=host)
    entry = run["http", HTTP_ENTRY]
    assert run.status == 1
    assert entry.requests / 3 < entry.failures < entry.requests
    assert "wrong answer" in run.log


def test_refusals_over_http_are_counted_apart_and_are_no_failures() -> None:
    def behave(number: int, image: bytes) -> Answer:
        if number < ASKED_BEFORE:
            return Answer(class_of(image))
        match number % 4:
            case 0:
                return Answer(status=503, retry_after=True)
            case 1:
                return Answer(status=503)
        return Answer(class_of(image))

    load = ("--users", "2", "--run-time", "1s", "--user-rate", "20", "--tags", "http")
    with answering_http(behave) as host:
        run = locust(*load, host=host)
    entry, apart = run["http", HTTP_ENTRY], run["http", refused(HTTP_ENTRY)]
    assert apart.failures == 0
    # Without a time to come back at it is a failure as any other.
    assert abs(apart.requests - entry.failures) <= 1
    assert abs(2 * apart.requests - (entry.requests - entry.failures)) <= 2
    assert "503" in run.log


def test_refusals_over_grpc_are_counted_apart_and_failures_have_their_status() -> None:
    exhausted, unavailable = 8, 14

    def behave(number: int, image: bytes) -> Answer:
        answers = {
            0: Answer(status=exhausted, retry_after=True),
            1: Answer(status=unavailable, retry_after=True),
            2: Answer(status=unavailable),
            3: Answer(class_of(image) + 1, status=0),
        }
        asked_before = number < ASKED_BEFORE
        right = Answer(class_of(image), status=0)
        return right if asked_before else answers.get(number % 6, right)

    load = ("--users", "2", "--run-time", "1s", "--user-rate", "20", "--tags", "grpc")
    with (
        answering_http(lambda _, image: Answer(class_of(image))) as host,
        answering_grpc(behave) as grpc_host,
    ):
        run = locust(*load, host=host, grpc_host=grpc_host)
    entry, apart = run["grpc", GRPC_ENTRY], run["grpc", refused(GRPC_ENTRY)]
    assert apart.failures == 0
    assert abs(apart.requests - entry.failures) <= 2
    assert abs(apart.requests - (entry.requests - entry.failures)) <= 2
    assert "UNAVAILABLE: as the test wants it" in run.log
    assert "wrong answer" in run.log


def test_a_stall_shows_where_times_count_from_when_a_request_was_due(
    tmp_path: Path,
) -> None:
    """And hides where the next request waits for the answer before.

    A closed loop sees one slow answer of each user among thousands; and so does
    Locust's own `constant_throughput`, which never sends what was due meanwhile.
    """
    forgetful = tmp_path / "forgetful.py"
    forgetful.write_text(FORGETFUL, encoding="utf-8")
    closed = stalled_run("--users", "2", "--user-rate", "0")
    paced = ("--users", "5", "--spawn-rate", "5")
    forgotten = stalled_run(*paced, "--locustfile", str(forgetful))
    intended = stalled_run(*paced, "--user-rate", "20")
    assert closed.percentile_seconds(99) < STALL_SECONDS / 5
    assert intended.percentile_seconds(99) > STALL_SECONDS / 2
    assert intended.percentile_seconds(99) > 5 * closed.percentile_seconds(99)
    # A quarter of what was due came in the stall; of what was sent, one for each user.
    assert intended.percentile_seconds(90) > 5 * forgotten.percentile_seconds(90)


def stalled_run(*arguments: str) -> Entry:
    """What is told of a server that answers nobody for a while, once."""
    began: list[float] = []
    stalls, over, never = Lock(), Event(), Event()

    def behave(number: int, image: bytes) -> Answer:
        if number >= ASKED_BEFORE and not over.is_set():
            began.append(monotonic())
            if began[-1] - began[0] > STALL_AFTER_SECONDS:
                with stalls:
                    if not over.is_set():
                        never.wait(STALL_SECONDS)
                        over.set()
        return Answer(class_of(image))

    with answering_http(behave) as host:
        run = locust(*arguments, "--run-time", "2s", "--tags", "http", host=host)
    assert run.status == 0, run.log
    assert over.is_set()
    return only(run.entries.values())


def test_a_pace_forgets_nothing_that_was_due() -> None:
    pace = Pace(0.1, first_due_seconds=10.0)
    assert pace.next(9.75) == pytest.approx(0.25)
    assert pace.due_seconds == 10.0
    # The answer took three and a half periods: three are due, and sent without a wait.
    waits = [pace.next(10.35) for _ in range(3)]
    assert waits == [0, 0, 0]
    assert pace.due_seconds == pytest.approx(10.3)
    assert pace.next(10.35) == pytest.approx(0.05)
    assert pace.due_seconds == pytest.approx(10.4)


class Recorded:
    """Stands for Locust's parser, and keeps the names of options and their defaults."""

    def __init__(self) -> None:
        self.defaults: dict[str, Any] = {}

    def add_argument(self, name: str, *, default: Any, **_: Any) -> None:
        self.defaults[name] = default


def test_the_guide_names_every_option_tag_and_shape() -> None:
    page = (ROOT / "docs/loadtest.md").read_text(encoding="utf-8")
    guide = page.split("\n## Locust by hand\n")[1]
    rows = {
        name: row
        for row in guide.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]*)`", row.split("|")[1])
    }
    recorded = Recorded()
    add_options(recorded)
    assert {name for name in rows if name[:2] == "--"} == {*recorded.defaults, "--host"}
    for name, default in recorded.defaults.items():
        if default and name != "--token":
            shown = f"{default:g}" if isinstance(default, float) else f"`{default}`"
            assert rows[name].split("|")[2].strip() == shown
    assert ENTRIES.keys() | SHAPES.keys() == {n for n in rows if n[:2] != "--"}


def test_weights_are_read_from_one_argument() -> None:
    assert weights_of("http=3, grpc=0.5,tf_serving_http") == {
        "http": 3,
        "grpc": 0.5,
        "tf_serving_http": 1,
    }
    assert weights_of("") == {}
    for wrong in ("http=0", "http=-1", "http=many"):
        with pytest.raises(ValueError, match=re.escape(wrong.split("=")[1])):
            weights_of(wrong)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--tags", "smtp"), "no such tags: ['smtp']"),
        (("--mix", "http=0"), "a weight is a number above 0"),
        (("--mix", "http", "--tags", "grpc"), "no users are left"),
        (("--shape", "step", "--user-rate", "0"), "a shape needs users with a rate"),
        (("--rate", "-1"), "never below 0"),
    ],
)
def test_what_cannot_be_meant_ends_locust_with_the_reason(
    arguments: tuple[str, ...], reason: str
) -> None:
    run = locust(*arguments, host="http://127.0.0.1:9")
    assert run.status == 1
    assert reason in run.log


@pytest.mark.parametrize("processes", [(), ("--processes", "1")])
def test_a_model_that_is_not_there_ends_the_run(
    stub: tuple[str, str], processes: tuple[str, ...]
) -> None:
    host, _ = stub
    run = locust("--tags", "http", "--model", "nope", *processes, host=host)
    assert run.status == 1
    assert "404 Not Found" in run.log
    assert run.entries == {}
