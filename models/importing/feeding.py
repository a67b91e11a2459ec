"""How uint8 images become what an original was fed with."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import keras
import numpy as np

from models.datasets import Images
from models.importing.failures import ImportFailed
from models.importing.originals import Array, Tensor
from models.plan import Preprocess

# ImageNet's, as Keras' modes "caffe" and "torch" have them.
MEAN_BGR: Final = (103.939, 116.779, 123.68)  # of 0 to 255
MEAN_RGB: Final = (0.485, 0.456, 0.406)  # of 0 to 1
DEVIATION_RGB: Final = (0.229, 0.224, 0.225)
# Scale and offset of 0 to 255.
RESCALING: Final[Mapping[Preprocess, tuple[Any, Any]]] = MappingProxyType(
    {
        "none": (1.0, 0.0),
        "scale01": (1 / 255, 0.0),
        "scale11": (1 / 127.5, -1.0),
        "imagenet-mean": (1.0, [-mean for mean in MEAN_BGR]),
        "imagenet-standard": (
            [1 / 255 / deviation for deviation in DEVIATION_RGB],
            [-m / d for m, d in zip(MEAN_RGB, DEVIATION_RGB, strict=True)],
        ),
    }
)
RESCALING_LAYER: Final = "preprocess"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeding:
    """Preprocesses for an original that takes `dtype`.

    Does it twice: in Keras for the network, and in NumPy to check the network.
    """

    preprocess: Preprocess
    dtype: str

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse what cannot have been done to such images.

        Raises:
            ImportFailed: They are uint8, or grey.
        """
        if self.dtype == "uint8" and self.preprocess != "none":
            raise ImportFailed(
                f"--preprocess {self.preprocess}: the model takes uint8, hence pixels "
                "as they are; use none"
            )
        if image_shape[-1] == 1 and self.preprocess.startswith("imagenet"):
            raise ImportFailed(
                f"--preprocess {self.preprocess} is for colour images; the model takes "
                "grey ones"
            )

    def in_keras(self, images: Tensor) -> Tensor:
        """Add it to a graph of Keras calls."""
        if self.dtype == "uint8":
            return images
        if self.preprocess == "imagenet-mean":
            images = keras.ops.take(images, [2, 1, 0], axis=-1)  # RGB to BGR
        fed = keras.layers.Rescaling(
            *RESCALING[self.preprocess], dtype="float32", name=RESCALING_LAYER
        )(images)
        return fed if self.dtype == "float32" else keras.ops.cast(fed, self.dtype)

    def in_numpy(self, images: Images) -> Array:
        """Compute it as the original's users do, which is not how the network does."""
        if self.dtype == "uint8":
            return images
        x = images.astype(np.float64)
        match self.preprocess:
            case "none":
                pass
            case "scale01":
                x /= 255
            case "scale11":
                x = x / 127.5 - 1
            case "imagenet-mean":
                x = x[..., ::-1] - MEAN_BGR
            case "imagenet-standard":
                x = (x / 255 - MEAN_RGB) / DEVIATION_RGB
        return x.astype(self.dtype)
