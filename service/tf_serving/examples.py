"""Requests with examples, which no model here can answer."""

from typing import Literal, NoReturn

from google.protobuf.text_format import MessageToString

from models.card import DEFAULT_SIGNATURE
from service.errors import InvalidRequest
from service.repository import Repository, Target


def refuse(
    repository: Repository,
    target: Target,
    signature_name: str,
    kind: Literal["classification", "regression"],
) -> NoReturn:
    """Say, as the real server does, what a signature takes in place of examples.

    Raises:
        InvalidRequest: Always; or there is no such signature.
        NotFound: There is no such model version.
    """
    name = signature_name or DEFAULT_SIGNATURE
    with repository.lease(target) as served:
        definition = served.signature_defs.get(name)
    if definition is None:
        raise InvalidRequest(f"No signature was found with the name: {name}")
    raise InvalidRequest(
        f"No {kind} inputs found in SignatureDef: {MessageToString(definition)}"
    )
