"""What the outputs of an original mean, and what the network makes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from models.card import OutputTensor
from models.datasets import Images
from models.importing.failures import ImportFailed
from models.importing.originals import Array

PROBES: Final = 11  # no size that a model is likely to have
# Half precision rounds a thousand probabilities to a sum that is off by as much.
SUM_TOLERANCE: Final = 5e-3
TABLE_RANK: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """An output of the network, and the one of the original that it comes from.

    `from_single` marks those where one number stands for two classes.
    """

    source: str
    tensor: OutputTensor
    from_single: bool

    def of(self, answer: Any, concatenate: Callable[..., Any]) -> Any:
        """The network's output for the original's, in Keras as in NumPy."""
        if not self.from_single:
            return answer
        other = 1 - answer if self.tensor.role == "probabilities" else 0 * answer
        return concatenate([other, answer], axis=-1)


def probes(image_shape: tuple[int, int, int]) -> Images:
    """Noise of all brightnesses and contrasts, to judge a model by its answers."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (PROBES, *image_shape))
    level = random.integers(0, 256, (PROBES, 1, 1, 1))
    contrast = np.linspace(0, 1, PROBES).reshape(-1, 1, 1, 1)
    return (contrast * noise + (1 - contrast) * level).astype(np.uint8)


def judge(answers: Mapping[str, Array]) -> tuple[tuple[Output, ...], int]:
    """What each output means, by the answers to the probes; and how many classes.

    Raises:
        ImportFailed: They are not those of a classifier of single images.
    """
    for name, values in answers.items():
        if values.shape[:1] != (PROBES,):
            raise ImportFailed(
                f"the model's output {name} has the shape {list(values.shape)} for "
                f"{PROBES} images; expected a row for each"
            )
    tables = [values for values in answers.values() if values.ndim == TABLE_RANK]
    if not tables:
        found = ", ".join(
            f"{name} [{', '.join(['N', *map(str, values.shape[1:])])}]"
            for name, values in answers.items()
        )
        raise ImportFailed(f"the model answers {found}; expected [N, classes]")
    width = max(tables, key=_likelihood).shape[1]
    outputs = []
    for name, values in answers.items():
        role = _role(values, width)
        tensor = OutputTensor(name=name if len(answers) > 1 else role, role=role)
        from_single = role != "other" and width == 1
        outputs.append(Output(source=name, tensor=tensor, from_single=from_single))
    return tuple(outputs), max(width, 2)


def _likelihood(table: Array) -> tuple[bool, bool]:
    """Sorts by how much an output looks like the answer of a classifier."""
    return table.shape[1] > 1, _are_probabilities(table)


def _role(values: Array, width: int) -> Literal["probabilities", "logits", "other"]:
    if values.shape[1:] != (width,):
        return "other"
    return "probabilities" if _are_probabilities(values) else "logits"


def _are_probabilities(table: Array) -> bool:
    if not ((table >= 0) & (table <= 1 + SUM_TOLERANCE)).all():
        return False
    sums = table.sum(axis=1)
    return table.shape[1] == 1 or bool(np.allclose(sums, 1, rtol=0, atol=SUM_TOLERANCE))
