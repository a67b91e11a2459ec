"""gRPC in and out; no logic."""
