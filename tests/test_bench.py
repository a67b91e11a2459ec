"""The load test's numbers: what is counted, judged, compared and shown."""

import asyncio
import csv
import json
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from html.parser import HTMLParser
from itertools import permutations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.bench import measuring
from loadtest.bench.bootstrap import interval
from loadtest.bench.comparison import (
    NotComparable,
    changes,
    check_comparable,
    machine_differences,
)
from loadtest.bench.histogram import Latencies
from loadtest.bench.report import page
from loadtest.bench.results import GatewayNumbers, Run, StageSummary, UnreadableRun
from loadtest.bench.samples import Course, Samples
from loadtest.bench.scraper import Reading, Scraper, generator_busy, numbers, parse
from loadtest.bench.sent import Sent
from loadtest.bench.slo import WrongObjective, judge
from loadtest.bench.slo import parse as parse_objective
from loadtest.bench.tables import stage_rows, verdict_lines, warnings, write_csv
from loadtest.bench.target import NoTarget, running
from loadtest.commands import Options, Protocol, Shape
from loadtest.shapes import SHAPES, Stage
from service.telemetry.metrics import ProtocolName
from tests import runs
from tests.support import image_of_class, serving, stub_version

VOID = {"meta", "br", "path", "use", "rect", "link", "image", "line", "circle"}


@given(
    st.lists(st.floats(min_value=1e-4, max_value=100), min_size=1, max_size=200),
    st.sampled_from([50, 90, 99]),
)
def test_a_percentile_is_wrong_by_a_bucket_at_most(
    seconds: list[float], percent: float
) -> None:
    latencies = Latencies()
    for one in seconds:
        latencies.add(one)
    exact = float(np.percentile(seconds, percent, method="inverted_cdf"))
    assert latencies.percentile(percent) == pytest.approx(exact, rel=0.021)
    assert latencies.mean_seconds == pytest.approx(np.mean(seconds))


def test_histograms_of_several_processes_add_up() -> None:
    together, apart = Latencies(), [Latencies(), Latencies()]
    for index in range(1000):
        together.add(index / 1000)
        apart[index % 2].add(index / 1000)
    merged = Latencies()
    for one in apart:
        merged.merge(one.counts, one.sum_seconds)
    assert merged.counts == together.counts
    assert merged.sum_seconds == pytest.approx(together.sum_seconds)


def test_no_latencies_have_no_percentile() -> None:
    assert math.isnan(Latencies().percentile(99))
    assert math.isnan(Latencies().mean_seconds)


def test_an_objective_is_read_with_its_units() -> None:
    terms = parse_objective("p99<50ms, errors<0.1%,rps > 200,mean<0.5s")
    assert [(one.measure, one.bound) for one in terms] == [
        ("p99", "<"),
        ("errors", "<"),
        ("rps", ">"),
        ("mean", "<"),
    ]
    assert [one.limit for one in terms] == pytest.approx([0.05, 0.001, 200, 0.5])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'' is no objective"),
        ("p99", "'p99' is no objective"),
        ("p99<=50ms", "is no objective"),
        ("p98<50ms", "'p98' is not measured"),
        ("p99>50ms", "the wrong way"),
        ("rps<5", "the wrong way"),
        ("p99<50", "the unit ''"),
        ("errors<1", "the unit ''"),
        ("rps>5%", "the unit '%'"),
        ("p99<50ms,", "'' is no objective"),
    ],
)
def test_a_wrong_objective_is_told_what_is_allowed(text: str, what: str) -> None:
    with pytest.raises(WrongObjective, match=r"errors<0\.1%") as caught:
        parse_objective(text)
    assert what in str(caught.value)


