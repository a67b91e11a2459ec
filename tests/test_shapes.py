"""Shapes of load: their tables, how they are walked through, and the real Locust."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.shapes import SHAPES, Stage, Table, Walk
from loadtest.shapes.outcomes import (
    REFUSED,
    Outcome,
    Totals,
    capacity_per_second,
    outcome_of,
)
from tests.locusts import HTTP_ENTRY, Answer, answering_http, class_of, locust, refused


def counted(requests: int, *, refused: int = 0, milliseconds: float = 5) -> Totals:
    answered = requests - refused
    return Totals(
        requests=requests, refused=refused, milliseconds={milliseconds: answered}
    )


def walked(
    walk: Walk, *, most_per_second: float = math.inf, seconds: int = 1000
) -> list[int]:
    """Users at each second until the end, where so many requests are answered."""
    sent, answered = 0.0, 0.0
    users: list[int] = []
    for second in range(seconds):
        now = walk.users(float(second), counted_of(sent, answered))
        if now is None:
            break
        users.append(now)
        sent += now
        answered += min(now, most_per_second)
    return users


def counted_of(sent: float, answered: float) -> Totals:
    """What is not answered is refused."""
    return counted(round(sent), refused=round(sent - answered))


def test_the_shapes_are_tables_of_stages() -> None:
    assert set(SHAPES) == {"ramp", "step", "spike", "soak", "capacity"}
    for table in SHAPES.values():
        for stage in table.stages:
            assert stage.duration_seconds > 0
            assert stage.highest > 0
    rates = {
        name: [stage.requests_per_second for stage in table.stages]
        for name, table in SHAPES.items()
    }
    for name in ("step", "capacity"):
        assert rates[name] == sorted(set(rates[name]))
    before, spike, after = rates["spike"]
    assert before == after < spike
    up, top, down = SHAPES["ramp"].stages
    assert up.rate_at(0) < up.rate_at(30) < up.rate_at(60) == top.rate_at(0)
    assert down.rate_at(0) == top.rate_at(0) > down.rate_at(15) > down.rate_at(30)
    assert max(stage.duration_seconds for stage in SHAPES["soak"].stages) == 3600
    assert [name for name, table in SHAPES.items() if table.until_broken] == [
        "capacity"
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_a_table_is_stretched_to_a_rate_and_a_time(name: str) -> None:
    table = SHAPES[name].stretched(rate=7, duration_seconds=30)
    assert max(stage.highest for stage in table.stages) == pytest.approx(7)
    assert sum(one.duration_seconds for one in table.stages) == pytest.approx(30)
    assert table.until_broken == SHAPES[name].until_broken
    assert SHAPES[name].stretched() == SHAPES[name]
    with pytest.raises(ValueError, match="below 0"):
        table.stretched(rate=-1)


def test_a_walk_has_so_many_users_as_send_what_a_stage_says() -> None:
    table = Table((Stage(2, 8), Stage(3, 20, 2), Stage(1, 0.1)))
    assert walked(Walk(table, user_rate=1, slo_seconds=1)) == [8, 8, 2, 8, 14, 1]
    assert walked(Walk(table, user_rate=2, slo_seconds=1)) == [4, 4, 1, 4, 7, 1]


def test_a_walk_measures_each_stage_but_for_its_first_second() -> None:
    walk = Walk(Table((Stage(4, 10), Stage(3, 20))), user_rate=1, slo_seconds=1)
    walked(walk)
    first, second = walk.outcomes
    assert (first.answered, first.seconds, first.answered_per_second) == (30, 3, 10)
    assert (second.answered, second.seconds, second.answered_per_second) == (40, 2, 20)


STEPS = Table(tuple(Stage(5, 10 * 2**n) for n in range(8)), until_broken=True)


def test_steps_end_with_the_first_that_breaks_the_objective_twice() -> None:
    walk = Walk(STEPS, user_rate=1, slo_seconds=0.1)
    assert max(walked(walk, most_per_second=100)) == 160
    *within, broken, again = walk.outcomes
    assert all(one.within_slo for one in within)
    assert not broken.within_slo
    assert broken.refused == again.refused == 4 * 60
    assert capacity_per_second(walk.outcomes) == 80


def test_steps_end_where_throughput_stops_growing() -> None:
    """Nothing is late or refused: the one who sends cannot send more."""
    walk = Walk(STEPS, user_rate=1, slo_seconds=0.1)
    sent = 0
    for second in range(1000):
        users = walk.users(float(second), counted(sent))
        if users is None:
            break
        sent += min(users, 50)
    rates = [one.answered_per_second for one in walk.outcomes]
    assert rates == [10, 20, 40, 50, 50]
    assert capacity_per_second(walk.outcomes) == 50


def test_a_step_that_breaks_once_is_tried_again_and_goes_on() -> None:
    walk = Walk(STEPS, user_rate=1, slo_seconds=0.1)
    sent = late = 0
    rates: list[int] = []
    for second in range(1000):
        totals = Totals(requests=sent, milliseconds={5: sent - late, 900: late})
        users = walk.users(float(second), totals)
        if users is None:
            break
        rates.append(users)
        sent += users
        late += users if second == 7 else 0
    assert rates[5:20] == [20] * 10 + [40] * 5
    assert capacity_per_second(walk.outcomes) == 1280


def test_all_steps_are_taken_where_nothing_breaks() -> None:
    walk = Walk(STEPS, user_rate=1, slo_seconds=0.1)
    assert len(walked(walk)) == 8 * 5
    assert capacity_per_second(walk.outcomes) == 1280


def test_other_tables_go_on_whatever_breaks() -> None:
    steps = Table(STEPS.stages)
    walk = Walk(steps, user_rate=1, slo_seconds=0.1)
    assert len(walked(walk, most_per_second=20)) == 8 * 5
    assert [one.within_slo for one in walk.outcomes] == [True] * 2 + [False] * 6


@pytest.mark.parametrize(
    ("totals", "within"),
    [
        (counted(1000, milliseconds=100), True),
        (counted(1000, milliseconds=101), False),
        (counted(1000, refused=10), True),
        (counted(1000, refused=11), False),
        (Totals(requests=1000, failed=11, milliseconds={5: 1000}), False),
        (Totals(requests=1000, milliseconds={5: 990, 2000: 10}), True),
        (Totals(requests=1000, milliseconds={5: 989, 2000: 11}), False),
        (Totals(), False),
    ],
)
def test_the_objective_is_for_99_of_100(totals: Totals, within: bool) -> None:
    outcome = outcome_of(totals, requests_per_second=100, seconds=10, slo_seconds=0.1)
    assert outcome.within_slo == within


def test_refusals_have_no_part_in_the_times_of_answers() -> None:
    def entry(name: str, failed: int, times: dict[float, int]) -> Any:
        return SimpleNamespace(
            name=name,
            num_requests=sum(times.values()),
            num_failures=failed,
            response_times=times,
        )

    before = Totals.of([entry("a", 1, {10.0: 3})])
    entries = [
        entry("a", 2, {10.0: 5, 20.0: 1}),
        entry("a" + REFUSED, 0, {1.0: 7}),
        entry("b", 0, {20.0: 2}),
    ]
    assert Totals.of(entries).since(before) == Totals(
        requests=12, refused=7, failed=1, milliseconds={10.0: 2, 20.0: 3}
    )


@pytest.fixture
def host() -> Iterator[str]:
    """Refuses from the two hundredth request on."""

    def behave(number: int, image: bytes) -> Answer:
        if number < 200:
            return Answer(class_of(image))
        return Answer(status=503, retry_after=True)

    with answering_http(behave) as address:
        yield address


def test_locust_goes_through_a_shape(host: str, tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    load = ("--shape", "spike", "--rate", "50", "--duration", "7", "--tags", "http")
    run = locust(*load, "--stages-file", str(file), host=host)
    assert run.status == 0, run.log
    told = json.loads(file.read_text(encoding="utf-8"))
    assert (told["shape"], told["slo_seconds"]) == ("spike", 0.1)
    before, after = told["stages"]
    assert before.keys() == Outcome.__dataclass_fields__.keys()
    assert before["requests_per_second"] == after["requests_per_second"] == 10
    assert before["answered_per_second"] == pytest.approx(10, rel=0.5)
    assert before["within_slo"]


def test_capacity_ends_with_the_refusals(host: str, tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    load = ("--shape", "capacity", "--rate", "20000", "--duration", "56")
    run = locust(*load, "--tags", "http", "--stages-file", str(file), host=host)
    assert run.status == 0, run.log
    told = json.loads(file.read_text(encoding="utf-8"))
    *within, broken, again = told["stages"]
    assert within
    assert all(one["within_slo"] for one in within)
    assert broken["refused"] > 0
    assert again["refused"] > 0
    assert told["capacity_per_second"] == within[-1]["answered_per_second"]
    assert run["http", refused(HTTP_ENTRY)].failures == 0


def test_a_run_time_ends_a_shape(host: str, tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    load = ("--shape", "soak", "--run-time", "3s", "--tags", "http")
    run = locust(*load, "--stages-file", str(file), host=host)
    assert run.status == 0, run.log
    (stage,) = json.loads(file.read_text(encoding="utf-8"))["stages"]
    assert stage["requests_per_second"] == 50
