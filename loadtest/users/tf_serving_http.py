"""TensorFlow Serving's REST API."""

from locust import tag, task

from loadtest.harness import protocol_answers, protocol_requests
from loadtest.users.over_http import HttpImageUser


class TfServingHttp(HttpImageUser):
    """Sends pixels as numbers in JSON."""

    protocol = "tf_serving_http"
    request = staticmethod(protocol_requests.tf_serving)
    best = staticmethod(protocol_answers.of_tf_serving)

    @tag(protocol)
    @task
    def predict(self) -> None:
        """Ask about one image."""
        self.ask()
