"""The names of a model's classes, from a file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from models.plan import WrongPlan


def numbers(classes: int) -> tuple[str, ...]:
    """Labels for want of names: the indices."""
    return tuple(map(str, range(classes)))


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """Read the classes' names, in order.

    Args:
        path: A text file with a label a line, or JSON: a list of labels, an object
            from index to label (as Keras' `imagenet_class_index.json`, whose last item
            is the label), or one from label to index (as Keras' `class_indices`).
        classes: How many there must be.

    Returns:
        Labels that differ: those that occur more than once, as two of ImageNet's do,
        get their index appended.

    Raises:
        WrongPlan: The file cannot be read, or holds other than `classes` labels.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongPlan(f"--labels: cannot read {path}: {error}") from error
    is_json = path.suffix.lower() == ".json"
    found = _of_json(path, text) if is_json else text.rstrip().splitlines()
    names = [str(label).strip() for label in found]
    if len(names) != classes:
        raise WrongPlan(
            f"--labels: {path} holds {len(names)} labels, but the model tells "
            f"{classes} classes apart"
        )
    if "" in names:
        raise WrongPlan(
            f"--labels: label {names.index('') + 1} of {path} is empty; every class "
            "needs a name"
        )
    times = Counter(names)
    return tuple(
        name if times[name] == 1 else f"{name} ({index})"
        for index, name in enumerate(names)
    )


def _of_json(path: Path, text: str) -> list[Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise WrongPlan(f"--labels: {path} is no JSON: {error}") from error
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        if all(isinstance(value, int) for value in content.values()):
            content = {str(index): label for label, index in content.items()}
        if content.keys() == {str(index) for index in range(len(content))}:
            values = [content[str(index)] for index in range(len(content))]
            return [value[-1] if isinstance(value, list) else value for value in values]
    raise WrongPlan(
        f"--labels: {path} is JSON, but neither a list of labels nor an object whose "
        "keys (or values) are the indices 0, 1, 2 …"
    )
