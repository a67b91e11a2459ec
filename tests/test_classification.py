"""Which output names classes, and which model has none."""

import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from models.card import CARD_FILE
from service import engines
from service.engines.stub import StubEngine
from service.served_version import infer_card
from service.tensors import Array, Signature, Tensors, TensorSpec
from tests.support import image_of_class, serving, stub_version

Shape = tuple[int | None, ...]
Classify = Callable[[Signature, int], Awaitable[tuple[int, str, str]]]
FEATURE_MAP: Shape = (None, 7, 7, 8)


class Answering(StubEngine):
    """Answers zeros, of the dtypes and shapes that its signature tells."""

    async def infer(
        self, signature: str, tensors: Tensors, _deadline: float = math.inf, /
    ) -> dict[str, Array]:
        (rows,) = tensors.values()
        return {
            name: np.zeros(
                [len(rows) if size is None else size for size in spec.shape], spec.dtype
            )
            for name, spec in self.signatures[signature].outputs.items()
        }


def spec(name: str, dtype: str, shape: Shape) -> TensorSpec:
    return TensorSpec(name=name, dtype=np.dtype(dtype), shape=shape)


def giving(**outputs: tuple[str, Shape]) -> Signature:
    """A signature that takes 4×4 grey images."""
    return Signature(
        name="serving_default",
        inputs={"images": spec("images", "uint8", (None, 4, 4, 1))},
        outputs={name: spec(name, *what) for name, what in outputs.items()},
    )


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return stub_version(tmp_path)


@pytest.fixture
def classify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Classify:
    """Have a model with a signature classify so many images; answers its refusal."""

    async def classify(signature: Signature, count: int) -> tuple[int, str, str]:
        monkeypatch.setattr(engines, "load", lambda *_, **__: Answering(signature))
        files = [("image", ("one.png", image_of_class(3), "image/png"))] * count
        async with serving(tmp_path, max_batch_size=4) as served:
            answer = await served.client.post("/classify", files=files)
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["message"]

    return classify


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float32", FEATURE_MAP), ("float32", (None,)), ("int64", (None, 10))],
)
async def test_without_a_card_and_a_table_of_fractions_nothing_is_classified(
    version: Path, classify: Classify, dtype: str, shape: Shape, count: int
) -> None:
    """Indexed by class, a large feature map would become gigabytes."""
    (version / CARD_FILE).unlink()
    status, code, message = await classify(giving(features=(dtype, shape)), count)
    assert (status, code) == (400, "not_an_image_model")
    assert "has no output with probabilities" in message


def test_without_a_card_the_first_table_of_fractions_holds_the_probabilities() -> None:
    signature = giving(
        features=("float32", FEATURE_MAP),
        largest=("int64", (None, 5)),
        classes=("bfloat16", (None, 10)),
        embedding=("float32", (None, 64)),
    )
    card = infer_card({signature.name: signature})
    assert {output.name: output.role for output in card.outputs} == {
        "features": "other",
        "largest": "other",
        "classes": "probabilities",
        "embedding": "other",
    }
    assert card.labels == tuple("0123456789")


@pytest.mark.parametrize("role", ["probabilities", "logits"])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float32", FEATURE_MAP), ("float32", (None,)), ("object", (None, 10))],
)
async def test_what_a_card_calls_probabilities_names_classes_only_if_it_is_a_table(
    version: Path, classify: Classify, role: str, dtype: str, shape: Shape
) -> None:
    card = json.loads((version / CARD_FILE).read_text())
    card["outputs"][0]["role"] = role
    (version / CARD_FILE).write_text(json.dumps(card))
    status, code, message = await classify(giving(probabilities=(dtype, shape)), 1)
    assert (status, code) == (400, "not_an_image_model")
    assert "expected probabilities [rows,classes], got " in message
