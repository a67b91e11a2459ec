import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2 as official_tensor_pb2
from tensorflow_serving.apis import (  # noqa: F401, they fill the default pool
    model_service_pb2,
    prediction_service_pb2,
)
from tensorflow_serving.apis import predict_pb2 as official_predict_pb2
from tensorflow_serving.apis import prediction_log_pb2 as official_log_pb2
from tritonclient.grpc import (  # noqa: F401, they fill the default pool
    model_config_pb2,
    service_pb2,
)

from proto.blockserve.v1.image_classifier_pb2 import (
    ClassifyRequest,
    ClassifyStreamResponse,
    Error,
)
from proto.generate import PACKAGE, GenerateError, generate, generated_files
from proto.google.protobuf.wrappers_pb2 import Int64Value
from proto.pool import POOL
from proto.tensorflow.serving.model_pb2 import ModelSpec
from proto.tensorflow.serving.predict_pb2 import PredictRequest
from proto.tensorflow.serving.prediction_log_pb2 import PredictionLog
from proto.tensorflow.tensor_pb2 import DataType, TensorProto, TensorShapeProto
from proto.tensors import (
    InvalidTensorProto,
    from_tensor_proto,
    tensor_parts,
    to_tensor_proto,
)

Array = npt.NDArray[Any]

repeatable = settings(derandomize=True, database=None, deadline=None)

