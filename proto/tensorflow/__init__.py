"""The protobuf package `tensorflow`: tensors."""
