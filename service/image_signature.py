"""The signature that images go to, and whether it is the one that the card tells of."""

import numpy as np

from models.card import CARD_FILE, ImageInput, ModelCard
from service.engines import Engine
from service.errors import UnsupportedModel
from service.tensors import Signature, TensorSpec


def image_signature(card: ModelCard, engine: Engine) -> Signature | None:
    """The signature with the card's image as its only input, if there is one."""
    if card.image_input is None:
        return None
    for signature in engine.signatures.values():
        is_meant = signature.inputs.keys() == {card.image_input.tensor}
        if is_meant and _difference(card, card.image_input, signature, engine) is None:
            return signature
    return None


def check_card(card: ModelCard, engine: Engine) -> None:
    """Refuse a version whose card is that of another model.

    Compared is what `classify` relies on: the image input, and the output with the
    scores. A model that takes its images with other inputs, or encoded only, is none to
    classify with, and may have any card.

    Raises:
        UnsupportedModel: No signature is as the card tells.
    """
    image = card.image_input
    if image is None:
        return
    signatures = engine.signatures.values()
    named = [one for one in signatures if image.tensor in one.inputs]
    differences = [
        _difference(card, image, one, engine)
        for one in named or signatures
        if _is_for_numbers(one)
    ]
    if differences and None not in differences:
        raise UnsupportedModel(
            f"{differences[0]}; build the version again, or mend its {CARD_FILE}"
        )


def _is_for_numbers(signature: Signature) -> bool:
    """Whether it has a single input, and that is none of encoded images."""
    return len(signature.inputs) == 1 and not any(
        spec.dtype.hasobject for spec in signature.inputs.values()
    )


def _difference(
    card: ModelCard, image: ImageInput, signature: Signature, engine: Engine
) -> str | None:
    """What a card says of the signature with a single input that it does not keep."""
    (found,) = signature.inputs.values()
    told = TensorSpec(
        name=image.tensor, dtype=np.dtype(image.dtype), shape=(None, *image.shape)
    )
    if not _fits(told, found, engine):
        return (
            f"the model card has the image input {told}, and the signature "
            f"{signature.name!r} takes {found}"
        )
    scores = card.scores
    if scores is not None and scores.name not in signature.outputs:
        outputs = ", ".join(map(str, signature.outputs.values()))
        return (
            f"the model card has the output {scores.name!r} with {scores.role}, and "
            f"the signature {signature.name!r} gives {outputs}"
        )
    return None


def _fits(told: TensorSpec, found: TensorSpec, engine: Engine) -> bool:
    """Whether images as told can be given, whatever the size of a batch."""
    return (
        told.name == found.name
        and (engine.casts or told.dtype == found.dtype)
        and len(told.shape) == len(found.shape)
        and all(
            have is None or have == want
            for want, have in zip(told.shape[1:], found.shape[1:], strict=True)
        )
    )