def test_each_stage_must_meet_each_term() -> None:
    stages = runs.summaries(
        runs.stage(1), runs.stage(2, milliseconds=80), runs.stage(3, failures=5)
    )
    terms = parse_objective("p99<50ms,errors<0.1%")
    verdict = judge(terms, stages, finds_capacity=False)
    assert not verdict.is_met
    assert [(one.term.measure, one.stage) for one in verdict.misses] == [
        ("p99", 2),
        ("errors", 3),
    ]
    assert verdict.stage_is_met == [True, False, False]
    assert (
        verdict_lines(verdict, stages)[1] == "errors<0.1% was missed: 0.50% in stage 3"
    )


def test_a_stage_without_an_answer_misses() -> None:
    (term,) = parse_objective("p99<50ms")
    assert not term.is_met(math.nan)


def test_one_repetition_of_three_may_miss() -> None:
    stages = [
        StageSummary(
            results=[runs.stage(milliseconds=one) for one in (5, 300, 6)], repetitions=3
        )
    ]
    assert judge(parse_objective("p99<50ms"), stages, finds_capacity=False).is_met
    (row,) = stage_rows(stages)
    assert row[8] == "10 to 593 ms"


def test_a_repetition_without_an_answer_counts_as_the_worst_wherever_it_is() -> None:
    silent = replace(runs.stage(), protocols={}, generator_busy=math.nan)
    fast, slow = runs.stage(milliseconds=5), runs.stage(milliseconds=50)
    for several in permutations((fast, slow, silent)):
        stage = StageSummary(results=several, repetitions=3)
        assert stage.measure("p50") == slow.measure("p50")
        assert stage.generator_busy == 0.2
    mostly = StageSummary(results=[silent, fast, silent], repetitions=3)
    assert math.isnan(mostly.measure("p50"))
    assert mostly.measure("rps") == 0


CLIMB = runs.summaries(
    *(
        runs.stage(number, load=100.0 * number, milliseconds=milliseconds)
        for number, milliseconds in enumerate((70, 8, 9, 90), 1)
    )
)


@pytest.mark.parametrize(
    ("objective", "met", "highest"),
    [
        ("p99<50ms", True, 3),  # the first may have had bad luck
        ("p99<50ms,rps>250", True, 3),
        ("p99<50ms,rps>350", False, 3),
        ("p99<1ms", False, None),
    ],
)
def test_a_capacity_run_is_judged_by_the_highest_load_that_it_carries(
    objective: str, *, met: bool, highest: int | None
) -> None:
    verdict = judge(parse_objective(objective), CLIMB, finds_capacity=True)
    assert (verdict.is_met, verdict.highest) == (met, highest)
    lines = " ".join(verdict_lines(verdict, CLIMB))
    assert ("300 answers a second" in lines) == (highest == 3)
    assert ("was missed" in lines) == (not met)


def test_a_load_that_few_repetitions_came_to_is_not_carried() -> None:
    run = runs.run()
    *others, last = run.repetitions
    short = [runs.repetition(one.stages[:2]) for one in others]
    stages = Run(
        settings=run.settings,
        machine=run.machine,
        plan=run.plan,
        repetitions=[*short, last],
    ).stages
    assert [one.is_usual for one in stages] == [True, True, False]
    assert [row[0] for row in stage_rows(stages)] == ["1", "2", "3 (1 of 3)"]
    terms = parse_objective("p99<1s")
    assert judge(terms, stages, finds_capacity=True).highest == 2


