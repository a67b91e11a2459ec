"""Where model versions come from: a directory, or servers that run them elsewhere."""

from service.settings import Settings
from service.sources.base import Loaded, Source
from service.sources.directory import DirectorySource

__all__ = ["DirectorySource", "Loaded", "Source", "source_of"]


def source_of(settings: Settings) -> Source:
    """Where the models come from that the settings speak of."""
    if settings.engine != "tfserving":
        return DirectorySource(settings)
    # Only who has servers elsewhere pays for a client of them.
    from service.sources.tfserving import TfServingSource  # noqa: PLC0415

    return TfServingSource(settings)
