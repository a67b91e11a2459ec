"""The networks: published sizes and shapes, what goes in and what comes out."""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models.architectures import ARCHITECTURES, Architecture, drawable
from models.architectures.inception_v3 import inception_v3
from models.architectures.options import Options
from models.blocks import AveragePool, Conv, MaxPool, Split
from models.card import FloatPrecision

Shape = tuple[int, ...]
Images = np.ndarray[Any, Any]

# For the default options. GoogLeNet's authors published 6,998,552 (without auxiliary
# classifiers); here each of its 7,280 filters has three numbers in place of one bias.
PARAMETERS = {
    "lenet": 61_706,
    "alexnet": 61_100_840,
    "vgg": 132_863_336,
    "vgg16": 138_357_544,
    "inception": 192_326,
    "googlenet": 6_998_552 + 2 * 7_280,
    "inception_v3": 23_851_784,
    "inception_subclassed": 192_326,
    # The trunk, one classifier, and 64 units that compare twice 288 features.
    "siamese": 192_326 + (2 * 288 + 1) * 64 + (64 + 1),
}
SHAPES: dict[str, dict[str, Shape]] = {
    "lenet": {
        "conv_1": (28, 28, 6),
        "pool_1": (14, 14, 6),
        "conv_2": (10, 10, 16),
        "pool_2": (5, 5, 16),
        "dense_1": (120,),
        "dense_2": (84,),
    },
    "alexnet": {
        "conv_1": (55, 55, 64),
        "pool_1": (27, 27, 64),
        "conv_2": (27, 27, 192),
        "pool_2": (13, 13, 192),
        "conv_3": (13, 13, 384),
        "conv_4": (13, 13, 256),
        "conv_5": (13, 13, 256),
        "pool_5": (6, 6, 256),
        "flatten": (9216,),
        "dense_1": (4096,),
        "dense_2": (4096,),
    },
    "vgg": {
        "pool_1": (112, 112, 64),
        "pool_2": (56, 56, 128),
        "conv_3_2": (56, 56, 256),
        "pool_3": (28, 28, 256),
        "conv_4_2": (28, 28, 512),
        "pool_4": (14, 14, 512),
        "conv_5_2": (14, 14, 512),
        "pool_5": (7, 7, 512),
        "dense_2": (4096,),
    },
    "vgg16": {
        "conv_1_2": (224, 224, 64),
        "conv_2_2": (112, 112, 128),
        "conv_3_3": (56, 56, 256),
        "conv_4_3": (28, 28, 512),
        "conv_5_3": (14, 14, 512),
        "pool_5": (7, 7, 512),
        "dense_2": (4096,),
    },
    "inception": {
        "stem_2_pool": (7, 7, 32),
        "inception_1a_concat": (7, 7, 120),
        "inception_1b_concat": (7, 7, 160),
        "inception_2a_concat": (4, 4, 288),
        "average": (288,),
    },
    "googlenet": {
        "stem_1_conv": (112, 112, 64),
        "stem_1_pool": (56, 56, 64),
        "stem_3_conv": (56, 56, 192),
        "stem_3_pool": (28, 28, 192),
        "inception_3a_concat": (28, 28, 256),
        "inception_3b_concat": (28, 28, 480),
        "inception_4a_concat": (14, 14, 512),
        "inception_4b_concat": (14, 14, 512),
        "inception_4c_concat": (14, 14, 512),
        "inception_4d_concat": (14, 14, 528),
        "inception_4e_concat": (14, 14, 832),
        "inception_5a_concat": (7, 7, 832),
        "inception_5b_concat": (7, 7, 1024),
        "average": (1024,),
    },
    "inception_v3": {
        "stem_1_conv": (149, 149, 32),
        "stem_3_pool": (73, 73, 64),
        "stem_5_pool": (35, 35, 192),
        "mixed_0_concat": (35, 35, 256),
        "mixed_2_concat": (35, 35, 288),
        "mixed_3_concat": (17, 17, 768),
        "mixed_7_concat": (17, 17, 768),
        "mixed_8_concat": (8, 8, 1280),
        "mixed_9_3x3_2_concat": (8, 8, 768),
        "mixed_10_concat": (8, 8, 2048),
        "average": (2048,),
    },
    "siamese": {"trunk": (288,), "compare_concat": (576,), "same": (1,)},
}

FAST = ("lenet", "siamese", "inception_subclassed")  # one of each style

