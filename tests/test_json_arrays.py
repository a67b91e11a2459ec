"""Long arrays of numbers in JSON: what any reader makes of them, only sooner."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.http import json_arrays
from service.http.json_arrays import NumberArray, array_of, stacked, take_out

repeatable = settings(derandomize=True, database=None, deadline=None)

NUMBERS = hnp.arrays(
    st.sampled_from([np.int64, np.float64]),
    hnp.array_shapes(max_dims=5, max_side=4),
    elements=hnp.from_dtype(np.dtype("int8")),
) | hnp.arrays(
    np.float64,
    hnp.array_shapes(max_dims=3),
    elements=st.floats(allow_nan=False, allow_infinity=False),
)
FORMS = [
    '{"data":%s}',
    '{"a": {"data": %s }, "b": 1}',
    '[1, {"b": [], "data" :%s, "c": "true"}, "data"]',
    '{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%s}]}',
]


@contextmanager
def cut_small() -> Iterator[None]:
    """Short texts as long ones are: arrays are looked for, and read in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "SHORTEST_BYTES", 1)
        patch.setattr(json_arrays, "PIECE_BYTES", 40)
        yield


def plain(value: Any) -> Any:
    match value:
        case NumberArray():
            return value.tolist()
        case list():
            return [plain(one) for one in value]
        case dict():
            return {name: plain(one) for name, one in value.items()}
    return value


def taken(array: str) -> NumberArray | None:
    """What is taken out where there is only one array."""
    with cut_small():
        arrays = take_out(b'{"data":%b}' % array.encode()).arrays
    assert len(arrays) <= 1
    return arrays[0] if arrays else None


def nested(depth: int) -> str:
    return "[" * depth + "1" + "]" * depth


@repeatable
@given(
    NUMBERS,
    st.sampled_from(FORMS),
    st.sampled_from([",", ", ", " ,\n\t"]),
    st.sampled_from([None, 1]),
)
def test_an_array_is_the_one_that_numpy_makes_of_lists(
    array: Any, form: str, comma: str, indent: int | None
) -> None:
    written = json.dumps(array.tolist(), separators=(comma, ": "), indent=indent)
    text = (form % written).encode()
    with cut_small():
        parts = take_out(text)
        document = parts.document(orjson.loads)
    assert plain(document) == orjson.loads(text)
    (found,) = [one for one in parts.arrays if one.text == written.encode()]
    expected = np.array(array.tolist())
    assert found.values.dtype == expected.dtype
    np.testing.assert_array_equal(found.values, expected)


@pytest.mark.parametrize("shape", [(2, 96, 96, 3), (70_000,), (20_000, 1), (1, 9_999)])
def test_long_arrays_are_read_in_pieces(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(-(2**63), 2**63, shape)
    text = orjson.dumps({"a": {"b": array.tolist()}, "c": [(array / 7).tolist()]})
    parts = take_out(text)
    document = parts.document(orjson.loads)
    np.testing.assert_array_equal(document["a"]["b"].values, array)
    np.testing.assert_array_equal(document["c"].values, [array / 7])
    assert parts.rest == b'{"a":{"b":"\\u00000"},"c":"\\u00001"}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-0", 0),
        ("-0.0", -0.0),
        ("1e2", 100.0),
        ("1E-400", 0.0),
        ("9007199254740993", 2**53 + 1),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("0.1", 0.1),
        ("1.7976931348623157e308", 1.7976931348623157e308),
    ],
)
def test_a_number_keeps_its_value_and_type(text: str, value: float) -> None:
    found = taken(f"[{text}]")
    assert found is not None
    assert repr(found.values.tolist()) == repr([value])
    assert repr(found.tolist()) == repr([value])


@pytest.mark.parametrize(
    "array",
    [
        # Not dense.
        "[[1,2],[3]]",
        "[[1],[2,3]]",
        "[[1,2],3]",
        "[1,[2]]",
        "[[[1],[2]],[[3]]]",
        "[]",
        "[[],[]]",
        "[[1],[]]",
        "[[1],[],[2,3]]",
        nested(33),
        # Not numbers alone.
        "[1,true]",
        "[1,null]",
        '["a",1]',
        "[1,{}]",
        # Not of 64 bits, or such that NumPy makes floats of some and not of others.
        "[9223372036854775808]",
        "[1,18446744073709551615]",
        "[18446744073709551616]",
        "[-9223372036854775809]",
        "[1e309]",
        # Not JSON.
        "[NaN]",
        "[Infinity]",
        "[1 2]",
        "[1,,2]",
        "[1,]",
        "[,1]",
        "[01]",
        "[+1]",
        "[.5]",
        "[1.]",
        "[-]",
        "[1[2]]",
        "[[1]2]",
        "[[]1]",
        "[2[],1]",
        "[[1][2]]",
        "[[1,2],5[3,]]",
        "[1]]",
        "[[1]",
        "[1] [2]",
    ],
)
def test_what_is_not_dense_or_not_numbers_stays(array: str) -> None:
    assert taken(array) is None


