"""What a model consists of and what its inference costs, as a text."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import keras
import tensorflow as tf
from tensorflow.python.grappler import tf_optimizer

from models.native import silenced

LINE_CHARACTERS: Final = 120
LARGE_BATCH: Final = 32

# Operations whose output is their input's memory under another shape or name.
_VIEWS: Final = frozenset({"ExpandDims", "Identity", "Reshape", "Squeeze"})
# How often these run what they contain does not show in a graph.
_CONTROLS: Final = frozenset(
    {"Case", "If", "StatelessCase", "StatelessIf", "StatelessWhile", "While"}
)
# What would keep TensorFlow from inlining a call (Keras' grouped convolutions have it
# on a CPU), or make it dissolve a loop.
_MARKS: Final = ("_XlaMustCompile", "_noinline", "_lower_using_switch_merge")


class UnknownCost(ValueError):
    """What an inference costs does not follow from the model alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one inference takes.

    Attributes:
        parameters: The numbers among the weights, also those that training leaves.
        weight_bytes: Their size in memory.
        multiply_adds: Of all convolutions and matrix products, for one image at each
            input. One counts for a multiplication and an addition, as in the papers
            on these networks; biases, normalisations and activations do not count.
        activation_bytes: The most that the tensors from input to output take at
            the same time, for one image at each input. Operations run one by one,
            branch after branch, each into memory of its own, and a tensor goes when
            its last reader has run. An engine that fuses operations needs less, one
            that runs branches side by side may need more.
    """

    parameters: int
    weight_bytes: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Graph:
    """Operations in running order, without calls; weights are placeholders."""

    operations: Sequence[Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def summarise(model: keras.Model) -> str:
    """A table of the layers, whole however narrow the terminal is, and the cost."""
    return f"{_keras_summary(model)}{_cost_summary(model)}"


def cost(model: keras.Model) -> Cost:
    """Count what an inference of a model takes, on the graph that TensorFlow runs.

    That graph tells the same of every model, be it functional, sequential, subclassed
    or read from a SavedModel. Nothing is computed and no weight is copied.

    Raises:
        UnknownCost: The model has not seen its inputs, or takes images of any size, or
            has loops, conditions, or tensors whose size depends on their content.
    """
    graph = _graph(_inference(model))
    return Cost(
        parameters=model.count_params(),
        weight_bytes=sum(
            math.prod(weight.shape) * tf.as_dtype(weight.dtype).size
            for weight in model.weights
        ),
        multiply_adds=sum(map(_multiply_adds, graph.operations)),
        activation_bytes=_peak_bytes(graph),
    )


def _keras_summary(model: keras.Model) -> str:
    parts: list[str] = []
    # An optimizer would be counted among the model's parameters.
    compiled, model.compiled = model.compiled, False
    try:
        with _terminal_columns(LINE_CHARACTERS):
            model.summary(line_length=LINE_CHARACTERS, print_fn=parts.append)
    finally:
        model.compiled = compiled
    return "".join(parts)


@contextmanager
def _terminal_columns(columns: int) -> Iterator[None]:
    """Keras cuts its lines at the terminal's width, whatever length it is told."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _cost_summary(model: keras.Model) -> str:
    try:
        total = cost(model)
    except UnknownCost as unknown:
        return f" Inference: cost unknown, for {unknown}\n"
    is_single = len(tf.nest.flatten(_inputs(model))) == 1
    activations = _mebibytes(total.activation_bytes)
    of_batch = _mebibytes(LARGE_BATCH * total.activation_bytes)
    return f"""\
 Inference of one image{"" if is_single else " at each input"}:
   parameters     {total.parameters:,}, {_mebibytes(total.weight_bytes)}
   multiply-adds  {total.multiply_adds:,}
   activations    {activations}; {of_batch} for a batch of {LARGE_BATCH}
                  (at the peak, if operations run one by one, each into new memory)
"""


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.2f} MiB"


def _inputs(model: keras.Model) -> Any:
    """What a model is called with, in Keras' symbolic tensors."""
    is_sequential = isinstance(model, keras.Sequential)
    try:
        return model.inputs[0] if is_sequential else model.input
    except AttributeError as error:
        raise UnknownCost("the model has not seen its input") from error


def _inference(model: keras.Model) -> Any:
    """The concrete function of a model's inference, for a batch of one."""
    inputs = _inputs(model)
    if any(None in tensor.shape[1:] for tensor in tf.nest.flatten(inputs)):
        raise UnknownCost("the model takes images of any size")
    specifications = tf.nest.map_structure(
        lambda tensor: tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype), inputs
    )

    @tf.function  # type: ignore[untyped-decorator]
    def infer(images: Any) -> Any:
        return model(images, training=False)

    return infer.get_concrete_function(specifications)


