"""One contract for every engine, and what sets each apart."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from models.card import CARD_FILE, INT8_FILE
from models.datasets import Dataset
from models.quantisation import quantise
from service import engines
from service.engines import Engine
from service.engines.openvino import OpenVinoEngine
from service.errors import UnsupportedModel
from service.settings import EngineChoice, Settings
from service.sources.tfserving import TfServingSource
from tests.support import only, started

ENGINES: tuple[EngineChoice, ...] = ("openvino", "tensorflow", "stub")
# A gateway with the engine `tensorflow` stands for TensorFlow Serving.
REMOTE = ("tfserving", "tfserving over a Unix socket")


@pytest.fixture(scope="session")
def int8_directory(
    version_directory: Path,
    digit_data: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The version with an int8 file, and without a card, which it can do without."""
    copy = tmp_path_factory.mktemp("int8") / "1"
    shutil.copytree(version_directory, copy)
    (copy / CARD_FILE).unlink()
    quantise(copy, {"images": digit_data.train.images}, copy / INT8_FILE)
    return copy


@pytest.fixture(scope="session")
def tensorflow_address(repository: Path) -> Iterator[str]:
    """Where a process serves the build with TensorFlow, over gRPC."""
    served = ("--repository", str(repository), "--engine", "tensorflow")
    with started(*served) as (_, _, lines):
        yield re.findall(r"gRPC at (\S+)", "".join(lines))[0]


@asynccontextmanager
async def forwarded(address: str, directory: Path) -> AsyncIterator[str]:
    """A Unix socket that leads to an address."""
    channel = grpc.aio.insecure_channel(address)

    class Forward(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            async def call(request: bytes, _: Any) -> Any:
                return await channel.unary_unary(details.method)(request)

            return grpc.unary_unary_rpc_method_handler(call)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Forward(),))
    server.add_insecure_port(f"unix:{directory}/socket")
    await server.start()
    yield f"unix:{directory}/socket"
    await server.stop(None)
    await channel.close()


@asynccontextmanager
async def remote(address: str) -> AsyncIterator[Engine]:
    """The engine of what is served at an address."""
    source = TfServingSource(
        Settings(engine="tfserving", tfserving=address, tfserving_models="inception")
    )
    (path,) = (await source.scan())["inception"].values()
    loaded = await source.load("inception", 1, path)
    yield loaded.engine
    await source.close()


@pytest.fixture(scope="session", params=[*ENGINES, "openvino int8", *REMOTE])
async def engine(
    request: pytest.FixtureRequest,
    version_directory: Path,
    int8_directory: Path,
    tensorflow_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Engine]:
    match request.param:
        case "openvino int8":
            yield engines.load("openvino", int8_directory, slots=2)
        case "tfserving":
            async with remote(tensorflow_address) as loaded:
                yield loaded
        case "tfserving over a Unix socket":
            directory = tmp_path_factory.mktemp("socket")
            async with (
                forwarded(tensorflow_address, directory) as address,
                remote(address) as loaded,
            ):
                yield loaded
        case choice:
            yield engines.load(choice, version_directory, slots=2)


def random_images(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (rows, 28, 28, 1), np.uint8)


async def probabilities(engine: Engine, images: np.ndarray[Any, Any]) -> Any:
    answer = await engine.infer("serving_default", {"images": images})
    assert answer.keys() == {"probabilities"}
    return answer["probabilities"]


def test_an_engine_tells_its_signature(engine: Engine) -> None:
    signature = engine.signatures["serving_default"]
    assert str(only(signature.inputs.values())) == "images uint8[batch,28,28,1]"
    assert str(only(signature.outputs.values())) == "probabilities float32[batch,10]"
    assert signature.batched


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
async def test_an_engine_answers_each_row_of_any_batch(
    engine: Engine, rows: int
) -> None:
    answer = await probabilities(engine, random_images(rows))
    assert (answer.shape, answer.dtype) == ((rows, 10), np.float32)
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)


async def test_a_row_has_the_same_answer_alone_and_in_a_batch(engine: Engine) -> None:
    images = random_images(5)
    together = await probabilities(engine, images)
    for index in range(5):
        alone = await probabilities(engine, images[index : index + 1])
        np.testing.assert_allclose(alone[0], together[index], atol=1e-4)


async def test_an_answer_stays_as_it_is_when_the_next_batch_runs(
    engine: Engine,
) -> None:
    first = await probabilities(engine, random_images(3, seed=1))
    before = first.copy()
    await probabilities(engine, random_images(3, seed=2))
    np.testing.assert_array_equal(first, before)


