"""SavedModels, of whatever library: a function of TensorFlow and its variables."""

from pathlib import Path
from typing import Any, Final

import keras
import tensorflow as tf

from models.importing.failures import FORMATS, ImportFailed
from models.importing.originals import Input, Original, named

SIGNATURE: Final = "serving_default"
CALL: Final = "__call__"
REFERENCE_VARIABLES: Final = ("Variable", "VariableV2")


def read_saved_model(path: Path) -> Original:
    """Load a SavedModel's signature, or what the saved object does when called.

    Raises:
        ImportFailed: There is nothing to call, or it is of TensorFlow 1.
    """
    if not (path / "saved_model.pb").is_file():
        raise ImportFailed(
            f"{path} is a directory without saved_model.pb, hence no SavedModel; what "
            f"can be imported is {FORMATS}"
        )
    loaded = tf.saved_model.load(str(path))
    endpoint = _endpoint(path, loaded)
    is_call = endpoint == CALL
    call = getattr(loaded, CALL, None)
    function = _trace(path, call) if is_call else loaded.signatures[endpoint]
    operations = function.graph.get_operations()
    if any(operation.type in REFERENCE_VARIABLES for operation in operations):
        raise ImportFailed(
            f"{path} was made by TensorFlow 1, and its variables cannot be saved again "
            "by TensorFlow 2; save it again with use_resource=True"
        )
    # Loaded once more as a Keras layer, which makes its variables known to Keras.
    layer = keras.layers.TFSMLayer(
        str(path), call_endpoint=endpoint, trainable=False, name="original"
    )
    if is_call:
        layer.call_endpoint_fn = _trace(path, layer.call_endpoint_fn)
    return Original(
        kind="SavedModel",
        inputs={
            spec.name or "images": _input(spec) for spec in _tensor_specs(function)
        },
        connect=lambda images: named(layer(images)),
        compute=lambda images: named(function(tf.constant(images))),
        is_keras=False,
    )


def _endpoint(path: Path, loaded: Any) -> str:
    names = sorted(loaded.signatures)
    if SIGNATURE in names:
        return SIGNATURE
    if len(names) > 1:
        raise ImportFailed(
            f"{path} has the signatures {', '.join(names)}, and none of them is called "
            f"{SIGNATURE}; save it again with the one that takes images called so"
        )
    return names[0] if names else CALL


def _trace(path: Path, function: Any) -> Any:
    """The variant of a saved function that infers from one tensor of any batch size."""
    traces = [
        trace
        for trace in getattr(function, "concrete_functions", ())
        if len(_tensor_specs(trace)) == 1
    ]
    if not traces:
        raise ImportFailed(
            f"{path} has no signature and cannot be called with one tensor; save it "
            f"again with a signature {SIGNATURE} that takes images"
        )
    return min(traces, key=_unfitness)


def _unfitness(trace: Any) -> tuple[bool, bool]:
    arguments = tf.nest.flatten(trace.structured_input_signature)
    is_training = any(argument is True for argument in arguments)
    (spec,) = _tensor_specs(trace)
    return is_training, spec.shape.rank is None or spec.shape[0] is not None


def _tensor_specs(trace: Any) -> list[Any]:
    arguments = tf.nest.flatten(trace.structured_input_signature)
    return [spec for spec in arguments if isinstance(spec, tf.TensorSpec)]


def _input(spec: Any) -> Input:
    shape = () if spec.shape.rank is None else spec.shape.as_list()
    return Input(dtype=spec.dtype.name, shape=tuple(shape))
