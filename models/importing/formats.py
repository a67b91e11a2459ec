"""Which reader a file needs."""

import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from models.importing.failures import EXPORT_INSTEAD, FORMATS, ImportFailed, reason
from models.importing.keras_2 import read_keras_2
from models.importing.keras_2_configurations import up_to_date
from models.importing.keras_3 import read_keras_3
from models.importing.keras_files import read_configuration
from models.importing.originals import FileKind, Original
from models.importing.saved_models import read_saved_model

HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
PICKLE_MAGIC: Final = b"\x80"


def read_original(path: Path) -> Original:
    """Choose the reader by what a file holds, whatever it is called.

    Raises:
        ImportFailed: It is of none of the formats, or cannot be read.
    """
    if path.is_dir():
        return read_saved_model(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(HDF5_MAGIC))
    except OSError as error:
        raise ImportFailed(f"cannot read {path}: {error.strerror}") from error
    if start == HDF5_MAGIC:
        return _read_keras(path, "h5")
    if zipfile.is_zipfile(path):
        return _read_keras(path, ".keras")
    if start.startswith(PICKLE_MAGIC):
        raise ImportFailed(
            f"{path} is a pickle, and reading one can run any code; save the model "
            f"with model.save('NAME.keras'), or {EXPORT_INSTEAD}"
        )
    raise ImportFailed(
        f"{path} is damaged or of another format; what can be imported is {FORMATS}"
    )


def _read_keras(path: Path, kind: FileKind) -> Original:
    """Read it with the present Keras where that can, else with the old one."""
    config, version = read_configuration(path, kind)
    if not version.startswith("2."):
        return read_keras_3(path, kind, config)
    try:
        return read_keras_3(path, kind, up_to_date(config))
    except Exception as error:
        # What Keras raises is not documented and varies widely.
        if find_spec("tf_keras") is None:
            raise ImportFailed(
                f"{reason(path, 'cannot be read', error)}; or, for it was written by "
                "Keras 2, install that beside Keras 3 (pip install tf-keras)"
            ) from error
    return read_keras_2(path, kind, config)
