"""What a request may have waited in its socket, by a clock that the tests set."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from service import event_loop, gateway
from service.event_loop import Eager, EventLoopLag
from service.gateway import Gateway
from service.settings import Settings


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (event_loop, gateway):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


async def turn_of(seconds: float, lag: EventLoopLag, clock: Clock) -> None:
    lag.seconds_at_arrival()
    clock.now += seconds
    await asyncio.sleep(0)


async def test_the_first_request_has_not_waited() -> None:
    assert EventLoopLag().seconds_at_arrival() == 0


async def test_a_request_may_have_waited_as_long_as_the_turn_before_took(
    clock: Clock,
) -> None:
    lag = EventLoopLag()
    await turn_of(0.3, lag, clock)
    assert lag.seconds_at_arrival() == pytest.approx(0.3)


async def test_all_requests_of_a_turn_may_have_waited_through_the_one_before(
    clock: Clock,
) -> None:
    lag = EventLoopLag()
    await turn_of(0.3, lag, clock)
    assert lag.seconds_at_arrival() == pytest.approx(0.3)
    clock.now += 0.1
    assert lag.seconds_at_arrival() == pytest.approx(0.3)
    await asyncio.sleep(0)
    assert lag.seconds_at_arrival() == pytest.approx(0.1)


async def test_after_a_pause_nothing_waits_any_more(clock: Clock) -> None:
    lag = EventLoopLag()
    await turn_of(0.3, lag, clock)
    clock.now += 0.31
    assert lag.seconds_at_arrival() == 0


async def test_what_a_request_has_waited_is_part_of_its_time(
    clock: Clock, tmp_path: Path
) -> None:
    gateway = Gateway(Settings(engine="stub", repository=tmp_path))
    assert gateway.deadline(2) == clock.now + 2
    clock.now += 0.5
    await asyncio.sleep(0)
    assert gateway.deadline(2) == pytest.approx(clock.now + 1.5)
    await gateway.stop()


async def test_a_request_with_no_time_left_is_not_given_the_usual_time(
    clock: Clock, tmp_path: Path
) -> None:
    settings = Settings(engine="stub", repository=tmp_path, request_timeout_seconds=30)
    gateway = Gateway(settings)
    assert gateway.deadline(0) == clock.now
    assert gateway.deadline(None) == clock.now + 30
    await gateway.stop()


async def test_a_coroutine_that_need_not_wait_is_done_at_once() -> None:
    async def answer() -> int:
        return 3

    eager = Eager(answer())
    assert eager.is_done
    assert eager.result == 3


async def test_what_a_coroutine_raises_before_it_waits_is_raised_at_once() -> None:
    async def fail() -> int:
        raise LookupError("at once")

    with pytest.raises(LookupError, match="at once"):
        Eager(fail())


async def test_a_coroutine_that_waits_goes_on_where_it_stopped() -> None:
    events = [asyncio.Event(), asyncio.Event()]
    reached = []

    async def walk() -> str:
        for number, event in enumerate(events):
            reached.append(number)
            await event.wait()
        return "there"

    eager = Eager(walk())
    assert (eager.is_done, reached) == (False, [0])
    for event in events:
        event.set()
    assert await eager == "there"
    assert reached == [0, 1]


async def test_cancelling_who_waits_for_a_coroutine_reaches_it() -> None:
    seen = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def waiting() -> None:
        await Eager(wait())

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_a_coroutine_that_nobody_waits_for_is_ended() -> None:
    seen = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    Eager(wait()).close()
    assert seen == ["ended"]
