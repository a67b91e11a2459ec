"""Reads classifiers that someone else has made: `.keras`, `.h5` and SavedModels.

The result is a network of our own kind: uint8 images in, named float32 tensors out.
How the original was fed is not in its file, so the caller says it, and it becomes a
part of the network.
"""

import importlib
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import h5py
import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.card import OutputTensor

Array = npt.NDArray[Any]
Images = npt.NDArray[np.uint8]
Tensor = Any  # a KerasTensor or a backend tensor; Keras has no public type for both
FileKind = Literal[".keras", "h5"]
Kind = Literal[".keras", "h5", "SavedModel"]
Role = Literal["probabilities", "logits", "other"]
FloatPrecision = Literal["float32", "float16", "bfloat16"]
Preprocess = Literal["none", "scale01", "scale11", "imagenet-mean", "imagenet-standard"]

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

SIGNATURE: Final = "serving_default"
CALL: Final = "__call__"
REFERENCE_VARIABLES: Final = ("Variable", "VariableV2")
INPUT_DTYPES: Final = ("float32", "float16", "uint8")
CHANNELS: Final = (1, 3)
IMAGE_RANK: Final = 4
TABLE_RANK: Final = 2
PROBES: Final = 11  # no size that a model is likely to have
# Half precision rounds a thousand probabilities to a sum that is off by as much.
SUM_TOLERANCE: Final = 5e-3

HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
PICKLE_MAGIC: Final = b"\x80"
CONFIG_ATTRIBUTE: Final = "model_config"
CONFIG_FILE: Final = "config.json"
METADATA_FILE: Final = "metadata.json"

# Models of Keras 2, and what Keras 3 calls them.
MODELS: Final = MappingProxyType(
    {"Functional": "Model", "Model": "Model", "Sequential": "Sequential"}
)
# What Keras 2 wrote of every layer, and of some, without its having had an effect.
GONE_ARGUMENTS: Final = ("batch_input_shape", "rng_type")
GONE_ARGUMENTS_OF: Final = MappingProxyType(
    {
        "Conv2DTranspose": ("groups",),
        "DepthwiseConv2D": ("groups",),
        "SeparableConv2D": (
            "groups",
            "kernel_constraint",
            "kernel_initializer",
            "kernel_regularizer",
        ),
    }
)
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

FORMATS: Final = "a .keras file, an .h5 file or the directory of a SavedModel"
EXPECTED_INPUT: Final = (
    "one input of images, float32, float16 or uint8 [batch, height, width, 1 or 3]"
)
EXPORT_INSTEAD: Final = (
    "where it was made, write a SavedModel with model.export('DIRECTORY'), and import "
    "that directory"
)
UNKNOWN_CLASS: Final = re.compile(
    r"(?:Could not locate (?:class|function)|Unknown [\w ]+:) '?([\w>.]+)"
)
REASON_CHARACTERS: Final = 200


