"""The serving side of blockserve: gateway, batching, engines. Imports no TensorFlow."""
