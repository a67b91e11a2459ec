"""The drawing of a model: what it shows, and that every model has one."""

import re
import sys
from collections import Counter
from io import BytesIO
from xml.etree import ElementTree as ET

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from models.plot import draw, draw_png

SVG = "{http://www.w3.org/2000/svg}"


class Drawing:
    """An SVG document taken apart: texts by node, clusters, and arrows."""

    def __init__(self, model: keras.Model) -> None:
        self.text = draw(model)
        self.root = ET.fromstring(self.text)  # noqa: S314 (our own output)
        self.nodes = {self._title(g): self._lines(g) for g in self._groups("node")}
        self.clusters = {self._title(g): g for g in self._groups("cluster")}
        self.arrows = Counter(
            tuple(self._title(g).split("->")) for g in self._groups("edge")
        )

    def _groups(self, kind: str) -> list[ET.Element]:
        return self.root.findall(f".//{SVG}g[@class='{kind}']")

    @staticmethod
    def _title(group: ET.Element) -> str:
        return group.findtext(f"{SVG}title") or ""

    @staticmethod
    def _lines(group: ET.Element) -> list[str]:
        return [element.text or "" for element in group.iter(f"{SVG}text")]

    def heading(self, cluster: str) -> str:
        return self._lines(self.clusters[cluster])[0].replace("\N{NO-BREAK SPACE}", "")

    def fill(self, node: str) -> str:
        group = next(g for g in self._groups("node") if self._title(g) == node)
        return group.find(f"{SVG}path").get("fill")

    def members(self, cluster: str) -> set[str]:
        """The nodes whose boxes lie within a cluster's frame."""
        left, top, right, bottom = _extent(self.clusters[cluster])
        extents = {self._title(g): _extent(g) for g in self._groups("node")}
        return {
            name
            for name, (x0, y0, x1, y1) in extents.items()
            if left <= x0 and top <= y0 and x1 <= right and y1 <= bottom
        }


