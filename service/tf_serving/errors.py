"""Errors in TensorFlow Serving's words, where its clients may know them by these."""

from service.errors import BlockserveError
from service.repository import Target


def words(error: BlockserveError, target: Target) -> str:
    """What the real server says of an error.

    Args:
        error: What happened.
        target: What was asked for; it names a model.
    """
    match error.code:
        case "label_not_found":
            return f"Unrecognized servable version label: {target.label}"
        case "model_not_found" | "version_not_found" | "model_not_ready":
            return f"Servable not found for request: {_asked_for(target)}"
    return error.message


def is_not_found(error: BlockserveError) -> bool:
    """Whether the real server, which waits for no model, would not find one."""
    return error.code in {"model_not_found", "version_not_found", "model_not_ready"}


def _asked_for(target: Target) -> str:
    if target.version is None:
        return f"Latest({target.name})"
    return f"Specific({target.name}, {target.version})"
