"""A model drawn as a graph: a box for each layer, a brick for each block.

Names decide what belongs together, as `models.blocks` gives them: a `Concatenate`
called `<block>_concat` makes a brick of all layers whose names start with `<block>_`,
and a chain `<name>_conv`, `<name>_bn`, `<name>_relu` becomes one box. Everything else
is drawn as Keras tells it, so any model can be drawn.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from typing import Any, Final

import keras

from models.drawing import (
    DARK_BLUE,
    FAINT_INK,
    FONTS,
    FRAME,
    INK,
    LIGHT_BLUE,
    LINE,
    PAPER,
    SHADE,
    printable,
    shortened,
    standalone,
)
from models.native import silenced

_BLOCK_END: Final = "_concat"
_UNIT: Final = ("_conv", "_bn", "_relu")
_LINE_CHARACTERS: Final = 44
_LISTED_LINES: Final = 30

# Of a PNG: twice what fits a common screen, and no more than viewers can open.
_DOTS_PER_INCH: Final = 144
_MAX_SIDE_PIXELS: Final = 16_384
_MAX_PIXELS: Final = 100e6
_PAD_INCHES: Final = 0.15

# What the wheel of pygraphviz does not bring, and a small image does not have.
_DEBIAN_PACKAGES: Final = "libglib2.0-0 libx11-6 libxext6 libxrender1"

_FAINT_ON_DARK: Final = "#cfdcea"

_GRAPH_STYLE: Final = {
    "bgcolor": PAPER,
    "fontname": FONTS,
    "fontsize": "10",
    "fontcolor": INK,
    "labeljust": "l",
    "nodesep": "0.16",
    "ranksep": "0.22",
    "pad": str(_PAD_INCHES),
}
_BOX_STYLE: Final = {
    "shape": "box",
    "style": "filled,rounded",
    "color": LINE,
    "fontname": FONTS,
    "fontsize": "10",
    "margin": "0.13,0.06",
    "height": "0",
    "width": "0",
}
_ARROW_STYLE: Final = {"color": LINE, "arrowsize": "0.55", "penwidth": "0.9"}
_BRICK_STYLE: Final = {
    "style": "filled,rounded",
    "color": FRAME,
    "fillcolor": SHADE,
    "margin": "9",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Brick:
    """The frame around the boxes of a block or of a nested model.

    `prefix` is what the names of a block's layers share.
    """

    key: str
    name: str
    kind: str = ""
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Box:
    """One layer, or a folded chain of them.

    `bricks` surround it, outermost first; `answers` are the names of those outputs of
    the model that it makes, unless they are its own.
    """

    key: str
    kind: str
    name: str
    layer: Any
    bricks: tuple[_Brick, ...] = ()
    shapes: tuple[str, ...] = ()
    parameters: int = 0
    calls: int = 1
    is_output: bool = False
    answers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_input(self) -> bool:
        return isinstance(self.layer, keras.layers.InputLayer)


@dataclass(slots=True)
class _Graph:
    """Boxes by key, and one arrow (from key, to key) for each use of a tensor."""

    boxes: dict[str, _Box] = field(default_factory=dict)
    arrows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, box: _Box) -> None:
        self.boxes[box.key] = box

    def neighbours(self) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
        """Answer the keys before each key, and those after it."""
        before: defaultdict[str, set[str]] = defaultdict(set)
        after: defaultdict[str, set[str]] = defaultdict(set)
        for start, end in self.arrows:
            before[end].add(start)
            after[start].add(end)
        return before, after


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """The keys where a layer's (or a nested model's) tensors enter and leave."""

    inputs: Sequence[str]
    outputs: Sequence[str]


def draw(model: keras.Model) -> str:
    """Draw a model: the text of an SVG document that refers to nothing outside itself.

    A layer is one box, however often it is called, with its kind, its name, its output
    shape without the batch, and its number of parameters. An arrow is a tensor. Boxes
    with weights are tinted, inputs and outputs are dark, blocks and nested models are
    framed. A model that tells no graph is one box that lists its layers.

    Raises:
        ImportError: pygraphviz, or what it needs, is not installed.
    """
    svg = _rendered(_canvas(_graph_of(model)), "svg").decode()
    return standalone(svg.replace("<title>cluster_", "<title>"), _title(model))


def draw_png(model: keras.Model) -> bytes:
    """Draw a model as `draw` does: a PNG file of at most 16,384 pixels a side.

    Raises:
        ImportError: pygraphviz, or what it needs, is not installed.
    """
    canvas = _canvas(_graph_of(model))
    _, _, *inches = _rendered(canvas, "plain").split(maxsplit=4)[:4]
    width, height = (float(side) + 2 * _PAD_INCHES for side in inches)
    dots_per_inch = min(
        _DOTS_PER_INCH,
        _MAX_SIDE_PIXELS / max(width, height),
        math.sqrt(_MAX_PIXELS / (width * height)),
    )
    canvas.graph_attr["dpi"] = math.floor(dots_per_inch)
    return _rendered(canvas, "png")


def _graph_of(model: keras.Model) -> _Graph:
    graph = _Graph()
    function = _function(model)
    if function is not None:
        ends = _trace(graph, function)
        for key, name in zip(ends.outputs, _output_names(model), strict=True):
            box = graph.boxes[key]
            answers = (*box.answers, name) if name and name != box.name else box.answers
            graph.add(replace(box, is_output=True, answers=answers))
    elif isinstance(model, keras.Sequential) and model.layers:
        _chain(graph, model.layers)
    else:
        graph.add(_listing(model))
    _fold_units(graph)
    _splice_inner_inputs(graph)
    return graph


def _output_names(model: keras.Model) -> list[str]:
    """What each output is called; nothing where they have no names."""
    outputs = None if isinstance(model, keras.Sequential) else model.output
    named = outputs.items() if isinstance(outputs, Mapping) else ()
    names = {id(tensor): name for name, tensor in named}
    return [names.get(id(tensor), "") for tensor in model.outputs]


def _function(layer: Any) -> Any | None:
    """The graph of calls behind a model; `None` where Keras knows of none."""
    if isinstance(layer, keras.Sequential):
        has_seen_input = hasattr(layer, "inputs")
        return keras.Function(layer.inputs, layer.outputs) if has_seen_input else None
    is_functional = isinstance(layer, keras.Model) and isinstance(layer, keras.Function)
    return layer if is_functional else None


def _trace(
    graph: _Graph, function: Any, scope: str = "", bricks: tuple[_Brick, ...] = ()
) -> _Ends:
    """Add the boxes and arrows of a graph of calls; keys start with `scope`."""
    calls = _calls(function)
    calls_of: defaultdict[str, list[Any]] = defaultdict(list)
    for call in calls:
        calls_of[call.operation.name].append(call)
    blocks = _blocks([call.operation for call in calls], scope)

    ends: dict[str, _Ends] = {}
    for name, own_calls in calls_of.items():
        around = tuple(block for block in blocks if name.startswith(block.prefix))
        ends[name] = _place(graph, own_calls, scope, bricks + around)

    source = {
        id(tensor): key
        for call in calls
        for tensor, key in zip(
            call.output_tensors, ends[call.operation.name].outputs, strict=False
        )
    }
    for call in calls:
        entries = ends[call.operation.name].inputs
        for tensor, key in zip(call.input_tensors, entries, strict=False):
            graph.arrows.append((source[id(tensor)], key))
    return _Ends(
        inputs=[source[id(tensor)] for tensor in function.inputs],
        outputs=[source[id(tensor)] for tensor in function.outputs],
    )


def _calls(function: Any) -> list[Any]:
    """A graph's calls in reading order; a layer called twice has two.

    Inputs come first, and the branches that a call joins come in the order in which it
    takes them: Graphviz puts side by side in this order what it is free to place.
    """
    by_depth = function._nodes_by_depth  # noqa: SLF001 (Keras has no public name for it)
    calls = [call for calls in by_depth.values() for call in calls]
    maker = {id(tensor): call for call in calls for tensor in call.output_tensors}
    read: dict[int, Any] = {}
    todo = [maker[id(tensor)] for tensor in [*function.inputs, *function.outputs]][::-1]
    while todo:
        call = todo[-1]
        sources = [maker[id(tensor)] for tensor in call.input_tensors]
        unread = [source for source in sources if id(source) not in read]
        if unread:
            todo += unread[::-1]
        else:
            read[id(todo.pop())] = call
    return list(read.values())


def _blocks(layers: Iterable[Any], scope: str) -> list[_Brick]:
    """The bricks that the names of a graph's layers tell, outer ones first."""
    names = {layer.name: layer for layer in layers}
    blocks = [
        name.removesuffix(_BLOCK_END)
        for name, layer in names.items()
        if name.endswith(_BLOCK_END) and isinstance(layer, keras.layers.Concatenate)
    ]
    return [
        _Brick(key=f"{scope}{block} block", name=block, prefix=f"{block}_")
        for block in sorted(blocks, key=len)
        if sum(name.startswith(f"{block}_") for name in names) > 1
    ]