TYPED_FIELDS = {
    "bool": "bool_val",
    "float32": "float_val",
    "float64": "double_val",
    "int8": "int_val",
    "int16": "int_val",
    "int32": "int_val",
    "int64": "int64_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}
# What they say is said nowhere else: there is nothing to compare them with.
OUR_OWN_PACKAGES = {"blockserve.v1"}

# Their typed field holds the bits of an element.
HALVES = ["bfloat16", "float16"]
NUMERIC = [*TYPED_FIELDS, *HALVES]


def _generated_modules() -> Iterator[ModuleType]:
    for path in sorted(PACKAGE.rglob("*_pb2.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield importlib.import_module(".".join(parts))


def _all_messages() -> Iterator[Descriptor]:
    waiting = [
        message
        for module in _generated_modules()
        for message in module.DESCRIPTOR.message_types_by_name.values()
    ]
    while waiting:
        message = waiting.pop()
        yield message
        waiting.extend(message.nested_types)


def _all_enums() -> Iterator[EnumDescriptor]:
    for module in _generated_modules():
        yield from module.DESCRIPTOR.enum_types_by_name.values()
    for message in _all_messages():
        yield from message.enum_types


def _all_services() -> Iterator[ServiceDescriptor]:
    for module in _generated_modules():
        yield from module.DESCRIPTOR.services_by_name.values()


def _published(one: Descriptor | EnumDescriptor | ServiceDescriptor) -> bool:
    """Whether it has an owner elsewhere, whose definition is installed here."""
    return one.file.package not in OUR_OWN_PACKAGES


def _facts(field: FieldDescriptor) -> dict[str, Any]:
    of_type = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return {
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "of": of_type.full_name if of_type else None,
        "oneof": oneof.name if oneof else None,
    }


def _signature(method: MethodDescriptor) -> tuple[str, bool, str, bool]:
    return (
        method.input_type.full_name,
        method.client_streaming,
        method.output_type.full_name,
        method.server_streaming,
    )


def _python(code: str) -> str:
    """Run code in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _sized(*sizes: int) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])


def _typed(kind: str, values: Any, shape: tuple[int, ...]) -> TensorProto:
    """A tensor of TensorFlow's dtype name `kind`, in its typed field."""
    field = "half_val" if kind in HALVES else TYPED_FIELDS[kind]
    message = TensorProto(
        dtype=tf.as_dtype(kind).as_datatype_enum, tensor_shape=_sized(*shape)
    )
    getattr(message, field).extend(values)
    return message


def _official(message: TensorProto) -> official_tensor_pb2.TensorProto:
    return official_tensor_pb2.TensorProto.FromString(message.SerializeToString())


def _ours(message: official_tensor_pb2.TensorProto) -> TensorProto:
    return TensorProto.FromString(message.SerializeToString())


def _assert_same(actual: Array, expected: Array) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype == object:
        assert actual.tolist() == expected.tolist()
    else:
        assert actual.tobytes() == expected.tobytes()


# Generated modules


def test_generated_files_are_what_the_proto_files_say() -> None:
    """`python -m proto.generate` would change nothing."""
    fresh = generate()
    assert sorted(fresh) == generated_files(PACKAGE)
    for path, text in fresh.items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_every_directory_with_a_proto_file_is_a_python_package() -> None:
    """A new directory works after installation, not only from a checkout."""
    for path in PACKAGE.rglob("*.proto"):
        for parent in path.relative_to(PACKAGE).parents:
            assert (PACKAGE / parent / "__init__.py").is_file()


def test_the_directory_of_a_proto_file_is_its_package() -> None:
    """A message is found by its name."""
    for module in _generated_modules():
        directory = module.__name__.rpartition(".")[0]
        assert directory == f"proto.{module.DESCRIPTOR.package}"


def test_all_messages_live_in_our_pool() -> None:
    """None of them is in protobuf's default pool, well-known types included."""
    for message in _all_messages():
        assert POOL.FindMessageTypeByName(message.full_name) is message
        for field in message.fields:
            assert field.message_type is None or (
                POOL.FindMessageTypeByName(field.message_type.full_name)
                is field.message_type
            )


def _write_service(package: Path) -> None:
    directory = package / "demo"
    directory.mkdir(parents=True)
    (directory / "words.proto").write_text(
        'syntax = "proto3"; package demo; message Word { string text = 1; }'
    )
    (directory / "echo.proto").write_text(
        'syntax = "proto3"; package demo; import "proto/demo/words.proto";'
        "service Echo { rpc Say(Word) returns (Word); }"
    )


def test_only_a_file_with_services_gets_a_grpc_stub(tmp_path: Path) -> None:
    """The stub imports the messages from this package."""
    _write_service(tmp_path / "proto")
    texts = {
        str(path.relative_to(tmp_path)): text
        for path, text in generate(tmp_path / "proto").items()
    }
    assert sorted(texts) == [
        "proto/demo/echo_pb2.py",
        "proto/demo/echo_pb2.pyi",
        "proto/demo/echo_pb2_grpc.py",
        "proto/demo/words_pb2.py",
        "proto/demo/words_pb2.pyi",
    ]
    stub = texts["proto/demo/echo_pb2_grpc.py"]
    assert "from proto.demo import words_pb2" in stub
    assert "'/demo.Echo/Say'" in stub


def test_a_broken_proto_file_is_refused(tmp_path: Path) -> None:
    """The compiler's own words say where."""
    package = tmp_path / "proto"
    package.mkdir()
    (package / "broken.proto").write_text('syntax = "proto3"; message {')
    with pytest.raises(GenerateError, match=r"broken\.proto:1"):
        generate(package)


def test_protobufs_own_well_known_types_are_refused(tmp_path: Path) -> None:
    """They are in the default pool, where our messages cannot refer to them."""
    package = tmp_path / "proto"
    package.mkdir()
    (package / "empty.proto").write_text(
        'syntax = "proto3"; import "google/protobuf/empty.proto";'
    )
    with pytest.raises(GenerateError, match=r"imports google/protobuf/empty\.proto"):
        generate(package)


# Beside TensorFlow


def test_importing_the_messages_loads_no_tensorflow() -> None:
    """Nor the compiler."""
    names = [module.__name__ for module in _generated_modules()]
    out = _python(
        f"import sys, {', '.join(names)}, proto.tensors\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    heavy = {"grpc_tools", "keras", "tensorflow", "tensorflow_serving", "tritonclient"}
    assert heavy.isdisjoint(out.split())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("tensorflow.serving.predict_pb2", "tensorflow.TensorProto"),
        ("inference.infer_pb2", "inference.ModelInferRequest"),
        ("blockserve.v1.image_classifier_pb2", "blockserve.v1.ClassifyRequest"),
    ],
)
def test_protobufs_default_pool_hears_nothing_of_ours(
    module: str, message: str
) -> None:
    """It stays free for whoever else defines these names."""
    out = _python(
        f"import proto.{module}\n"
        "from google.protobuf import descriptor_pool\n"
        "pool = descriptor_pool.Default()\n"
        "try:\n"
        f"    print(pool.FindMessageTypeByName('{message}').file.name)\n"
        "except KeyError:\n"
        "    print('unknown')"
    )
    assert out.strip() == "unknown"


def _either_first(theirs: str, ours: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "imports", [(theirs, ours), (ours, theirs)], ids=["theirs first", "ours first"]
    )


@_either_first(
    "from tensorflow_serving.apis import prediction_log_pb2 as theirs",
    "from proto.tensorflow.serving import prediction_log_pb2 as ours",
)
def test_ours_and_tensorflows_live_in_one_process(imports: tuple[str, str]) -> None:
    """Whichever comes first, both parse what the other writes."""
    out = _python(
        "\n".join(imports) + "\n"
        "log = ours.PredictionLog()\n"
        "log.predict_log.request.model_spec.version.value = 7\n"
        "log.predict_log.request.inputs['x'].tensor_content = b'abc'\n"
        "read = theirs.PredictionLog.FromString(log.SerializeToString())\n"
        "assert ours.PredictionLog.FromString(read.SerializeToString()) == log\n"
        "request = read.predict_log.request\n"
        "print(request.model_spec.version.value, request.inputs['x'].tensor_content)"
    )
    assert out.strip() == "7 b'abc'"


@_either_first(
    "from tritonclient.grpc import service_pb2 as theirs",
    "from proto.inference import infer_pb2 as ours",
)
def test_ours_and_tritons_live_in_one_process(imports: tuple[str, str]) -> None:
    """Whichever comes first, both parse what the other writes."""
    out = _python(
        "\n".join(imports) + "\n"
        "request = ours.ModelInferRequest(id='7', raw_input_contents=[b'abc'])\n"
        "request.inputs.add(name='x').parameters['p'].int64_param = 3\n"
        "read = theirs.ModelInferRequest.FromString(request.SerializeToString())\n"
        "back = ours.ModelInferRequest.FromString(read.SerializeToString())\n"
        "assert back == request\n"
        "given = read.inputs[0].parameters['p'].int64_param\n"
        "print(read.id, given, read.raw_input_contents)"
    )
    assert out.strip() == "7 3 [b'abc']"


def test_messages_say_what_their_owners_say() -> None:
    """Each field of ours is in the owner's message with the same number and type."""
    default = descriptor_pool.Default()
    for message in filter(_published, _all_messages()):
        owner = default.FindMessageTypeByName(message.full_name)
        for field in message.fields:
            assert _facts(field) == _facts(owner.fields_by_name[field.name]), field


def test_enums_say_what_their_owners_say() -> None:
    """Each value of ours has the owner's number."""
    default = descriptor_pool.Default()
    for enum in filter(_published, _all_enums()):
        owner = default.FindEnumTypeByName(enum.full_name)
        for value in enum.values:
            assert value.number == owner.values_by_name[value.name].number


def test_services_say_what_their_owners_say() -> None:
    """Each method of ours takes and gives what the owner's does, streams included."""
    default = descriptor_pool.Default()
    for service in filter(_published, _all_services()):
        owner = default.FindServiceByName(service.full_name)
        for method in service.methods:
            theirs = owner.methods_by_name[method.name]
            assert _signature(method) == _signature(theirs), method.full_name


def test_the_inference_service_leaves_out_shared_memory_tracing_and_logs() -> None:
    """It has all other methods of Triton's, and no others."""
    name = "inference.GRPCInferenceService"
    ours = POOL.FindServiceByName(name).methods_by_name
    theirs = descriptor_pool.Default().FindServiceByName(name).methods_by_name
    shared_memory = {
        f"{kind}SharedMemory{action}"
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    }
    left_out = {*shared_memory, "TraceSetting", "LogSettings"}
    assert set(ours) == set(theirs) - left_out


def test_of_tritons_messages_only_the_configuration_is_a_subset() -> None:
    """What clients send and read besides it can be named here in full."""
    default = descriptor_pool.Default()
    subsets = {
        message.name
        for message in _all_messages()
        if message.file.package == "inference"
        and {field.name for field in message.fields}
        < set(default.FindMessageTypeByName(message.full_name).fields_by_name)
    }
    assert sorted(subsets) == [
        "ModelConfig",
        "ModelDynamicBatching",
        "ModelInput",
        "ModelInstanceGroup",
        "ModelOutput",
    ]


def test_fields_left_out_travel_unharmed() -> None:
    """Passing a request on keeps what we do not know of it."""
    request = official_predict_pb2.PredictRequest(client_id=b"me")
    request.inputs["z"].scomplex_val.extend([1, 2])
    log = official_log_pb2.PredictionLog()
    log.log_metadata.saved_model_tags.append("serve")
    log.predict_log.request.CopyFrom(request)
    passed_on = PredictionLog.FromString(log.SerializeToString()).SerializeToString()
    assert official_log_pb2.PredictionLog.FromString(passed_on) == log


def test_a_version_is_absent_or_a_number() -> None:
    """Version 0 differs from no version, and a label replaces a version."""
    spec = ModelSpec(version=Int64Value(value=0))
    assert spec.WhichOneof("version_choice") == "version"
    spec.version_label = "stable"
    assert not spec.HasField("version")


def test_our_own_api_tells_what_is_absent_from_zero() -> None:
    """Version 0 differs from no version, as `top_k` and the time to retry do."""
    request = ClassifyRequest()
    assert not request.HasField("top_k")
    assert request.WhichOneof("version_choice") is None
    request.top_k = request.version = 0
    assert request.HasField("top_k")
    assert request.WhichOneof("version_choice") == "version"
    request.version_label = "stable"
    assert not request.HasField("version")
    assert not Error().HasField("retry_after_seconds")


def test_a_request_of_a_stream_is_answered_or_failed() -> None:
    """Setting one clears the other, and an empty answer is an answer."""
    answer = ClassifyStreamResponse(error=Error(code=3))
    answer.response.SetInParent()
    assert answer.WhichOneof("outcome") == "response"
    assert not answer.HasField("error")


# Arrays


def _arrays_of(kind: str, shape: Any) -> st.SearchStrategy[Array]:
    if kind != "bfloat16":
        return hnp.arrays(kind, shape)
    # Any bits: subnormal numbers, and NaNs with a payload.
    return hnp.arrays("uint16", shape).map(lambda bits: bits.view(ml_dtypes.bfloat16))


def _arrays(kinds: list[str]) -> st.SearchStrategy[Array]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    return st.sampled_from(kinds).flatmap(lambda kind: _arrays_of(kind, shapes))


@repeatable
@given(_arrays(NUMERIC))
def test_numbers_come_back_bit_for_bit(array: Array) -> None:
    """Any dtype and shape, empty ones and NaN included."""
    _assert_same(from_tensor_proto(to_tensor_proto(array)), array)


@repeatable
@given(_arrays(NUMERIC))
def test_tensorflow_reads_what_we_write(array: Array) -> None:
    """Byte for byte the array that was written."""
    _assert_same(tf.make_ndarray(_official(to_tensor_proto(array))), array)


@repeatable
@given(_arrays(HALVES))
def test_tensorflow_reads_the_bits_of_halves(array: Array) -> None:
    """Their typed field holds any of them, NaNs with a payload too."""
    message = to_tensor_proto(array, typed=True)
    assert not message.tensor_content
    _assert_same(tf.make_ndarray(_official(message)), array)


@repeatable
@given(_arrays(NUMERIC))
def test_we_read_what_tensorflow_writes(array: Array) -> None:
    """It chooses content or typed fields itself."""
    _assert_same(from_tensor_proto(_ours(tf.make_tensor_proto(array))), array)


@repeatable
@given(
    hnp.arrays(
        object,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        elements=st.binary(max_size=8),
        fill=st.nothing(),
    )
)
def test_strings_come_back(array: Array) -> None:
    """Bytes of any value and length, in TensorFlow too."""
    message = to_tensor_proto(array)
    _assert_same(from_tensor_proto(message), array)
    _assert_same(tf.make_ndarray(_official(message)), array)


@repeatable
@given(st.data())
def test_typed_fields_mean_what_they_mean_to_tensorflow(data: st.DataObject) -> None:
    """A full field, a field that stops early, and an empty one."""
    kind = data.draw(st.sampled_from(NUMERIC))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    array = data.draw(_arrays_of(kind, shape))
    flat = array.view("u2").ravel() if kind in HALVES else array.ravel()
    given_values = data.draw(st.integers(0, flat.size))
    message = _typed(kind, flat[:given_values].tolist(), shape)
    _assert_same(from_tensor_proto(message), tf.make_ndarray(_official(message)))


def test_one_value_fills_a_tensor() -> None:
    """TensorFlow writes constants so."""
    read = from_tensor_proto(_typed("float32", [1.5], (2, 3)))
    _assert_same(read, np.full((2, 3), 1.5, np.float32))


def test_the_last_value_is_repeated() -> None:
    """Numbers and strings alike."""
    read = from_tensor_proto(_typed("uint8", [1, 2], (2, 2)))
    _assert_same(read, np.array([[1, 2], [2, 2]], np.uint8))
    message = to_tensor_proto(np.array([b"a", b"b", b"c"]))
    del message.string_val[2]
    assert from_tensor_proto(message).tolist() == [b"a", b"b", b"b"]


def test_an_empty_field_means_zeros_or_empty_strings() -> None:
    """Protobuf leaves default values out."""
    _assert_same(from_tensor_proto(_typed("int64", [], (2,))), np.zeros(2, np.int64))
    message = to_tensor_proto(np.array([b"a", b"b"]))
    del message.string_val[:]
    assert from_tensor_proto(message).tolist() == [b"", b""]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int32).reshape(3, 4).T,
        np.arange(12, dtype=np.int32)[::-2],
        np.arange(12, dtype=">i4"),
        np.broadcast_to(np.int32(3), (2, 2)),
    ],
    ids=["transposed", "strided", "big-endian", "broadcast"],
)
def test_memory_layout_does_not_matter(array: Array) -> None:
    """The content is row-major and little-endian."""
    read = from_tensor_proto(to_tensor_proto(array))
    _assert_same(read, np.ascontiguousarray(array, np.int32))


