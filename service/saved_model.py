"""What a SavedModel's file says of its signatures, read without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from proto.tensorflow.meta_graph_pb2 import SavedModel, SignatureDef, TensorInfo
from proto.tensorflow.tensor_pb2 import TensorShapeProto
from proto.tensors import dtype_of
from service.data_types import enum_name
from service.tensors import Signature, TensorSpec

FILE: Final = "saved_model.pb"
SERVING_TAG: Final = "serve"
METHOD: Final = "tensorflow/serving/predict"


def signature_defs(
    version_directory: Path, signatures: Mapping[str, Signature]
) -> dict[str, SignatureDef]:
    """The definitions of the signatures that can be called.

    Where the file does not have one, or is of another kind, what is known of it is
    written in its form.

    Args:
        version_directory: A SavedModel.
        signatures: What can be called.
    """
    written = _written(version_directory)
    return {
        name: written.get(name) or _defined(signature)
        for name, signature in signatures.items()
    }


def signature_of(name: str, definition: SignatureDef) -> Signature | None:
    """What a definition promises; `None` if it is not all tensors of a known rank."""
    inputs = {key: _spec(key, info) for key, info in definition.inputs.items()}
    outputs = {key: _spec(key, info) for key, info in definition.outputs.items()}
    known_inputs = {key: spec for key, spec in inputs.items() if spec is not None}
    known_outputs = {key: spec for key, spec in outputs.items() if spec is not None}
    if not outputs or known_inputs != inputs or known_outputs != outputs:
        return None
    return Signature(name=name, inputs=known_inputs, outputs=known_outputs)


def _spec(name: str, info: TensorInfo) -> TensorSpec | None:
    dtype = dtype_of(info.dtype)
    if dtype is None or info.tensor_shape.unknown_rank:
        return None
    sizes = (dim.size for dim in info.tensor_shape.dim)
    shape = tuple(None if size < 0 else size for size in sizes)
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _written(version_directory: Path) -> Mapping[str, SignatureDef]:
    try:
        saved = SavedModel.FromString((version_directory / FILE).read_bytes())
    except (OSError, DecodeError):
        return {}
    for graph in saved.meta_graphs:
        if SERVING_TAG in graph.meta_info_def.tags:
            return {
                name: SignatureDef.FromString(definition.SerializeToString())
                for name, definition in graph.signature_def.items()
            }
    return {}


def _defined(signature: Signature) -> SignatureDef:
    return SignatureDef(
        inputs={name: _info(spec) for name, spec in signature.inputs.items()},
        outputs={name: _info(spec) for name, spec in signature.outputs.items()},
        method_name=METHOD,
    )


def _info(spec: TensorSpec) -> TensorInfo:
    sizes = (-1 if size is None else size for size in spec.shape)
    return TensorInfo(
        name=spec.name,
        dtype=enum_name(spec.dtype),
        tensor_shape=TensorShapeProto(
            dim=[TensorShapeProto.Dim(size=size) for size in sizes]
        ),
    )