def test_the_seconds_of_all_processes_go_to_their_stages(tmp_path: Path) -> None:
    fast, slow = Latencies(), Latencies()
    fast.add(0.01)
    slow.add(0.5)

    def line(
        second: int, latencies: Latencies, protocol: str = "http", **failures: int
    ) -> str:
        sent = asdict(Sent(latencies, failures))
        return json.dumps({"second": second, "protocol": protocol, "sent": sent})

    one, other = tmp_path / "sent-1.jsonl", tmp_path / "sent-2.jsonl"
    one.write_text(
        f"{line(100, slow)}\n{line(103, fast, refused=1)}\n{line(107, slow)[:9]}"
    )
    samples = Samples(tmp_path)
    samples.poll()
    assert sorted(samples.by_second) == [100, 103]
    other.write_text(f"{line(103, slow, 'grpc')}\n{line(111, fast)}\n")
    one.write_text(one.read_text()[:-9] + f"{line(107, slow)}\n")
    samples.poll()
    plan = [Stage(10, 1), Stage(10, 2), Stage(10, 3)]
    course = Course(tries=[(1, 100.4), (2, 110.4)], end=115.0)
    first, second = measuring.stage_results(samples, [], plan, course)
    # Of its first second nothing counts, nor of the second in which it ends.
    assert (first.sent.latencies.count, first.seconds) == (3, 8)
    assert first.sent.failures == {"refused": 1}
    assert first.over("http").sent.requests == 3
    assert first.over("grpc").measure("p50") == pytest.approx(0.5, rel=0.02)
    assert (second.sent.latencies.count, second.seconds) == (0, 3)
    assert second.asked_per_second == 2
    series = measuring.series(samples, [], plan, course)
    assert [one.at_seconds for one in series][:2] == pytest.approx([0.6, 1.6])
    assert [one.asked for one in series] == [1] * 10 + [2] * 4
    assert sum(one.answered for one in series) == 4


def test_the_course_of_a_shape_is_what_its_ticks_say(tmp_path: Path) -> None:
    assert Course.read(tmp_path) is None
    # Locust looks at the shape before all is ready, and a stage is taken once more.
    ticks = [[1, 1, 9.0], [1, 0, 10.0], [1, 1, 11.0], [2, 2, 15.0], [2, 2, 16.0]]
    ticks += [[2, 3, 20.0], [3, 4, 25.0]]
    lines = "".join(f"{json.dumps(one)}\n" for one in ticks)
    (tmp_path / "stages.jsonl").write_text(lines + "[0, 0, 3")
    course = Course.read(tmp_path)
    assert course is not None
    assert course.tries == [(1, 10.0), (2, 15.0), (2, 20.0), (3, 25.0)]
    assert course.end is None
    (tmp_path / "stages.jsonl").write_text(lines + "[0, 0, 30.0]\n")
    course = Course.read(tmp_path)
    assert course is not None
    assert course.windows() == {1: (10.0, 15.0), 2: (20.0, 25.0), 3: (25.0, 30.0)}
    assert course.stage_at(17) == (2, 15.0)


