"""Messages that blockserve exchanges with other programs, free of TensorFlow.

A directory is a protobuf package: `proto/tensorflow/serving/predict.proto` holds
messages of `tensorflow.serving`. The definitions are subsets of their owners', with the
same names and numbers: what they leave out travels through them as unknown fields.

`python -m proto.generate` writes the `*_pb2` modules beside the `.proto` files.
"""
