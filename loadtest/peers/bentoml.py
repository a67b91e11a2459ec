"""BentoML and OpenVINO, with its adaptive batching."""

from pathlib import Path
from typing import Any, Final

import bentoml
import numpy as np
import openvino

from loadtest.peers import model

BATCH_SIZE: Final = int(model.setting("PEER_BATCH_SIZE", 32))
WORKERS: Final = int(model.setting("PEER_WORKERS", 1))


@bentoml.service(
    metrics={"enabled": True},
    logging={"access": {"enabled": False}},
    workers=WORKERS,
)
class Classifier:
    """JPEG in a form in, labels out."""

    def __init__(self) -> None:
        self.names = model.labels()
        self.compiled = openvino.compile_model(model.directory(), "CPU")

    def best(self, images: list[Path]) -> list[list[dict[str, Any]]]:
        """The labels of each file."""
        batch = np.stack([model.pixels(one.read_bytes()) for one in images])
        rows = self.compiled(batch)["probabilities"]
        return [model.best(row, self.names) for row in rows]

    # Batches of one are not allowed.
    if BATCH_SIZE > 1:

        @bentoml.api(batchable=True, max_batch_size=BATCH_SIZE, max_latency_ms=1000)
        def classify(self, image: list[Path]) -> list[list[dict[str, Any]]]:
            """The files of several requests."""
            return self.best(image)
    else:

        @bentoml.api
        def classify(self, image: Path) -> list[dict[str, Any]]:
            """The file of one request."""
            return self.best([image])[0]
