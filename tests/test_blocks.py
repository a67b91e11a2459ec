"""The blocks and the architectures made of them: shapes, names, sizes, numbers."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from models.architectures import ARCHITECTURES, Architecture
from models.architectures.inception import inception
from models.blocks import Conv, MaxPool, cnn_block, inception_block

Shape = tuple[int | None, ...]
Images = np.ndarray[Any, Any]

BRANCHES = {
    "1x1": (Conv(2, 1),),
    "3x3": (Conv(3, 1), Conv(4, 3)),
    "pool": (MaxPool(3), Conv(5, 1)),
}


def built(block: Callable[[Any], Any], shape: Shape = (8, 8, 3)) -> keras.Model:
    """A model of one input and this block."""
    x = keras.Input(shape, name="x")
    return keras.Model(x, block(x))


def names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


def random_images(*shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def cnn_parameters(kernel: int, channels: int, filters: int) -> int:
    """A kernel without bias; a mean, a variance and an offset for each filter."""
    return kernel * channels * filters + 3 * filters


@pytest.mark.parametrize(
    ("filters", "kernel_size", "strides", "shape", "expected"),
    [
        (4, 1, 1, (8, 8, 3), (None, 8, 8, 4)),
        (4, 3, 1, (8, 6, 1), (None, 8, 6, 4)),
        (7, 5, 2, (8, 8, 3), (None, 4, 4, 7)),
        (4, 3, 2, (7, 9, 3), (None, 4, 5, 4)),
        (4, (1, 7), 1, (8, 8, 3), (None, 8, 8, 4)),
        (4, 3, 4, (2, 2, 3), (None, 1, 1, 4)),
        (4, 3, 1, (None, None, 3), (None, None, None, 4)),
    ],
)
def test_a_cnn_block_keeps_the_size_or_divides_it_by_its_strides(
    filters: int, kernel_size: Any, strides: int, shape: Shape, expected: Shape
) -> None:
    model = built(
        lambda x: cnn_block(x, filters, kernel_size, strides=strides, name="b"), shape
    )
    assert model.output_shape == expected


def test_the_layers_of_a_cnn_block_extend_its_name() -> None:
    model = built(lambda x: cnn_block(x, 4, 3, name="stem_1"))
    assert names(model) == ["x", "stem_1_conv", "stem_1_bn", "stem_1_relu"]
    kinds = (layers.InputLayer, layers.Conv2D, layers.BatchNormalization, layers.ReLU)
    assert tuple(type(layer) for layer in model.layers) == kinds


@pytest.mark.parametrize(
    ("kernel_size", "area"), [(1, 1), (3, 9), (5, 25), ((1, 7), 7), ((3, 2), 6)]
)
@pytest.mark.parametrize(("channels", "filters"), [(1, 4), (3, 7)])
def test_a_cnn_block_has_a_kernel_and_three_numbers_a_filter(
    kernel_size: Any, area: int, channels: int, filters: int
) -> None:
    model = built(
        lambda x: cnn_block(x, filters, kernel_size, name="b"), (8, 8, channels)
    )
    assert model.count_params() == cnn_parameters(area, channels, filters)


def test_a_cnn_block_has_neither_a_bias_nor_a_scale() -> None:
    model = built(lambda x: cnn_block(x, 4, 3, name="b"))
    weights = [weight.path for weight in model.weights]
    offsets = [f"b_bn/{name}" for name in ("beta", "moving_mean", "moving_variance")]
    assert weights == ["b_conv/kernel", *offsets]


def test_a_cnn_block_convolves_then_normalises_then_cuts_off_at_zero() -> None:
    model = built(lambda x: cnn_block(x, 4, 1, name="b"))
    random = np.random.default_rng(0)
    kernel = random.normal(size=(1, 1, 3, 4))
    beta, mean, variance = random.uniform(0.5, 2, (3, 4))
    model.set_weights([kernel, beta, mean, variance])
    images = random.normal(size=(2, 8, 8, 3)).astype(np.float32)
    normalised = (images @ kernel[0, 0] - mean) / np.sqrt(variance + 1e-3) + beta
    assert (normalised < 0).any()
    answer = model.predict_on_batch(images)
    np.testing.assert_allclose(answer, np.maximum(normalised, 0), atol=1e-4)


def test_the_layers_of_an_inception_block_tell_branch_and_step() -> None:
    model = built(lambda x: inception_block(x, BRANCHES, name="mixed"))
    expected = {"x", "mixed_concat", "mixed_pool_1"}
    for step in ("1x1_1", "3x3_1", "3x3_2", "pool_2"):
        expected |= {f"mixed_{step}_{part}" for part in ("conv", "bn", "relu")}
    assert set(names(model)) == expected
    assert len(names(model)) == len(expected)


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 5, 1), (None, None, 2)])
def test_an_inception_block_keeps_the_size_and_adds_up_the_filters(
    shape: Shape,
) -> None:
    model = built(lambda x: inception_block(x, BRANCHES, name="mixed"), shape)
    assert model.output_shape == (None, *shape[:2], 2 + 4 + 5)


def test_an_inception_block_has_the_parameters_of_its_cnn_blocks() -> None:
    model = built(lambda x: inception_block(x, BRANCHES, name="mixed"), (8, 8, 6))
    steps = [(1, 6, 2), (1, 6, 3), (9, 3, 4), (1, 6, 5)]
    assert model.count_params() == sum(cnn_parameters(*step) for step in steps)


def test_an_inception_block_joins_its_branches_in_their_order() -> None:
    model = built(lambda x: inception_block(x, BRANCHES, name="mixed"))
    ends = ("mixed_1x1_1_relu", "mixed_3x3_2_relu", "mixed_pool_2_relu")
    branches = keras.Model(model.input, [model.get_layer(n).output for n in ends])
    images = random_images(2, 8, 8, 3).astype(np.float32)
    apart = np.concatenate(branches.predict_on_batch(images), axis=-1)
    np.testing.assert_array_equal(model.predict_on_batch(images), apart)


def test_a_branch_may_be_a_pool_alone_that_takes_the_largest_neighbour() -> None:
    branches = {"as_is": (Conv(1, 1),), "pool": (MaxPool(3),)}
    model = built(lambda x: inception_block(x, branches, name="b"), (5, 5, 1))
    image = np.zeros((1, 5, 5, 1), np.float32)
    image[0, 2, 1] = 7
    pooled = model.predict_on_batch(image)[0, :, :, 1]
    expected = np.zeros((5, 5))
    expected[1:4, 0:3] = 7
    np.testing.assert_array_equal(pooled, expected)


def test_blocks_compose() -> None:
    def network(x: Any) -> Any:
        x = cnn_block(x, 4, 3, strides=2, name="stem")
        x = inception_block(x, BRANCHES, name="first")
        x = cnn_block(x, 6, 1, name="between")
        return inception_block(x, BRANCHES, name="second")

    model = built(network, (9, 8, 1))
    assert model.output_shape == (None, 5, 4, 11)
    assert model.get_layer("between_conv").input.shape == (None, 5, 4, 11)
    assert model.predict_on_batch(np.ones((2, 9, 8, 1))).shape == (2, 5, 4, 11)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return inception((28, 28, 1), 10)


def test_inception_has_the_size_that_its_documentation_tells(
    network: keras.Model,
) -> None:
    assert network.count_params() == 192_326
    assert Counter(type(layer).__name__ for layer in network.layers) == {
        "InputLayer": 1,
        "Rescaling": 1,
        "Conv2D": 20,
        "BatchNormalization": 20,
        "ReLU": 20,
        "MaxPooling2D": 6,
        "Concatenate": 3,
        "GlobalAveragePooling2D": 1,
        "Dropout": 1,
        "Dense": 1,
    }


def test_inception_halves_the_image_from_stage_to_stage(network: keras.Model) -> None:
    shapes = {
        name: network.get_layer(name).output.shape[1:]
        for name in names(network)
        if name.endswith(("_concat", "stem_2_pool", "average"))
    }
    assert shapes == {
        "stem_2_pool": (7, 7, 32),
        "inception_1a_concat": (7, 7, 120),
        "inception_1b_concat": (7, 7, 160),
        "inception_2a_concat": (4, 4, 288),
        "average": (288,),
    }


def test_inception_takes_bytes_and_answers_probabilities(network: keras.Model) -> None:
    (images,) = network.inputs
    assert (images.name, images.dtype) == ("images", "uint8")
    assert images.shape == (None, 28, 28, 1)
    assert network.output_shape == (None, 10)
    answer = network.predict_on_batch(random_images(7, 28, 28, 1))
    assert (answer.shape, answer.dtype) == ((7, 10), np.float32)
    assert (answer >= 0).all()
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)


def test_inception_sees_an_inverted_image_with_the_opposite_sign(
    network: keras.Model,
) -> None:
    normalise = network.get_layer("normalise")
    images = random_images(3, 28, 28, 1)
    seen, inverted = np.asarray(normalise(images)), np.asarray(normalise(255 - images))
    assert -1 <= seen.min() < -0.9
    assert 0.9 < seen.max() <= 1
    np.testing.assert_allclose(inverted, -seen, atol=1e-6)


def test_inception_answers_the_same_twice_though_it_has_a_dropout(
    network: keras.Model,
) -> None:
    images = random_images(2, 28, 28, 1)
    first, second = (network(images, training=False) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_names_of_inceptions_layers_are_the_same_in_each_build(
    network: keras.Model,
) -> None:
    again = inception((28, 28, 1), 10)
    assert names(again) == names(network)
    assert len(set(names(network))) == len(network.layers)
    assert [w.path for w in again.weights] == [w.path for w in network.weights]


def test_every_convolution_of_inception_is_normalised_and_cut_off(
    network: keras.Model,
) -> None:
    blocks = {n.removesuffix("_conv") for n in names(network) if n.endswith("_conv")}
    assert len(blocks) == 20
    for block in blocks:
        convolution = network.get_layer(f"{block}_conv")
        assert network.get_layer(f"{block}_bn").input is convolution.output
        normalisation = network.get_layer(f"{block}_bn")
        assert network.get_layer(f"{block}_relu").input is normalisation.output


@pytest.mark.parametrize(
    ("image_shape", "classes"), [((32, 48, 3), 5), ((9, 8, 1), 2), ((8, 8, 3), 1000)]
)
def test_inception_takes_other_images_and_classes(
    image_shape: tuple[int, int, int], classes: int
) -> None:
    model = inception(image_shape, classes)
    assert model.input_shape == (None, *image_shape)
    assert model.output_shape == (None, classes)
    first_kernel = 3 * 3 * 16 * (image_shape[-1] - 1)
    last_layer = (288 + 1) * (classes - 10)
    assert model.count_params() == 192_326 + first_kernel + last_layer


def test_architectures_are_listed_under_their_names() -> None:
    assert "inception" in ARCHITECTURES
    assert all(name == entry.name for name, entry in ARCHITECTURES.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda a: a.name)
def test_every_architecture_maps_images_to_probabilities(
    architecture: Architecture,
) -> None:
    model = architecture.build(architecture.image_shape, architecture.classes)
    answer = np.asarray(model(random_images(2, *architecture.image_shape)))
    assert (answer.shape, answer.dtype) == ((2, architecture.classes), np.float32)
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)