def _extent(group: ET.Element) -> tuple[float, float, float, float]:
    numbers = re.findall(r"-?[\d.]+", group.find(f"{SVG}path").get("d"))
    xs, ys = [float(x) for x in numbers[::2]], [float(y) for y in numbers[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def cnn_block(x, filters, kernel_size, *, strides=1, name):
    x = layers.Conv2D(
        filters, kernel_size, strides=strides, padding="same", name=f"{name}_conv"
    )(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def inception_block(x, *, name):
    pool = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_pool")(x)
    reduced = cnn_block(x, 2, 1, name=f"{name}_3x3_reduce")
    branches = [
        cnn_block(x, 2, 1, name=f"{name}_1x1"),
        cnn_block(reduced, 4, 3, name=f"{name}_3x3"),
        cnn_block(pool, 2, 1, name=f"{name}_pool_proj"),
    ]
    return layers.Concatenate(name=f"{name}_concat")(branches)


def inception(blocks=2):
    images = keras.Input((8, 8, 1), name="images", dtype="uint8")
    x = cnn_block(layers.Rescaling(1 / 255, name="rescale")(images), 4, 3, name="stem")
    for number in range(1, blocks + 1):
        x = inception_block(x, name=f"inception_{number}")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dense(10, activation="softmax", name="probabilities")(x)
    return keras.Model(images, x, name="tiny_inception")


class Subclassed(keras.Model):
    def __init__(self, hidden=1, **kwargs):
        super().__init__(**kwargs)
        self.hidden = [layers.Dense(3, name=f"hidden_{i}") for i in range(hidden)]
        self.head = layers.Dense(2, name="head")

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        return self.head(x)


@pytest.fixture(scope="module")
def drawing():
    return Drawing(inception())


def test_each_inception_block_is_a_cluster_of_its_own_layers(drawing):
    members = {f"inception_1_{b}" for b in ("1x1", "3x3_reduce", "3x3", "pool_proj")}
    members |= {"inception_1_pool", "inception_1_concat"}
    assert set(drawing.clusters) == {"inception_1 block", "inception_2 block"}
    assert drawing.members("inception_1 block") == members


def test_a_block_whose_name_starts_like_anothers_stays_apart():
    x = keras.Input((8, 8, 1))
    y = inception_block(inception_block(x, name="mixed_1"), name="mixed_10")
    drawing = Drawing(keras.Model(x, y))
    assert drawing.members("mixed_1 block").isdisjoint(
        drawing.members("mixed_10 block")
    )


def test_a_block_within_a_block_is_a_cluster_within_a_cluster():
    x = keras.Input((8, 8, 1))
    parts = [inception_block(x, name=f"pair_{side}") for side in ("left", "right")]
    drawing = Drawing(keras.Model(x, layers.Concatenate(name="pair_concat")(parts)))
    outer = drawing.members("pair block")
    assert drawing.members("pair_left block") < outer
    assert drawing.members("pair_right block") < outer


def test_a_branch_that_splits_again_is_a_cluster_in_its_block():
    """As in the last blocks of Inception v3."""
    x = keras.Input((8, 8, 1))
    y = cnn_block(x, 2, 1, name="mixed_9_3x3_1")
    parts = [
        cnn_block(y, 2, size, name=f"mixed_9_3x3_2_{size[0]}x{size[1]}_1")
        for size in ((1, 3), (3, 1))
    ]
    pool = layers.AveragePooling2D(3, 1, padding="same", name="mixed_9_pool_1")(x)
    ends = [
        cnn_block(x, 2, 1, name="mixed_9_1x1_1"),
        layers.Concatenate(name="mixed_9_3x3_2_concat")(parts),
        cnn_block(pool, 2, 1, name="mixed_9_pool_2"),
    ]
    drawing = Drawing(keras.Model(x, layers.Concatenate(name="mixed_9_concat")(ends)))
    assert drawing.members("mixed_9_3x3_2 block") == {
        *("mixed_9_3x3_2_1x3_1", "mixed_9_3x3_2_3x1_1", "mixed_9_3x3_2_concat")
    }
    assert drawing.members("mixed_9_3x3_2 block") < drawing.members("mixed_9 block")
    assert drawing.heading("mixed_9 block") == "mixed_9"
    assert drawing.heading("mixed_9_3x3_2 block") == "3x3_2"
    assert drawing.nodes["mixed_9_3x3_2_1x3_1"][1] == "1x3_1, 2 filters"
    assert drawing.nodes["mixed_9_pool_1"][0] == "AveragePooling2D 3×3"


def test_a_concatenation_without_companions_makes_no_cluster():
    x = keras.Input((4,))
    y = layers.Concatenate(name="features_concat")([x, x])
    assert not Drawing(keras.Model(x, y)).clusters


def test_convolution_normalisation_and_activation_are_folded_into_one_box(drawing):
    assert drawing.nodes["stem"] == [
        "conv 3×3 + bn + relu",
        "stem, 4 filters",
        "8×8×4 · 56 params",
    ]
    assert not {"stem_conv", "stem_bn", "stem_relu"} & set(drawing.nodes)


def test_a_box_in_a_block_leaves_out_the_name_of_the_block(drawing):
    assert drawing.nodes["inception_1_3x3_reduce"][1] == "3x3_reduce, 2 filters"
    assert drawing.nodes["inception_1_pool"][1] == "pool"


def test_a_convolution_whose_own_output_is_used_is_not_folded():
    x = keras.Input((8, 8, 1))
    convolution = layers.Conv2D(2, 3, name="a_conv")(x)
    y = layers.ReLU(name="a_relu")(layers.BatchNormalization(name="a_bn")(convolution))
    used_inside = keras.Model(x, layers.Add(name="sum")([convolution, y]))
    used_outside = keras.Model(x, [convolution, y])
    for model in (used_inside, used_outside):
        assert {"a_conv", "a_bn", "a_relu"} <= set(Drawing(model).nodes)


def test_layers_whose_names_promise_more_than_they_are_are_not_folded():
    x = keras.Input((8, 8, 1))
    y = layers.LayerNormalization(name="a_bn")(layers.Conv2D(2, 3, name="a_conv")(x))
    drawing = Drawing(keras.Model(x, layers.ReLU(name="a_relu")(y)))
    assert {"a_conv", "a_bn", "a_relu"} <= set(drawing.nodes)


def test_a_folded_box_names_the_activation_that_it_has():
    x = keras.Input((8, 8, 1))
    y = layers.BatchNormalization(name="a_bn")(
        layers.Conv2D(2, (3, 1), strides=2, name="a_conv")(x)
    )
    y = layers.Activation("tanh", name="a_relu")(y)
    assert Drawing(keras.Model(x, y)).nodes["a"][0] == "conv 3×1 / 2 + bn + tanh"


def test_every_tensor_is_an_arrow(drawing):
    expected = [
        ("images", "rescale"),
        ("rescale", "stem"),
        ("inception_2_concat", "average"),
        ("average", "probabilities"),
    ]
    for block, source in (
        ("inception_1", "stem"),
        ("inception_2", "inception_1_concat"),
    ):
        expected += [
            (source, f"{block}_1x1"),
            (source, f"{block}_3x3_reduce"),
            (f"{block}_3x3_reduce", f"{block}_3x3"),
            (source, f"{block}_pool"),
            (f"{block}_pool", f"{block}_pool_proj"),
            (f"{block}_1x1", f"{block}_concat"),
            (f"{block}_3x3", f"{block}_concat"),
            (f"{block}_pool_proj", f"{block}_concat"),
        ]
    assert drawing.arrows == Counter(expected)


def test_a_tensor_used_twice_by_one_layer_is_two_arrows():
    x = keras.Input((4,), name="x")
    drawing = Drawing(keras.Model(x, layers.Multiply(name="square")([x, x])))
    assert drawing.arrows == {("x", "square"): 2}


def test_branches_stand_in_the_order_in_which_they_are_joined(drawing):
    names = ("1x1", "3x3", "pool_proj")
    nodes = {drawing._title(g): g for g in drawing._groups("node")}
    lefts = [_extent(nodes[f"inception_1_{name}"])[0] for name in names]
    assert lefts == sorted(lefts)


def test_a_layer_tells_its_kind_name_shape_and_parameters(drawing):
    assert drawing.nodes["average"] == ["GlobalAveragePooling2D", "average", "8"]
    assert drawing.nodes["inception_1_pool"][0] == "MaxPooling2D 3×3"
    assert drawing.nodes["probabilities"] == [
        "Dense + softmax",
        "probabilities",
        "output 10 · 90 params",
    ]


def test_inputs_and_outputs_differ_from_layers_with_and_without_weights(drawing):
    nodes = ("images", "probabilities", "stem", "rescale")
    ends, more_ends, weights, plain = (drawing.fill(node) for node in nodes)
    assert ends == more_ends
    assert len({ends, weights, plain}) == 3
    assert drawing.nodes["images"][0] == "Input uint8"


def test_a_shared_layer_is_one_box_with_the_arrows_of_all_its_calls():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    shared = layers.Dense(3, name="shared")
    y = layers.Subtract(name="difference")([shared(left), shared(right)])
    drawing = Drawing(keras.Model([left, right], y))
    assert drawing.nodes["shared"][1] == "shared · called 2×"
    assert drawing.arrows == {
        ("left", "shared"): 1,
        ("right", "shared"): 1,
        ("shared", "difference"): 2,
    }


def test_a_layer_called_on_its_own_output_has_an_arrow_to_itself():
    x = keras.Input((4,), name="x")
    again = layers.Dense(4, name="again")
    drawing = Drawing(keras.Model(x, again(again(x))))
    assert drawing.arrows == {("x", "again"): 1, ("again", "again"): 1}


def test_several_inputs_and_outputs_are_all_drawn_as_such():
    image, mask = (keras.Input((4, 4, 1), name=name) for name in ("image", "mask"))
    unused = keras.Input((2,), name="unused")
    x = layers.Flatten(name="flat")(layers.Add(name="sum")([image, mask]))
    outputs = {
        "kind": layers.Dense(3, name="kind")(x),
        "size": layers.Dense(1, name="size")(x),
    }
    drawing = Drawing(keras.Model([image, mask, unused], outputs))
    dark = drawing.fill("image")
    assert {name for name in drawing.nodes if drawing.fill(name) == dark} == {
        *("image", "mask", "unused", "kind", "size")
    }


def test_a_box_tells_the_names_of_the_outputs_that_it_makes():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    kind = layers.Dense(3, name="kind")
    same = layers.Dot(1, name="same")([left, right])
    outputs = {"left_kind": kind(left), "right_kind": kind(right), "same": same}
    drawing = Drawing(keras.Model({"left": left, "right": right}, outputs))
    assert drawing.nodes["kind"][1:] == [
        *("kind · called 2×", "output 3 · 15 params", "→ left_kind", "→ right_kind")
    ]
    assert drawing.nodes["same"][1:] == ["same", "output 1"]


def test_a_sequential_model_is_a_chain():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="x"),
            layers.Conv2D(2, 3, strides=2, activation="relu", name="conv"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
        ]
    )
    drawing = Drawing(model)
    assert drawing.nodes["conv"][0] == "Conv2D 3×3 / 2 + relu"
    assert drawing.nodes["pool"][0] == "MaxPooling2D 2×2 / 2"
    assert drawing.arrows == {
        ("x", "conv"): 1,
        ("conv", "pool"): 1,
        ("pool", "flat"): 1,
    }


def test_a_sequential_model_without_an_input_is_a_chain_without_shapes():
    drawing = Drawing(
        keras.Sequential([layers.Dense(2, name="a"), layers.Dense(3, name="b")])
    )
    assert drawing.nodes == {"a": ["Dense", "a"], "b": ["Dense", "b"]}
    assert drawing.arrows == {("a", "b"): 1}


def test_a_nested_model_is_a_cluster_between_the_arrows_to_and_from_it():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="inner")], name="encoder"
    )
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    y = layers.Subtract(name="difference")([model(left), model(right)])
    drawing = Drawing(keras.Model([left, right], y))
    assert drawing.members("encoder model") == {"encoder/inner"}
    assert drawing._lines(drawing.clusters["encoder model"])[-1] == (
        "Sequential · called 2×"
    )
    assert drawing.arrows == {
        ("left", "encoder/inner"): 1,
        ("right", "encoder/inner"): 1,
        ("encoder/inner", "difference"): 2,
    }


