"""TensorFlow Serving, one or many of it, as an engine; spoken to over gRPC."""

from service.engines.tfserving.engine import TfServingEngine
from service.engines.tfserving.metrics import ReplicaMetrics
from service.engines.tfserving.pool import ReplicaPool

__all__ = ["ReplicaMetrics", "ReplicaPool", "TfServingEngine"]