every = pytest.mark.parametrize("name", ARCHITECTURES)
with_a_smallest_side = pytest.mark.parametrize(
    "name", [entry.name for entry in ARCHITECTURES.values() if entry.smallest_side > 1]
)


def names(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers]


def random_images(*shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def tiny(architecture: Architecture) -> Options:
    """A quarter of the width, three classes, and images as small as may be."""
    side = max(architecture.smallest_side, 16)
    channels = architecture.defaults.image_shape[2]
    return Options(
        image_shape=(side, side, channels), classes=3, width=0.25, dropout=0.5
    )


def build(name: str, precision: FloatPrecision = "float32") -> keras.Model:
    return ARCHITECTURES[name].build(tiny(ARCHITECTURES[name]), precision=precision)


@cache
def built(name: str) -> keras.Model:
    """The tiny network, made once for all tests that leave its weights alone."""
    keras.utils.set_random_seed(0)
    return build(name)


@cache
def outline(name: str) -> keras.Model:
    """The full-size network, made once for all tests."""
    return ARCHITECTURES[name].outline(ARCHITECTURES[name].defaults)


def answers(model: keras.Model, architecture: Architecture) -> dict[str, Images]:
    """What a network says of two images, or pairs, by output name."""
    shape = (2, *tiny(architecture).image_shape)
    images = {name: random_images(*shape) for name in architecture.inputs}
    if len(images) == 1:
        return {"probabilities": np.asarray(model(images["images"], training=False))}
    return {k: np.asarray(v) for k, v in model(images, training=False).items()}


def copy_by_inner_names(source: keras.Model, target: keras.Model) -> None:
    """Give a model the weights of one whose innermost layers have the same names."""
    inner = {"/".join(w.path.split("/")[-2:]): w for w in source.weights}
    assert len(inner) == len(target.weights) == len(source.weights)
    for weight in target.weights:
        weight.assign(inner["/".join(weight.path.split("/")[-2:])])


def test_architectures_are_listed_under_their_names() -> None:
    assert all(name == entry.name for name, entry in ARCHITECTURES.items())
    assert ARCHITECTURES.keys() == PARAMETERS.keys()


@every
def test_an_architecture_has_its_published_number_of_parameters(name: str) -> None:
    assert outline(name).count_params() == PARAMETERS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_an_architecture_has_its_published_shapes(name: str) -> None:
    model = outline(name)
    shapes = {layer: model.get_layer(layer).output.shape[1:] for layer in SHAPES[name]}
    assert shapes == SHAPES[name]


@every
def test_an_outline_is_the_network_without_values(name: str) -> None:
    entry = ARCHITECTURES[name]
    outline = entry.outline(tiny(entry))
    model = built(name)
    assert names(outline) == names(model)
    shapes = [[weight.shape for weight in m.weights] for m in (outline, model)]
    assert shapes[0] == shapes[1]
    keras.Model(x := keras.Input((1,)), keras.layers.Dense(1)(x))
    assert all(weight._value is None for weight in outline.weights)


@every
def test_an_architecture_maps_bytes_to_probabilities(name: str) -> None:
    entry = ARCHITECTURES[name]
    answer = answers(built(name), entry)
    assert answer.keys() == entry.outputs.keys()
    for output, role in entry.outputs.items():
        values = answer[output]
        assert values.dtype == np.float32
        assert ((values >= 0) & (values <= 1)).all()
        if role == "probabilities":
            assert values.shape == (2, 3)
            np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-5)
        else:
            assert values.shape == (2, 1)


@every
def test_an_architecture_names_its_inputs_and_its_last_layer(name: str) -> None:
    entry = ARCHITECTURES[name]
    model = drawable(outline(name))
    inputs = {x.name: (x.dtype, x.shape[1:]) for x in model.inputs}
    image = ("uint8", entry.defaults.image_shape)
    assert inputs == dict.fromkeys(entry.inputs, image)
    last = model.get_layer("probabilities")
    assert (last.units, last.compute_dtype) == (entry.defaults.classes, "float32")


@every
def test_an_architecture_takes_other_images_and_classes(name: str) -> None:
    entry = ARCHITECTURES[name]
    side = max(entry.smallest_side, 16)
    channels = 4 - entry.defaults.image_shape[2]  # colour for grey, grey for colour
    shape = (side + 9, side, channels)
    options = replace(entry.defaults, image_shape=shape, classes=7)
    model = drawable(entry.outline(options))
    assert {x.shape for x in model.inputs} == {(None, *shape)}
    expected = [1, 7, 7] if name == "siamese" else [7]
    assert sorted(x.shape[-1] for x in model.outputs) == expected


