"""The paths of the Open Inference Protocol's REST API, and of its extensions."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from service.errors import NotFound

Action = Literal[
    "server", "model", "ready", "config", "stats", "infer", "index", "load", "unload"
]

ROOT: Final = "/v2"
_MODEL: Final = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_CONTROLLED: Final = r"/v2/repository/models/(?P<name>[^/]+)"
# What comes most often first; of two that match, the first counts.
_PATHS: Final[tuple[tuple[Action, str, re.Pattern[str]], ...]] = (
    ("infer", "POST", re.compile(_MODEL + "/infer")),
    ("ready", "GET", re.compile(_MODEL + "/ready")),
    ("config", "GET", re.compile(_MODEL + "/config")),
    ("stats", "GET", re.compile(_MODEL + "/stats")),
    ("stats", "GET", re.compile("/v2/models/stats")),
    ("model", "GET", re.compile(_MODEL)),
    ("server", "GET", re.compile("/v2/?")),
    ("index", "POST", re.compile("/v2/repository/index")),
    ("load", "POST", re.compile(_CONTROLLED + "/load")),
    ("unload", "POST", re.compile(_CONTROLLED + "/unload")),
)


@dataclass(frozen=True, slots=True)
class Route:
    """What a request asks for; no name means all models, no version the latest."""

    action: Action
    name: str = ""
    version: str = ""


def is_ours(path: str) -> bool:
    """Whether a path is one of the protocol's; those of health are not."""
    return path.startswith(("/v2/models", "/v2/repository")) or path == ROOT


def route(method: str, path: str) -> Route:
    """What a method and a path mean.

    Args:
        method: In capitals.
        path: Decoded, without the query.

    Raises:
        NotFound: Nothing.
    """
    for action, its_method, pattern in _PATHS:
        if method == its_method and (match := pattern.fullmatch(path)):
            return Route(action, **match.groupdict(default=""))
    raise NotFound(f"there is nothing at {method} {path}; /docs lists what there is")
