"""JAX: a function that XLA compiles for each batch size."""

from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from loadtest.gpu.runtimes import Compute, Images, Tensor


class JaxRuntime:
    """A network as a function of its variables and of images."""

    def gpu_name(self) -> str | None:
        """See `Runtime.gpu_name`."""
        device = jax.devices()[0]
        return str(device.device_kind) if device.platform == "gpu" else None

    def allow_tf32(self, allowed: bool, /) -> None:
        """See `Runtime.allow_tf32`."""
        precision = "tensorfloat32" if allowed else "highest"
        jax.config.update("jax_default_matmul_precision", precision)

    def compute(self, network: Any, /) -> Compute:
        """See `Runtime.compute`."""

        # The variables are arguments: compiled in, they would be constants to fold.
        @jax.jit  # type: ignore[untyped-decorator]
        def compute(trainable: Any, others: Any, images: Tensor) -> Tensor:
            answer, _ = network.stateless_call(
                trainable, others, images, training=False
            )
            return answer

        return partial(
            compute,
            [variable.value for variable in network.trainable_variables],
            [variable.value for variable in network.non_trainable_variables],
        )

    def to_device(self, images: Images, /) -> Tensor:
        """See `Runtime.to_device`."""
        return jax.device_put(images)

    def wait(self, output: Tensor, /) -> None:
        """See `Runtime.wait`."""
        output.block_until_ready()

    def to_host(self, output: Tensor, /) -> npt.NDArray[np.float32]:
        """See `Runtime.to_host`."""
        return np.asarray(output)
