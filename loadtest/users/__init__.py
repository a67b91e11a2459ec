"""Locust's users: who asks over each protocol, one module and one tag for each.

| tag | module | sends |
|---|---|---|
| `http` | `http_image` | an image file, to `/classify` |
| `tf_serving_http` | `tf_serving_http` | numbers in JSON, to `/v1` |
| `open_inference_http` | `open_inference_http` | bytes behind JSON, to `/v2` |
| `grpc` | `image_classifier` | an image file, to `ImageClassifier` |
| `tf_serving_grpc` | `tf_serving_grpc` | bytes, to `PredictionService` |
| `open_inference_grpc` | `open_inference_grpc` | bytes, to `GRPCInferenceService` |

`loadtest/locustfile.py` is what Locust reads; docs/loadtest.md tells how to run it.
"""
