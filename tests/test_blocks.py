"""The blocks, as functions and as layers: shapes, names, sizes, numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from models.block_layers import CnnBlock, InceptionBlock, block_layer, inlined
from models.blocks import (
    AveragePool,
    Branches,
    Conv,
    MaxPool,
    Split,
    Step,
    apply,
    cnn_block,
    inception_block,
)

Shape = tuple[int | None, ...]
Images = np.ndarray[Any, Any]

BRANCHES = {
    "1x1": (Conv(2, 1),),
    "3x3": (Conv(3, 1), Conv(4, 3)),
    "pool": (MaxPool(3), Conv(5, 1)),
}
# All that there is: strides, paddings, kernels that are no squares, branches within.
NESTED = Split(
    {
        "3x3": (
            Conv(4, 3, strides=2, padding="valid"),
            Split({"1x3": (Conv(2, (1, 3)),), "3x1": (Conv(3, (3, 1)), Conv(1, 1))}),
        ),
        "mean": (AveragePool(3), Conv(5, 3, strides=2, padding="valid")),
        "pool": (MaxPool(3, strides=2, padding="valid"),),
    }
)
STEPS: tuple[Step, ...] = (
    Conv(4, (1, 7), strides=2, padding="valid"),
    MaxPool(3),
    AveragePool((1, 2), strides=2, padding="valid"),
    Split(BRANCHES),
    NESTED,
)


def built(block: Callable[[Any], Any], shape: Shape = (8, 8, 3)) -> keras.Model:
    """A model of one input and this block."""
    x = keras.Input(shape, name="x")
    return keras.Model(x, block(x))


def names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


def random_images(*shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def with_random_weights(model: keras.Model, seed: int = 0) -> keras.Model:
    """The model with weights of which none is at its default."""
    random = np.random.default_rng(seed)
    model.set_weights([random.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return model


def copy_by_inner_names(function: keras.Model, layer: keras.Layer) -> None:
    """Give a layer the weights of the function whose layers have the same names."""
    inner = {"/".join(w.path.split("/")[-2:]): w for w in layer.weights}
    assert inner.keys() == {weight.path for weight in function.weights}
    for weight in function.weights:
        inner[weight.path].assign(weight)


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


@pytest.mark.parametrize(
    ("kernel_size", "strides", "shape", "expected"),
    [
        (3, 1, (8, 6, 1), (None, 6, 4, 4)),
        (1, 2, (8, 8, 3), (None, 4, 4, 4)),
        (3, 2, (9, 8, 3), (None, 4, 3, 4)),
        ((1, 7), 1, (8, 8, 3), (None, 8, 2, 4)),
    ],
)
def test_without_padding_a_cnn_block_takes_off_the_border(
    kernel_size: Any, strides: int, shape: Shape, expected: Shape
) -> None:
    def block(x: Any) -> Any:
        return cnn_block(x, 4, kernel_size, strides=strides, padding="valid", name="b")

    assert built(block, shape).output_shape == expected


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
    branches: Branches = {"as_is": (Conv(1, 1),), "pool": (MaxPool(3),)}
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


def test_an_average_pool_counts_only_what_is_within_the_image() -> None:
    model = built(lambda x: apply(AveragePool(3), x, name="b"), (5, 5, 1))
    answer = model.predict_on_batch(np.ones((1, 5, 5, 1), np.float32))
    np.testing.assert_allclose(answer, np.ones((1, 5, 5, 1)))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (MaxPool(3), (None, 9, 8, 3)),
        (MaxPool(3, strides=2), (None, 5, 4, 3)),
        (AveragePool(3, strides=2, padding="valid"), (None, 4, 3, 3)),
        (AveragePool((1, 8), padding="valid"), (None, 9, 1, 3)),
    ],
)
def test_a_pool_keeps_the_size_unless_told_otherwise(
    pool: Step, expected: Shape
) -> None:
    assert built(lambda x: apply(pool, x, name="b"), (9, 8, 3)).output_shape == expected


def test_blocks_nest() -> None:
    model = built(lambda x: apply(NESTED, x, name="mixed"), (9, 9, 3))
    assert model.output_shape == (None, 4, 4, (2 + 1) + 5 + 3)
    inner = {n for n in names(model) if n.startswith("mixed_3x3_2_")}
    expected = {"mixed_3x3_2_concat"}
    for step in ("1x3_1", "3x1_1", "3x1_2"):
        expected |= {f"mixed_3x3_2_{step}_{part}" for part in ("conv", "bn", "relu")}
    assert inner == expected
    first = model.get_layer("mixed_3x3_1_relu").output
    for branch in ("1x3", "3x1"):
        assert model.get_layer(f"mixed_3x3_2_{branch}_1_conv").input is first


def test_the_branches_of_a_block_must_agree_on_the_size() -> None:
    branches: Branches = {"keeps": (Conv(1, 1),), "halves": (MaxPool(3, strides=2),)}
    with pytest.raises(ValueError, match="matching shapes"):
        built(lambda x: inception_block(x, branches, name="b"))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_a_block_layer_computes_what_the_function_does(step: Step) -> None:
    function = with_random_weights(built(lambda x: apply(step, x, name="b"), (9, 9, 3)))
    layer = block_layer(step, name="b")
    images = random_images(2, 9, 9, 3).astype(np.float32) / 255
    expected = function.predict_on_batch(images)

    layer(images)  # builds it
    copy_by_inner_names(function, layer)
    np.testing.assert_allclose(np.asarray(layer(images)), expected, rtol=1e-5)
    assert layer.compute_output_shape((None, 9, 9, 3)) == function.output_shape


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_building_a_block_layer_makes_all_its_variables(step: Step) -> None:
    layer = block_layer(step, name="b")
    layer.build((None, 9, 9, 3))
    variables = [id(weight) for weight in layer.weights]
    layer(np.ones((1, 9, 9, 3), np.float32))
    assert [id(weight) for weight in layer.weights] == variables
    function = built(lambda x: apply(step, x, name="b"), (9, 9, 3))
    assert layer.count_params() == function.count_params()


@pytest.mark.parametrize(
    "block",
    [
        CnnBlock(3, 3, name="shared"),
        InceptionBlock({"b": (Conv(3, 3),)}, name="shared"),
    ],
    ids=lambda block: type(block).__name__,
)
def test_a_block_layer_called_twice_shares_its_variables(block: Any) -> None:
    left, right = (keras.Input((8, 8, 3), name=name) for name in ("left", "right"))
    model = keras.Model([left, right], [block(left), block(right)])
    assert len(model.weights) == len(block.weights) == 4
    assert model.count_params() == cnn_parameters(9, 3, 3)
    images = random_images(2, 8, 8, 3).astype(np.float32)
    before = model.predict_on_batch([images, images])
    np.testing.assert_array_equal(before[0], before[1])
    with_random_weights(model)
    after = model.predict_on_batch([images, images])
    np.testing.assert_array_equal(after[0], after[1])
    assert not np.allclose(before[0], after[0])


def test_a_block_layer_normalises_by_the_batch_only_in_training() -> None:
    block = InceptionBlock({"b": (Conv(3, 1),)}, name="b")
    images = random_images(2, 8, 8, 3).astype(np.float32)
    served = np.asarray(block(images))
    assert not np.allclose(np.asarray(block(images, training=True)), served)
    assert not np.allclose(np.asarray(block(images)), served)  # it saw their statistics


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, when it saves
@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_a_block_layer_survives_saving(step: Step, tmp_path: Path) -> None:
    block = block_layer(step, name="b")
    model = with_random_weights(built(block, (9, 9, 3)))
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(reloaded.get_layer("b")) is type(block)
    paths = [[weight.path for weight in m.weights] for m in (model, reloaded)]
    assert paths[0] == paths[1]
    images = random_images(2, 9, 9, 3).astype(np.float32)
    expected = model.predict_on_batch(images)
    np.testing.assert_array_equal(reloaded.predict_on_batch(images), expected)


def test_a_block_layer_hands_its_precision_to_the_layers_within() -> None:
    block = InceptionBlock(NESTED.branches, name="b", dtype="bfloat16")
    again = InceptionBlock.from_config(block.get_config())
    for layer in (block, again):
        layer.build((None, 9, 9, 3))
        assert {weight.dtype for weight in layer.weights} == {"bfloat16"}


def test_a_graph_of_block_layers_can_show_what_is_within_them() -> None:
    block = InceptionBlock(NESTED.branches, name="mixed")
    outside = built(block, (9, 9, 3))
    assert names(outside) == ["x", "mixed"]
    with inlined():
        inside = built(block, (9, 9, 3))
    function = built(lambda x: apply(NESTED, x, name="mixed"), (9, 9, 3))
    assert names(inside) == names(function)
    assert {id(w) for w in inside.weights} == {id(w) for w in outside.weights}