def _graph(function: Any) -> _Graph:
    """The graph that a function runs; each branch runs to its end before the next."""
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(_without_variables(_inlined(function), function), name="")
    images = function.inputs[: len(function.inputs) - len(function.captured_inputs)]
    inputs, outputs = (
        [graph.get_tensor_by_name(tensor.name) for tensor in tensors]
        for tensors in (images, function.outputs)
    )
    order: dict[Any, None] = {tensor.op: None for tensor in inputs}
    todo = [tensor.op for tensor in reversed(outputs)]
    while todo:
        waiting = [x.op for x in todo[-1].inputs if x.op not in order]
        if waiting:
            todo += reversed(waiting)
        else:
            order[todo.pop()] = None
    return _Graph(operations=list(order), inputs=inputs, outputs=outputs)


def _inlined(function: Any) -> Any:
    """The definition of a function's graph, calls replaced by what they call."""
    graph = function.graph.as_graph_def()
    functions = graph.library.function
    inner = (node for function in functions for node in function.node_def)
    for marked in (*functions, *graph.node, *inner):
        for mark in _MARKS:
            marked.attr.pop(mark, None)
    definition = tf.compat.v1.train.export_meta_graph(
        graph_def=graph, graph=function.graph
    )
    needed = definition.collection_def["train_op"].node_list.value
    needed.extend(x.name for x in (*function.inputs, *function.outputs))
    config = tf.compat.v1.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.min_graph_nodes = -1  # small graphs, too
    rewrite.optimizers.append("function")
    with silenced():  # it tells what devices there are
        return tf_optimizer.OptimizeGraph(config, definition)


def _without_variables(definition: Any, function: Any) -> Any:
    """Make a placeholder of each variable that is read.

    A graph's definition does not tell a variable's shape, on which all others hang.
    """
    shapes = {id(variable.handle): variable.shape for variable in function.variables}
    captured = {
        inside.op.name: shapes[id(outside)]
        for outside, inside in function.graph.captures
        if id(outside) in shapes
    }
    nodes = {node.name: node for node in definition.node}
    for node in definition.node:
        if node.op != "ReadVariableOp":
            continue
        source = nodes[node.input[0]]
        while source.op == "Identity":
            source = nodes[source.input[0]]
        if source.name in captured:
            node.op = "Placeholder"
            del node.input[:]
            shape = captured[source.name].as_proto()
            node.attr["shape"].CopyFrom(tf.compat.v1.AttrValue(shape=shape))
    return definition


def _multiply_adds(operation: Any) -> int:
    """Those of one operation; none where it is no convolution or matrix product."""
    match operation.type:
        case "Conv2D" | "Conv3D":
            _, kernel = operation.inputs
            return _elements(operation.outputs[0]) * _size(kernel.shape[:-1])
        case "DepthwiseConv2dNative":
            _, kernel = operation.inputs
            return _elements(operation.outputs[0]) * _size(kernel.shape[:-2])
        case "Conv2DBackpropInput" | "Conv3DBackpropInputV2":  # transposed
            _, kernel, images = operation.inputs
            return _elements(images) * _size(kernel.shape[:-1])
        case "MatMul" | "BatchMatMul" | "BatchMatMulV2" as kind:
            flag = "transpose_a" if kind == "MatMul" else "adj_x"
            axis = -2 if operation.get_attr(flag) else -1
            summed = operation.inputs[0].shape[axis:][:1]
            return _elements(operation.outputs[0]) * _size(summed)
        case "Einsum":
            return _einsum(operation)
        case kind if kind in _CONTROLS:
            raise UnknownCost("the model has loops or conditions")
        case _:
            return 0


def _einsum(operation: Any) -> int:
    """Each element of the output sums over the axes that the output lacks."""
    terms, result = operation.get_attr("equation").decode().split("->")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms.split(","), operation.inputs, strict=True):
        first, _, last = term.partition("...")
        sizes |= dict(zip(first, operand.shape, strict=False))
        sizes |= dict(zip(last[::-1], operand.shape[::-1], strict=False))
    summed = [size for axis, size in sizes.items() if axis not in result]
    return _elements(operation.outputs[0]) * _size(summed)


def _peak_bytes(graph: _Graph) -> int:
    """What the tensors that depend on the inputs take when they take most."""
    memory = {x.ref(): x for x in graph.inputs}  # that each tensor is in
    made = dict.fromkeys(memory, 0)
    last_read: dict[Any, int] = {}
    for time, operation in enumerate(graph.operations):
        read = [memory[x.ref()] for x in operation.inputs if x.ref() in memory]
        last_read |= {x.ref(): time for x in read}
        for output in operation.outputs if read else ():
            is_view = operation.type in _VIEWS
            memory[output.ref()] = read[0] if is_view else output
            made.setdefault(memory[output.ref()].ref(), time)
    end = len(graph.operations)
    last_read |= {
        memory[x.ref()].ref(): end for x in graph.outputs if x.ref() in memory
    }
    changes = [0] * (end + 2)
    for tensor, time in last_read.items():
        size_bytes = _elements(tensor.deref()) * tensor.deref().dtype.size
        changes[made[tensor]] += size_bytes
        changes[time + 1] -= size_bytes
    return max(accumulate(changes))


def _elements(tensor: Any) -> int:
    return _size(tensor.shape)


def _size(shape: Any) -> int:
    elements = tf.TensorShape(shape).num_elements()
    if elements is None:
        raise UnknownCost("the shape of a tensor depends on its content")
    return int(elements)
