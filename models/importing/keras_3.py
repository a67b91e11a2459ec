"""Files that Keras 3 reads."""

from pathlib import Path
from typing import Any

import keras

from models.importing.failures import EXPORT_INSTEAD, ImportFailed
from models.importing.keras_files import copied
from models.importing.originals import FileKind, Input, Original, named


def read_keras_3(path: Path, kind: FileKind, config: Any) -> Original:
    """Load a file with this configuration in place of its own.

    Raises:
        ImportFailed: The model is no graph of layers.
    """
    with copied(path, kind, config) as copy:
        model = keras.models.load_model(copy, compile=False)
    is_graph = isinstance(model, keras.Sequential | keras.Function)
    if not is_graph or not model.built:
        raise ImportFailed(
            "the model does not tell its input: it has never seen an image, or is "
            f"written as a class; call it once, and {EXPORT_INSTEAD}"
        )
    derive_from_weights(model)
    names = getattr(model, "output_names", ["output"])
    return Original(
        kind=kind,
        inputs={
            tensor.name: Input(dtype=tensor.dtype, shape=tuple(tensor.shape))
            for tensor in model.inputs
        },
        # Its `call` repeats the calls of the layers: the graph stays readable.
        connect=lambda images: named(model.call(images), names),
        compute=lambda images: named(model(images, training=False), names),
        is_keras=True,
    )


def derive_from_weights(model: keras.Model) -> None:
    """Do what Keras forgets of layers in a nested model whose weights it sets."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            derive_from_weights(layer)
        elif isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
