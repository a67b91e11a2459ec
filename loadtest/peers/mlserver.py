"""MLServer and OpenVINO: a custom runtime, with adaptive batching."""

import asyncio
from typing import Any

import numpy as np
import openvino
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    ResponseOutput,
    TensorData,
)

from loadtest.harness.ports import free_port
from loadtest.peers import model


class Classifier(MLModel):
    """JPEG as base64 in JSON in, labels and probabilities out."""

    async def load(self) -> bool:
        """Load the model, in the worker's process."""
        self.names = model.labels()
        self.compiled = openvino.compile_model(model.directory(), "CPU")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the model on the images of several requests."""
        images = Base64Codec.decode_input(payload.inputs[0])
        rows = self.compiled(np.stack([model.pixels(one) for one in images]))
        best = [model.best(row, self.names) for row in rows["probabilities"]]
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                _output(best, "label", "BYTES"),
                _output(best, "probability", "FP32"),
            ],
        )


def _output(
    best: list[list[dict[str, Any]]], key: str, datatype: str
) -> ResponseOutput:
    return ResponseOutput(
        name=key,
        shape=[len(best), len(best[0])],
        datatype=datatype,
        data=TensorData([one[key] for row in best for one in row]),
    )


async def serve() -> None:
    """Serve; with no worker the model runs in the process that answers."""
    settings = Settings(
        host="127.0.0.1",
        http_port=model.port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        debug=False,
        parallel_workers=int(model.setting("PEER_WORKERS", 1)),
    )
    classifier: Any = ModelSettings(
        name="inception",
        implementation=Classifier,
        max_batch_size=int(model.setting("PEER_BATCH_SIZE", 32)),
        max_batch_time=model.setting("PEER_BATCH_SECONDS", 0.005),
    )
    await MLServer(settings).start([classifier])


if __name__ == "__main__":
    asyncio.run(serve())
