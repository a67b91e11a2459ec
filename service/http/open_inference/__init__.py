"""The Open Inference Protocol's REST API."""

from service.http.open_inference.endpoint import OpenInferenceEndpoint
from service.http.open_inference.routes import ROOT, is_ours

__all__ = ["ROOT", "OpenInferenceEndpoint", "is_ours"]
