"""Reads classifiers that someone else has made: `.keras`, `.h5` and SavedModels.

The result is a network of our own kind: uint8 images in, named float32 tensors out.
How the original was fed is not in its file, so the caller says it, and it becomes a
part of the network.
"""

from models.importing.failures import ImportFailed
from models.importing.half_precision import cast, check_precision
from models.importing.imported import Imported
from models.importing.reading import read

__all__ = ["ImportFailed", "Imported", "cast", "check_precision", "read"]