@repeatable
@given(_arrays(NUMERIC))
def test_the_parts_of_a_tensor_make_its_message(array: Array) -> None:
    """Whatever its memory layout; strings as well."""
    for one in (array, array.T, array.astype(array.dtype.newbyteorder(">"))):
        _assert_parts_make_its_message(one)
    _assert_parts_make_its_message(np.array([["grün", ""]]))


def _assert_parts_make_its_message(array: Array) -> None:
    made = TensorProto.FromString(b"".join(tensor_parts(array)))
    assert made == to_tensor_proto(array)


def test_bfloat16_of_either_byte_order_is_read_as_a_number() -> None:
    """Its bits are the upper half of a float32's, and little-endian in content."""
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    one_and_a_half = np.array([1.5], bfloat16)
    for array in (one_and_a_half, one_and_a_half.astype(bfloat16.newbyteorder(">"))):
        assert to_tensor_proto(array).tensor_content == b"\xc0\x3f"
        typed = to_tensor_proto(array, typed=True)
        assert typed.half_val == [0x3FC0]
        _assert_same(from_tensor_proto(typed), one_and_a_half)


@pytest.mark.parametrize(
    "array",
    [
        np.array(["grün", ""]),
        np.array(["grün".encode(), b""]),
        np.array(["grün", b""], object),
    ],
    ids=["U", "S", "object"],
)
def test_text_becomes_utf8(array: Array) -> None:
    """However NumPy holds it."""
    read = from_tensor_proto(to_tensor_proto(array))
    assert read.tolist() == ["grün".encode(), b""]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(1, "M8[s]"),
        np.zeros(1, np.complex64),
        np.array([1, None], object),
        np.zeros(1, "V2"),
        np.zeros(1, ml_dtypes.float8_e5m2),
    ],
    ids=["dates", "complex", "objects", "memory", "float8"],
)
def test_other_arrays_are_refused(array: Array) -> None:
    """With a TypeError, as TensorFlow does."""
    with pytest.raises(TypeError):
        to_tensor_proto(array)
    with pytest.raises(TypeError):
        tensor_parts(array)


