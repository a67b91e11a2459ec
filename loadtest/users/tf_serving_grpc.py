"""TensorFlow Serving's gRPC API."""

from locust import tag, task

from loadtest.harness import protocol_answers, protocol_requests
from loadtest.users.over_grpc import GrpcImageUser


class TfServingGrpc(GrpcImageUser):
    """Sends pixels to `PredictionService`."""

    protocol = "tf_serving_grpc"
    method = "/tensorflow.serving.PredictionService/Predict"
    message = staticmethod(protocol_requests.predict)
    best = staticmethod(protocol_answers.of_predict)

    @tag(protocol)
    @task
    def predict(self) -> None:
        """Ask about one image."""
        self.ask()
