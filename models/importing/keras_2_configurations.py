"""What Keras 2 wrote of layers, rewritten into what Keras 3 understands."""

from types import MappingProxyType
from typing import Any, Final

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


def up_to_date(config: Any) -> Any:
    """The configuration of a model, or of any part of it, for Keras 3."""
    if isinstance(config, list):
        return [up_to_date(item) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "Sequential":
        config = {**config, "config": _with_input_layer(config["config"])}
    node: dict[str, Any] = {key: up_to_date(item) for key, item in config.items()}
    name, own = node.get("class_name"), node.get("config")
    if not isinstance(name, str) or not isinstance(own, dict):
        return node
    if name == "Policy":
        return own["name"]
    if name in MODELS:
        node |= {"class_name": MODELS[name], "module": "keras", "registered_name": None}
    return node | {"config": _layer(name, own)}


def _layer(layer: str, own: dict[str, Any]) -> dict[str, Any]:
    """A layer's own configuration."""
    gone = {*GONE_ARGUMENTS, *GONE_ARGUMENTS_OF.get(layer, ())}
    if layer == "InputLayer":
        gone.remove("batch_input_shape")
    config = {key: value for key, value in own.items() if key not in gone}
    if layer == "LeakyReLU" and "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    # A list of one is a list to Keras 3; to Keras 2 it was the item in it.
    for key in ("axis", "input_layers", "output_layers"):
        if isinstance(config.get(key), list) and len(config[key]) == 1:
            (config[key],) = config[key]
    return config


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
