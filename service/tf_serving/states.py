"""The states of a model's versions, as TensorFlow Serving tells them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import NotFound
from service.repository import Repository, Target, VersionState

OK: Final = "OK"
# The real server passes on the code of whatever failed; ours tells it in the message.
FAILED: Final = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStatus:
    """A version's number and state; `error_code` is `OK` unless loading it failed."""

    version: int
    state: VersionState
    error_code: str
    error_message: str


def statuses(repository: Repository, target: Target) -> Sequence[VersionStatus]:
    """The states of what a target names, latest version first.

    Raises:
        NotFound: There is no such version; in the real server's words.
    """
    model = repository.models.get(target.name or "")
    if model is None or not model.versions:
        raise NotFound(f"Could not find any versions of model {target.name}")
    number = target.version
    if target.label is not None:
        number = repository.labelled(model, target.label)
    if number is not None and number not in model.versions:
        raise NotFound(f"Could not find version {number} of model {target.name}")
    numbers = sorted(model.versions, reverse=True) if number is None else [number]
    return [
        VersionStatus(
            version=version.number,
            state=version.state,
            error_code=OK if version.error is None else FAILED,
            error_message=version.error or "",
        )
        for version in map(model.versions.__getitem__, numbers)
    ]