@with_a_smallest_side
def test_an_image_is_refused_in_which_nothing_would_be_left(name: str) -> None:
    entry = ARCHITECTURES[name]
    side = entry.smallest_side
    smallest = replace(entry.defaults, image_shape=(side, side, 3))
    too_low = replace(entry.defaults, image_shape=(side - 1, side, 3))
    message = f"{name} needs images of at least {side}x{side} pixels, got {side - 1}x"
    entry.outline(smallest)
    for make in (entry.build, entry.outline):
        with pytest.raises(ValueError, match=message):
            make(too_low)
    # Without this check it would be Keras that refuses, in its own words.
    with pytest.raises(ValueError, match=r"negative|size"):
        replace(entry, smallest_side=1).outline(too_low)


@every
def test_the_width_multiplies_all_filters_and_units_but_the_last(name: str) -> None:
    entry = ARCHITECTURES[name]
    double = entry.outline(replace(entry.defaults, width=2))
    for one, two in zip(outline(name).weights, double.weights, strict=True):
        is_last = one.path.split("/")[-2] in {"probabilities", "same"}
        assert two.shape[-1] == one.shape[-1] * (1 if is_last else 2), one.path


def test_the_width_reaches_the_branches_of_branches() -> None:
    options = Options(image_shape=(8, 8, 3), classes=2, width=0.25, dropout=0)
    inner = Split({"a": (Conv(3, (1, 3), strides=2, padding="valid"),)})
    step = Split({"a": (Conv(8, 1), inner), "b": (MaxPool(3), AveragePool(3))})
    assert options.widened_step(step) == Split(
        {
            "a": (
                Conv(2, 1),
                Split({"a": (Conv(1, (1, 3), strides=2, padding="valid"),)}),
            ),
            "b": (MaxPool(3), AveragePool(3)),
        }
    )


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [
        *((name, "float16", 0.01) for name in ARCHITECTURES),
        *((name, "bfloat16", 0.06) for name in FAST),
    ],
)
def test_an_architecture_computes_in_less_precision_and_answers_in_full(
    name: str, precision: FloatPrecision, tolerance: float
) -> None:
    entry = ARCHITECTURES[name]
    model = build(name, precision)
    for weight, original in zip(model.weights, built(name).weights, strict=True):
        is_last = weight.path.split("/")[-2] in {"probabilities", "same"}
        assert weight.dtype == ("float32" if is_last else precision)
        weight.assign(original)
    expected = answers(built(name), entry)
    for output, values in answers(model, entry).items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[output], atol=tolerance)


def test_a_precision_is_that_of_one_network_only() -> None:
    before = keras.config.dtype_policy()
    build("lenet", "bfloat16")
    assert keras.config.dtype_policy() == before


def test_bfloat16_tells_neighbouring_greys_apart() -> None:
    normalise = build("lenet", "bfloat16").get_layer("normalise")
    greys = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert len(np.unique(np.asarray(normalise(greys)))) == 256


def test_an_inverted_image_is_seen_with_the_opposite_sign() -> None:
    normalise = built("inception").get_layer("normalise")
    images = random_images(3, 28, 28, 1)
    seen, inverted = np.asarray(normalise(images)), np.asarray(normalise(255 - images))
    assert -1 <= seen.min() < -0.9
    assert 0.9 < seen.max() <= 1
    np.testing.assert_allclose(inverted, -seen, atol=1e-6)


@pytest.mark.parametrize("name", ["inception", "siamese", "inception_subclassed"])
def test_a_network_answers_the_same_twice_though_it_has_a_dropout(name: str) -> None:
    first, second = (answers(built(name), ARCHITECTURES[name]) for _ in range(2))
    for output, values in first.items():
        np.testing.assert_array_equal(second[output], values)


@every
def test_the_names_of_layers_and_weights_are_the_same_in_each_build(name: str) -> None:
    entry = ARCHITECTURES[name]
    first, again = outline(name), entry.outline(tiny(entry))
    assert names(again) == names(first)
    assert len(set(names(first))) == len(first.layers)
    assert [w.path for w in again.weights] == [w.path for w in first.weights]