def _place(
    graph: _Graph, calls: Sequence[Any], scope: str, bricks: tuple[_Brick, ...]
) -> _Ends:
    """Add one layer, given all calls of it: a box, or a nested model's brick."""
    layer = calls[0].operation
    inner = _function(layer)
    if inner is not None and all(_fits(call, inner) for call in calls):
        kind = f"{type(layer).__name__}{_times(len(calls))}"
        key = scope + layer.name
        brick = _Brick(key=f"{key} model", name=layer.name, kind=kind)
        return _trace(graph, inner, f"{key}/", (*bricks, brick))
    box = _box(layer, scope=scope, bricks=bricks, calls=calls)
    graph.add(box)
    return _Ends(
        inputs=[box.key] * max(len(call.input_tensors) for call in calls),
        outputs=[box.key] * max(len(call.output_tensors) for call in calls),
    )


def _fits(call: Any, inner: Any) -> bool:
    """Whether a call's tensors can be matched with those of the model it calls."""
    return len(call.input_tensors) == len(inner.inputs) and len(
        call.output_tensors
    ) == len(inner.outputs)


def _box(
    layer: Any,
    *,
    scope: str = "",
    bricks: tuple[_Brick, ...] = (),
    calls: Sequence[Any] = (),
) -> _Box:
    shapes = (_shape(tensor.shape) for call in calls for tensor in call.output_tensors)
    prefix = bricks[-1].prefix if bricks else ""
    return _Box(
        key=scope + layer.name,
        kind=_kind(layer),
        name=layer.name.removeprefix(prefix),
        layer=layer,
        bricks=bricks,
        shapes=tuple(dict.fromkeys(shapes)),
        parameters=_parameters(layer),
        calls=max(1, len(calls)),
    )


