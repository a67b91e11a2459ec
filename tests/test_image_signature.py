"""Whether a model is what its card tells, and which signature images go to."""

import re
from typing import Any

import numpy as np
import pytest

from models.card import CARD_FILE, ModelCard, OutputTensor
from service.engines.stub import StubEngine
from service.errors import UnsupportedModel
from service.image_signature import check_card, image_signature
from service.served_version import infer_card
from service.tensors import Signature, TensorSpec

Shape = tuple[int | None, ...]
PIXELS: tuple[str, Shape] = ("uint8", (None, 28, 32, 3))
STRINGS: tuple[str, Shape] = ("object", (None,))
CLASSES: tuple[str, Shape] = ("float32", (None, 10))


def specs(tensors: dict[str, tuple[str, Shape]]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(name=name, dtype=np.dtype(dtype), shape=shape)
        for name, (dtype, shape) in tensors.items()
    }


def signature(
    name: str = "serving_default",
    *,
    outputs: tuple[str, ...] = ("scores",),
    **inputs: tuple[str, Shape],
) -> Signature:
    return Signature(
        name=name,
        inputs=specs(inputs or {"images": PIXELS}),
        outputs=specs(dict.fromkeys(outputs, CLASSES)),
    )


def running(*signatures: Signature, casts: bool = False) -> StubEngine:
    engine = StubEngine(signatures[0])
    engine.signatures = {one.name: one for one in signatures}
    engine.casts = casts
    return engine


CARD = infer_card({"serving_default": signature()})


def telling(**image: Any) -> ModelCard:
    """The card with another image input."""
    assert CARD.image_input is not None
    changed = CARD.image_input.model_copy(update=image)
    return CARD.model_copy(update={"image_input": changed})


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ({"tensor": "image"}, "image uint8[batch,28,32,3]"),
        ({"height": 32}, "images uint8[batch,32,32,3]"),
        ({"width": 28}, "images uint8[batch,28,28,3]"),
        (
            {"channels": 1, "colour_order": "grey"},
            "images uint8[batch,28,32,1]",
        ),
        ({"dtype": "float32"}, "images float32[batch,28,32,3]"),
    ],
)
def test_an_image_input_that_the_model_does_not_have_is_refused(
    image: dict[str, Any], told: str
) -> None:
    expected = re.escape(
        f"the model card has the image input {told}, and the signature "
        "'serving_default' takes images uint8[batch,28,32,3]; build the version "
        f"again, or mend its {CARD_FILE}"
    )
    engine = running(signature(), signature("serving_bytes", image_bytes=STRINGS))
    with pytest.raises(UnsupportedModel, match=f"^{expected}$"):
        check_card(telling(**image), engine)


@pytest.mark.parametrize("shape", [(None, 2688), (None, 1, 28, 32, 3), (None,)])
def test_an_image_input_of_another_rank_is_refused(shape: Shape) -> None:
    with pytest.raises(UnsupportedModel, match="the image input images"):
        check_card(CARD, running(signature(images=("uint8", shape))))


def test_an_output_with_scores_that_the_model_does_not_have_is_refused() -> None:
    engine = running(signature(outputs=("kind", "features")))
    with pytest.raises(
        UnsupportedModel,
        match=re.escape(
            "the model card has the output 'scores' with probabilities, and the "
            "signature 'serving_default' gives kind float32[batch,10], features "
            "float32[batch,10]; build"
        ),
    ):
        check_card(CARD, engine)


@pytest.mark.parametrize(
    "shape", [(None, None, None, 3), (None, None, 32, None), (1, 28, 32, 3)]
)
def test_free_dimensions_fit_any_size_and_a_fixed_batch_any_card(shape: Shape) -> None:
    engine = running(signature(images=("uint8", shape)))
    check_card(CARD, engine)
    assert image_signature(CARD, engine) is engine.signatures["serving_default"]


def test_an_engine_that_casts_takes_a_card_of_another_dtype() -> None:
    card = telling(dtype="float32")
    engine = running(signature(), casts=True)
    check_card(card, engine)
    assert image_signature(card, engine) is not None


@pytest.mark.parametrize(
    "signatures",
    [
        [signature(images=PIXELS, scale=("float32", ()))],
        [signature(left=PIXELS, right=PIXELS)],
        [signature("serving_bytes", image_bytes=STRINGS)],
        [signature(images=STRINGS)],
        [signature(images=PIXELS, scale=("float32", ())), signature("x", x=CLASSES)],
    ],
    ids=["with another", "several", "encoded", "encoded, same name", "elsewhere"],
)
def test_a_model_that_takes_no_image_alone_serves_with_any_card(
    signatures: list[Signature],
) -> None:
    engine = running(*signatures)
    check_card(CARD, engine)
    assert image_signature(CARD, engine) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"image_input": None, "outputs": (OutputTensor(name="y", role="logits"),)},
        {"outputs": (*CARD.outputs, OutputTensor(name="gone", role="other"))},
        {"outputs": (*CARD.outputs, OutputTensor(name="gone", role="logits"))},
        {"outputs": ()},
        {"labels": ("only",)},
        {"encoded_input": "gone"},
    ],
)
def test_what_classify_does_not_need_is_not_compared(changes: dict[str, Any]) -> None:
    engine = running(signature(), signature("serving_bytes", image_bytes=STRINGS))
    check_card(CARD.model_copy(update=changes), engine)


def test_images_go_to_the_signature_that_is_as_the_card_tells() -> None:
    engine = running(
        signature("small", images=("uint8", (None, 14, 16, 3))),
        signature("features", outputs=("features",)),
        signature("classes"),
    )
    check_card(CARD, engine)
    assert image_signature(CARD, engine) is engine.signatures["classes"]
