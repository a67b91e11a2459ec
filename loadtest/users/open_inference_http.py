"""The Open Inference Protocol over HTTP."""

from locust import tag, task

from loadtest.harness import protocol_answers, protocol_requests
from loadtest.users.over_http import HttpImageUser


class OpenInferenceHttp(HttpImageUser):
    """Sends pixels as bytes behind the JSON, and gets bytes."""

    protocol = "open_inference_http"
    request = staticmethod(protocol_requests.open_inference_binary)
    best = staticmethod(protocol_answers.of_open_inference_binary)

    @tag(protocol)
    @task
    def infer(self) -> None:
        """Ask about one image."""
        self.ask()
