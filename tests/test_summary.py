"""What an inference costs: counted by hand, and as published."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from models.architectures import ARCHITECTURES
from models.summary import UnknownCost, cost, summarise

FLOAT_BYTES = 4


class Subclassed(keras.Model):
    def __init__(self, inner):
        super().__init__(name="subclassed")
        self.inner = inner

    def call(self, x):
        for layer in self.inner:
            x = layer(x)
        return x


def image(*shape, **options):
    return keras.Input(shape or (8, 8, 3), **options)


def tiny():
    return [
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(5),
    ]


TINY_MULTIPLY_ADDS = 8 * 8 * 4 * 3 * 3 * 3 + 8 * 8 * 4 * 5


def functional(inner):
    x = images = image()
    for layer in inner:
        x = layer(x)
    return keras.Model(images, x)


def test_a_convolution_costs_its_kernel_for_each_output():
    counted = cost(functional([layers.Conv2D(4, 3)]))
    assert counted.parameters == 3 * 3 * 3 * 4 + 4
    assert counted.weight_bytes == counted.parameters * FLOAT_BYTES
    assert counted.multiply_adds == 6 * 6 * 4 * 3 * 3 * 3
    # The image and the convolution; the bias comes when the image has gone.
    assert counted.activation_bytes == (8 * 8 * 3 + 6 * 6 * 4) * FLOAT_BYTES


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Dense(5), (7,), 7 * 5),
        (layers.Dense(5), (4, 7), 4 * 7 * 5),
        (layers.Conv1D(5, 3), (9, 2), 7 * 5 * 3 * 2),
        (layers.Conv2D(4, 3, strides=2, padding="same"), (9, 9, 2), 25 * 4 * 9 * 2),
        (layers.Conv2D(4, (1, 7), padding="same"), (9, 9, 2), 81 * 4 * 7 * 2),
        (layers.Conv2D(4, 3, dilation_rate=2), (8, 8, 2), 16 * 4 * 9 * 2),
        (layers.Conv2D(4, 3, groups=2), (8, 8, 6), 36 * 4 * 9 * 3),
        (layers.Conv3D(2, 2), (3, 3, 3, 2), 8 * 2 * 8 * 2),
        (layers.Conv2DTranspose(4, 2, strides=2), (4, 4, 3), 16 * 4 * 3 * 4),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 2), 36 * 4 * 9),
        (layers.SeparableConv2D(5, 3), (8, 8, 2), 36 * 2 * 9 + 36 * 2 * 5),
        (layers.EinsumDense("...ab,bc->...ac", (4, 5)), (3, 4, 2), 12 * 2 * 5),
        (layers.Dot(axes=2), [(3, 4), (5, 4)], 3 * 5 * 4),
        (layers.MaxPooling2D(2), (8, 8, 2), 0),
        (layers.BatchNormalization(), (8, 8, 2), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else "",
)
def test_layers_cost_what_their_definition_says(layer, shape, expected):
    several = isinstance(shape, list)
    inputs = [keras.Input(one) for one in (shape if several else [shape])]
    outputs = layer(inputs if several else inputs[0])
    assert cost(keras.Model(inputs, outputs)).multiply_adds == expected


def test_attention_costs_its_projections_and_its_products():
    x = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=3)
    counted = cost(keras.Model(x, attention(x, x)))
    assert counted.multiply_adds == 4 * (6 * 4 * 2 * 3) + 2 * (2 * 6 * 6 * 3)


def test_tensors_count_while_they_are_needed():
    """At the peak: the input, kept for the sum, and two neighbours in the chain."""
    x = image(4, 4, 2)
    y = layers.ReLU()(layers.ReLU()(layers.ReLU()(x)))
    chain, skipping = keras.Model(x, y), keras.Model(x, layers.Add()([x, y]))
    tensor_bytes = 4 * 4 * 2 * FLOAT_BYTES
    assert cost(chain).activation_bytes == 2 * tensor_bytes
    assert cost(skipping).activation_bytes == 3 * tensor_bytes


def test_a_branch_ends_before_the_next_one_starts():
    x = image(4, 4, 1)
    branches = [layers.MaxPooling2D(4)(layers.ReLU()(x)) for _ in range(5)]
    model = keras.Model(x, layers.Concatenate()(branches))
    # The input, the last branch's copy of it, and the ends of the other branches.
    assert cost(model).activation_bytes == (16 + 16 + 4) * FLOAT_BYTES


def test_another_shape_of_a_tensor_takes_no_memory():
    images = image(4, 4, 2)
    flat = keras.Model(images, layers.Flatten()(layers.Reshape((2, 16))(images)))
    assert cost(flat).activation_bytes == 4 * 4 * 2 * FLOAT_BYTES


def test_bytes_follow_the_types_of_the_tensors():
    images = image(8, 8, 1, dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float16")(images)
    half = cost(keras.Model(images, layers.Conv2D(16, 3, dtype="float16")(x)))
    assert half.weight_bytes == 2 * half.parameters
    convolved_bytes = 2 * 6 * 6 * 16
    assert half.activation_bytes == 2 * convolved_bytes  # before the bias, and after


def test_a_shared_layer_costs_each_call_and_has_its_weights_once():
    left, right = image(name="left"), image(name="right")
    shared = layers.Conv2D(4, 3)
    outputs = {"a": shared(left), "b": shared(right)}
    twice = cost(keras.Model({"left": left, "right": right}, outputs))
    once = cost(functional([layers.Conv2D(4, 3)]))
    assert twice.multiply_adds == 2 * once.multiply_adds
    assert twice.parameters == once.parameters


def test_every_way_to_write_a_network_costs_the_same(tmp_path: Path):
    written = functional(tiny())
    expected = cost(written)
    assert expected.multiply_adds == TINY_MULTIPLY_ADDS
    subclassed = Subclassed(tiny())
    subclassed(image())
    written.export(tmp_path / "model", verbose=False)
    images = image()
    reloaded = layers.TFSMLayer(tmp_path / "model", call_endpoint="serving_default")
    imported = keras.Model(images, reloaded(images))
    nested = functional([written])
    sequential = keras.Sequential([image(), *tiny()])
    for model in (subclassed, sequential, nested, imported):
        assert cost(model) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    # As published with torchvision's weights; GoogLeNet with the 5×5 of its paper.
    [
        ("alexnet", 0.714e9),
        ("googlenet", 1.58e9),
        ("inception_v3", 5.71e9),
        ("vgg16", 15.47e9),
    ],
)
def test_known_networks_cost_what_is_published(name, expected):
    architecture = ARCHITECTURES[name]
    model = architecture.outline(architecture.defaults)
    assert cost(model).multiply_adds == pytest.approx(expected, rel=0.01)


def test_mobilenet_costs_what_its_paper_says():
    model = keras.applications.MobileNetV2(weights=None)
    assert cost(model).multiply_adds == pytest.approx(300e6, rel=0.01)


class Selecting(layers.Layer):
    def call(self, x):
        return tf.boolean_mask(x, tf.reduce_sum(x, axis=1) > 0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: keras.Sequential([layers.Dense(1)]), "has not seen its input"),
        (lambda: Subclassed([layers.Dense(1)]), "has not seen its input"),
        (lambda: _mapping(image(None, None, 3), layers.ReLU()), "images of any size"),
        (lambda: _mapping(image(5, 3), layers.LSTM(2)), "loops or conditions"),
        (lambda: _mapping(image(5), Selecting()), "depends on its content"),
    ],
    ids=["unbuilt", "uncalled", "any size", "loop", "content"],
)
def test_a_cost_that_the_model_does_not_tell_is_unknown(make, reason):
    model = make()
    with pytest.raises(UnknownCost, match=reason):
        cost(model)
    assert summarise(model).rstrip().endswith(reason)


def _mapping(images, layer):
    return keras.Model(images, layer(images))


def test_a_summary_ends_with_the_cost():
    x = image(100, 100, 3, name="left")
    text = summarise(keras.Model(x, layers.Conv2D(10, 5)(x)))
    assert text.splitlines()[-5:-1] == [
        " Inference of one image:",
        "   parameters     760, 0.00 MiB",
        "   multiply-adds  6,912,000",
        "   activations    0.70 MiB; 22.50 MiB for a batch of 32",
    ]
    assert text.index("Total params: 760 ") < text.index("Inference")


def test_a_summary_says_that_there_are_several_inputs():
    left, right = image(name="left"), image(name="right")
    text = summarise(keras.Model([left, right], layers.Add()([left, right])))
    assert " Inference of one image at each input:" in text


def test_counting_says_nothing(capfd):
    cost(functional(tiny()))
    assert capfd.readouterr() == ("", "")


def test_counting_leaves_the_weights_alone():
    model = functional(tiny())
    before = [weight.copy() for weight in model.get_weights()]
    cost(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