def test_blocks_are_found_in_nested_models_too():
    images = keras.Input((8, 8, 1), name="images")
    drawing = Drawing(keras.Model(images, inception(1)(images)))
    model, block = "tiny_inception model", "tiny_inception/inception_1 block"
    assert drawing.members(block) < drawing.members(model)
    assert ("images", "tiny_inception/rescale") in drawing.arrows


def test_nested_models_with_several_tensors_keep_them_apart():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    outputs = {"y": layers.Dense(2, name="from_a")(a), "z": layers.ReLU(name="of_b")(b)}
    inner = keras.Model({"a": a, "b": b}, outputs, name="inner")
    c, d = keras.Input((3,), name="c"), keras.Input((3,), name="d")
    y = inner({"b": c, "a": d})
    drawing = Drawing(keras.Model([c, d], layers.Dense(1, name="last")(y["z"])))
    assert ("c", "inner/of_b") in drawing.arrows
    assert ("d", "inner/from_a") in drawing.arrows
    assert ("inner/of_b", "last") in drawing.arrows


def test_a_nested_model_that_hands_its_input_on_can_be_the_output():
    x, y = keras.Input((3,), name="x"), keras.Input((3,), name="y")
    drawing = Drawing(keras.Model(y, keras.Model(x, x, name="same")(y)))
    assert drawing.arrows == {("y", "same/x"): 1}


