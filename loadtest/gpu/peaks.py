"""What chips can do at best, to hold against what they did."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from loadtest.gpu.results import Precision

Peaks = Mapping[Precision, float]


def _peaks(
    float32: float,
    tf32: float | None = None,
    float16: float | None = None,
    bfloat16: float | None = None,
) -> Peaks:
    given: dict[Precision, float | None] = {
        "float32": float32,
        "tf32": tf32,
        "float16": float16,
        "bfloat16": bfloat16,
    }
    return {name: peak for name, peak in given.items() if peak is not None}


_A100: Final = _peaks(19.5, 156, 312, 312)
_HOPPER_SXM: Final = _peaks(67, 494.5, 989.5, 989.5)
_HOPPER_NVL: Final = _peaks(60, 417.5, 835.5, 835.5)

# Tera floating-point operations per second from NVIDIA's data sheets, which print those
# of tensor cores for sparse matrices from Hopper and Ada on: half of that is what dense
# ones allow. float32 is that of the ordinary cores. The RTX 4090 adds up in float32, as
# the runtimes do; in float16 it would be twice as fast (Ada architecture whitepaper,
# appendix A). The B200's are an eighth of the HGX B200's. Names are matched as a whole:
# an A10G, a laptop's chip or a MIG slice are not what they resemble.
CHIPS: Final[Mapping[str, Peaks]] = MappingProxyType(
    {
        r"V100-SXM2-\d+GB": _peaks(15.7, float16=125),
        r"V100-PCIE-\d+GB": _peaks(14, float16=112),
        r"T4": _peaks(8.1, float16=65),
        r"A10": _peaks(31.2, 62.5, 125, 125),
        r"A100-SXM4-\d+GB|A100-PCIE-40GB|A100 80GB PCIe": _A100,
        r"L4": _peaks(30.3, 60, 121, 121),
        r"L40S": _peaks(91.6, 183, 362, 362),
        r"H100 80GB HBM3": _HOPPER_SXM,
        r"H100 PCIe": _peaks(51, 378, 756.5, 756.5),
        r"H100 NVL": _HOPPER_NVL,
        r"H200": _HOPPER_SXM,
        r"H200 NVL": _HOPPER_NVL,
        r"GeForce RTX 4090": _peaks(82.6, 82.6, 165.2, 165.2),
        r"B200": _peaks(75, 1125, 2250, 2250),
    }
)


def peaks_of(device: str) -> Peaks:
    """Dense tera operations per second by precision; empty for a chip not listed.

    Args:
        device: Its name, as its driver tells it.
    """
    for pattern, peaks in CHIPS.items():
        if re.fullmatch(rf"(?:(?:NVIDIA|Tesla) )*(?:{pattern})", device):
            return peaks
    return {}
