"""JSON of TensorFlow Serving's REST API: reading, refusing and writing."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import EngineFailure, InvalidRequest
from service.http import json_arrays
from service.http.tf_serving import answers, documents, predict_requests
from service.http.tf_serving.documents import DocumentError
from service.http.tf_serving.predict_requests import PredictRequest
from service.tensors import Signature, TensorSpec

repeatable = settings(derandomize=True, database=None, deadline=None)

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)

# Where arrays stand in a request, and what may be in them.
BODIES = [
    '{"instances":%s}',
    '{"inputs": %s, "signature_name": "true"}',
    '{"inputs":{"x":%s,"z":%s}}',
    '{"instances":[{"x":%s},{"x":%s}]}',
    '{"instances":[{"x":%s},{"x":%s,"y":[1]}]}',
    '{"instances":[%s,{"x":%s}]}',
    '{"instances":{"x":%s}}',
    '{"instances":%s,"inputs":%s}',
    '{"inputs":%s,"inputs":%s}',
    '{"inputs":{"x":{"b64":%s}}}',
    '{"inputs":{"y":%s}}',
    '{"instances":%s,}',
    "[%s]",
]
ELEMENTS = [
    ["1"],
    ["0", "255", "-0", "2", "3"],
    ["-1", "7", "256", "300"],
    ["0.5", "1", "-0.0", "1e39", "9007199254740993"],
    ["1.0", "2"],
    ["9223372036854775807", "9223372036854775808"],
    ["1", "18446744073709551616", "-9223372036854775809", "1e309"],
    ["1", "true", "false"],
    ["1", "null", "NaN", "-Infinity", '"1"', '{"b64":"YQ=="}'],
    ["1", "[1]", "[]", "[2,3]"],
    ["1", "2", "", "01", "1 2", "]"],
    ['"a"', '"b"'],
]


@st.composite
def arrays(draw: Any, elements: list[str]) -> str:
    """Texts of arrays that are dense, but for what their elements are."""

    def nested(shape: tuple[int, ...]) -> str:
        if not shape:
            return str(draw(st.sampled_from(elements)))
        return f"[{','.join(nested(shape[1:]) for _ in range(shape[0]))}]"

    return nested(draw(hnp.array_shapes(max_dims=3, max_side=3)))


def spec(dtype: str, *shape: int | None, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=np.dtype(dtype), shape=(None, *shape))


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(
        name="s", inputs={one.name: one for one in inputs}, outputs={"y": spec("f4")}
    )


def tensors(document: Any, *inputs: TensorSpec) -> dict[str, Any]:
    return PredictRequest.of(document, booleans=False).tensors(signature(*inputs))


def read_whole(text: bytes) -> PredictRequest:
    """What a body asks for, with lists for all arrays in it."""
    booleans = documents.may_hold_booleans(text)
    return PredictRequest.of(documents.read(text), booleans=booleans)


@repeatable
@given(JSON_VALUES)
def test_what_is_json_is_read_as_it_was_written(value: Any) -> None:
    assert documents.read(json.dumps(value).encode()) == value


@repeatable
@given(st.text(alphabet='[]{}",:\\u012eE+-.tfn ab\n', max_size=30))
def test_what_is_not_json_is_refused_at_a_place_in_it(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(DocumentError) as refusal:
            documents.read(text.encode())
        where = refusal.value.message.rpartition("at offset: ")[2]
        assert where.isdecimal() or "empty" in where
        assert where == "empty" or "empty" in where or int(where) <= len(text) + 1
    else:
        documents.read(text.encode())


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    with pytest.raises(InvalidRequest):
        documents.read(b"[" * 100_000)
    nested: Any = 1
    for _ in range(500):
        nested = [nested]
    with pytest.raises(InvalidRequest, match="nested more than 32 deep"):
        tensors({"instances": nested}, spec("f4"))


@repeatable
@given(
    hnp.arrays(
        st.sampled_from(["uint8", "int8", "int32", "int64", "float32", "float64", "?"]),
        hnp.array_shapes(max_dims=4, max_side=3),
        elements=hnp.from_dtype(np.dtype("int8"), min_value=0, max_value=1),
        fill=st.nothing(),
    )
)
def test_dense_values_are_the_same_array_whether_walked_or_not(array: Any) -> None:
    one = spec(array.dtype.str, *array.shape[1:])
    dense = tensors({"instances": array.tolist()}, one)["x"]
    walked = predict_requests._walk_plain(array.tolist(), one)
    for found in (dense, walked):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@settings(repeatable, max_examples=500)
@given(st.sampled_from(BODIES), st.sampled_from(ELEMENTS), st.data())
def test_a_body_asks_for_the_same_whether_arrays_are_read_apart_or_not(
    body: str, elements: list[str], data: Any
) -> None:
    text = body.replace("%s", data.draw(arrays(elements)), 1)
    text = text.replace("%s", data.draw(arrays(elements) | st.just("[[1]]"))).encode()
    one = spec(data.draw(st.sampled_from(["u1", "i8", "u8", "f2", "f4", "?", "O"])))

    def outcome(read: Any) -> Any:
        try:
            found = read(text).tensors(signature(one))["x"]
        except InvalidRequest as error:
            return type(error), error.message
        return found.dtype, found.shape, repr(found.tolist())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "SHORTEST_BYTES", 1)
        patch.setattr(json_arrays, "PIECE_BYTES", data.draw(st.integers(22, 40)))
        assert outcome(PredictRequest.read) == outcome(read_whole)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (300, "JSON Value: 300 does not fit uint8: expected 0 to 255"),
        (1.0, "JSON Value: 1.0 Type: Number is not of expected type: uint8"),
        (True, "JSON Value: true Type: True is not of expected type: uint8"),
        ([1, 2], "Encountered list at unexpected level: 2 expected < 2"),
    ],
)
def test_in_a_long_array_the_first_wrong_element_is_named(
    value: Any, message: str
) -> None:
    rows: Any = [[[1, 2]] * 1_000 for _ in range(10)]
    rows[7][5] = [3, value]
    rows[8][5] = [None]
    for document in ({"instances": rows}, {"instances": [{"x": row} for row in rows]}):
        asked = PredictRequest.read(json.dumps(document).encode())
        with pytest.raises(InvalidRequest, match=f"element: 7 .*{message}"):
            asked.tensors(signature(spec("u1", 1_000, 2)))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ('{"instances":{"x":%s}}', "Expecting 'instances' to be an list/array"),
        ('{"instances":%s,"inputs":1}', "only one of 'inputs' or 'instances' keys"),
        ('{"signature_name":1,"inputs":%s}', "key must be a string value"),
    ],
)
def test_a_long_array_is_quoted_as_it_was_sent(form: str, message: str) -> None:
    text = (form % json.dumps([1, 2.0] * 1_000)).encode()
    with pytest.raises(InvalidRequest, match=message) as refusal:
        PredictRequest.read(text)
    with pytest.raises(InvalidRequest) as expected:
        read_whole(text)
    assert refusal.value.message == expected.value.message


def test_a_boolean_among_numbers_is_no_number() -> None:
    asked = PredictRequest.of({"instances": [1, True]}, booleans=True)
    with pytest.raises(InvalidRequest, match="Value: true Type: True is not of"):
        asked.tensors(signature(spec("f4")))


def test_a_long_document_is_quoted_in_part() -> None:
    with pytest.raises(InvalidRequest, match="Is not object") as refusal:
        PredictRequest.of([1] * 1_000_000, booleans=False)
    assert len(refusal.value.message) < 4_100


def test_named_rows_become_columns() -> None:
    rows = [{"x": [1, 2], "s": "a"}, {"s": {"b64": "Yg=="}, "x": [3, 4]}]
    found = tensors({"instances": rows}, spec("f4", 2), spec("O", name="s"))
    np.testing.assert_array_equal(found["x"], np.array([[1, 2], [3, 4]], "f4"))
    assert found["s"].tolist() == [b"a", b"b"]


def test_columns_may_have_more_names_than_the_signature() -> None:
    found = tensors({"inputs": {"x": [[1.5]], "z": 1}}, spec("f4", 1))
    assert found.keys() == {"x"}
    assert found["x"].tolist() == [[1.5]]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ('{"instances":[%s]}', (1,)),
        ('{"instances":[[],[]]}', (2, 0)),
        ('{"inputs":%s}', ()),
        ('{"inputs":[]}', (0,)),
        ('{"inputs":[[]]}', (1, 0)),
    ],
)
@pytest.mark.parametrize(("dtype", "value"), [("O", '"a"'), ("f4", "1")])
def test_what_is_walked_may_be_one_value_or_none(
    text: str, shape: tuple[int, ...], dtype: str, value: str
) -> None:
    document = json.loads(text.replace("%s", value))
    asked = PredictRequest.of(document, booleans=True)
    assert asked.tensors(signature(spec(dtype)))["x"].shape == shape


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"instances": [1, "a"]}, "element: 1 of .* Type: String is not of expected"),
        ({"instances": [[1], [[2]]]}, "Expecting tensor shape: .1. but got: .1, 1."),
        ({"instances": [[1], 2]}, "Expecting tensor shape: .1. but got: "),
        ({"instances": [[1, [2]]]}, "Encountered list at unexpected level: 1"),
        ({"instances": [[[1], 2]]}, "found at incorrect level: 2 in the JSON DOM"),
        ({"instances": [{"x": 1}, 2]}, "Expecting object but got value at item 1"),
        ({"inputs": {"y": 1}}, "Missing named input: x in 'inputs' object."),
        ({"instances": [2**70]}, "does not fit int64"),
    ],
)
def test_what_does_not_fit_is_named(document: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        tensors(document, spec("int64", None))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"),
        (np.float32(16777217), "16777216.0"),
        (np.float32(3.4028235e38), "3.40282347e+38"),
        (np.float64(0.1), "0.1"),
        (np.float64(1 / 3), "0.33333333333333331"),
        (np.float16(0.1), "0.0999755859"),
        (np.float32(math.inf), "Infinity"),
        (np.float32(-math.inf), "-Infinity"),
        (np.float32(math.nan), "NaN"),
        (np.float32(-0.0), "-0.0"),
        (np.int64(-(2**63)), "-9223372036854775808"),
        (np.uint8(7), "7"),
        (np.bool_(True), "true"),
    ],
)
def test_a_number_is_written_as_tensorflow_writes_it(value: Any, text: str) -> None:
    assert answers.outputs({"y": np.array(value)}).decode() == (
        f'{{\n    "outputs": {text}\n}}'
    )


@repeatable
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
    )
)
def test_written_numbers_are_the_numbers_again(array: Any) -> None:
    rows = json.loads(answers.predictions({"y": array}))["predictions"]
    columns = json.loads(answers.outputs({"y": array}))["outputs"]
    for found in (rows, columns):
        np.testing.assert_array_equal(np.array(found, array.dtype), array)


def test_strings_are_text_or_base64_by_the_name_of_the_output() -> None:
    values = np.array([b"hi", b"\xff"], object)
    assert json.loads(answers.outputs({"y": values}))["outputs"] == ["hi", "\ufffd"]
    rows = json.loads(answers.predictions({"y_bytes": values}))["predictions"]
    assert rows == [{"b64": "aGk="}, {"b64": "/w=="}]


def test_rows_need_outputs_with_rows() -> None:
    with pytest.raises(EngineFailure, match="Tensor name: y has no shape"):
        answers.predictions({"y": np.array(1.0)})
    with pytest.raises(EngineFailure, match="inconsistent batch size: 3 expecting: 2"):
        answers.predictions({"x": np.zeros(2), "y": np.zeros(3)})
