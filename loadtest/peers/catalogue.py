"""Which peers there are, what each needs installed, and how it is started and asked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from loadtest.harness.image_requests import (
    MakeRequest,
    multipart,
    open_inference,
    raw,
)
from loadtest.harness.workloads import FIRST_LABEL

MILLISECONDS: Final = 1000
# In the outputs of the Open Inference Protocol, labels are the data of a tensor.
FIRST_TENSOR_LABEL: Final = re.compile(rb'"data": ?\["[^"]*"')
OPENVINO: Final = ("openvino==2026.4.1", "pillow==13.0.0")
FASTAPI: Final = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0")


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to configure a server, as variables that its module reads."""

    name: str
    environment: Mapping[str, str]


def batches(
    *sizes: int, seconds: float | None = None, workers: int = 1
) -> Sequence[Variant]:
    """Batch sizes.

    Args:
        sizes: In rows.
        seconds: How long a batch waits for company; `None` for servers that find that
            out by themselves.
        workers: Processes that run the model.
    """
    wait = "adaptive" if seconds is None else f"{seconds * MILLISECONDS:.0f} ms"
    return tuple(
        Variant(
            f"batches of {size}, {wait}, {_workers(workers)}",
            {
                "PEER_BATCH_SIZE": str(size),
                "PEER_BATCH_SECONDS": str(seconds or 0),
                "PEER_WORKERS": str(workers),
            },
        )
        for size in sizes
    )


def single(*, workers: int = 1) -> Variant:
    """No batches: each request by itself, and at once."""
    (variant,) = batches(1, seconds=0, workers=workers)
    return replace(variant, name=f"no batches, {_workers(workers)}")


def uvicorn_workers(*counts: int) -> Sequence[Variant]:
    """Processes of uvicorn, which reads this variable itself."""
    return tuple(
        Variant(_workers(count), {"WEB_CONCURRENCY": str(count)}) for count in counts
    )


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server to compare with.

    Attributes:
        title: As it is shown.
        requirements: What pip installs.
        command: What follows its environment's `python -m`; `{port}` is filled in.
        request: An image as this server wants it.
        variants: Configurations of which the fastest is compared, at each number of
            connections; the first is that of its documentation.
        answer: Finds the first label in its answer.
        is_floor: With one connection it is the least that Python, HTTP and the engine
            can take, for nobody else is served meanwhile; there it is no rival.
    """

    title: str
    requirements: Sequence[str]
    command: Sequence[str]
    request: MakeRequest
    variants: Sequence[Variant]
    answer: re.Pattern[bytes] = FIRST_LABEL
    is_floor: bool = False


def _uvicorn(module: str) -> Sequence[str]:
    return (
        "uvicorn",
        f"loadtest.peers.{module}:app",
        "--port={port}",
        "--no-access-log",
    )


PEERS: Final[Mapping[str, Peer]] = {
    "fastapi_tensorflow": Peer(
        title="FastAPI, TensorFlow",
        requirements=(*FASTAPI, "tensorflow-cpu==2.21.0", "pillow==13.0.0"),
        command=_uvicorn("fastapi_tensorflow"),
        request=raw("/classify"),
        variants=uvicorn_workers(1, 2),
    ),
    "fastapi_openvino": Peer(
        title="FastAPI, OpenVINO",
        requirements=(*FASTAPI, *OPENVINO),
        command=_uvicorn("fastapi_openvino"),
        request=raw("/classify"),
        variants=uvicorn_workers(1, 2),
        is_floor=True,
    ),
    "litserve": Peer(
        title="LitServe, OpenVINO",
        requirements=("litserve==0.2.19", "python-multipart==0.0.34", *OPENVINO),
        command=("loadtest.peers.litserve",),
        request=multipart("/classify"),
        variants=(
            *batches(16, 64, seconds=0.002),
            *batches(64, seconds=0.01),
            *batches(16, seconds=0.002, workers=2),
            single(),
        ),
    ),
    "bentoml": Peer(
        title="BentoML, OpenVINO",
        requirements=("bentoml==1.4.39", *OPENVINO),
        command=(
            *("bentoml", "serve", "loadtest.peers.bentoml:Classifier"),
            *("--host=127.0.0.1", "--port={port}"),
        ),
        request=multipart("/classify"),
        variants=(*batches(32, 100), *batches(32, workers=2), single()),
    ),
    "mlserver": Peer(
        title="MLServer, OpenVINO",
        requirements=("mlserver==1.7.1", "uvloop==0.21.0", *OPENVINO),
        command=("loadtest.peers.mlserver",),
        request=open_inference("/v2/models/inception/infer"),
        variants=(
            *batches(32, 64, seconds=0.005),
            *batches(32, seconds=0.02),
            *batches(32, seconds=0.005, workers=0),
            single(),
            single(workers=0),
        ),
        answer=FIRST_TENSOR_LABEL,
    ),
    "ray_serve": Peer(
        title="Ray Serve, OpenVINO",
        requirements=("ray[serve]==2.60.0", *OPENVINO),
        command=("loadtest.peers.ray_serve",),
        request=raw("/classify"),
        variants=(
            *batches(32, 64, seconds=0.005),
            *batches(32, seconds=0.02),
            *batches(32, seconds=0.005, workers=2),
            single(),
        ),
    ),
}


def chosen(names: str) -> list[str]:
    """Split names at their commas.

    Raises:
        SystemExit: There is no such peer.
    """
    found = names.split(",")
    if unknown := set(found) - set(PEERS):
        raise SystemExit(
            f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}"
        )
    return found


def interpreter(environments: Path, name: str) -> Path:
    """The Python of a peer's environment."""
    return environments / name / "bin" / "python"