def _chain(graph: _Graph, layers: Sequence[Any]) -> None:
    """Add the layers of a `Sequential` that has seen no input, hence has no shapes."""
    boxes = [_box(layer) for layer in layers]
    for box in boxes:
        graph.add(box)
    graph.arrows.extend(pairwise(box.key for box in boxes))


def _listing(model: keras.Model) -> _Box:
    """A box for a model whose code, not a graph, tells what its layers do."""
    notes = [f"{_kind(layer)}: {layer.name}" for layer in model.layers]
    if notes:
        notes.insert(0, "layers, connected by its code:")
    if len(notes) > _LISTED_LINES:
        notes[_LISTED_LINES:] = [f"and {len(notes) - _LISTED_LINES} more"]
    return replace(_box(model), notes=tuple(notes))


def _fold_units(graph: _Graph) -> None:
    """Make one box of each convolution, its batch normalisation and its activation."""
    folded: dict[str, _Box] = {}
    inner: set[tuple[str, str]] = set()
    for unit in _units(graph):
        box = _folded(unit)
        folded |= {part.key: box for part in unit}
        inner |= set(pairwise(part.key for part in unit))
    keys = {key: folded[key].key if key in folded else key for key in graph.boxes}
    graph.boxes = {keys[key]: folded.get(key, box) for key, box in graph.boxes.items()}
    graph.arrows = [
        (keys[start], keys[end])
        for start, end in graph.arrows
        if (start, end) not in inner
    ]


def _units(graph: _Graph) -> Iterator[list[_Box]]:
    """The chains that names, kinds and arrows together tell to be one unit."""
    before, after = graph.neighbours()
    for key in graph.boxes:
        stem = key.removesuffix(_UNIT[0])
        keys = [stem + suffix for suffix in _UNIT]
        if stem in graph.boxes or not all(key in graph.boxes for key in keys):
            continue
        unit = [graph.boxes[key] for key in keys]
        is_chain = all(
            after[start] == {end} and before[end] == {start}
            for start, end in pairwise(keys)
        )
        if is_chain and _is_unit(unit):
            yield unit


