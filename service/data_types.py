"""How TensorFlow names the types of tensors."""

from typing import Any, Final

import numpy as np

_NAMES: Final = {
    "bool": "bool",
    "float16": "half",
    "float32": "float",
    "float64": "double",
    "object": "string",
}


def type_name(dtype: np.dtype[Any]) -> str:
    """As in TensorFlow's messages: `uint8`, `float`, `string`."""
    return _NAMES.get(dtype.name, dtype.name)


def enum_name(dtype: np.dtype[Any]) -> str:
    """As in its `DataType`: `DT_UINT8`, `DT_FLOAT`, `DT_STRING`."""
    return f"DT_{type_name(dtype).upper()}"