UINT8 = DataType.DT_UINT8
INVALID = {
    "no data type": (TensorProto(), "DT_INVALID is not supported"),
    "complex": (
        TensorProto(dtype=DataType.DT_COMPLEX64),
        "expected one of DT_BFLOAT16, DT_BOOL",
    ),
    "unheard-of type": (TensorProto(dtype=999), "type 999"),  # type: ignore[arg-type]
    "unknown rank": (
        TensorProto(dtype=UINT8, tensor_shape=TensorShapeProto(unknown_rank=True)),
        "must be known",
    ),
    "unknown size": (
        TensorProto(dtype=UINT8, tensor_shape=_sized(-1)),
        "must be known",
    ),
    "short content": (
        TensorProto(dtype=UINT8, tensor_shape=_sized(3), tensor_content=b"12"),
        "has 2 bytes; dtype and shape need 3",
    ),
    "content of strings": (
        TensorProto(dtype=DataType.DT_STRING, tensor_content=b"\0"),
        "string_val",
    ),
    "too many values": (
        TensorProto(dtype=UINT8, tensor_shape=_sized(1), int_val=[1, 2]),
        "int_val has 2 values; the shape needs 1",
    ),
    "a number too large": (
        TensorProto(dtype=UINT8, tensor_shape=_sized(1), int_val=[256]),
        "numbers that DT_UINT8 cannot",
    ),
    "half_val of 17 bits": (
        TensorProto(dtype=DataType.DT_HALF, tensor_shape=_sized(1), half_val=[1 << 16]),
        "numbers that DT_HALF cannot",
    ),
    "half_val of 17 bits in bfloat16": (
        TensorProto(
            dtype=DataType.DT_BFLOAT16, tensor_shape=_sized(1), half_val=[1 << 16]
        ),
        "numbers that DT_BFLOAT16 cannot",
    ),
    "a bomb": (
        TensorProto(dtype=UINT8, tensor_shape=_sized(2**40), int_val=[1]),
        "takes 1099511627776 bytes",
    ),
    "an overflowing shape": (
        TensorProto(dtype=UINT8, tensor_shape=_sized(0, 2**62, 2**62)),
        "no array has the shape",
    ),
    "too many dimensions": (
        TensorProto(dtype=UINT8, tensor_shape=_sized(*[1] * 65)),
        "at most 64 dimensions; got 65",
    ),
}


