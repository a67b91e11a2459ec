"""Which images an original takes."""

from collections.abc import Mapping
from typing import Final

from models.importing.failures import ImportFailed
from models.importing.originals import Input

DTYPES: Final = ("float32", "float16", "uint8")
CHANNELS: Final = (1, 3)
RANK: Final = 4
EXPECTED: Final = (
    "one input of images, float32, float16 or uint8 [batch, height, width, 1 or 3]"
)


def image_input(
    inputs: Mapping[str, Input], size: tuple[int, int] | None
) -> tuple[str, tuple[int, int, int]]:
    """The dtype of the images, and their height, width and channels.

    Args:
        inputs: What the original declares.
        size: Height and width, where it takes any.

    Raises:
        ImportFailed: It takes something else, or images of another size.
    """
    found = ", ".join(f"{name} {declared}" for name, declared in inputs.items())
    images = [i for i in inputs.values() if len(i.shape) == RANK and i.dtype in DTYPES]
    if len(inputs) != 1 or not images:
        raise ImportFailed(f"the model takes {found}; expected {EXPECTED}")
    (image,) = images
    batch, declared_height, declared_width, channels = image.shape
    if channels not in CHANNELS:
        is_first = declared_height in CHANNELS
        hint = ": channels come first there, and must come last" if is_first else ""
        raise ImportFailed(f"the model takes {found}{hint}; expected {EXPECTED}")
    if batch is not None:
        raise ImportFailed(
            f"the model takes {found}: batches of {batch} images only; save it again "
            "with a first dimension of None"
        )
    height, width = size or (declared_height, declared_width)
    if height is None or width is None:
        raise ImportFailed(
            f"the model takes {found}: images of any size; choose one with --size"
        )
    if declared_height not in {None, height} or declared_width not in {None, width}:
        raise ImportFailed(
            f"--size: the model takes images of {declared_height}x{declared_width} "
            f"pixels, not of {height}x{width}"
        )
    return image.dtype, (height, width, channels)
