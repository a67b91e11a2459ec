"""The protobuf package `inference`: the Open Inference Protocol, as Triton has it."""
