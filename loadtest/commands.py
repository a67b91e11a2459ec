"""The load test's sub-command of `blockserve`.

What measures is imported inside: the command line lists it without, and a gateway may
be installed without the extra that it needs.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from service.errors import BlockserveError

NEEDED: Final = ("locust", "matplotlib", "mlxtend", "psutil")

Shape = Literal["ramp", "step", "spike", "soak", "capacity"]
Protocol = Literal[
    "http",
    "tf_serving_http",
    "open_inference_http",
    "grpc",
    "tf_serving_grpc",
    "open_inference_grpc",
]
AboveZero = Annotated[float | None, Parameter(validator=Number(gt=0))]
AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]


class NotInstalled(BlockserveError):
    """What the command needs is not there."""

    code = "not_installed"


def _check_objective(_: Any, text: str | None) -> None:
    from loadtest.bench.slo import parse  # noqa: PLC0415, see above

    if text is not None:
        parse(text)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured, and how.

    Attributes:
        url: A gateway that runs, or TensorFlow Serving alone; a gateway is started if
            not given, with the settings that `blockserve serve` would have.
        grpc: Where that server answers gRPC, as in 127.0.0.1:8001.
        repository: Directory of models of the gateway that is started; an empty one
            gets the demo model first.
        model: The model to ask; not needed where a gateway has only one.
        shape: How the load changes.
        protocol: How to ask; several share the load.
        rate: Requests a second of the highest stage, if not the shape's own.
        duration: Seconds that the shape takes, if not its own.
        repetitions: How often the shape runs; at least 3 to tell changes from noise.
        slo: What is to be reached, as in p99<50ms,errors<0.1%.
        compare: JSON of an older run, to tell what changed since.
        output: Folder for report.html, report.json and report.csv.
        processes: Processes of Locust; chosen from the processor if not given.
        token: Bearer token, where the gateway asks for one.
    """

    url: str | None = None
    grpc: str | None = None
    repository: Annotated[Path, Parameter(env_var="BLOCKSERVE_REPOSITORY")] = Path(
        "model_repository"
    )
    model: str | None = None
    shape: Shape = "capacity"
    protocol: Annotated[tuple[Protocol, ...], Parameter(negative=())] = ("http",)
    rate: AboveZero = None
    duration: AboveZero = None
    repetitions: AtLeastOne = 3
    slo: Annotated[str | None, Parameter(validator=_check_objective)] = None
    compare: Path | None = None
    output: Path = Path("bench_results/bench")
    processes: Annotated[int | None, Parameter(validator=Number(gte=1))] = None
    token: Annotated[str | None, Parameter(env_var="BLOCKSERVE_TOKEN")] = None


def bench(options: Options = Options()) -> int:
    """Load a gateway, and write a report of how it answers.

    The status is 0 if what --slo asks for was reached, 1 if it was missed or nothing
    could be measured, and 2 if the command line is wrong.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NotInstalled(
            f"bench needs {', '.join(missing)}: pip install 'blockserve[loadtest]'"
        )
    from loadtest.bench.command import run  # noqa: PLC0415, see above

    return run(options)
