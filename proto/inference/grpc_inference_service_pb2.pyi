# mypy: disable-error-code="type-arg"
from proto.inference import health_pb2 as _health_pb2
from proto.inference import infer_pb2 as _infer_pb2
from proto.inference import metadata_pb2 as _metadata_pb2
from proto.inference import model_config_pb2 as _model_config_pb2
from proto.inference import repository_pb2 as _repository_pb2
from proto.inference import statistics_pb2 as _statistics_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