def test_the_layers_of_inception_are_those_that_its_documentation_tells() -> None:
    kinds = Counter(type(layer).__name__ for layer in outline("inception").layers)
    assert kinds == {
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


@pytest.mark.parametrize(
    ("name", "blocks"), [("inception", 20), ("googlenet", 57), ("inception_v3", 94)]
)
def test_every_convolution_is_normalised_and_cut_off(name: str, blocks: int) -> None:
    model = outline(name)
    found = [n.removesuffix("_conv") for n in names(model) if n.endswith("_conv")]
    assert len(found) == blocks
    for block in found:
        convolution, normalisation, activation = (
            model.get_layer(f"{block}_{part}") for part in ("conv", "bn", "relu")
        )
        assert normalisation.input is convolution.output
        assert activation.input is normalisation.output


def test_inception_v3_computes_what_keras_own_does() -> None:
    keras.utils.set_random_seed(0)
    shape = (75, 75, 3)
    theirs = keras.applications.InceptionV3(
        include_top=False, weights=None, input_shape=shape, pooling="avg"
    )
    whole = inception_v3(Options(image_shape=shape, classes=10, dropout=0))
    ours = keras.Model(whole.input, whole.get_layer("average").output)
    for i in range(11):
        expected = theirs.get_layer(f"mixed{i}").output.shape
        assert ours.get_layer(f"mixed_{i}_concat").output.shape == expected

    random = np.random.default_rng(0)
    for our, their in zip(ours.weights, theirs.weights, strict=True):
        if len(their.shape) == 1:  # of a normalisation, whose defaults say little
            their.assign(random.uniform(0.5, 1, their.shape))
        our.assign(their)
    images = random_images(1, *shape)
    expected = np.asarray(theirs(images / 127.5 - 1, training=False))
    assert expected.std() > 0.05
    answer = np.asarray(ours(images, training=False))
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)


def test_siamese_has_one_trunk_and_one_classifier_for_both_images() -> None:
    model = built("siamese")
    trunk, last = (model.get_layer(name) for name in ("trunk", "probabilities"))
    assert len(trunk._inbound_nodes) == len(last._inbound_nodes) == 2
    comparing = [w for w in model.weights if w.path.startswith(("compare_", "same/"))]
    shared = [*trunk.weights, *last.weights]
    assert {id(w) for w in model.weights} == {id(w) for w in (*shared, *comparing)}
    assert len(trunk.weights) == len(built("inception").weights) - 2


def test_exchanging_the_images_of_siamese_exchanges_its_answers() -> None:
    shape = tiny(ARCHITECTURES["siamese"]).image_shape
    left, right = random_images(2, 4, *shape)
    model = built("siamese")
    one = model({"left": left, "right": right}, training=False)
    other = model({"left": right, "right": left}, training=False)
    for name, opposite in {
        "same": "same",
        "left_probabilities": "right_probabilities",
        "right_probabilities": "left_probabilities",
    }.items():
        np.testing.assert_allclose(one[name], other[opposite], rtol=1e-5)
    assert not np.allclose(one["left_probabilities"], one["right_probabilities"])


def test_inception_computes_the_same_in_both_styles() -> None:
    options = ARCHITECTURES["inception"].defaults
    functional, subclassed = (
        ARCHITECTURES[name].build(options)
        for name in ("inception", "inception_subclassed")
    )
    copy_by_inner_names(functional, subclassed)
    images = random_images(3, *options.image_shape)
    for training in (False, True):  # batch normalisation makes the difference
        for model in (functional, subclassed):
            model.get_layer("dropout").rate = 0
        expected = functional(images, training=training)
        answer = subclassed(images, training=training)
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_a_subclassed_model_tells_its_graph_over_its_own_variables() -> None:
    model = built("inception_subclassed")
    graph = model.functional()
    assert names(graph) == names(built("inception"))
    assert {id(w) for w in graph.weights} == {id(w) for w in model.weights}
    images = random_images(2, *tiny(ARCHITECTURES["inception"]).image_shape)
    expected = np.asarray(model(images, training=False))
    np.testing.assert_array_equal(np.asarray(graph(images, training=False)), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, when it saves
@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "float32") for name in FAST), ("inception_subclassed", "bfloat16")],
)
def test_a_network_survives_saving(
    name: str, precision: FloatPrecision, tmp_path: Path
) -> None:
    model = build(name, precision)
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(reloaded) is type(model)
    assert [w.dtype for w in reloaded.weights] == [w.dtype for w in model.weights]
    expected = answers(model, ARCHITECTURES[name])
    for output, values in answers(reloaded, ARCHITECTURES[name]).items():
        np.testing.assert_array_equal(values, expected[output])
