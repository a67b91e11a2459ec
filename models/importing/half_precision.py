"""Imported networks in float16 and bfloat16."""

from typing import Any

import keras

from models.card import FloatPrecision, Precision
from models.importing.failures import ImportFailed
from models.importing.feeding import RESCALING_LAYER
from models.importing.imported import Imported
from models.importing.keras_3 import derive_from_weights
from models.precision import cast_weights


def check_precision(imported: Imported, precision: Precision) -> None:
    """Ask, before anything else is loaded, whether it can be had in a precision.

    Raises:
        ImportFailed: It is half, and Keras does not know the original's layers.
    """
    if precision in {"float16", "bfloat16"} and not imported.castable:
        raise ImportFailed(
            f"--precision {precision}: Keras does not know the layers of this "
            f"{imported.kind} model; only --precision float32 or int8 is possible"
        )


def cast(imported: Imported, precision: FloatPrecision) -> keras.Model:
    """The network with its weights and its arithmetic in another precision.

    The preprocessing and the outputs stay float32. The original network is kept.

    Raises:
        ImportFailed: Keras does not know the original's layers.
        WeightOverflow: A weight would become infinite.
    """
    if precision == "float32":
        return imported.network
    check_precision(imported, precision)

    def in_precision(layer: Any) -> Any:
        # Plain operations have no dtype of their own: they take that of their inputs.
        if not isinstance(layer, keras.Layer) or layer.name == RESCALING_LAYER:
            return layer
        config = keras.saving.serialize_keras_object(layer)
        return keras.saving.deserialize_keras_object(_with_dtype(config, precision))

    network = keras.models.clone_model(
        imported.network, clone_function=in_precision, recursive=True
    )
    cast_weights(imported.network, network)
    derive_from_weights(network)
    return network


def _with_dtype(config: Any, precision: FloatPrecision) -> Any:
    """A layer's configuration, and those of layers in it, in another precision."""
    if isinstance(config, list):
        return [_with_dtype(item, precision) for item in config]
    if not isinstance(config, dict):
        return config
    changed = {key: _with_dtype(value, precision) for key, value in config.items()}
    policy = config.get("dtype")
    if isinstance(policy, dict) and "float" in policy["config"]["name"]:
        changed["dtype"] = precision
    return changed