async def test_calls_in_all_slots_at_once_get_their_own_answers(engine: Engine) -> None:
    batches = [random_images(2, seed=seed) for seed in range(8)]
    expected = [await probabilities(engine, batch) for batch in batches]
    answers = await asyncio.gather(*(probabilities(engine, b) for b in batches))
    for answer, want in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, want, atol=1e-5)


async def test_an_engine_that_casts_takes_images_of_another_dtype(
    engine: Engine,
) -> None:
    """So a card may tell another dtype than the signature has."""
    if engine.casts:
        images = random_images(3)
        answer = await probabilities(engine, images.astype(np.float32))
        np.testing.assert_array_equal(answer, await probabilities(engine, images))


async def test_openvino_and_tensorflow_give_the_same_probabilities(
    version_directory: Path, digit_data: Dataset
) -> None:
    images = digit_data.held_out.images[:64]
    answers = []
    for choice in ("openvino", "tensorflow"):
        loaded = engines.load(choice, version_directory, slots=None)
        answers.append(await probabilities(loaded, images))
        loaded.close()
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-3)


async def test_tensorflow_also_runs_the_signature_that_decodes_images(
    version_directory: Path, digit_data: Dataset
) -> None:
    loaded = engines.load("tensorflow", version_directory, slots=None)
    sample = (version_directory / "assets.extra/sample.png").read_bytes()
    encoded = np.array([sample, sample], object)
    answer = await loaded.infer("serving_bytes", {"image_bytes": encoded})
    pixels = digit_data.held_out.images[:1]
    expected = await probabilities(loaded, pixels)
    np.testing.assert_allclose(answer["probabilities"][1], expected[0], atol=1e-5)
    loaded.close()


async def test_openvino_takes_a_versions_int8_file_and_runs_it_in_int8(
    version_directory: Path, int8_directory: Path, digit_data: Dataset
) -> None:
    images = digit_data.held_out.images[:256]
    guesses, precisions = [], []
    for directory in (version_directory, int8_directory):
        loaded = OpenVinoEngine.load(directory, slots=1)
        guesses.append((await probabilities(loaded, images)).argmax(axis=1))
        precisions.append(convolution_precisions(loaded))
        loaded.close()
    assert precisions == [{"f32"}, {"u8"}]
    assert np.mean(guesses[0] == guesses[1]) > 0.95


def convolution_precisions(loaded: OpenVinoEngine) -> set[str]:
    """What the convolutions take, as they run after all rewriting."""
    running = loaded._idle.get().request.get_compiled_model().get_runtime_model()
    layers = [operation.get_rt_info() for operation in running.get_ops()]
    return {
        layer["runtimePrecision"].value
        for layer in layers
        if layer["layerType"].value == "Convolution"
    }


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
@pytest.mark.parametrize("share_left", [0, 0.5])
def test_a_damaged_int8_file_is_refused_by_its_name(
    int8_directory: Path, tmp_path: Path, suffix: str, share_left: float
) -> None:
    copy = tmp_path / "1"
    shutil.copytree(int8_directory, copy)
    part = (copy / INT8_FILE).with_suffix(suffix)
    part.write_bytes(part.read_bytes()[: int(share_left * part.stat().st_size)])
    with pytest.raises(UnsupportedModel, match=rf"OpenVINO cannot load {INT8_FILE}: "):
        engines.load("openvino", copy, slots=1)


def test_auto_takes_openvino_where_it_can(version_directory: Path) -> None:
    loaded = engines.load("auto", version_directory, slots=None)
    assert loaded.kind == "openvino"
    loaded.close()


def damaged(version_directory: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "1"
    shutil.copytree(version_directory, copy)
    (copy / "saved_model.pb").write_bytes(b"damaged")
    return copy


def test_a_damaged_model_says_what_each_engine_found(
    version_directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=r"OpenVINO.*TensorFlow"):
        engines.load("auto", damaged(version_directory, tmp_path), slots=None)


def test_without_tensorflow_auto_says_what_to_install(
    version_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    with pytest.raises(UnsupportedModel, match=r"pip install 'blockserve\[tensorflow"):
        engines.load("auto", damaged(version_directory, tmp_path), slots=None)


def test_a_directory_without_a_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"saved_model\.pb"):
        engines.load("auto", tmp_path, slots=None)


def test_the_stub_needs_a_card(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(UnsupportedModel, match="card"):
        engines.load("stub", tmp_path, slots=None)