class ImportFailed(ValueError):
    """A file cannot be imported; says what was found, expected, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """The image input that the original declares; `None` is any size."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} [{sizes}]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Original:
    """A model as its file tells it.

    Attributes:
        inputs: By name.
        connect: Adds the model to a graph of Keras calls, and answers its outputs.
        run: Computes its outputs.
        is_keras: Whether Keras knows its layers.
    """

    kind: Kind
    inputs: Mapping[str, _Input]
    connect: Callable[[Tensor], dict[str, Tensor]]
    run: Callable[[Array], dict[str, Array]]
    is_keras: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """An output of the network, and the one of the original that it comes from.

    `from_single` marks those where one number stands for two classes.
    """

    source: str
    tensor: OutputTensor
    from_single: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imported:
    """Someone else's model as a network of ours.

    Attributes:
        network: Takes `images`, uint8 `[N, *image_shape]`, the preprocessing being
            inside. With a single output it answers a float32 tensor `[N, classes]`,
            with several a dictionary of float32 tensors by name.
        image_shape: Height, width and channels.
        classes: How many labels its first classifying output tells apart.
        outputs: What the outputs are called and what they mean; a sole one is called
            by its role. One whose single number `p` is within 0 to 1 became the two
            probabilities `[1 - p, p]`, any other single number `z` the two logits
            `[0, z]`, of which softmax makes `sigmoid(z)`.
        kind: The format of the file.
        preprocess: How the original was fed.
        castable: Whether `cast` can change its precision.
        original: Runs the original on what it expects, `[N, *image_shape]` of the dtype
            that it takes; answers its own outputs by its own names, in float32.
        original_outputs: What the network ought to answer to uint8 images, computed
            without the network: they are preprocessed by NumPy and go through the
            original as it was loaded. Float32 arrays by the names in `outputs`.
    """

    network: keras.Model
    image_shape: tuple[int, int, int]
    classes: int
    outputs: tuple[OutputTensor, ...]
    kind: Kind
    preprocess: Preprocess
    castable: bool
    original: Callable[[Array], dict[str, Array]]
    original_outputs: Callable[[Images], dict[str, Array]]


def read(
    path: Path, *, preprocess: Preprocess, size: tuple[int, int] | None = None
) -> Imported:
    """Import a classifier of images.

    Args:
        path: A `.keras` file, an `.h5` file with a whole model, or the directory of a
            SavedModel; of its signatures, `serving_default` or the only one is taken,
            and without any, what the saved object does when it is called.
        preprocess: How the original was fed: `none` with 0 to 255, `scale01` with 0 to
            1, `scale11` with -1 to 1, `imagenet-mean` with BGR minus ImageNet's mean
            (Keras' mode "caffe"), `imagenet-standard` with ImageNet's mean and standard
            deviation taken out (Keras' mode "torch").
        size: Height and width, for an original that takes any.

    Raises:
        ImportFailed: It cannot be read, or is no classifier of single images.
    """
    with _explaining(path, "cannot be read and may be damaged"):
        original = _open(path)
    dtype, image_shape = _image_input(original, size)
    _check_preprocess(preprocess, dtype, image_shape)
    with _explaining(path, f"fails on images of {image_shape}"):
        probes = _as_fed(_probes(image_shape), preprocess, dtype)
        outputs, classes = _outputs(original.run(probes))
        images = keras.Input(image_shape, dtype="uint8", name="images")
        answer = _answer(original, outputs, _preprocessed(images, preprocess, dtype))

    def original_outputs(images: Images) -> dict[str, Array]:
        answers = original.run(_as_fed(images, preprocess, dtype))
        return {
            output.tensor.name: _two_classes(answers[output.source], output)
            for output in outputs
        }

    return Imported(
        network=keras.Model(images, answer, name=re.sub(r"\W", "_", path.stem)),
        image_shape=image_shape,
        classes=classes,
        outputs=tuple(output.tensor for output in outputs),
        kind=original.kind,
        preprocess=preprocess,
        castable=original.is_keras,
        original=original.run,
        original_outputs=original_outputs,
    )


def cast(imported: Imported, precision: FloatPrecision) -> keras.Model:
    """The network with its weights and its arithmetic in another precision.

    The preprocessing and the outputs stay float32. The original network is kept.

    Raises:
        ImportFailed: Keras does not know the original's layers.
    """
    if precision == "float32":
        return imported.network
    if not imported.castable:
        raise ImportFailed(
            f"--precision {precision}: Keras does not know the layers of this "
            f"{imported.kind} model; only --precision float32 or int8 is possible"
        )

    def in_precision(layer: Any) -> Any:
        # Plain operations have no dtype of their own: they take that of their inputs.
        if not isinstance(layer, keras.Layer) or layer.name == RESCALING_LAYER:
            return layer
        config = keras.saving.serialize_keras_object(layer)
        return keras.saving.deserialize_keras_object(_with_dtype(config, precision))

    network = keras.models.clone_model(
        imported.network, clone_function=in_precision, recursive=True
    )
    network.set_weights(imported.network.get_weights())
    _derive_from_weights(network)
    return network


