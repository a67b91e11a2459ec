"""Where model versions come from: a directory, or servers that run them elsewhere."""

from service.sources.base import Loaded, Source
from service.sources.directory import DirectorySource, scan

__all__ = ["DirectorySource", "Loaded", "Source", "scan"]
