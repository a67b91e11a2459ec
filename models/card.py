"""The model card: what a server needs to know and a SavedModel does not say.

The one module that the build side and the serving side share, with where models and
their versions lie; it imports no framework.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

ASSETS_DIRECTORY: Final = "assets.extra"
CARD_FILE: Final = f"{ASSETS_DIRECTORY}/model_card.json"
CONFUSION_FILE: Final = f"{ASSETS_DIRECTORY}/confusion.svg"
GRAPH_FILE: Final = f"{ASSETS_DIRECTORY}/graph.svg"
INT8_FILE: Final = f"{ASSETS_DIRECTORY}/openvino_int8.xml"  # weights beside it, .bin
SAMPLE_FILE: Final = f"{ASSETS_DIRECTORY}/sample.png"
SUMMARY_FILE: Final = f"{ASSETS_DIRECTORY}/summary.txt"
TRAINING_FILE: Final = f"{ASSETS_DIRECTORY}/training.svg"
LARGEST_VERSION: Final = 2**63 - 1
WARMUP_FILE: Final = f"{ASSETS_DIRECTORY}/tf_serving_warmup_requests"

# The signature of tensors, and that of encoded images, where the input is an image.
DEFAULT_SIGNATURE: Final = "serving_default"
BYTES_SIGNATURE: Final = "serving_bytes"

FloatPrecision = Literal["float32", "float16", "bfloat16"]
Precision = Literal[FloatPrecision, "int8"]
Resize = Literal["stretch", "crop", "pad"]
Role = Literal["probabilities", "logits", "other"]


class CardError(ValueError):
    """A card file cannot be read or says something impossible."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rectangle(NamedTuple):
    """Whole pixels of an image, counted from its upper left corner."""

    top: int
    left: int
    height: int
    width: int


class Placement(NamedTuple):
    """Which part of an upright image is resized, and where it goes in the input.

    The size of `target` is that after the resize; what lies around it is black.
    """

    source: Rectangle
    target: Rectangle


