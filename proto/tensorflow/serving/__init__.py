"""The protobuf package `tensorflow.serving`: prediction and its logs."""
