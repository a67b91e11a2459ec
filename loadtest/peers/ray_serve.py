"""Ray Serve and OpenVINO, with its dynamic batching."""

import time
from typing import Any, Final

import numpy as np
import openvino
import ray
from ray import serve
from starlette.requests import Request

from loadtest.peers import model

BATCH_SIZE: Final = int(model.setting("PEER_BATCH_SIZE", 32))
BATCH_SECONDS: Final = model.setting("PEER_BATCH_SECONDS", 0.005)
QUIET: Final = {"enable_access_log": False}
REPLICAS: Final = int(model.setting("PEER_WORKERS", 1))


@serve.deployment(
    max_ongoing_requests=128,
    num_replicas=REPLICAS,
    logging_config=QUIET,
)
class Classifier:
    """JPEG in, labels out."""

    def __init__(self) -> None:
        self.names = model.labels()
        self.compiled = openvino.compile_model(model.directory(), "CPU")

    async def __call__(self, request: Request) -> Any:
        """One request."""
        return await self.classify(await request.body())

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=BATCH_SECONDS)
    async def classify(self, images: list[bytes]) -> list[Any]:
        """The images of several requests."""
        batch = np.stack([model.pixels(image) for image in images])
        rows = self.compiled(batch)["probabilities"]
        return [model.best(row, self.names) for row in rows]


if __name__ == "__main__":
    ray.init(include_dashboard=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": model.port()}, logging_config=QUIET
    )
    deployment: Any = Classifier
    serve.run(deployment.bind(), route_prefix="/classify")
    while True:
        time.sleep(3600)