def labels(path: Path | None, classes: int) -> tuple[str, ...]:
    """Read the classes' names, in order; numbers where there is no file.

    Args:
        path: A text file with a label a line, or JSON: a list of labels, an object
            from index to label (as Keras' `imagenet_class_index.json`, whose last item
            is the label), or one from label to index (as Keras' `class_indices`).
        classes: How many there must be.

    Returns:
        Labels that differ: those that occur more than once, as two of ImageNet's do,
        get their index appended.

    Raises:
        ImportFailed: The file cannot be read, or holds other than `classes` labels.
    """
    if path is None:
        return tuple(map(str, range(classes)))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ImportFailed(f"--labels: cannot read {path}: {error}") from error
    is_json = path.suffix.lower() == ".json"
    found = _labels_of_json(path, text) if is_json else text.rstrip().splitlines()
    names = [str(label).strip() for label in found]
    if len(names) != classes:
        raise ImportFailed(
            f"--labels: {path} holds {len(names)} labels, but the model tells "
            f"{classes} classes apart"
        )
    if "" in names:
        raise ImportFailed(
            f"--labels: label {names.index('') + 1} of {path} is empty; every class "
            "needs a name"
        )
    times = Counter(names)
    return tuple(
        name if times[name] == 1 else f"{name} ({index})"
        for index, name in enumerate(names)
    )