def test_a_subclassed_model_is_one_box_that_lists_its_layers():
    model = Subclassed(name="free")
    model(np.zeros((1, 4)))
    drawing = Drawing(model)
    assert drawing.nodes == {
        "free": [
            *("Subclassed", "free", "layers, connected by its code:"),
            *("Dense: hidden_0", "Dense: head", "23 params"),
        ]
    }


def test_a_long_list_of_layers_is_cut():
    assert "and 72 more" in Drawing(Subclassed(hidden=100, name="many")).nodes["many"]


def test_a_subclassed_model_in_a_graph_is_one_box():
    x = keras.Input((4,), name="x")
    free = Subclassed(name="free")
    free(np.zeros((1, 4)))
    drawing = Drawing(keras.Model(x, free(x)))
    assert drawing.nodes["free"] == ["Subclassed", "free", "output 2 · 23 params"]


def test_a_model_without_layers_is_drawn_too():
    assert Drawing(keras.Sequential([], name="none")).nodes == {
        "none": ["Sequential", "none"]
    }


def test_operations_recurrent_layers_and_wrappers_are_drawn():
    x = keras.Input((None, 3), name="x")
    sequence, state, _ = layers.LSTM(
        4, return_sequences=True, return_state=True, name="lstm"
    )(x)
    y = layers.TimeDistributed(layers.Dense(2), name="each")(sequence)
    outputs = [keras.ops.sum(y), layers.MultiHeadAttention(1, 2)(y, y), state]
    drawing = Drawing(keras.Model(x, outputs))
    assert drawing.nodes["lstm"][2] == "output ?×4, 4 · 128 params"
    assert drawing.nodes["each"][0] == "TimeDistributed of Dense"
    assert ["Sum", "output scalar"] in [lines[::2] for lines in drawing.nodes.values()]


