"""FastAPI and OpenVINO: a route that calls the model."""

from typing import Any

import numpy as np
import openvino
from fastapi import FastAPI, Request

from loadtest.peers import model

app = FastAPI()
names = model.labels()
compiled = openvino.compile_model(model.directory(), "CPU")


@app.post("/classify")
async def classify(request: Request) -> Any:
    """JPEG in, labels out."""
    batch = model.pixels(await request.body())[np.newaxis]
    return model.best(compiled(batch)["probabilities"][0], names)
