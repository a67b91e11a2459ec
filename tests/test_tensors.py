"""Which tensors others should not wait for."""

import numpy as np
import pytest

from service.tensors import (
    MANY_ELEMENTS,
    MANY_STRING_BYTES,
    Array,
    are_long_to_write,
)


def strings(*lengths: int) -> Array:
    return np.array([b"x" * length for length in lengths], object)


@pytest.mark.parametrize(
    ("arrays", "long"),
    [
        ([], False),
        ([np.zeros((2, MANY_ELEMENTS // 2))], False),
        ([np.zeros(MANY_ELEMENTS), np.zeros(())], True),
        ([strings(*[0] * MANY_ELEMENTS)], False),
        ([strings(*[0] * MANY_ELEMENTS, 0)], True),
        ([strings(MANY_STRING_BYTES)], False),
        ([strings(MANY_STRING_BYTES), strings(1)], True),
    ],
)
def test_many_elements_are_long_to_write_and_so_are_few_long_strings(
    arrays: list[Array], long: bool
) -> None:
    assert are_long_to_write(arrays) == long
