"""The gateway's own gRPC."""

from locust import tag, task

from loadtest.harness import protocol_answers, protocol_requests
from loadtest.users.over_grpc import GrpcImageUser


class ImageClassifier(GrpcImageUser):
    """Sends an image file to `ImageClassifier`."""

    protocol = "grpc"
    method = "/blockserve.v1.ImageClassifier/Classify"
    message = staticmethod(protocol_requests.classify)
    best = staticmethod(protocol_answers.of_classify)

    @tag(protocol)
    @task
    def classify(self) -> None:
        """Ask about one image."""
        self.ask()
