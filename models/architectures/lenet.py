"""LeNet-5: Sequential API, the layers given as a list.

After LeCun et al., "Gradient-based learning applied to document recognition" (1998).
As is common, the second convolution sees all channels of the first and the last layer
is a softmax.
"""

import keras
from keras import layers

from models.architectures.common import classifier, image_input, normalisation
from models.architectures.options import Options


def lenet(options: Options) -> keras.Model:
    """Map `images`, uint8 `[N, H, W, C]`, to `probabilities` `[N, classes]`.

    The original's images of 32×32 are 28×28 and a margin, which the first convolution
    adds here.
    """
    wide = options.widened
    return keras.Sequential(
        [
            image_input(options),
            normalisation(),
            layers.Conv2D(wide(6), 5, padding="same", activation="tanh", name="conv_1"),
            layers.AveragePooling2D(2, name="pool_1"),
            layers.Conv2D(wide(16), 5, activation="tanh", name="conv_2"),
            layers.AveragePooling2D(2, name="pool_2"),
            layers.Flatten(name="flatten"),
            layers.Dense(wide(120), activation="tanh", name="dense_1"),
            layers.Dense(wide(84), activation="tanh", name="dense_2"),
            *classifier(options),
        ],
        name="lenet",
    )