def _is_unit(boxes: Sequence[_Box]) -> bool:
    """Whether these are the three layers that their names promise."""
    convolution, normalisation, activation = (box.layer for box in boxes)
    return (
        bool(_sizes(convolution, "kernel_size"))
        and isinstance(normalisation, keras.layers.BatchNormalization)
        and isinstance(activation, keras.layers.ReLU | keras.layers.Activation)
        and not any(box.is_output for box in boxes[:-1])
    )


def _folded(unit: Sequence[_Box]) -> _Box:
    """The box for a unit: it looks like the convolution and ends like the rest."""
    convolution, _, activation = unit
    kind = re.sub(r"^Conv[123]D\b", "conv", convolution.kind)
    function = _activation(activation.layer) or "relu"
    name = convolution.name.removesuffix(_UNIT[0])
    filters = vars(convolution.layer).get("filters")
    return replace(
        activation,
        key=convolution.key.removesuffix(_UNIT[0]),
        kind=f"{kind} + bn + {function}",
        name=name + (f", {filters} filters" if filters else ""),
        parameters=sum(box.parameters for box in unit),
    )


def _splice_inner_inputs(graph: _Graph) -> None:
    """Lead arrows into a nested model past its own input, unless that adds arrows."""
    inputs = [box for box in graph.boxes.values() if box.is_input and not box.is_output]
    for key in [box.key for box in inputs]:
        before = [start for start, end in graph.arrows if end == key]
        after = [end for start, end in graph.arrows if start == key]
        if before and (len(before) == 1 or len(after) == 1):
            del graph.boxes[key]
            graph.arrows = [arrow for arrow in graph.arrows if key not in arrow]
            graph.arrows += [(start, end) for start in before for end in after]


def _kind(layer: Any) -> str:
    """What a layer is and how it looks at its input: `Conv2D 3×3 / 2 + relu`."""
    if isinstance(layer, keras.layers.InputLayer):
        return f"Input {layer.dtype}"
    kind = type(layer).__name__
    if isinstance(layer, keras.layers.Wrapper):
        kind += f" of {_kind(layer.layer)}"
    window = _sizes(layer, "kernel_size") or _sizes(layer, "pool_size")
    if window:
        kind += f" {_product(window)}"
    strides = _sizes(layer, "strides")
    if any(stride != 1 for stride in strides):
        kind += f" / {_product(strides if len(set(strides)) > 1 else strides[:1])}"
    activation = _activation(layer)
    if activation:
        kind += (" " if kind == "Activation" else " + ") + activation
    return kind


def _sizes(layer: Any, attribute: str) -> tuple[int, ...]:
    """A layer's sizes along the axes of an image; none where it has no such thing."""
    value = vars(layer).get(attribute, ())
    sizes = value if isinstance(value, list | tuple) else (value,)
    return tuple(size for size in sizes if isinstance(size, int))


def _activation(layer: Any) -> str:
    """The name of the function applied to a layer's output, unless it is linear."""
    function = vars(layer).get("activation")
    name = getattr(function, "__name__", "linear")
    is_recurrent = isinstance(layer, keras.layers.RNN)
    return "" if is_recurrent or name == "linear" else str(name)


def _parameters(layer: Any) -> int:
    return int(layer.count_params()) if getattr(layer, "built", False) else 0


def _shape(shape: Sequence[int | None]) -> str:
    return _product(shape[1:]) or "scalar"


def _product(sizes: Iterable[int | None]) -> str:
    return "×".join("?" if size is None else str(size) for size in sizes)


def _times(calls: int) -> str:
    return f" · called {calls}×" if calls > 1 else ""


def _title(model: keras.Model) -> str:
    parameters = _parameters(model)
    size = f" with {parameters:,} parameters" if parameters else ""
    return f"{model.name}: the graph of a model{size}"


def _canvas(graph: _Graph) -> Any:
    """A graph in Graphviz's terms; pygraphviz brings Graphviz along."""
    try:
        import pygraphviz  # noqa: PLC0415 (only the build extra installs it)
    except ModuleNotFoundError as missing:
        message = "to draw a model, install pygraphviz: pip install 'blockserve[build]'"
        raise ImportError(message, name="pygraphviz") from missing
    except ImportError as missing:
        message = (
            "to draw a model, Graphviz needs libraries of the system "
            f"({missing}); on Debian: apt-get install {_DEBIAN_PACKAGES}"
        )
        raise ImportError(message, name="pygraphviz") from missing
    canvas = pygraphviz.AGraph(directed=True, strict=False, **_GRAPH_STYLE)
    canvas.node_attr.update(_BOX_STYLE)
    canvas.edge_attr.update(_ARROW_STYLE)
    frames: dict[str, Any] = {}
    for box in graph.boxes.values():
        frame = _frame(canvas, frames, box.bricks)
        frame.add_node(_node(box.key), **_look(box))
    for start, end in graph.arrows:
        canvas.add_edge(_node(start), _node(end))
    for start, end in _spines(graph):
        canvas.add_edge(_node(start), _node(end), style="invis")
    return canvas


