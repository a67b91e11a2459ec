"""How a load test goes: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.bench.measuring import Moment
from loadtest.bench.tables import shown_measure, shown_rate
from loadtest.shapes import Stage

LINE_SECONDS: Final = 5


class LiveProgress:
    """Shows each second's load and latencies while the block runs.

    Args:
        console: Where to.
        plan: The shape's stages.
        repetitions: How often it runs.
    """

    def __init__(
        self, console: Console, plan: Sequence[Stage], repetitions: int
    ) -> None:
        self._console = console
        self._plan = plan
        self._shape_seconds = sum(one.duration_seconds for one in plan)
        self._repetitions = repetitions
        self._repetition = 0
        self._next_line_seconds = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "Locust starts", total=repetitions * self._shape_seconds
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, repetition: int) -> None:
        """A repetition starts; they count from 0."""
        self._repetition = repetition
        self._next_line_seconds = 0.0

    def show(self, moment: Moment) -> None:
        """Tell how it goes."""
        text = self._text(moment)
        if self._console.is_terminal:
            done = self._repetition * self._shape_seconds + moment.elapsed_seconds
            self._bar.update(self._task, description=text, completed=done)
        elif moment.elapsed_seconds >= self._next_line_seconds:
            self._next_line_seconds = moment.elapsed_seconds + LINE_SECONDS
            self._console.print(text, highlight=False)

    def _text(self, moment: Moment) -> str:
        which = f"repetition {self._repetition + 1}/{self._repetitions}"
        if moment.stage is None:
            return f"{which}, the last answers"
        asked = shown_rate(self._plan[moment.stage].requests_per_second)
        text = f"{which}, stage {moment.stage + 1}/{len(self._plan)}, {asked}/s asked"
        recent = moment.recent
        if not recent.requests:
            return text
        p50, p99 = map(recent.latencies.percentile, (50, 99))
        return (
            f"{text}, {shown_rate(recent.latencies.count)}/s answered, "
            f"p50 {shown_measure('p50', p50)}, p99 {shown_measure('p99', p99)}, "
            f"errors {shown_measure('errors', recent.failed / recent.requests)}"
        )
