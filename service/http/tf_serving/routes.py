"""The paths of TensorFlow Serving's REST API."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from service.repository import Target
from service.telemetry.tracing import Operation

Action = Literal["status", "metadata", "predict", "classify", "regress"]

PREFIX: Final = "/v1/models"
_TARGET: Final = r"/v1/models/([^/:]+)(?:/versions/(\d{1,18})|/labels/([^/:]+))?"
ACTIONS: Final[Mapping[str | None, Action]] = {
    None: "status",
    "/metadata": "metadata",
    "predict": "predict",
    "classify": "classify",
    "regress": "regress",
}
_OPERATIONS: Final = {
    (action, choice): Operation.of_http("POST", f"/v1/models/{{name}}{choice}:{action}")
    for action in ("predict", "classify", "regress")
    for choice in ("", "/versions/{version}", "/labels/{label}")
}
_GET: Final = re.compile(_TARGET + r"(/metadata)?")
_POST: Final = re.compile(_TARGET + r":(predict|classify|regress)")


class MalformedRequest(ValueError):
    """No action has this method and path; the message is the real server's."""


@dataclass(frozen=True, slots=True)
class Route:
    """What a request asks for."""

    action: Action
    target: Target

    @property
    def operation(self) -> Operation:
        """What traces call an inference."""
        choice = ""
        if self.target.version is not None:
            choice = "/versions/{version}"
        elif self.target.label is not None:
            choice = "/labels/{label}"
        return _OPERATIONS[self.action, choice]


def route(method: str, path: str) -> Route:
    """What a method and a path mean.

    Args:
        method: In capitals.
        path: Decoded, without the query.

    Raises:
        MalformedRequest: Nothing.
    """
    if method == "GET" and path == PREFIX:
        raise MalformedRequest("Missing model name in request.")
    found = {"GET": _GET, "POST": _POST}.get(method)
    match = found.fullmatch(path) if found else None
    if match is None:
        raise MalformedRequest(f"Malformed request: {method} {path}")
    name, version, label, action = match.groups()
    target = Target(name=name, version=int(version) if version else None, label=label)
    return Route(ACTIONS[action], target)
