"""What is wanted of a build."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from models.card import Precision, Resize

Preprocess = Literal["none", "scale01", "scale11", "imagenet-mean", "imagenet-standard"]

DEFAULT_ARCHITECTURE: Final = "inception"
DIGITS: Final = "digits"
# A power of two is at most half full, and five sizes are warmed up in seconds.
DEFAULT_BATCH_SIZES: Final = (1, 2, 4, 8, 16)


class WrongPlan(ValueError):
    """Options that do not go together, or do not fit the model or the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to build, from what, and how well.

    `None` leaves a choice to the architecture and the data. The fields are the options
    of `blockserve build`, which documents them.
    """

    architecture: str | None = None
    source: Path | None = None
    preprocess: Preprocess | None = None
    labels: Path | None = None
    dataset: str | None = None
    size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    classes: int | None = None
    resize: Resize | None = None
    width: float | None = None
    dropout: float | None = None
    precision: Precision = "float32"
    xla: bool = False
    batch_sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES
    max_accuracy_drop: float = 1.0
    max_changed_predictions: float = 2.0
    untrained: bool = False
    epochs: int | None = None
    patience: int | None = None
    learning_rate: float | None = None
    validation_share: float | None = None
    seed: int = 0

    def check(self) -> None:
        """Say which options do not go together.

        Raises:
            WrongPlan: Some do not.
        """
        training = {
            "--epochs": self.epochs,
            "--patience": self.patience,
            "--learning-rate": self.learning_rate,
        }
        if self.source is None:
            only_with_source = {
                "--preprocess": self.preprocess,
                "--labels": self.labels,
            }
            _refuse(only_with_source, "goes with --from FILE")
        else:
            own = {
                "ARCHITECTURE": self.architecture,
                "--channels": self.channels,
                "--classes": self.classes,
                "--width": self.width,
                "--dropout": self.dropout,
                "--untrained": self.untrained or None,
            }
            _refuse({**own, **training}, "is told by the file in --from")
            if self.precision != "float32" and self.dataset is None:
                raise WrongPlan(
                    f"--precision {self.precision} needs --dataset with --from: its "
                    "accuracy is compared with that of float32"
                )
        if self.xla and self.precision == "int8":
            raise WrongPlan(
                "--xla is for TensorFlow Serving, and --precision int8 for the "
                "embedded engine"
            )
        if self.dataset in {None, DIGITS}:
            share = {"--validation-share": self.validation_share}
            _refuse(share, "goes with --dataset DIR")
        if self.untrained:
            _refuse({"--dataset": self.dataset, **training}, "contradicts --untrained")
        elif self.source is None:
            _refuse({"--classes": self.classes}, "is told by the data set")

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """The options that were set, for the card."""
        dataset = self.dataset and Path(self.dataset).name
        options = asdict(replace(self, dataset=dataset))
        options["batch_sizes"] = ",".join(map(str, self.batch_sizes))
        return {
            name: value if isinstance(value, int | float | str) else _text(value)
            for name, value in options.items()
            if value is not None
        }


def _refuse(options: Mapping[str, object], why: str) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise WrongPlan(f"{given[0]} {why}")


def _text(value: object) -> str:
    if isinstance(value, Path):
        return value.name  # where it lay is nobody's business
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
