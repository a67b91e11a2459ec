"""Keras' own files, `.keras` and `.h5`: the configuration of the layers in them."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from models.importing.failures import EXPORT_INSTEAD, FORMATS, ImportFailed
from models.importing.originals import FileKind

CONFIG_ATTRIBUTE: Final = "model_config"
CONFIG_FILE: Final = "config.json"
METADATA_FILE: Final = "metadata.json"


def read_configuration(path: Path, kind: FileKind) -> tuple[Any, str]:
    """The layers as the file tells them, and the version of Keras that wrote it.

    Raises:
        ImportFailed: It tells no layers, or Python code among them.
    """
    config, version = _of_h5(path) if kind == "h5" else _of_keras(path)
    for node in nodes(config):
        function = node.get("function")  # of a Lambda layer: a list is compiled code
        if node.get("class_name") == "__lambda__" or isinstance(function, list):
            raise ImportFailed(
                f"{path} contains a Lambda layer, whose Python code will not be run, "
                f"for it could do anything; {EXPORT_INSTEAD}"
            )
    return config, version


def _of_keras(path: Path) -> tuple[Any, str]:
    with zipfile.ZipFile(path) as archive:
        missing = {CONFIG_FILE, METADATA_FILE} - set(archive.namelist())
        if missing:
            raise ImportFailed(
                f"{path} is a zip archive without {min(missing)}, hence no .keras "
                f"file; what can be imported is {FORMATS}"
            )
        metadata = json.loads(archive.read(METADATA_FILE))
        return json.loads(archive.read(CONFIG_FILE)), metadata["keras_version"]


def _of_h5(path: Path) -> tuple[Any, str]:
    with h5py.File(path) as file:
        if CONFIG_ATTRIBUTE not in file.attrs:
            raise ImportFailed(
                f"{path} holds weights only, without the layers that they belong to; "
                "save the whole model with model.save('NAME.keras')"
            )
        version = np.asarray(file.attrs.get("keras_version", "2.0")).astype(str).item()
        return json.loads(file.attrs[CONFIG_ATTRIBUTE]), version


def nodes(config: Any) -> Iterator[dict[str, Any]]:
    """Every object in a configuration, however deep."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from nodes(item)


@contextmanager
def copied(path: Path, kind: FileKind, config: Any) -> Iterator[Path]:
    """A copy with this configuration, under a name that tells Keras its format."""
    with tempfile.TemporaryDirectory() as directory:
        if kind == "h5":
            copy = Path(directory, "model.h5")
            shutil.copyfile(path, copy)
            with h5py.File(copy, "r+") as file:
                file.attrs[CONFIG_ATTRIBUTE] = json.dumps(config)
        else:
            copy = Path(directory, "model.keras")
            with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
                for member in source.infolist():
                    is_config = member.filename == CONFIG_FILE
                    content = json.dumps(config) if is_config else source.read(member)
                    target.writestr(member.filename, content)
        yield copy