class ImageInput(_Part):
    """How an image becomes the model's input tensor `dtype[batch, H, W, C]`.

    Resizing is bilinear with antialiasing (the filter widens when it shrinks), in every
    place that resizes: training, gateway and graph. `stretch` ignores the aspect ratio,
    `crop` takes the largest centred part that has the model's, and `pad` fits the whole
    image in and fills the rest with black.
    """

    tensor: str
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: Literal[1, 3]
    dtype: Literal["uint8", "float32"] = "uint8"
    resize: Resize = "stretch"
    colour_order: Literal["grey", "rgb", "bgr"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.height, self.width, self.channels

    def place(self, height: int, width: int) -> Placement:
        """How an upright image of this size is resized into the input.

        In integers and without a comparison, so that TensorFlow's scalars (int64) can
        be given as well: every place that resizes rounds as this does.
        """
        source = Rectangle(0, 0, height, width)
        target = Rectangle(0, 0, self.height, self.width)
        if self.resize == "crop":
            return Placement(_centred_part(source, aspect=target), target)
        if self.resize == "pad":
            return Placement(source, _centred_part(target, aspect=source))
        return Placement(source, target)

    @model_validator(mode="after")
    def _colour_order_fits_the_channels(self) -> Self:
        if (self.channels == 1) != (self.colour_order == "grey"):
            message = (
                "1 channel means colour_order 'grey', 3 mean 'rgb' or 'bgr'; "
                f"got {self.channels} and {self.colour_order!r}"
            )
            raise ValueError(message)
        return self


def _centred_part(whole: Rectangle, *, aspect: Rectangle) -> Rectangle:
    """The largest centred part that has an aspect ratio, but for the rounding."""
    height = _smaller(whole.height, _rounded(whole.width * aspect.height, aspect.width))
    width = _smaller(whole.width, _rounded(whole.height * aspect.width, aspect.height))
    return Rectangle(
        (whole.height - height) // 2, (whole.width - width) // 2, height, width
    )


def _rounded(dividend: int, divisor: int) -> int:
    """The quotient rounded to the nearest integer, a half up, and 1 at least."""
    quotient = (2 * dividend + divisor) // (2 * divisor)
    return -_smaller(-quotient, -1)


def _smaller(one: int, other: int) -> int:
    return (one + other - abs(one - other)) // 2


class OutputTensor(_Part):
    """An output's name and what its numbers mean."""

    name: str
    role: Role


class Accuracy(_Part):
    """The share of `samples` samples of `data` that the model gets right.

    `labels` holds the same for the samples of each label, where there is one.
    """

    data: str
    samples: int = Field(ge=1)
    value: float = Field(ge=0, le=1)
    labels: dict[str, float] = {}


class Parity(_Part):
    """The largest absolute difference between the export's outputs and the original's.

    Measured over `samples` images.
    """

    samples: int = Field(ge=1)
    max_abs_difference: float = Field(ge=0)


class Preprocessing(_Part):
    """How far a path from image file to pixels is from that of the training.

    `path` is the gateway's decoder or the graph of the signature `serving_bytes`;
    `variant` is the kind of image file. Pixels are 0 to 255;
    `changed_predictions` counts the samples whose most probable label is another.
    """

    path: Literal["gateway", "serving_bytes"]
    variant: str
    samples: int = Field(ge=1)
    mean_abs_difference: float = Field(ge=0)
    max_abs_difference: float = Field(ge=0)
    changed_predictions: int = Field(ge=0)


class PrecisionMeasurement(_Part):
    """Size, speed and accuracy of the model's weights in one precision.

    `images_per_second` was measured in batches of `batch_size` by `engine` on the
    machine that built it; it compares with the other measurements of the card only.
    """

    precision: Precision
    engine: Literal["openvino", "tensorflow"]
    size_bytes: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    images_per_second: float = Field(gt=0)
    accuracy: float | None = Field(default=None, ge=0, le=1)


class Training(_Part):
    """How a training went: of `epochs`, the weights of `best_epoch` were kept.

    `interrupted` tells that someone ended it before it would have ended itself.
    """

    epochs: int = Field(ge=1)
    best_epoch: int = Field(ge=1)
    validation_loss: float
    validation_accuracy: float = Field(ge=0, le=1)
    interrupted: bool = False


class DataSplit(_Part):
    """The pictures that the model was made with: how many of each label, and for what.

    Trained on `train` of them, steered by `validation`, measured on `held_out`.
    """

    name: str
    images: dict[str, int]
    train: int
    validation: int
    held_out: int
    skipped_files: int = 0


class ModelCard(_Part):
    """One version of a model.

    `labels[i]` names class `i` of the output whose role is `probabilities` or `logits`.
    `image_input` is the image that `classify` fills in: `None` where the model takes
    something else, or several images. `encoded_input` names the string input of the
    signature `serving_bytes` that belongs to it. `batch_sizes` are those of the warm-up
    records. `recipe` holds the options of the build, and `frameworks` maps package
    names to the versions that built the model.
    """

    name: str = Field(min_length=1)
    version: int = Field(ge=1)
    architecture: str
    created: datetime
    image_input: ImageInput | None
    encoded_input: str | None = None
    outputs: tuple[OutputTensor, ...]
    labels: tuple[str, ...]
    parameters: int | None = Field(default=None, ge=0)
    precision: Precision = "float32"
    precisions: tuple[PrecisionMeasurement, ...] = ()
    batch_sizes: tuple[PositiveInt, ...] = ()
    recipe: dict[str, str | int | float | bool | None] = {}
    data: DataSplit | None = None
    training: Training | None = None
    accuracy: tuple[Accuracy, ...] = ()
    parity: Parity | None = None
    preprocessing: tuple[Preprocessing, ...] = ()
    frameworks: dict[str, str] = {}

    @property
    def scores(self) -> OutputTensor | None:
        """The output whose columns are classes: the first that has such a role."""
        return next((one for one in self.outputs if one.role != "other"), None)

    @classmethod
    def read(cls, version_directory: Path) -> Self | None:
        """Read a version's card; `None` where it has none.

        Raises:
            CardError: The file is there, but is not a card.
        """
        path = version_directory / CARD_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CardError(f"cannot read {path}: {error}") from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'card'}: {e['msg']}"
                for e in error.errors()
            )
            raise CardError(f"{path} is not a model card: {wrong}") from error

    def write(self, version_directory: Path) -> None:
        """Write the card to its place below `version_directory`."""
        path = version_directory / CARD_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def scan(root: Path) -> dict[str, dict[int, Path]]:
    """Model names to version numbers to directories, as they are on disk now.

    What may not be read (`lost+found`, say) is no model, nor what no client could name:
    a name that is no UTF-8, a version beyond 63 bits.

    Raises:
        OSError: The repository or a model's directory cannot be read at the moment.
    """
    return {
        model.name: {
            int(d.name): d
            for d in model.iterdir()
            if d.name.isascii()
            and d.name.isdecimal()
            and 0 < int(d.name) <= LARGEST_VERSION
            and d.is_dir()
        }
        for model in root.iterdir()
        if model.is_dir()
        and model.name[0] != "."
        and _is_text(model.name)
        and os.access(model, os.R_OK)
    }


def _is_text(name: str) -> bool:
    """Whether a name has been read as UTF-8: no byte of it stands for itself."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
