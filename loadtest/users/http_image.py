"""The gateway's own HTTP."""

from locust import tag, task

from loadtest.harness import protocol_answers, protocol_requests
from loadtest.users.over_http import HttpImageUser


class HttpImage(HttpImageUser):
    """Sends an image file as the body."""

    protocol = "http"
    request = staticmethod(protocol_requests.image_file)
    best = staticmethod(protocol_answers.of_predictions)

    @tag(protocol)
    @task
    def classify(self) -> None:
        """Ask about one image."""
        self.ask()