def _rendered(canvas: Any, form: str) -> bytes:
    with silenced():  # fontconfig complains of the system's configuration
        return bytes(canvas.draw(format=form, prog="dot"))


def _spines(graph: _Graph) -> Iterator[tuple[str, str]]:
    """What each block takes in and where it ends: one above the other looks best."""
    for key, box in graph.boxes.items():
        block = box.bricks[-1] if box.bricks else None
        if block is None or block.prefix + box.name != block.name + _BLOCK_END:
            continue
        sources = {
            start
            for start, end in graph.arrows
            if block in graph.boxes[end].bricks
            and block not in graph.boxes[start].bricks
        }
        if len(sources) == 1:
            yield sources.pop(), key


def _frame(canvas: Any, frames: dict[str, Any], bricks: Sequence[_Brick]) -> Any:
    """The innermost of the frames around a box; the canvas where there is none."""
    frame = canvas
    around = ""
    for brick in bricks:
        if brick.key not in frames:
            frames[brick.key] = frame.add_subgraph(
                name=f"cluster_{printable(brick.key)}",
                label=_heading(brick, around),
                **_BRICK_STYLE,
            )
        frame = frames[brick.key]
        around = brick.prefix
    return frame


def _heading(brick: _Brick, around: str) -> str:
    """A brick's name, with room on its right: arrows come down the middle.

    It leaves out what is the name of the block around it, as boxes do.
    """
    name = _text(brick.name.removeprefix(around))
    room = "&#160;" * (3 * max(len(name), len(brick.kind)))
    lines = [f"<b>{name}</b>{room}"]
    lines += [_small(_text(brick.kind), FAINT_INK)] if brick.kind else []
    return _rows(lines)


def _look(box: _Box) -> dict[str, str]:
    if box.is_input or box.is_output:
        return _colours(box, fill=DARK_BLUE, ink=PAPER, faint=_FAINT_ON_DARK)
    fill = LIGHT_BLUE if box.parameters else PAPER
    return _colours(box, fill=fill, ink=INK, faint=FAINT_INK)


def _colours(box: _Box, *, fill: str, ink: str, faint: str) -> dict[str, str]:
    return {"fillcolor": fill, "fontcolor": ink, "label": _label(box, faint)}


def _label(box: _Box, faint: str) -> str:
    """The lines in a box."""
    name = f"{_text(box.name)}{_times(box.calls)}"
    lines = [f"<b>{_text(box.kind)}</b>", _small(name)]
    answers = (f"→ {answer}" for answer in box.answers)
    notes = (*box.notes, _facts(box), *answers)
    lines += [_small(_text(line), faint) for line in notes if line]
    return _rows(lines)


def _facts(box: _Box) -> str:
    shapes = ("output " if box.is_output else "") + ", ".join(box.shapes)
    parameters = f"{box.parameters:,} params" if box.parameters else ""
    return " · ".join(filter(None, (shapes, parameters)))


def _rows(lines: Iterable[str]) -> str:
    """Lines of text in Graphviz's own HTML, left-aligned: fonts differ in width."""
    rows = "".join(f'<tr><td align="left">{line}</td></tr>' for line in lines)
    return f'<<table border="0" cellspacing="0" cellpadding="0">{rows}</table>>'


def _small(line: str, colour: str = "") -> str:
    ink = f' color="{colour}"' if colour else ""
    return f'<font point-size="9"{ink}>{line}</font>'


def _node(key: str) -> str:
    """A name for a node; Graphviz keeps those with a leading % to itself."""
    return re.sub("^%", "\N{FULLWIDTH PERCENT SIGN}", printable(key))


def _text(text: str) -> str:
    """A text for a label, shortened in the middle where it would be too wide."""
    # Even in its HTML, Graphviz reads \N as the name of the node.
    return escape(printable(shortened(text, _LINE_CHARACTERS))).replace("\\", r"\\")