def _labels_of_json(path: Path, text: str) -> list[Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ImportFailed(f"--labels: {path} is no JSON: {error}") from error
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        if all(isinstance(value, int) for value in content.values()):
            content = {str(index): label for label, index in content.items()}
        if content.keys() == {str(index) for index in range(len(content))}:
            values = [content[str(index)] for index in range(len(content))]
            return [value[-1] if isinstance(value, list) else value for value in values]
    raise ImportFailed(
        f"--labels: {path} is JSON, but neither a list of labels nor an object whose "
        "keys (or values) are the indices 0, 1, 2 …"
    )


# Files


def _open(path: Path) -> _Original:
    """Choose the reader by what a file holds, whatever it is called."""
    if path.is_dir():
        return _open_saved_model(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(HDF5_MAGIC))
    except OSError as error:
        raise ImportFailed(f"cannot read {path}: {error.strerror}") from error
    if start == HDF5_MAGIC:
        return _open_file(path, "h5")
    if zipfile.is_zipfile(path):
        return _open_file(path, ".keras")
    if start.startswith(PICKLE_MAGIC):
        raise ImportFailed(
            f"{path} is a pickle, and reading one can run any code; save the model "
            f"with model.save('NAME.keras'), or {EXPORT_INSTEAD}"
        )
    raise ImportFailed(
        f"{path} is damaged or of another format; what can be imported is {FORMATS}"
    )


def _open_file(path: Path, kind: FileKind) -> _Original:
    config, version = CONFIGURATIONS[kind](path)
    _refuse_code(path, config)
    if not version.startswith("2."):
        return _load_with_keras_3(path, kind, config)
    try:
        return _load_with_keras_3(path, kind, _up_to_date(config))
    except Exception as error:
        # What Keras raises is not documented and varies widely.
        if find_spec("tf_keras") is None:
            raise ImportFailed(
                f"{_reason(path, 'cannot be read', error)}; or, for it was written by "
                "Keras 2, install that beside Keras 3 (pip install tf-keras)"
            ) from error
    return _load_with_keras_2(path, kind, config)


def _keras_configuration(path: Path) -> tuple[Any, str]:
    """The layers as the file tells them, and the version of Keras that wrote it."""
    with zipfile.ZipFile(path) as archive:
        missing = {CONFIG_FILE, METADATA_FILE} - set(archive.namelist())
        if missing:
            raise ImportFailed(
                f"{path} is a zip archive without {min(missing)}, hence no .keras "
                f"file; what can be imported is {FORMATS}"
            )
        metadata = json.loads(archive.read(METADATA_FILE))
        return json.loads(archive.read(CONFIG_FILE)), metadata["keras_version"]


def _h5_configuration(path: Path) -> tuple[Any, str]:
    """As `_keras_configuration`."""
    with h5py.File(path) as file:
        if CONFIG_ATTRIBUTE not in file.attrs:
            raise ImportFailed(
                f"{path} holds weights only, without the layers that they belong to; "
                "save the whole model with model.save('NAME.keras')"
            )
        version = np.asarray(file.attrs.get("keras_version", "2.0")).astype(str).item()
        return json.loads(file.attrs[CONFIG_ATTRIBUTE]), version


CONFIGURATIONS: Final = {".keras": _keras_configuration, "h5": _h5_configuration}


@contextmanager
def _copy(path: Path, kind: FileKind, config: Any) -> Iterator[Path]:
    """A copy with this configuration, under a name that tells Keras its format."""
    with tempfile.TemporaryDirectory() as directory:
        if kind == "h5":
            copy = Path(directory, "model.h5")
            shutil.copyfile(path, copy)
            with h5py.File(copy, "r+") as file:
                file.attrs[CONFIG_ATTRIBUTE] = json.dumps(config)
        else:
            copy = Path(directory, "model.keras")
            with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
                for member in source.infolist():
                    is_config = member.filename == CONFIG_FILE
                    content = json.dumps(config) if is_config else source.read(member)
                    target.writestr(member.filename, content)
        yield copy


def _load_with_keras_3(path: Path, kind: FileKind, config: Any) -> _Original:
    with _copy(path, kind, config) as copy:
        model = keras.models.load_model(copy, compile=False)
    _derive_from_weights(model)
    return _keras_original(model, kind)


def _load_with_keras_2(path: Path, kind: FileKind, config: Any) -> _Original:
    """Let the old Keras make a SavedModel of what the present one cannot read."""
    _refuse_foreign_calls(path, config)
    # The package was called keras when Keras 2 was the present one.
    renamed = json.dumps(config).replace('"keras.src.', '"tf_keras.src.')
    with _quiet(), _copy(path, kind, json.loads(renamed)) as copy:
        models = importlib.import_module("tf_keras").models
        saved_model = copy.with_name("saved_model")
        _save(models.load_model(copy, compile=False), saved_model)
        return replace(_open_saved_model(saved_model), kind=kind)


def _save(model: Any, directory: Path) -> None:
    """Save a model of the old Keras for inference only, which is four times as fast."""
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    ]

    def serve(*images: Tensor) -> dict[str, Tensor]:
        answer = model(images if len(images) > 1 else images[0], training=False)
        return _named(answer, _distinct(model.output_names))

    root = tf.Module()
    root.saved = model.variables
    function = tf.function(serve, input_signature=specs)
    tf.saved_model.save(root, str(directory), signatures={SIGNATURE: function})


