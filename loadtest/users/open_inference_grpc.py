"""The Open Inference Protocol over gRPC."""

from locust import tag, task

from loadtest.harness import protocol_answers, protocol_requests
from loadtest.users.over_grpc import GrpcImageUser


class OpenInferenceGrpc(GrpcImageUser):
    """Sends pixels to `GRPCInferenceService`."""

    protocol = "open_inference_grpc"
    method = "/inference.GRPCInferenceService/ModelInfer"
    message = staticmethod(protocol_requests.model_infer)
    best = staticmethod(protocol_answers.of_model_infer)

    @tag(protocol)
    @task
    def infer(self) -> None:
        """Ask about one image."""
        self.ask()
