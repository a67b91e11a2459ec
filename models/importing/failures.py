"""What keeps a file from being imported, told in a sentence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FORMATS: Final = "a .keras file, an .h5 file or the directory of a SavedModel"
EXPORT_INSTEAD: Final = (
    "where it was made, write a SavedModel with model.export('DIRECTORY'), and import "
    "that directory"
)
UNKNOWN_CLASS: Final = re.compile(
    r"(?:Could not locate (?:class|function)|Unknown [\w ]+:) '?([\w>.]+)"
)
REASON_CHARACTERS: Final = 200


class ImportFailed(ValueError):
    """A file cannot be imported; says what was found, expected, and what to do."""


@contextmanager
def explaining(path: Path, problem: str) -> Iterator[None]:
    """Make one sentence of whatever is raised."""
    try:
        yield
    except ImportFailed:
        raise
    except Exception as error:
        # What damaged and foreign models raise is not documented and varies widely.
        raise ImportFailed(reason(path, problem, error)) from error


def reason(path: Path, problem: str, error: Exception) -> str:
    """What an error says of a file, without its traceback and its details."""
    if isinstance(error, ImportFailed):
        return str(error)
    unknown = UNKNOWN_CLASS.search(str(error))
    if unknown:
        return unknown_class(path, unknown[1])
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{path} {problem}: {lines[-1][:REASON_CHARACTERS]}"


def unknown_class(path: Path, name: str) -> str:
    """What to do where a class is not part of Keras."""
    return f"{path} uses {name!r}, which is not part of Keras; {EXPORT_INSTEAD}"