def _nodes(config: Any) -> Iterator[dict[str, Any]]:
    """Every object in a configuration, however deep."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _nodes(item)


def _refuse_code(path: Path, config: Any) -> None:
    for node in _nodes(config):
        function = node.get("function")  # of a Lambda layer: a list is compiled code
        if node.get("class_name") == "__lambda__" or isinstance(function, list):
            raise ImportFailed(
                f"{path} contains a Lambda layer, whose Python code will not be run, "
                f"for it could do anything; {EXPORT_INSTEAD}"
            )


def _refuse_foreign_calls(path: Path, config: Any) -> None:
    """Keras 2 itself would import any module and call any function of TensorFlow."""
    for node in _nodes(config):
        name, module = node.get("class_name"), node.get("module") or "keras"
        if name is not None and module.split(".")[0] not in {"keras", "tf_keras"}:
            raise ImportFailed(_unknown_class(path, name))
        called = node["config"]["function"] if name in FUNCTION_LAYERS else ""
        if name in OTHER_CALLING_LAYERS or not TENSORFLOW_FUNCTIONS.fullmatch(called):
            raise ImportFailed(
                f"{path} calls {called or name} of TensorFlow, which only a SavedModel "
                f"may; {EXPORT_INSTEAD}"
            )


def _up_to_date(config: Any) -> Any:
    """Rewrite what Keras 2 configured into what Keras 3 understands."""
    if isinstance(config, list):
        return [_up_to_date(item) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "Sequential":
        config = {**config, "config": _with_input_layer(config["config"])}
    node: dict[str, Any] = {key: _up_to_date(item) for key, item in config.items()}
    name, own = node.get("class_name"), node.get("config")
    if not isinstance(name, str) or not isinstance(own, dict):
        return node
    if name == "Policy":
        return own["name"]
    if name in MODELS:
        node |= {"class_name": MODELS[name], "module": "keras", "registered_name": None}
    _bring_up_to_date(name, own)
    return node


def _bring_up_to_date(layer: str, config: dict[str, Any]) -> None:
    """Change a layer's own configuration, in place."""
    for argument in (*GONE_ARGUMENTS, *GONE_ARGUMENTS_OF.get(layer, ())):
        if (layer, argument) != ("InputLayer", "batch_input_shape"):
            config.pop(argument, None)
    if layer == "LeakyReLU" and "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    # A list of one is a list to Keras 3; to Keras 2 it was the item in it.
    for key in ("axis", "input_layers", "output_layers"):
        if isinstance(config.get(key), list) and len(config[key]) == 1:
            (config[key],) = config[key]


def _with_input_layer(sequential: Any) -> dict[str, Any]:
    """Early versions listed the layers only; the first one told the input shape."""
    if isinstance(sequential, list):
        sequential = {"name": "sequential", "layers": sequential}
    first = sequential["layers"][0]
    shape = first["config"].get("batch_input_shape")
    if first["class_name"] == "InputLayer" or shape is None:
        return dict(sequential)
    images = {"batch_input_shape": shape, "name": f"{first['config']['name']}_input"}
    layers = [{"class_name": "InputLayer", "config": images}, *sequential["layers"]]
    return {**sequential, "layers": layers}


@contextmanager
def _explaining(path: Path, problem: str) -> Iterator[None]:
    """Tell in one sentence what is wrong with a file."""
    try:
        yield
    except ImportFailed:
        raise
    except Exception as error:
        # What damaged and foreign models raise is not documented and varies widely.
        raise ImportFailed(_reason(path, problem, error)) from error


def _reason(path: Path, problem: str, error: Exception) -> str:
    if isinstance(error, ImportFailed):
        return str(error)
    unknown = UNKNOWN_CLASS.search(str(error))
    if unknown:
        return _unknown_class(path, unknown[1])
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{path} {problem}: {lines[-1][:REASON_CHARACTERS]}"


def _unknown_class(path: Path, name: str) -> str:
    return f"{path} uses {name!r}, which is not part of Keras; {EXPORT_INSTEAD}"


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


# Originals


def _keras_original(model: Any, kind: Kind) -> _Original:
    if not isinstance(model, keras.Sequential | keras.Model) or not model.built:
        raise ImportFailed(
            "the model has never seen an image, so it does not tell its input; call it "
            "once, save it, and import it again"
        )
    # Their `call` repeats the calls of the layers, so that the graph stays readable.
    connect = model.call if _is_graph(model) else model
    names = _distinct(getattr(model, "output_names", ["output"]))
    return _Original(
        kind=kind,
        inputs={
            tensor.name: _Input(dtype=tensor.dtype, shape=tuple(tensor.shape))
            for tensor in model.inputs
        },
        connect=lambda tensor: _named(connect(tensor), names),
        run=lambda array: _arrays(_named(model(array, training=False), names)),
        is_keras=True,
    )


