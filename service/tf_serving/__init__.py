"""TensorFlow Serving's API as far as REST and gRPC share it: states and errors."""
