"""The protobuf package `tensorflow.serving`: prediction, models and logs."""