def _open_saved_model(path: Path) -> _Original:
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
    if any(
        step.type in REFERENCE_VARIABLES for step in function.graph.get_operations()
    ):
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
    return _Original(
        kind="SavedModel",
        inputs={
            spec.name or "images": _input(spec) for spec in _tensor_specs(function)
        },
        connect=lambda tensor: _named(layer(tensor)),
        run=lambda array: _arrays(_named(function(tf.constant(array)))),
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


# Inputs and outputs


def _image_input(
    original: _Original, size: tuple[int, int] | None
) -> tuple[str, tuple[int, int, int]]:
    """The dtype and the shape of the images that the original takes."""
    found = ", ".join(f"{name} {spec}" for name, spec in original.inputs.items())
    images = [
        image
        for image in original.inputs.values()
        if len(image.shape) == IMAGE_RANK and image.dtype in INPUT_DTYPES
    ]
    if len(images) != 1 or len(original.inputs) != 1:
        raise ImportFailed(f"the model takes {found}; expected {EXPECTED_INPUT}")
    (image,) = images
    batch, height, width, channels = image.shape
    if channels not in CHANNELS:
        is_first = height in CHANNELS
        hint = ": channels come first there, and must come last" if is_first else ""
        raise ImportFailed(f"the model takes {found}{hint}; expected {EXPECTED_INPUT}")
    if batch is not None:
        raise ImportFailed(
            f"the model takes {found}: batches of {batch} images only; save it again "
            "with a first dimension of None"
        )
    wanted_height, wanted_width = size or (height, width)
    if wanted_height is None or wanted_width is None:
        raise ImportFailed(
            f"the model takes {found}: images of any size; choose one with --size"
        )
    if (height or wanted_height, width or wanted_width) != (
        wanted_height,
        wanted_width,
    ):
        raise ImportFailed(
            f"--size: the model takes images of {height}x{width} pixels, not of "
            f"{wanted_height}x{wanted_width}"
        )
    return image.dtype, (wanted_height, wanted_width, channels)


def _outputs(answers: Mapping[str, Array]) -> tuple[tuple[_Output, ...], int]:
    """What each output means, judged by the answers to the probes; and the classes."""
    found = ", ".join(
        f"{name} [{', '.join(['N', *map(str, values.shape[1:])])}]"
        for name, values in answers.items()
    )
    for name, values in answers.items():
        if values.shape[:1] != (PROBES,):
            raise ImportFailed(
                f"the model's output {name} has the shape {list(values.shape)} for "
                f"{PROBES} images; expected a row for each"
            )
    tables = {
        name: values for name, values in answers.items() if values.ndim == TABLE_RANK
    }
    if not tables:
        raise ImportFailed(f"the model answers {found}; expected [N, classes]")
    main = max(tables, key=lambda name: _likelihood(tables[name]))
    width = tables[main].shape[1]
    outputs = []
    for name, values in answers.items():
        role: Role = "other"
        if values.shape[1:] == (width,):
            role = "probabilities" if _are_probabilities(values) else "logits"
        tensor = OutputTensor(name=name if len(answers) > 1 else role, role=role)
        outputs.append(
            _Output(
                source=name, tensor=tensor, from_single=role != "other" and width == 1
            )
        )
    return tuple(outputs), max(width, 2)


def _likelihood(table: Array) -> tuple[bool, bool]:
    """Sorts by how much an output looks like the answer of a classifier."""
    return table.shape[1] > 1, _are_probabilities(table)


def _are_probabilities(table: Array) -> bool:
    if not ((table >= 0) & (table <= 1 + SUM_TOLERANCE)).all():
        return False
    sums = table.sum(axis=1)
    return table.shape[1] == 1 or bool(np.allclose(sums, 1, rtol=0, atol=SUM_TOLERANCE))


def _preprocessed(images: Tensor, preprocess: Preprocess, dtype: str) -> Tensor:
    """Turn uint8 images into what the original takes."""
    if dtype == "uint8":
        return images
    if preprocess == "imagenet-mean":
        images = keras.ops.take(images, [2, 1, 0], axis=-1)  # RGB to BGR
    fed = keras.layers.Rescaling(
        *RESCALING[preprocess], dtype="float32", name=RESCALING_LAYER
    )(images)
    return fed if dtype == "float32" else keras.ops.cast(fed, dtype)


def _answer(original: _Original, outputs: Sequence[_Output], images: Tensor) -> Any:
    """The network's output tensor, or several by name."""
    answers = original.connect(images)
    tensors = {o.tensor.name: _finished(answers[o.source], o) for o in outputs}
    (first, *others) = tensors.values()
    return tensors if others else first


def _finished(tensor: Tensor, output: _Output) -> Tensor:
    tensor = keras.ops.cast(tensor, "float32")  # that stays where `cast` changes layers
    if not output.from_single:
        return tensor
    other = 1 - tensor if output.tensor.role == "probabilities" else 0 * tensor
    return keras.ops.concatenate([other, tensor], axis=-1)


# The same in NumPy


def _check_preprocess(
    preprocess: Preprocess, dtype: str, image_shape: tuple[int, int, int]
) -> None:
    if dtype == "uint8" and preprocess != "none":
        raise ImportFailed(
            f"--preprocess {preprocess}: the model takes uint8, hence pixels as they "
            "are; use none"
        )
    if image_shape[-1] == 1 and preprocess.startswith("imagenet"):
        raise ImportFailed(
            f"--preprocess {preprocess} is for colour images; the model takes grey ones"
        )


def _as_fed(images: Images, preprocess: Preprocess, dtype: str) -> Array:
    """Preprocess as the original's users do, which is not how the network does it."""
    if dtype == "uint8":
        return images
    x = images.astype(np.float64)
    match preprocess:
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
    return x.astype(dtype)


def _probes(image_shape: tuple[int, int, int]) -> Images:
    """Noise of all brightnesses and contrasts."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (PROBES, *image_shape))
    level = random.integers(0, 256, (PROBES, 1, 1, 1))
    contrast = np.linspace(0, 1, PROBES).reshape(-1, 1, 1, 1)
    return (contrast * noise + (1 - contrast) * level).astype(np.uint8)


def _two_classes(answer: Array, output: _Output) -> Array:
    if not output.from_single:
        return answer
    other = 1 - answer if output.tensor.role == "probabilities" else 0 * answer
    return np.concatenate([other, answer], axis=-1)


# Small things


def _derive_from_weights(model: keras.Model) -> None:
    """Do what Keras forgets of layers in a nested model whose weights it sets."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _derive_from_weights(layer)
        elif isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _input(spec: Any) -> _Input:
    shape = () if spec.shape.rank is None else spec.shape.as_list()
    return _Input(dtype=spec.dtype.name, shape=tuple(shape))


def _is_graph(model: Any) -> bool:
    return isinstance(model, keras.Sequential | keras.Function)


def _named(answer: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """Outputs by name, in whatever structure a model answers."""
    if isinstance(answer, Mapping):
        return dict(answer)
    answers = answer if isinstance(answer, list | tuple) else [answer]
    names = names or [f"output_{index}" for index in range(len(answers))]
    return dict(zip(names, answers, strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """Number what occurs again: a layer that is called twice has two outputs."""
    return [
        name if name not in names[:index] else f"{name}_{names[:index].count(name)}"
        for index, name in enumerate(names)
    ]


def _arrays(tensors: Mapping[str, Any]) -> dict[str, Array]:
    return {
        name: keras.ops.convert_to_numpy(tensor).astype(np.float32)
        for name, tensor in tensors.items()
    }


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
