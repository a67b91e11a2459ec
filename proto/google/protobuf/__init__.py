"""The protobuf package `google.protobuf`: wrappers."""
