"""What was measured, as it is written to its file and read again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, get_args

DeviceKind: TypeAlias = Literal["gpu", "cpu"]
# `tf32` is float32 in memory, of whose mantissa tensor cores multiply 10 bits.
Precision: TypeAlias = Literal["float32", "tf32", "float16", "bfloat16"]
PRECISIONS: Final[Sequence[Precision]] = get_args(Precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one process measures."""

    runtime: str
    model: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.model}, {self.runtime}, {self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Calls one after the other, each of which was waited for.

    Attributes:
        calls: How many they were.
        images_per_second: At the median.
        p90_seconds: `None` where there were fewer than 10 calls.
        p99_seconds: `None` where there were fewer than 100 calls.
    """

    calls: int
    images_per_second: float
    median_seconds: float
    p90_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A batch size.

    Attributes:
        first_call_seconds: The first call of this size, which compiles and tries out.
        on_device: From images on the device to probabilities on the device.
        with_copy: From images in the host's memory to probabilities there.
        tflops: What `on_device` is in tera floating-point operations per second.
        share_of_peak: What that is of the chip's peak in this precision, if known.
    """

    case: Case
    batch_size: int
    first_call_seconds: float
    on_device: Timing
    with_copy: Timing
    tflops: float
    share_of_peak: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """The gateway's batcher over a case, in a closed loop of single images.

    Attributes:
        largest_batch_size: The most that it was allowed.
        submitters: Images under way at a time.
        images_per_second: Answered.
        of_engine: What that is of the best rate with copies, over all batch sizes.
        mean_batch_size: Images in a batch, without padding.
    """

    case: Case
    largest_batch_size: int
    submitters: int
    images_per_second: float
    of_engine: float
    p50_seconds: float
    p99_seconds: float
    mean_batch_size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Where a case ended early, and why.

    Attributes:
        batch_size: The first that failed; `None` where it was not a batch.
    """

    case: Case
    batch_size: int | None
    reason: str


Measured = TypeVar("Measured", Point, Batching, Failure)


@dataclass(slots=True, kw_only=True)
class Results:
    """A run, as it is written to its file.

    Attributes:
        machine: What `harness.machine` tells.
        device: Its kind, its name, its peaks in tera operations per second by
            precision, and what its driver tells.
        settings: What was chosen for this run.
        runtimes: What was found of each, by name: its version, or why it is left out.
        models: By name, image shape and multiply-adds of one image.
        notes: What else was left out, and why.
    """

    machine: Mapping[str, Any]
    device: Mapping[str, Any]
    settings: Mapping[str, Any]
    runtimes: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    notes: list[str] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    batching: list[Batching] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, one: Point | Batching | Failure) -> None:
        """Take in what a worker has measured."""
        match one:
            case Point():
                self.points.append(one)
            case Batching():
                self.batching.append(one)
            case Failure():
                self.failures.append(one)

    def write(self, path: Path) -> None:
        """Write all that is known so far."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        document = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **{
                **document,
                "points": [_point(one) for one in document["points"]],
                "batching": [_of_case(Batching, one) for one in document["batching"]],
                "failures": [_of_case(Failure, one) for one in document["failures"]],
            }
        )


def to_line(one: Point | Batching | Failure) -> str:
    """One line of JSON, as workers send it."""
    return json.dumps({type(one).__name__: asdict(one)}, allow_nan=False)


def from_line(line: str) -> Point | Batching | Failure:
    """Read what `to_line` wrote."""
    ((kind, document),) = json.loads(line).items()
    if kind == Point.__name__:
        return _point(document)
    if kind == Batching.__name__:
        return _of_case(Batching, document)
    return _of_case(Failure, document)


def _point(document: Mapping[str, Any]) -> Point:
    timings = {name: Timing(**document[name]) for name in ("on_device", "with_copy")}
    return _of_case(Point, {**document, **timings})


def _of_case(kind: type[Measured], document: Mapping[str, Any]) -> Measured:
    return kind(**{**document, "case": Case(**document["case"])})