def test_what_is_no_array_of_numbers_is_so_in_every_piece() -> None:
    """Each is the end of an array that is long enough for many pieces."""
    with cut_small():
        for end in ["true", "[1]", "1 2", "", "0x", "1]", "9223372036854775808"]:
            text = b'{"data":[%b%b]}' % (b"12345," * 50, end.encode())
            assert not take_out(text).arrays


def test_no_piece_without_a_comma_is_read() -> None:
    with cut_small():
        assert not take_out(b'{"data":[1,%b2]}' % (b" " * 100)).arrays


def test_only_long_members_are_taken() -> None:
    ones = b"1," * (json_arrays.SHORTEST_BYTES // 2)
    assert len(take_out(b'{"a":[%b1]}' % ones).arrays) == 1
    for text in (b'{"a":[%b1]}' % ones[20:], b"[%b1]" % ones, b'["a",[%b1]]' % ones):
        parts = take_out(text)
        assert (parts.rest, list(parts.arrays)) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ": [1, 2, 3]"}',
        '{"a": ": [1, 2, 3", "b": [1]}',
        '{"a\\"": [1, 2, 3], "b": "\\u00000"}',
        '{": [1, 2]": [3, 4], "b": [[5], [6]]}',
        '{"a": [1, 2], "a": [3, 4]}',
        '[[1, 2], "a", [3, 4], "b"]',
        '{"a": [1], "b": {"c": [[1.5]], "d": [{"e": [true]}, {"e": [2]}]}}',
    ],
)
def test_a_document_is_the_same_with_and_without_arrays(text: str) -> None:
    with cut_small():
        document = take_out(text.encode()).document(orjson.loads)
    assert plain(document) == orjson.loads(text)


@repeatable
@given(st.data())
def test_what_is_not_json_is_refused_as_a_whole(data: Any) -> None:
    array = json.dumps(data.draw(NUMBERS).tolist())
    text = data.draw(st.sampled_from(FORMS)) % array
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(text) - 1))
        new = data.draw(st.sampled_from(["", *'[]{},:"01 .e-t\\\n\0']))
        text = text[:at] + new + text[at + data.draw(st.integers(0, 1)) :]
    outcomes = []
    with cut_small():
        for read in (take_out(text.encode()).document, lambda loads: loads(text)):
            try:
                outcomes.append(repr(plain(read(orjson.loads))))
            except orjson.JSONDecodeError as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("[0,255]", "u1", [0, 255]),
        ("[0,256]", "u1", None),
        ("[-1]", "u1", None),
        ("[-128,127]", "i1", [-128, 127]),
        ("[-1]", "u8", None),
        ("[1.0]", "i4", None),
        ("[1e5]", "i4", None),
        ("[1,2]", "f4", [1, 2]),
        ("[1,2.5]", "f4", [1, 2.5]),
        ("[16777217]", "f4", [16777216]),
        # To double and then to single precision, it would be 2**60.
        ("[1152921573326323713]", "f4", [2**60 + 2**37]),
        ("[1e39,-1e39]", "f4", [np.inf, -np.inf]),
        ("[65520]", "f2", [np.inf]),
        ("[1]", "?", None),
        ("[1]", "O", None),
        ("[1]", "c8", None),
    ],
)
def test_numbers_are_of_a_type_where_it_can_hold_them(
    text: str, dtype: str, expected: Any
) -> None:
    for value in (taken(text), json.loads(text)):
        assert value is not None
        found = array_of(value, np.dtype(dtype), booleans=False)
        if expected is None:
            assert found is None
        else:
            assert found is not None
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, np.array(expected, dtype))


def test_a_boolean_in_a_list_is_a_boolean_only() -> None:
    assert array_of([True, 1], np.dtype("i4"), booleans=True) is None
    found = array_of([True, False], np.dtype("?"), booleans=True)
    assert found is not None
    assert found.tolist() == [True, False]


def test_rows_of_one_shape_are_one_array() -> None:
    def rows(*texts: str) -> Any:
        return stacked([taken(text) or json.loads(text) for text in texts])

    np.testing.assert_array_equal(
        rows("[[1],[2]]", "[[3],[4]]"), [[[1], [2]], [[3], [4]]]
    )
    assert rows("[9007199254740993]", "[0.5]").dtype == np.float64
    assert rows("[1,2]", "[3]") == [[1, 2], [3]]
    assert rows("[1,2]", "[true,4]") == [[1, 2], [True, 4]]
    assert rows("[]", "[]") == [[], []]