async def test_the_gateway_tells_of_its_batches_while_it_is_loaded(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        readings = []
        for _ in range(2):
            answer = await served.client.get("/metrics")
            readings.append(parse(answer.text, "stub", at=10.0 * len(readings)))
            for body in (image_of_class(1), image_of_class(2), b"no image"):
                await served.client.post("/classify", content=body)
    told = numbers(readings)
    assert told.batch_rows == 1
    assert told.queue_depth == 0
    assert told.errors_per_second == pytest.approx(0.1)
    assert 0 <= told.engine_busy < 1
    assert parse(answer.text, "other", at=0).calls == 0


def test_one_reading_tells_nothing() -> None:
    assert all(
        math.isnan(getattr(numbers([]), name))
        for name in GatewayNumbers.__dataclass_fields__
    )
    assert math.isnan(generator_busy([]))


def test_while_a_gateway_does_not_answer_only_the_generator_is_known() -> None:
    asked = threading.Event()

    def used() -> list[float]:
        asked.set()
        return [1.0]

    with Scraper("http://127.0.0.1:9", "any", generator_cpu_seconds=used) as scraper:
        assert asked.wait(10)
    reading = scraper.readings[0]
    assert math.isnan(reading.calls)
    assert reading.generator_cpu_seconds == [1.0]
    silent = [Reading(at=at, generator_cpu_seconds=[at / 2]) for at in (0.0, 4.0)]
    assert math.isnan(numbers(silent).queue_depth)
    assert generator_busy(silent) == 0.5


async def test_a_gateway_that_runs_is_found_with_its_model(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        url = f"http://127.0.0.1:{served.running.http_port}"

        def found(**options: str | None) -> str:
            given = {"grpc": None, "model": None, "token": None, **options}
            with running(url=url, repository=tmp_path, **given) as target:  # type: ignore[arg-type]
                return f"{target.model}, {target.description}, {target.grpc}"

        assert await asyncio.to_thread(found) == (
            "stub, version 1 on stub, 127.0.0.1:8001"
        )
        assert (await asyncio.to_thread(found, grpc="there:1")).endswith("there:1")
        with pytest.raises(NoTarget, match="has no 'other', but stub"):
            await asyncio.to_thread(found, model="other")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://127.0.0.1:9", "blockserve serve"),
        ("127.0.0.1:8000", "expected http://HOST:PORT"),
        ("grpc://127.0.0.1:8001", "expected http://HOST:PORT"),
    ],
)
def test_a_gateway_that_cannot_be_reached_is_told_with_what_to_do(
    url: str, what: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(NoTarget, match=what),
        running(url=url, grpc=None, repository=tmp_path, model=None, token=None),
    ):
        pass


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = runs.run(failures=2)
    run.write(tmp_path / "run.json")
    again = Run.read(tmp_path / "run.json")
    assert again.stages == run.stages
    assert again.settings == run.settings
    assert math.isnan(again.repetitions[0].series[0].queue_depth)
    measures = json.loads((tmp_path / "run.json").read_text())["repetitions"][0]
    assert measures["stages"][0]["measures"]["rps"] == 50


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "not written by"),
        ('{"format": 2}', "incomplete"),
    ],
)
def test_what_is_no_run_is_not_read(
    text: str | None, what: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UnreadableRun, match=what):
        Run.read(path)


def test_the_table_has_a_line_for_each_stage_of_each_repetition(tmp_path: Path) -> None:
    write_csv(runs.run(), tmp_path / "run.csv")
    head, *lines = (tmp_path / "run.csv").read_text().splitlines()
    assert head.startswith(
        "repetition,stage,protocol,asked_per_second,seconds,requests,p50_seconds"
    )
    assert len(lines) == 9
    assert lines[3].startswith("2,1,all,50,10,500,")
    assert {line.count(",") for line in lines} == {head.count(",")}


def test_a_busy_generator_is_warned_of() -> None:
    run = runs.run()
    assert warnings(run) == []
    busy = replace(run.repetitions[0].stages[0], generator_busy=0.97)
    first = replace(run.repetitions[0], stages=[busy])
    (text,) = warnings(replace(run, repetitions=[first]))
    assert "In stage 1 a process of Locust" in text


def test_a_stage_that_was_too_short_is_warned_of() -> None:
    run = runs.run(repetitions=1)
    short = replace(run.repetitions[0].stages[1], seconds=0)
    first = replace(run.repetitions[0], stages=[run.repetitions[0].stages[0], short])
    (text,) = warnings(replace(run, repetitions=[first]))
    assert text.startswith("Stage 2 was too short")


def verdicts(old: Run, new: Run) -> Counter[str]:
    return Counter(one.verdict for one in changes(old, new) if one.measure == "p99")


@pytest.mark.parametrize("repetitions", [3, 5])
def test_a_large_change_is_found(repetitions: int) -> None:
    old = runs.run(repetitions=repetitions)
    slower = runs.run(repetitions=repetitions, seed=1, slower=1.5)
    assert verdicts(old, slower) == {"worse": 4}
    assert verdicts(slower, old) == {"better": 4}
    p50 = next(one for one in changes(old, slower) if one.measure == "p50")
    assert p50.stage == 0
    assert p50.low < 0.5 < p50.high
    assert p50.change == pytest.approx(0.5, abs=0.1)


def test_where_nothing_changed_it_cannot_be_told() -> None:
    assert verdicts(runs.run(), runs.run(seed=1)) == {"cannot tell": 4}


