"""An inference request, and its answer: what HTTP and gRPC translate from and to."""

import reprlib
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from models.card import ModelCard
from service.batching import Priority
from service.classification import most_probable
from service.errors import InvalidRequest, InvalidTensor
from service.event_loop import maybe_in_thread
from service.gateway import Gateway
from service.open_inference.data_types import datatype_of, shaped
from service.prediction import Call
from service.served_version import CLASSES_RANK
from service.tensors import Array, Signature, are_long_to_write

MICROSECONDS: Final = 1e-6
# The highest of the protocol's priorities; 0 is the server's own choice.
HIGHEST_PRIORITY: Final = 1
# The largest number that a parameter over gRPC can be, and its digits.
LARGEST_NUMBER: Final = 2**64 - 1
NUMBER_DIGITS: Final = 20
SHARED_MEMORY: Final = "shared_memory_region"
CLASSIFICATION: Final = "classification"
# A millisecond or two of reading: more is done in a thread.
MANY_BYTES: Final = 32 * 1024
# More inputs, and more outputs, than a model has.
MOST_TENSORS: Final = 1000

Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """An input that a request brings.

    Attributes:
        name: As the model has it.
        read: Makes its array; raises `InvalidTensor` where its values are not what its
            datatype and shape say.
        slow_bytes: How much of it `read` looks at element by element.
        parameters: What the request says besides.
    """

    name: str
    read: Callable[[], Array]
    slow_bytes: int
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedOutput:
    """An output that a request asks for.

    Attributes:
        name: As the model has it.
        parameters: What the request says besides; with `classification`, the answer has
            so many of the largest values with their classes.
    """

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What a request asks for; without `outputs` for all of them."""

    inputs: Sequence[InputTensor]
    outputs: Sequence[WantedOutput] = ()
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputTensor:
    """An output of the answer; `wanted` is what the request says of it, if anything."""

    name: str
    array: Array
    wanted: WantedOutput | None = None

    @property
    def datatype(self) -> str:
        """As the protocol names it."""
        return datatype_of(self.array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.array.shape


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferAnswer:
    """What a model version answers."""

    model: str
    version: str
    outputs: Sequence[OutputTensor]

    @property
    def is_long(self) -> bool:
        """Whether it takes long to write."""
        return are_long_to_write(output.array for output in self.outputs)


def check_number(*, inputs: Sized, outputs: Sized) -> None:
    """Refuse what nobody can mean before it is looked at, which takes its time.

    Raises:
        InvalidRequest: There are too many.
    """
    for what, tensors in (("inputs", inputs), ("outputs", outputs)):
        if len(tensors) > MOST_TENSORS:
            raise InvalidRequest(
                f"expected at most {MOST_TENSORS} {what}, got {len(tensors)}"
            )


async def infer(gateway: Gateway, request: InferRequest, call: Call) -> InferAnswer:
    """Answer a request.

    Args:
        gateway: What serves.
        request: What is asked.
        call: Who asks whom, and until when; the request itself may say so as well.

    Raises:
        BlockserveError: Any of the errors in `service.errors`.
    """
    for name, parameters in (
        *((tensor.name, tensor.parameters) for tensor in request.inputs),
        *((output.name, output.parameters) for output in request.outputs),
    ):
        if SHARED_MEMORY in parameters:
            raise InvalidRequest(
                f"{name}: shared memory is not offered; send the values"
            )

    async def read(signature: Signature) -> dict[str, Array]:
        _check_outputs(request.outputs, signature)
        is_long = sum(tensor.slow_bytes for tensor in request.inputs) > MANY_BYTES
        return await maybe_in_thread(is_long, _arrays, request.inputs)

    timeout_us = _whole_number(request.parameters, "timeout")
    if timeout_us:
        end = gateway.deadline(timeout_us * MICROSECONDS)
        call = replace(call, deadline=min(call.deadline, end))
    if level := _whole_number(request.parameters, "priority"):
        batch = level > HIGHEST_PRIORITY
        priority = Priority.BATCH if batch else Priority.INTERACTIVE
        call = replace(call, priority=priority)
    prediction = await gateway.predictor.predict(
        read, call, signature_name=_text(request.parameters, "signature_name")
    )
    outputs = prediction.outputs
    is_long = are_long_to_write(outputs.values()) and any(
        CLASSIFICATION in output.parameters for output in request.outputs
    )
    return InferAnswer(
        model=prediction.card.name,
        version=str(prediction.card.version),
        outputs=await maybe_in_thread(
            is_long, _wanted, request.outputs, outputs, prediction.card
        ),
    )


def _arrays(inputs: Sequence[InputTensor]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for tensor in inputs:
        if tensor.name in arrays:
            raise InvalidTensor(f"the input {tensor.name!r} comes twice")
        try:
            arrays[tensor.name] = tensor.read()
        except InvalidTensor as error:
            error.message = f"{tensor.name}: {error.message}"
            raise
    return arrays


def _check_outputs(wanted: Sequence[WantedOutput], signature: Signature) -> None:
    """Refuse what there is not, and what would make the answer as long as one likes.

    Before the model runs, for that would be in vain.
    """
    names: set[str] = set()
    for one in wanted:
        if one.name not in signature.outputs:
            raise InvalidRequest(
                f"there is no output {one.name!r}; there is "
                f"{', '.join(map(repr, sorted(signature.outputs)))}"
            )
        if one.name in names:
            raise InvalidRequest(f"the output {one.name!r} is asked for twice")
        names.add(one.name)
        _whole_number(one.parameters, CLASSIFICATION)


def _wanted(
    wanted: Sequence[WantedOutput], outputs: Mapping[str, Array], card: ModelCard
) -> list[OutputTensor]:
    if not wanted:
        return [OutputTensor(name=name, array=a) for name, a in outputs.items()]
    found = []
    for one in wanted:
        array = outputs[one.name]
        count = _whole_number(one.parameters, CLASSIFICATION)
        if count:
            array = _classes(one.name, array, count, card)
        found.append(OutputTensor(name=one.name, array=array, wanted=one))
    return found


def _classes(name: str, array: Array, count: int, card: ModelCard) -> Array:
    """The largest values of each row, as `value:index:label`."""
    if array.ndim < CLASSES_RANK or array.dtype.hasobject or not array.size:
        raise InvalidRequest(f"the output {name!r} holds no classes")
    scores = array.reshape(len(array), -1)
    indices, values = most_probable(scores, count)
    named = any(
        output.name == name and output.role != "other" for output in card.outputs
    )
    labels = card.labels if named and len(card.labels) == scores.shape[1] else None
    classes = [
        f"{value:f}:{index}:{labels[index]}" if labels else f"{value:f}:{index}"
        for value, index in zip(
            values.ravel().tolist(), indices.ravel().tolist(), strict=True
        )
    ]
    encoded = [one.encode() for one in classes]
    return shaped(encoded, np.dtype(object), indices.shape)


def _whole_number(parameters: Parameters, name: str) -> int:
    """A parameter that counts something; 0 where there is none."""
    value = parameters.get(name, 0)
    number = value
    # gRPC clients have sent numbers as text since before there was a field for each.
    if isinstance(value, str) and value.isdecimal() and len(value) <= NUMBER_DIGITS:
        number = int(value)
    if (
        isinstance(number, bool)
        or not isinstance(number, int)
        or not 0 <= number <= LARGEST_NUMBER
    ):
        raise InvalidRequest(
            f"the parameter {name}: expected a whole number from 0 to "
            f"{LARGEST_NUMBER}, got {reprlib.repr(value)}"
        )
    return number


def _text(parameters: Parameters, name: str) -> str:
    value = parameters.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequest(
            f"the parameter {name}: expected a string, got {reprlib.repr(value)}"
        )
    return value
