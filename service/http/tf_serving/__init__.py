"""TensorFlow Serving's REST API: the same requests, answers and errors."""

from service.http.tf_serving.endpoint import TfServingEndpoint
from service.http.tf_serving.routes import PREFIX

__all__ = ["PREFIX", "TfServingEndpoint"]
