"""Keeps native libraries from talking to the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def silenced() -> Iterator[None]:
    """Turn file descriptor 2 away while native code runs that cannot be configured.

    What Python raises meanwhile is still told, for that happens after the block.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
