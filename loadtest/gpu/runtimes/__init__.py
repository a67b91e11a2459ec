"""What runs a network; each is imported only in the process that measures it."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Images: TypeAlias = npt.NDArray[np.uint8]
Tensor: TypeAlias = Any  # of the runtime
Compute: TypeAlias = Callable[[Tensor], Tensor]


class Runtime(Protocol):
    """A framework under Keras."""

    def gpu_name(self) -> str | None:
        """The name of the GPU that it sees, if it sees one."""

    def allow_tf32(self, allowed: bool, /) -> None:
        """Let tensor cores multiply float32 with 10 bits of mantissa, or not."""

    def compute(self, network: Any, /) -> Compute:
        """Make a function from images to probabilities, both on the device."""

    def to_device(self, images: Images, /) -> Tensor:
        """Copy images to the device."""

    def wait(self, output: Tensor, /) -> None:
        """Return when the device has computed an output."""

    def to_host(self, output: Tensor, /) -> npt.NDArray[np.float32]:
        """Wait for an output, and copy it to the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeKind:
    """A runtime that can be asked for.

    Attributes:
        title: Its name for readers.
        package: What has to be installed; Keras calls its backend the same.
        class_name: The class in the module of the package's name.
    """

    title: str
    package: str
    class_name: str


RUNTIMES: Final[Mapping[str, RuntimeKind]] = MappingProxyType(
    {
        "tensorflow": RuntimeKind(
            title="TensorFlow", package="tensorflow", class_name="TensorFlowRuntime"
        ),
        "tensorflow_xla": RuntimeKind(
            title="TensorFlow, XLA", package="tensorflow", class_name="XlaRuntime"
        ),
        "jax": RuntimeKind(
            title="Keras on JAX", package="jax", class_name="JaxRuntime"
        ),
        "torch": RuntimeKind(
            title="Keras on PyTorch", package="torch", class_name="TorchRuntime"
        ),
    }
)


def load(name: str) -> Runtime:
    """Import a runtime; the environment has to name it to Keras before."""
    kind = RUNTIMES[name]
    module = importlib.import_module(f"{__name__}.{kind.package}")
    return cast("Runtime", getattr(module, kind.class_name)())
