"""What a server can be asked, whatever the protocol; each is a conversation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

import numpy.typing as npt

from proto.tensorflow.meta_graph_pb2 import SignatureDef, TensorInfo
from proto.tensorflow.serving.get_model_metadata_pb2 import SignatureDefMap
from proto.tensors import dtype_of
from service.client.answers import (
    Classification,
    Metadata,
    ModelChoice,
    Signature,
    TensorSpec,
    VersionStatus,
)
from service.client.conversations import Conversation
from service.client.errors import INVALID_ARGUMENT, NOT_FOUND, RequestFailed
from service.client.inputs import as_array, converted, is_array
from service.tensors import Array

DEFAULT_SIGNATURE: Final = "serving_default"


class Operations(ABC):
    """The operations over one protocol, and what is known of the server's models."""

    def __init__(self) -> None:
        self._known: dict[ModelChoice, Metadata] = {}

    @abstractmethod
    def classify(
        self, images: Sequence[bytes], model: ModelChoice, top_k: int | None
    ) -> Conversation[Classification]:
        """Classify encoded images."""

    @abstractmethod
    def status(self, model: ModelChoice) -> Conversation[Sequence[VersionStatus]]:
        """Tell the states of a model's versions."""

    @abstractmethod
    def is_ready(self) -> Conversation[bool]:
        """Tell whether the server serves."""

    @abstractmethod
    def _metadata(self, model: ModelChoice) -> Conversation[Metadata]:
        """Tell a model's signatures."""

    @abstractmethod
    def _run(
        self,
        tensors: Mapping[str, Array],
        model: ModelChoice,
        signature_name: str | None,
        outputs: Sequence[str] | None,
    ) -> Conversation[dict[str, Array]]:
        """Run a signature on arrays."""

    def metadata(self, model: ModelChoice) -> Conversation[Metadata]:
        """Tell a model's signatures, as they are now."""
        self._known[model] = yield from self._metadata(model)
        return self._known[model]

    def predict(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        model: ModelChoice,
        signature_name: str | None,
        outputs: Sequence[str] | None,
    ) -> Conversation[dict[str, Array]]:
        """Run a signature; lists and scalars get the dtypes of its inputs."""
        try:
            tensors = {}
            for name, value in inputs.items():
                if is_array(value):
                    tensors[name] = as_array(name, value)
                else:
                    signature = yield from self._signature(model, signature_name)
                    tensors[name] = converted(value, _input(signature, name))
            return (yield from self._run(tensors, model, signature_name, outputs))
        except RequestFailed:
            # A new version of the model may have other signatures.
            self._known.pop(model, None)
            raise

    def _signature(
        self, model: ModelChoice, name: str | None
    ) -> Conversation[Signature]:
        known = self._known.get(model)
        if known is None:
            known = yield from self.metadata(model)
        wanted = name or DEFAULT_SIGNATURE
        signature = known.signatures.get(wanted)
        if signature is None:
            raise RequestFailed(
                NOT_FOUND,
                f"model {known.name!r} version {known.version} has no signature "
                f"{wanted!r}; it has {_names(known.signatures)}",
            )
        return signature


def metadata_of(name: str, version: int, definitions: SignatureDefMap) -> Metadata:
    """Metadata, without signatures that nobody can call.

    TensorFlow's own `__saved_model_init_op` is one: its output is of no type.
    """
    signatures = {
        key: _signature_of(definition)
        for key, definition in sorted(definitions.signature_def.items())
    }
    return Metadata(
        name=name,
        version=version,
        signatures={key: one for key, one in signatures.items() if one is not None},
    )


def _signature_of(definition: SignatureDef) -> Signature | None:
    inputs, outputs = _specs(definition.inputs), _specs(definition.outputs)
    if inputs is None or outputs is None:
        return None
    return Signature(inputs=inputs, outputs=outputs)


def _specs(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorSpec] | None:
    """What tensors are; `None` where one is of a type that there is not here."""
    specs = {}
    for name, info in sorted(tensors.items()):
        dtype = dtype_of(info.dtype)
        if dtype is None:
            return None
        sizes = (dim.size for dim in info.tensor_shape.dim)
        shape = tuple(None if size < 0 else size for size in sizes)
        specs[name] = TensorSpec(
            name=name,
            dtype=dtype,
            shape=None if info.tensor_shape.unknown_rank else shape,
        )
    return specs


def _input(signature: Signature, name: str) -> TensorSpec:
    spec = signature.inputs.get(name)
    if spec is None:
        raise RequestFailed(
            INVALID_ARGUMENT,
            f"there is no input {name!r}; the signature takes "
            f"{_names(signature.inputs)}",
        )
    return spec


def _names(mapping: Mapping[str, object]) -> str:
    return ", ".join(map(repr, sorted(mapping)))
