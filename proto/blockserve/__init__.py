"""Protobuf packages of blockserve's own API, one for each of its versions."""