@pytest.mark.parametrize(("message", "says"), INVALID.values(), ids=INVALID)
def test_a_tensor_that_makes_no_sense_is_refused(
    message: TensorProto, says: str
) -> None:
    """And told what is wrong with it, before memory is taken."""
    with pytest.raises(InvalidTensorProto, match=says):
        from_tensor_proto(message)


def _few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, max_size=5)


SIZES = st.one_of(st.integers(0, 5), st.integers(-(2**63), 2**63 - 1))
STRANGERS = st.builds(
    TensorProto,
    dtype=st.sampled_from(DataType.values()),
    tensor_shape=_few(SIZES).map(lambda sizes: _sized(*sizes)),
    tensor_content=st.one_of(st.just(b""), st.binary(max_size=16)),
    bool_val=_few(st.booleans()),
    float_val=_few(st.floats(width=32)),
    half_val=_few(st.integers(-(2**31), 2**31 - 1)),
    int_val=_few(st.integers(-(2**31), 2**31 - 1)),
    string_val=_few(st.binary(max_size=3)),
    uint64_val=_few(st.integers(0, 2**64 - 1)),
)


@repeatable
@given(STRANGERS)
def test_whatever_a_tensor_claims_the_answer_is_an_array_or_a_refusal(
    message: TensorProto,
) -> None:
    """Strangers may send anything; it costs them nothing and us no more."""
    try:
        read = from_tensor_proto(message, max_bytes=1 << 16)
    except InvalidTensorProto:
        return
    assert read.shape == tuple(dim.size for dim in message.tensor_shape.dim)
    assert read.nbytes <= 1 << 16


def test_the_limit_on_bytes_is_exact() -> None:
    """A tensor of exactly that size is read."""
    message = _typed("float32", [1], (5,))
    assert from_tensor_proto(message, max_bytes=20).nbytes == 20
    with pytest.raises(InvalidTensorProto, match="takes 20 bytes; at most 19"):
        from_tensor_proto(message, max_bytes=19)


def test_numbers_are_a_view_of_their_content() -> None:
    """Reading an image copies it no more often than protobuf itself does."""
    read = from_tensor_proto(to_tensor_proto(np.arange(4, dtype=np.int64)))
    assert not read.flags.owndata


def test_a_request_takes_arrays_by_name() -> None:
    """As a client writes it."""
    request = PredictRequest(inputs={"x": to_tensor_proto(np.ones(2, np.uint8))})
    assert from_tensor_proto(request.inputs["x"]).tolist() == [1, 1]
