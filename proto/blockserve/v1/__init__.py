"""The protobuf package `blockserve.v1`: images in, names of classes out."""