def test_a_change_smaller_than_the_noise_cannot_be_told() -> None:
    old, new = runs.run(noise=0.2), runs.run(noise=0.2, seed=1, slower=1.1)
    assert verdicts(old, new) == {"cannot tell": 4}


def test_two_repetitions_are_too_few_to_tell() -> None:
    found = changes(runs.run(repetitions=2), runs.run(repetitions=2, slower=3, seed=1))
    assert {one.verdict for one in found} == {"cannot tell"}
    assert all(math.isnan(one.low) for one in found)


def test_a_capacity_run_compares_the_most_that_was_answered() -> None:
    old = runs.run(shape="capacity")
    new = runs.run(shape="capacity", loads=(50, 100, 400), seed=1)
    peak = next(one for one in changes(old, new) if one.measure == "peak")
    assert (peak.old, peak.new) == pytest.approx((200, 400))
    assert peak.verdict == "better"


def test_the_interval_holds_what_it_says() -> None:
    """Of runs that differ by noise alone, about one in twenty seems to differ."""
    random = np.random.default_rng(0)
    trials = 120
    missed = 0
    for trial in range(trials):
        old, new = random.normal(0, 0.1, (2, 4))
        low, high = interval(old, new, seed=trial)
        missed += not low <= 0 <= high
    assert missed / trials < 0.12


def test_the_same_seed_gives_the_same_interval() -> None:
    old, new = np.array([1.0, 1.2, 0.9]), np.array([1.3, 1.1, 1.5])
    assert interval(old, new) == interval(old, new)


def test_what_makes_no_difference_may_differ() -> None:
    old = runs.run(protocols=("http", "grpc"))
    # The order of protocols, and the end of a search where there is none.
    now = {**old.settings, "protocols": ["grpc", "http"], "broken_seconds": 6.0}
    check_comparable(old, now)
    search = runs.run(shape="capacity")
    with pytest.raises(NotComparable, match=r"a search that ends at a p99 .* 2\.0"):
        check_comparable(search, {**search.settings, "broken_seconds": 6.0})


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("shape", "spike", "shape step, this one spike"),
        ("model", "cats", "model digits, this one cats"),
        ("protocols", ["grpc"], "protocols http, this one grpc"),
        ("rate", 10.0, "rate not given, this one 10.0"),
    ],
)
def test_what_is_not_alike_is_not_compared(name: str, value: object, what: str) -> None:
    old = runs.run()
    check_comparable(old, dict(old.settings))
    with pytest.raises(NotComparable, match=what):
        check_comparable(old, {**old.settings, name: value})


def test_a_machine_that_was_slower_is_told() -> None:
    old, new = runs.run(), runs.run(seed=1)
    halved = [replace(one, reference_seconds=0.02) for one in new.repetitions]
    (text,) = machine_differences(old, replace(new, repetitions=halved))
    assert text.startswith("its own time for the same computation changed by +10")


def test_another_machine_is_told() -> None:
    (text,) = machine_differences(runs.run(), runs.run(processor="another"))
    assert text == "processor: made up before, another now"


def test_the_command_line_knows_every_shape_and_protocol() -> None:
    assert get_args(Shape) == tuple(SHAPES)
    assert set(get_args(Protocol)) == set(get_args(ProtocolName))


