"""Which output names classes, and which model has none."""

import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from models.card import CARD_FILE, ModelCard, OutputTensor
from service import engines
from service.classification import _probabilities, most_probable
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


@pytest.mark.parametrize(
    "dtype",
    [
        *("bool", "uint8", "uint64", "int8", "int64"),
        *("float16", "bfloat16", "float32", "float64"),
    ],
)
def test_the_largest_scores_come_first_whatever_their_dtype(dtype: str) -> None:
    scores = np.array([[0, 0, 1, 0], [1, 0, 0, 1]], dtype)
    indices, values = most_probable(scores, 3)
    assert indices.tolist() == [[2, 0, 1], [0, 3, 1]]
    assert values.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert values.dtype.kind == "f"


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", [0.5, 1.5, -250]),
        ("int8", [99, 100, -100]),
        ("uint8", [199, 200, 0]),
        ("bool", [False, True]),
    ],
)
def test_logits_become_probabilities_whatever_their_dtype(
    version: Path, dtype: str, values: list[float]
) -> None:
    card = ModelCard.read(version)
    assert card is not None
    outputs = (OutputTensor(name="logits", role="logits"),)
    found = _probabilities(
        card.model_copy(update={"outputs": outputs}),
        {"logits": np.array([values], dtype)},
    )
    assert found.dtype.kind == "f"
    expected = [0.268941, 0.731059, 0][: len(values)]
    np.testing.assert_allclose(found, [expected], atol=1e-6)
