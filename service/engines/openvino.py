"""The embedded default: OpenVINO reads the SavedModel without TensorFlow.

It converts the signature `serving_default` and cannot run one that decodes images from
strings; the gateway decodes itself. A version's int8 file goes before its SavedModel.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Self

import numpy as np

from models.card import INT8_FILE
from service.engines.base import InProcessEngine
from service.errors import UnsupportedModel
from service.tensors import Array, Signature, Tensors, TensorSpec

# `import openvino` brings in its converter, which we do not need and which, from a
# forked process, reports every import to its makers. Without it the import is faster.
sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
import openvino  # noqa: E402, see above

del sys.modules["openvino.tools.ovc"]

SIGNATURE: Final = "serving_default"
# A stream with fewer cores answers a single request slower without more throughput.
CORES_PER_SLOT: Final = 4


@dataclass(slots=True, eq=False)
class _Call:
    """An inference request of OpenVINO, with the inputs that it reads in place.

    They live until the next call replaces them, for OpenVINO keeps their address until
    then. So every call shares its inputs: one that had them copied, after one that
    shared them, was seen to corrupt the heap.
    """

    request: Any
    inputs: dict[str, Array] = field(default_factory=dict)


class OpenVinoEngine(InProcessEngine):
    """A SavedModel compiled for the processor."""

    kind = "openvino"
    casts = True

    def __init__(self, compiled: Any, *, slots: int) -> None:
        signature = Signature(
            name=SIGNATURE,
            inputs=_specs(compiled.inputs),
            outputs=_specs(compiled.outputs),
        )
        super().__init__({SIGNATURE: signature}, slots=slots)
        self._idle: SimpleQueue[_Call] = SimpleQueue()
        for _ in range(slots):
            self._idle.put(_Call(compiled.create_infer_request()))

    @classmethod
    def load(cls, version_directory: Path, *, slots: int | None) -> Self:
        """Read and compile a version's int8 file, else its SavedModel.

        Raises:
            UnsupportedModel: OpenVINO cannot read or convert it.
        """
        # The file decides and not the card, which a version need not have.
        int8 = version_directory / INT8_FILE
        path = int8 if int8.exists() else version_directory
        slots = slots or max(1, (os.cpu_count() or 1) // CORES_PER_SLOT)
        options = {
            "NUM_STREAMS": slots,
            # Two processes that pin their threads fight over the same cores.
            "ENABLE_CPU_PINNING": False,
            # On some processors the default is bfloat16: other numbers than training's.
            # What is quantised runs in int8 nevertheless.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = openvino.Core()
            # A mapped file that is truncated under us would kill the process.
            core.set_property({"ENABLE_MMAP": False})
            model = core.read_model(path)
            compiled = core.compile_model(model, "CPU", options)
            return cls(compiled, slots=slots)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            what = INT8_FILE if path == int8 else "it"
            raise UnsupportedModel(f"OpenVINO cannot load {what}: {reason}") from error

    def _compute(self, signature: str, tensors: Tensors) -> dict[str, Array]:
        outputs = self.signatures[signature].outputs
        call = self._idle.get()
        try:
            call.inputs = dict(tensors)
            # Results are copied, for the next batch overwrites them.
            results = call.request.infer(call.inputs, share_inputs=True)
            return {name: results[name] for name in outputs}
        finally:
            self._idle.put(call)


def _specs(ports: Any) -> dict[str, TensorSpec]:
    specs = {}
    for port in ports:
        name = port.get_any_name()
        specs[name] = TensorSpec(
            name=name,
            dtype=np.dtype(port.get_element_type().to_dtype()),
            shape=tuple(
                None if dim.is_dynamic else dim.get_length()
                for dim in port.get_partial_shape()
            ),
        )
    return specs