class Page(HTMLParser):
    """What a browser would have to fetch, and whether each element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: Counter[str] = Counter()
        self.references: list[str] = []
        self.names: list[str] = []
        self.text: list[str] = []

    def handle_starttag(
        self, tag: str, attrs: Sequence[tuple[str, str | None]]
    ) -> None:
        self.counts[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "data"}:
                self.references.append(value or "")
            if name == "id":
                self.names.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_is_one_page_that_needs_nothing_else() -> None:
    old, run = runs.run(), runs.run(failures=3, seed=1, slower=2)
    terms = parse_objective("p99<50ms,errors<0.1%")
    html = page(
        run,
        terms=terms,
        verdict=judge(terms, run.stages, finds_capacity=False),
        changes=changes(old, run),
        differences=["processor: this before, that now"],
    )
    found = Page()
    found.feed(html)
    assert found.open == []
    assert found.counts["svg"] == 4
    assert found.counts["script"] == found.counts["link"] == found.counts["img"] == 0
    assert all(one.startswith("#") for one in found.references)
    assert len(found.names) == len(set(found.names))
    assert {one[1:] for one in found.references} <= set(found.names)
    assert "@import" not in html
    assert "url(" not in html.replace("url(#", "")
    text = " ".join(found.text)
    for words in (
        "digits under load",
        "Objective missed:",
        "errors<0.1% was missed: 0.60% in stage 1",
        "<refused> & worse",
        "Latency against load",
        "Since the run before",
        "processor: this before, that now",
        "made up",
    ):
        assert words in text
    assert len(html.encode()) < 300_000


def test_protocols_that_share_the_load_are_shown_apart(tmp_path: Path) -> None:
    run = runs.run(repetitions=1, failures=3, protocols=("http", "grpc"))
    first = run.stages[0]
    assert first.over("http").measure("rps") == first.over("grpc").measure("rps") == 25
    assert first.over("grpc").measure("p50") > 1.8 * first.over("http").measure("p50")
    html = page(run)
    found = Page()
    found.feed(html)
    assert found.open == []
    assert found.counts["svg"] == 5
    assert len(found.names) == len(set(found.names))
    text = " ".join(found.text)
    assert "Latency by protocol" in text
    assert "Each protocol in each stage" in text
    assert "1 http 3 <refused> & worse" in text
    write_csv(run, tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [one["protocol"] for one in lines] == ["all", "http", "grpc"] * 3
    assert [one["requests"] for one in lines[:3]] == ["503", "253", "250"]
    # Of a single protocol neither the load nor the gateway's share is known.
    assert [one["asked_per_second"] for one in lines[:3]] == ["50", "", ""]
    assert [one["batch_rows"] for one in lines[:3]] == ["2", "", ""]
    run.write(tmp_path / "run.json")
    assert Run.read(tmp_path / "run.json").stages == run.stages


def test_a_run_whose_stages_were_too_short_has_a_report() -> None:
    run = runs.run(repetitions=1, loads=(1, 20))
    nothing = GatewayNumbers()
    short = [
        replace(one, protocols={}, seconds=0, gateway=nothing)
        for one in run.repetitions[0].stages
    ]
    html = page(replace(run, repetitions=[runs.repetition(short)]))
    assert "too short to be measured" in html


def test_what_tensorflow_serving_does_not_tell_has_no_plot() -> None:
    run = runs.run(repetitions=1)
    nothing = GatewayNumbers()
    untold = [replace(one, gateway=nothing) for one in run.repetitions[0].stages]
    html = page(replace(run, repetitions=[runs.repetition(untold)]))
    assert "Inside the gateway" in page(run)
    assert "Inside the gateway" not in html
    assert "requests that wait" not in html
    assert html.count("<svg ") == 3


def test_a_shape_with_one_load_is_shown_over_time_only() -> None:
    html = page(runs.run(loads=(50,), repetitions=1))
    assert html.count("<svg ") == 1
    assert "Over time" in html


DOCS = Path(__file__).parents[1] / "docs"


def test_every_option_is_documented() -> None:
    text = (DOCS / "loadtest.md").read_text(encoding="utf-8")
    section = text.split("## A report with one command")[1].split("\n## ")[0]
    for option in fields(Options):
        assert f"`--{option.name}`" in section


def test_the_report_in_the_documentation_needs_nothing_else() -> None:
    path = DOCS / "loadtest/report.html"
    html = path.read_text(encoding="utf-8")
    found = Page()
    found.feed(html)
    assert found.counts["svg"] == 4
    assert found.counts["script"] == found.counts["link"] == found.counts["img"] == 0
    assert all(one.startswith("#") for one in found.references)
    assert path.stat().st_size < 300_000
