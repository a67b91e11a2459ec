"""What of a model is to serve: how many versions, and under which labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from service.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which versions are loaded; those that have a label are besides.

    Attributes:
        latest: How many, the latest first; `None` is no limit.
        versions: These alone; `None` is any.
    """

    latest: int | None = None
    versions: frozenset[int] | None = None

    def wants(self, number: int, *, later: int) -> bool:
        """Whether a version is to serve, of which `later` later ones do."""
        if self.versions is not None and number not in self.versions:
            return False
        return self.latest is None or later < self.latest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """How one model is served.

    Attributes:
        policy: Which versions are loaded.
        labels: Other names of versions.
    """

    policy: VersionPolicy
    labels: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_settings(cls, settings: Settings, name: str) -> Self:
        """What the settings say of a model."""
        return cls(
            policy=VersionPolicy(latest=settings.versions_to_serve),
            labels=settings.labels.get(name, {}),
        )
