"""FastAPI and TensorFlow: a route that calls the model, in one of FastAPI's threads."""

from typing import Annotated, Any

import numpy as np
import tensorflow as tf
from fastapi import Body, FastAPI

from loadtest.peers import model

app = FastAPI()
names = model.labels()
loaded = tf.saved_model.load(str(model.directory()))
infer = loaded.signatures["serving_default"]


@app.post("/classify")
def classify(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> Any:
    """JPEG in, labels out."""
    batch = tf.constant(model.pixels(image)[np.newaxis])
    return model.best(infer(images=batch)["probabilities"].numpy()[0], names)
