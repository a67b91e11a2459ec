"""Keras' summary of a model as a text."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import keras

LINE_CHARACTERS: Final = 120


def summarise(model: keras.Model) -> str:
    """A table of the layers, whole however narrow the terminal is."""
    parts: list[str] = []
    # An optimizer would be counted among the model's parameters.
    compiled, model.compiled = model.compiled, False
    try:
        with _terminal_columns(LINE_CHARACTERS):
            model.summary(line_length=LINE_CHARACTERS, print_fn=parts.append)
    finally:
        model.compiled = compiled
    return "".join(parts)


@contextmanager
def _terminal_columns(columns: int) -> Iterator[None]:
    """Keras cuts its lines at the terminal's width, whatever length it is told."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
