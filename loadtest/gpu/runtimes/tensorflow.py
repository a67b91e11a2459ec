"""TensorFlow: a graph, as TensorFlow Serving runs it, or what XLA makes of it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from loadtest.gpu.runtimes import Compute, Images, Tensor


class TensorFlowRuntime:
    """A network as its export has it."""

    xla = False

    def gpu_name(self) -> str | None:
        """See `Runtime.gpu_name`."""
        for gpu in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(gpu)
            return str(details.get("device_name", gpu.name))
        return None

    def allow_tf32(self, allowed: bool, /) -> None:
        """See `Runtime.allow_tf32`."""
        tf.config.experimental.enable_tensor_float_32_execution(allowed)

    def compute(self, network: Any, /) -> Compute:
        """See `Runtime.compute`."""
        compute: Compute = tf.function(
            lambda images: network(images, training=False),
            jit_compile=self.xla or None,
            reduce_retracing=not self.xla,
        )
        return compute

    def to_device(self, images: Images, /) -> Tensor:
        """See `Runtime.to_device`."""
        return tf.constant(images)

    def wait(self, _output: Tensor, /) -> None:
        """See `Runtime.wait`."""
        tf.test.experimental.sync_devices()

    def to_host(self, output: Tensor, /) -> npt.NDArray[np.float32]:
        """See `Runtime.to_host`."""
        answer: npt.NDArray[np.float32] = output.numpy()
        return answer


class XlaRuntime(TensorFlowRuntime):
    """As `blockserve build --xla` exports it."""

    xla = True