def test_a_layer_with_attributes_of_other_types_is_drawn():
    class Odd(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.kernel_size, self.strides, self.activation = "large", None, "relu"

        def call(self, x):
            return x

    x = keras.Input((3,))
    assert Drawing(keras.Model(x, Odd(name="odd")(x))).nodes["odd"][0] == "Odd"


@pytest.mark.parametrize(
    "name", ["<lambda>", "%7", "a & <b>", 'it\'s "\\N"', "{a|b}", "->", "tab\there"]
)
def test_any_name_can_be_drawn(name):
    x = keras.Input((3,), name="x")
    drawing = Drawing(keras.Model(x, layers.Dense(1, name=name)(x), name=name))
    lines = next(lines for node, lines in drawing.nodes.items() if node != "x")
    assert lines[1] == name.replace("\t", "\N{REPLACEMENT CHARACTER}")


def test_a_long_name_is_shortened_in_its_box_and_whole_in_its_title():
    name = "start" + 100 * "_" + "end"
    x = keras.Input((3,), name="x")
    shown = Drawing(keras.Model(x, layers.Dense(1, name=name)(x))).nodes[name][1]
    assert len(shown) < 50
    assert shown.startswith("start")
    assert shown.endswith("end")


def test_the_document_refers_to_nothing_outside_itself(drawing):
    without_namespaces = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawing.text)
    assert "http" not in without_namespaces
    assert "<!DOCTYPE" not in drawing.text
    assert "url(" not in drawing.text
    assert not drawing.root.findall(f".//{SVG}image")


def test_the_document_tells_what_it_shows_to_those_who_do_not_see_it(drawing):
    assert drawing.root.get("role") == "img"
    assert drawing.root[0].tag == f"{SVG}title"
    assert drawing.root[0].text.startswith("tiny_inception: the graph of a model with")


def test_the_page_behind_the_drawing_does_not_show_through(drawing):
    background = drawing.root.find(f"{SVG}g/{SVG}polygon")
    assert background.get("fill") in {"white", "#ffffff"}


def test_no_two_boxes_overlap(drawing):
    extents = [_extent(group) for group in drawing._groups("node")]
    for i, (left, top, right, bottom) in enumerate(extents):
        for x0, y0, x1, y1 in extents[i + 1 :]:
            assert x1 <= left or right <= x0 or y1 <= top or bottom <= y0


def test_a_png_shows_the_same_drawing_with_more_pixels(drawing):
    png = draw_png(inception())
    with Image.open(BytesIO(png)) as image:
        assert image.format == "PNG"
        width, height = image.size
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    points = drawing.root.get("width"), drawing.root.get("height")
    for pixels, size in zip((width, height), points, strict=True):
        assert pixels == pytest.approx(2 * float(size.removesuffix("pt")), rel=0.02)
    for node in ("images", "stem", "rescale"):
        assert tuple(bytes.fromhex(_hex(drawing.fill(node)))) in colours


def _hex(fill: str) -> str:
    return {"white": "ffffff"}.get(fill, fill.removeprefix("#"))


def test_a_png_of_a_deep_network_is_no_longer_than_viewers_can_open():
    x = y = keras.Input((4,))
    for _ in range(200):
        y = layers.ReLU()(y)
    with Image.open(BytesIO(draw_png(keras.Model(x, y)))) as image:
        assert 16_000 < image.height <= 16_384


def test_drawing_leaves_the_model_as_it_was():
    model = inception()
    before = model.to_json()
    draw(model)
    draw_png(model)
    assert model.to_json() == before


def test_without_pygraphviz_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(ImportError, match=r"pip install 'blockserve\[build\]'"):
        draw(inception(1))


def test_a_library_that_the_system_lacks_is_named_with_its_packages(
    monkeypatch, tmp_path
):
    fails = "raise ImportError('libX11.so.6: cannot open shared object file')"
    (tmp_path / "pygraphviz.py").write_text(fails, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "pygraphviz", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ImportError, match=r"libX11\.so\.6.*apt-get install libglib2\.0-0"
    ):
        draw(inception(1))
