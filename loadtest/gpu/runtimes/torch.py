"""PyTorch: Keras calls its operations one by one.

`torch.compile` finds little to compile in Keras' layers: the small inception network
fell into some fifty graphs, took 48 s for them on a CPU, and was no faster.
"""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from loadtest.gpu.runtimes import Compute, Images, Tensor


class TorchRuntime:
    """A network called as it is, its images in the order of channels last."""

    def __init__(self) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # As TensorFlow and XLA do it by themselves.
        torch.backends.cudnn.benchmark = True

    def gpu_name(self) -> str | None:
        """See `Runtime.gpu_name`."""
        return torch.cuda.get_device_name() if self._device == "cuda" else None

    def allow_tf32(self, allowed: bool, /) -> None:
        """See `Runtime.allow_tf32`."""
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed

    def compute(self, network: Any, /) -> Compute:
        """See `Runtime.compute`."""

        @torch.inference_mode()  # type: ignore[untyped-decorator]
        def compute(images: Tensor) -> Tensor:
            return network(images, training=False)

        return cast("Compute", compute)

    def to_device(self, images: Images, /) -> Tensor:
        """See `Runtime.to_device`."""
        return torch.from_numpy(images).to(self._device)

    def wait(self, _output: Tensor, /) -> None:
        """See `Runtime.wait`."""
        if self._device == "cuda":
            torch.cuda.synchronize()

    def to_host(self, output: Tensor, /) -> npt.NDArray[np.float32]:
        """See `Runtime.to_host`."""
        answer: npt.NDArray[np.float32] = output.cpu().numpy()
        return answer
