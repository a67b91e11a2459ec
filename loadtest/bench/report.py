"""The report: one page that needs nothing else, no script and no network."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import Any, Final

from loadtest.bench.comparison import Change
from loadtest.bench.plots import plots
from loadtest.bench.results import Run
from loadtest.bench.slo import Term, Verdict
from loadtest.bench.tables import (
    CHANGE_COLUMNS,
    PROTOCOL_COLUMNS,
    STAGE_COLUMNS,
    change_rows,
    protocol_rows,
    shown_rate,
    stage_rows,
    verdict_lines,
    warnings,
)

STYLE: Final = Path(__file__).with_name("page.css")
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
<footer>Written by <code>blockserve bench</code>.</footer>
</body>
</html>
"""
STAGE_NOTE: Final = (
    "Medians of the repetitions. Latencies are those of right answers, from the moment "
    "when a request was due. The last column is the share of a core that Locust's "
    "busiest process took."
)
GATEWAY_NOTE: Final = (
    "Rows in a batch, requests in the queue and the share of the engine that was used "
    "are the gateway's own numbers."
)
SETTINGS: Final[Mapping[str, str]] = {
    "shape": "Shape",
    "model": "Model",
    "protocols": "Protocols",
    "rate": "Highest load asked",
    "duration_seconds": "Time of the shape",
    "repetitions": "Repetitions",
    "processes": "Processes of Locust",
    "server": "Server",
    "slo": "Objective",
}
MACHINE: Final[Mapping[str, str]] = {
    "date": "Date",
    "processor": "Processor",
    "cores": "Cores",
    "system": "System",
    "python": "Python",
    "commit": "Commit",
    "versions": "Versions",
}


def page(
    run: Run,
    *,
    terms: Sequence[Term] = (),
    verdict: Verdict | None = None,
    changes: Sequence[Change] = (),
    differences: Sequence[str] = (),
) -> str:
    """The report as HTML.

    Args:
        run: What was measured.
        terms: What was to be reached.
        verdict: Whether it was.
        changes: Since an older run.
        differences: Between the machines of both.
    """
    title = f"{escape(str(run.settings['model']))} under load"
    parts = [f"<h1>{title}</h1>", _lead(run)]
    if verdict is not None:
        parts.append(_verdict(run, verdict))
    parts += [f'<p class="note bad">{escape(one)}</p>' for one in warnings(run)]
    parts.append("<h2>Stages</h2>")
    parts.append(_table(STAGE_COLUMNS, stage_rows(run.stages), _marks(verdict)))
    parts.append(f'<p class="note">{STAGE_NOTE}</p>')
    if run.knows_gateway:
        parts.append(f'<p class="note">{GATEWAY_NOTE}</p>')
    for heading, drawing in plots(run, terms):
        parts.append(f"<h2>{escape(heading)}</h2><figure>{drawing}</figure>")
    parts += [_protocols(run), _failures(run)]
    if changes:
        parts.append(_changes(changes, differences))
    parts.append("<h2>What was measured, and where</h2>")
    facts = {**_named(run.settings, SETTINGS), **_named(run.machine, MACHINE)}
    parts.append(_facts(facts))
    style = STYLE.read_text(encoding="utf-8")
    body = "\n".join(filter(None, parts))
    return PAGE.format(title=title, style=style, body=body)


def _lead(run: Run) -> str:
    loads = [stage.asked_per_second for stage in run.stages]
    repetitions = len(run.repetitions)
    times = "once" if repetitions == 1 else f"{repetitions} times"
    text = (
        f"{run.settings['shape']}, {len(loads)} stages from {shown_rate(min(loads))} "
        f"to {shown_rate(max(loads))} requests a second, {times}, "
        f"on {run.machine.get('date', 'an unknown day')}"
    )
    return f'<p class="lead">{escape(text)}</p>'


def _verdict(run: Run, verdict: Verdict) -> str:
    mark, word = ("good", "met") if verdict.is_met else ("bad", "missed")
    lines = verdict_lines(verdict, run.stages)
    points = "".join(f"<li>{escape(one)}</li>" for one in lines)
    return (
        f'<div class="verdict {mark}"><p><strong class="{mark}">Objective {word}:'
        f"</strong> {escape(str(run.settings.get('slo')))}</p>"
        + (f"<ul>{points}</ul>" if points else "")
        + "</div>"
    )


def _marks(verdict: Verdict | None) -> Sequence[str]:
    if verdict is None:
        return ()
    return ["good" if met else "bad" for met in verdict.stage_is_met]


def _protocols(run: Run) -> str:
    """Folded, for there may be very many lines."""
    if not run.parts:
        return ""
    rows = protocol_rows(run.stages, run.parts)
    table = _table(PROTOCOL_COLUMNS, rows)
    return f"<details><summary>Each protocol in each stage</summary>{table}</details>"


def _failures(run: Run) -> str:
    rows = [
        [str(stage.number), protocol, f"{many:,}", kind]
        for stage, protocol in product(run.stages, run.protocols)
        for kind, many in sorted(
            stage.over(protocol).failures.items(), key=lambda one: -one[1]
        )
    ]
    if not rows:
        return ""
    table = _table(("stage", "protocol", "times", "what"), rows, name="words")
    return f"<h2>What failed</h2>{table}"


def _changes(changes: Sequence[Change], differences: Sequence[str]) -> str:
    marks = {"better": "good", "worse": "bad"}
    table = _table(
        CHANGE_COLUMNS,
        change_rows(changes),
        [marks.get(one.verdict, "") for one in changes],
    )
    notes = "".join(
        f'<p class="note bad">Other machine: {escape(one)}</p>' for one in differences
    )
    return f"<h2>Since the run before</h2>{notes}{table}"


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    marks: Sequence[str] = (),
    *,
    name: str = "numbers",
) -> str:
    """Marks colour the last cell of comparisons and the first of stages."""
    head = "".join(f"<th>{escape(one)}</th>" for one in columns)
    body = []
    for index, row in enumerate(rows):
        mark = f' class="{marks[index]}"' if index < len(marks) and marks[index] else ""
        first = _sign(marks[index]) if columns is STAGE_COLUMNS and mark else ""
        cells = [f"<td{mark}>{first}{escape(row[0])}</td>"]
        cells += [f"<td>{escape(one)}</td>" for one in row[1:-1]]
        cells.append(f"<td{'' if first else mark}>{escape(row[-1])}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="{name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _sign(mark: str) -> str:
    """Not by colour alone."""
    return "✓ " if mark == "good" else "✗ "


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    return {
        label: _text(values[name])
        for name, label in names.items()
        if values.get(name) is not None
    }


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
