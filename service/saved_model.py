"""What a SavedModel's file says of its signatures, read without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from proto.tensorflow.meta_graph_pb2 import SavedModel, SignatureDef, TensorInfo
from proto.tensorflow.tensor_pb2 import TensorShapeProto
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
