"""Files that only Keras 2 reads, which is installed as `tf_keras` beside Keras 3."""

import importlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import tensorflow as tf

from models.importing.failures import EXPORT_INSTEAD, ImportFailed, unknown_class
from models.importing.keras_files import copied, nodes
from models.importing.originals import FileKind, Original, Tensor, named
from models.importing.saved_models import SIGNATURE, read_saved_model

# Layers of Keras 2 that call a function of TensorFlow by its name, and the functions
# that they may call; and layers that call TensorFlow in other ways.
FUNCTION_LAYERS: Final = ("SlicingOpLambda", "TFOpLambda")
TENSORFLOW_FUNCTIONS: Final = re.compile(
    r"|(__operators__|image|linalg|math|nn)\.\w+"
    r"|cast|clip_by_value|concat|convert_to_tensor|expand_dims|identity|one_hot|pad"
    r"|reshape|reverse|slice|split|squeeze|stack|strided_slice|tile|transpose|unstack"
)
OTHER_CALLING_LAYERS: Final = (
    "ClassMethod",
    "InstanceMethod",
    "InstanceProperty",
    "TensorFlowOpLayer",
)


def read_keras_2(path: Path, kind: FileKind, config: Any) -> Original:
    """Let the old Keras make a SavedModel of what the present one cannot read.

    Raises:
        ImportFailed: The file makes it call what a file has no business to.
        ImportError: It is not installed.
    """
    _refuse_foreign_calls(path, config)
    # The package was called keras when Keras 2 was the present one.
    renamed = json.dumps(config).replace('"keras.src.', '"tf_keras.src.')
    with _quiet(), copied(path, kind, json.loads(renamed)) as copy:
        models = importlib.import_module("tf_keras").models
        saved_model = copy.with_name("saved_model")
        _save(models.load_model(copy, compile=False), saved_model)
        return replace(read_saved_model(saved_model), kind=kind)


def _refuse_foreign_calls(path: Path, config: Any) -> None:
    """Keras 2 itself would import any module and call any function of TensorFlow."""
    for node in nodes(config):
        name, module = node.get("class_name"), node.get("module") or "keras"
        if name is not None and module.split(".")[0] not in {"keras", "tf_keras"}:
            raise ImportFailed(unknown_class(path, name))
        called = node["config"]["function"] if name in FUNCTION_LAYERS else ""
        if name in OTHER_CALLING_LAYERS or not TENSORFLOW_FUNCTIONS.fullmatch(called):
            raise ImportFailed(
                f"{path} calls {called or name} of TensorFlow, which only a SavedModel "
                f"may; {EXPORT_INSTEAD}"
            )


def _save(model: Any, directory: Path) -> None:
    """Save a model for inference only, four times as fast as with its own `save`."""
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    ]

    def serve(*images: Tensor) -> dict[str, Tensor]:
        answer = model(images if len(images) > 1 else images[0], training=False)
        return named(answer, model.output_names)

    root = tf.Module()
    root.saved = model.variables
    function = tf.function(serve, input_signature=specs)
    tf.saved_model.save(root, str(directory), signatures={SIGNATURE: function})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the old Keras from warning of its age."""
    logger = tf.get_logger()
    before = logger.level
    logger.setLevel("ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
