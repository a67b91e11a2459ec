"""The kinds of panels that the dashboards are made of, and how they all look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import (
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.builders.dashboard import FieldColor, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.units import (
    BytesIEC,
    PercentUnit,
    RequestsPerSecond,
    Seconds,
    Short,
)

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="$datasource")
# The columns that Grafana has.
WIDTH: Final = 24
LINES_HEIGHT, NUMBER_HEIGHT = 8, 4
GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "text"

SECONDS: Final = Seconds
PER_SECOND: Final = RequestsPerSecond
RATIO: Final = PercentUnit
COUNT: Final = Short
BYTES: Final = BytesIEC


@dataclass(frozen=True, slots=True)
class Query:
    """What a panel asks Prometheus, and what it calls each answer."""

    expression: str
    legend: str


def quantile(
    q: float, histogram: str, selector: str, by: str, *, scale: str = ""
) -> str:
    """The query of a quantile of a classic histogram."""
    rate = f"rate({histogram}_bucket{{{selector}}}[$__rate_interval])"
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) ({rate})){scale}"


def mean(histogram: str, selector: str, by: str, *, scale: str = "") -> str:
    """The query of a histogram's mean; it has no answer where nothing was observed."""
    parts = [
        f"sum by ({by}) (rate({histogram}_{part}{{{selector}}}[$__rate_interval]))"
        for part in ("sum", "count")
    ]
    return f"{parts[0]} / ({parts[1]} > 0){scale}"


def rate(counter: str, selector: str, by: str) -> str:
    """The query of how fast a counter grows."""
    return f"sum by ({by}) (rate({counter}{{{selector}}}[$__rate_interval]))"


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    width: int = 8,
    limits: Mapping[float, str] | None = None,
    stacked: bool = False,
    most: float | None = None,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Values over time.

    Args:
        title: What is shown.
        description: What to look for, and what to do then.
        *queries: Where it comes from.
        unit: What it is measured in.
        width: Columns that it takes.
        limits: Colours from which value on, drawn as lines.
        stacked: Whether values add up.
        most: The largest value that there can be.
        logarithmic: Whether the scale is.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(_targets(queries))
        .span(width)
        .height(LINES_HEIGHT)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .thresholds(_thresholds(limits or {}))
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
    )
    if limits:
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if logarithmic:
        panel.scale_distribution(
            common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        )
    return panel


def number(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str,
    colours: Mapping[float, str] | None = None,
    best: str = GREEN,
    decimals: int | None = None,
    width: int = 4,
    nothing: str | None = None,
) -> stat.Panel:
    """One value, as it is now, above its course.

    Args:
        title: What is shown.
        description: What to look for, and what to do then.
        query: Where it comes from.
        unit: What it is measured in.
        colours: Colours from which value on.
        best: The colour below the first of them.
        decimals: How many of them show.
        width: Columns that it takes.
        nothing: What to say if there is no value.
    """
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(_targets([query]))
        .span(width)
        .height(NUMBER_HEIGHT)
        .unit(unit)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.AREA)
        .thresholds(_thresholds(colours or {}, best=best))
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
    )
    if decimals is not None:
        panel.decimals(decimals)
    if nothing is not None:
        panel.no_value(nothing)
    return panel


def spread(
    title: str, description: str, histogram: str, selector: str, *, unit: str
) -> heatmap.Panel:
    """All of a histogram over time: the darker, the more were that size."""
    increase = f"increase({histogram}_bucket{{{selector}}}[$__rate_interval])"
    query = Query(f"sum by (le) ({increase})", "{{le}}")
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(_targets([query], form=PromQueryFormat.HEATMAP))
        .span(8)
        .height(LINES_HEIGHT)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .steps(64)
        )
        .unit(COUNT)
    )


def states(
    title: str,
    description: str,
    query: Query,
    names: Sequence[tuple[str, str]],
) -> statetimeline.Panel:
    """Which of some states each series was in, over time.

    Args:
        title: What is shown.
        description: What to look for, and what to do then.
        query: A number of a state for each series.
        names: The states from 0 on, and their colours.
    """
    results = {
        str(value): ValueMappingResult(text=text, color=colour, index=value)
        for value, (text, colour) in enumerate(names)
    }
    mapping: Sequence[ValueMapping] = [ValueMap(options=results)]
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(_targets([query]))
        .span(WIDTH)
        .height(LINES_HEIGHT)
        .unit(COUNT)
        .mappings(list(mapping))
        .show_value(VisibilityMode.AUTO)
        .merge_values(True)
        .thresholds(_thresholds({}))
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(False)
        )
    )


def _targets(
    queries: Sequence[Query], *, form: PromQueryFormat = PromQueryFormat.TIME_SERIES
) -> list[Builder[Dataquery]]:
    return [
        prometheus.Dataquery()
        .ref_id(chr(ord("A") + number))
        .datasource(SOURCE)
        .expr(query.expression)
        .legend_format(query.legend)
        .format(form)
        .range()
        for number, query in enumerate(queries)
    ]


def _thresholds(colours: Mapping[float, str], *, best: str = GREEN) -> ThresholdsConfig:
    steps = [Threshold(value=None, color=best)]
    steps += [Threshold(value=value, color=colours[value]) for value in sorted(colours)]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
