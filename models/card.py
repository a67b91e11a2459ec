"""The model card: what a server needs to know and a SavedModel does not say.

The one module that the build side and the serving side share; it imports no framework.
"""

from datetime import datetime
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ASSETS_DIRECTORY: Final = "assets.extra"
CARD_FILE: Final = f"{ASSETS_DIRECTORY}/model_card.json"
GRAPH_FILE: Final = f"{ASSETS_DIRECTORY}/graph.svg"
SAMPLE_FILE: Final = f"{ASSETS_DIRECTORY}/sample.png"
SUMMARY_FILE: Final = f"{ASSETS_DIRECTORY}/summary.txt"
WARMUP_FILE: Final = f"{ASSETS_DIRECTORY}/tf_serving_warmup_requests"


class CardError(ValueError):
    """A card file cannot be read or says something impossible."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageInput(_Part):
    """How an image becomes the model's input tensor `dtype[batch, H, W, C]`.

    Resizing is bilinear with antialiasing (the filter widens when it shrinks), in every
    place that resizes: training, gateway and graph. `stretch` ignores the aspect ratio.
    """

    tensor: str
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: Literal[1, 3]
    dtype: Literal["uint8", "float32"] = "uint8"
    resize: Literal["stretch"] = "stretch"
    colour_order: Literal["grey", "rgb", "bgr"]

    @model_validator(mode="after")
    def _colour_order_fits_the_channels(self) -> Self:
        if (self.channels == 1) != (self.colour_order == "grey"):
            message = (
                "1 channel means colour_order 'grey', 3 mean 'rgb' or 'bgr'; "
                f"got {self.channels} and {self.colour_order!r}"
            )
            raise ValueError(message)
        return self


class OutputTensor(_Part):
    """An output's name and what its numbers mean."""

    name: str
    role: Literal["probabilities", "logits", "other"]


class Accuracy(_Part):
    """The share of `samples` images of `data` whose most probable label is right."""

    data: str
    samples: int = Field(ge=1)
    value: float = Field(ge=0, le=1)


class Parity(_Part):
    """The largest absolute difference between the export's outputs and the original's.

    Measured over `samples` images.
    """

    samples: int = Field(ge=1)
    max_abs_difference: float = Field(ge=0)


class ModelCard(_Part):
    """One version of a model.

    `labels[i]` names class `i` of the output whose role is `probabilities` or `logits`.
    `encoded_input` names the string input of the signature `serving_bytes`, if there is
    one. `frameworks` maps package names to the versions that built the model.
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
    accuracy: tuple[Accuracy, ...] = ()
    parity: Parity | None = None
    frameworks: dict[str, str] = {}

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
