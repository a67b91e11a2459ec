"""The protobuf package `tensorflow.error`: codes."""
