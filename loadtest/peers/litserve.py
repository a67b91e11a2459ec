"""LitServe and OpenVINO, with its dynamic batching."""

from typing import Any, Final

import litserve
import numpy as np
import openvino
from fastapi import Request

from loadtest.peers import model

IMAGE_DIMENSIONS: Final = 3


class Classifier(litserve.LitAPI):
    """JPEG in a form in, labels out."""

    def setup(self, device: str) -> None:  # noqa: ARG002, there is one
        """Load the model, in the worker's process."""
        self.names = model.labels()
        self.compiled = openvino.compile_model(model.directory(), "CPU")

    def decode_request(self, request: Request) -> Any:
        """Read the file of a form."""
        return model.pixels(request["image"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        """Join images."""
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        """Run the model; without batches an image comes, and its row is wanted."""
        if batch.ndim == IMAGE_DIMENSIONS:
            return self.compiled(batch[np.newaxis])["probabilities"][0]
        return self.compiled(batch)["probabilities"]

    def unbatch(self, output: Any) -> list[Any]:
        """Rows, one for each request."""
        return list(output)

    def encode_response(self, output: Any) -> Any:
        """Name the labels."""
        return {"predictions": model.best(output, self.names)}


if __name__ == "__main__":
    api = Classifier(
        max_batch_size=int(model.setting("PEER_BATCH_SIZE", 16)),
        batch_timeout=model.setting("PEER_BATCH_SECONDS", 0.002),
        api_path="/classify",
    )
    workers = int(model.setting("PEER_WORKERS", 1))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(
        host="127.0.0.1",
        port=model.port(),
        generate_client_file=False,
        access_log=False,
    )
