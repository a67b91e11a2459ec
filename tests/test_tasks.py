"""What networks are asked for, and how their answers are scored."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from models.datasets import Dataset, Split
from models.tasks import Classification, Comparison

Array = np.ndarray[Any, Any]


def pixels_of(values: list[int]) -> Array:
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


def dataset(pixels: list[int], classes: list[int], **changes: Any) -> Dataset:
    """Images of one pixel; a network could read off their class."""
    split = Split(images=pixels_of(pixels), classes=np.array(classes))
    options: dict[str, Any] = {"kind": "digits", "labels": tuple("0123456789")}
    return Dataset(
        name="pixels",
        train=split,
        validation=split,
        held_out=split,
        originals=(),
        **{**options, **changes},
    )


def reading(images: Mapping[str, Array]) -> dict[str, Array]:
    """Takes the pixel for the class."""
    return {"probabilities": np.eye(256)[images["images"][:, 0, 0, 0]]}


def test_accuracy_is_the_share_of_right_guesses_in_each_polarity() -> None:
    """Seven pixels say their class, two say it once inverted, one never does."""
    pixels = [0, 1, 2, 3, 4, 5, 6, 255 - 7, 255 - 8, 3]
    data = dataset(pixels, list(range(10)))

    def guess(images: Mapping[str, Array]) -> dict[str, Array]:
        return {"probabilities": reading(images)["probabilities"][:, :10]}

    light, dark = Classification().score(guess, data).accuracy
    assert (light.data, light.samples, light.value) == (
        "pixels, held out, light on dark",
        10,
        0.7,
    )
    # Where no pixel is lit, the first class is as good as any.
    assert (dark.data, dark.value) == ("pixels, held out, dark on light", 0.3)


def test_accuracy_is_told_for_each_label_that_has_images() -> None:
    data = dataset(
        [0, 0, 1, 0], [0, 0, 1, 1], kind="photographs", labels=("a", "b", "c")
    )

    def guess(images: Mapping[str, Array]) -> dict[str, Array]:
        return {"probabilities": reading(images)["probabilities"][:, :3]}

    scores = Classification().score(guess, data)
    assert scores.accuracy[0].labels == {"a": 1.0, "b": 0.5}
    assert scores.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert scores.overall == 0.75


def test_logits_are_scored_under_their_own_name() -> None:
    data = dataset([0, 1], [0, 1], kind="photographs", labels=("a", "b"))
    scores = Classification("logits").score(
        lambda images: {"logits": 10 * reading(images)["probabilities"][:, :2] - 5},
        data,
    )
    assert scores.accuracy[0].value == 1


def test_more_images_than_a_batch_keep_their_order() -> None:
    classes = np.random.default_rng(0).integers(0, 10, 1000).tolist()
    data = dataset(classes, classes, kind="photographs")
    sizes = []

    def guess(images: Mapping[str, Array]) -> dict[str, Array]:
        sizes.append(len(images["images"]))
        return {"probabilities": reading(images)["probabilities"][:, :10]}

    assert Classification().score(guess, data).accuracy[0].value == 1
    assert max(sizes) <= 64
    assert sum(sizes) == 1000


def comparing(images: Mapping[str, Array]) -> dict[str, Array]:
    """Compares the pixels, and takes each for its class."""
    left, right = (images[side][:, 0, 0, 0] for side in ("left", "right"))
    return {
        "same": (left == right).astype(np.float32)[:, None],
        "left_probabilities": np.eye(256)[left][:, :10],
        "right_probabilities": np.eye(256)[right][:, :10],
    }


def test_pairs_and_their_images_are_scored_apart() -> None:
    classes = [0, 1, 2, 3] * 25
    data = dataset(classes, classes, kind="photographs")
    pairs, images = Comparison().score(comparing, data).accuracy
    assert (pairs.data, pairs.samples) == ("pairs: pixels, held out", 100)
    assert (images.data, images.samples) == ("pixels, held out", 100)
    assert pairs.value == images.value == 1
    assert pairs.labels == {}


def test_who_always_says_that_two_images_differ_is_right_half_of_the_time() -> None:
    classes = [0, 1, 2, 3] * 100
    data = dataset(classes, classes, kind="photographs")

    def never(images: Mapping[str, Array]) -> dict[str, Array]:
        return {**comparing(images), "same": np.zeros((len(images["left"]), 1))}

    pairs, _ = Comparison().score(never, data).accuracy
    assert 0.4 < pairs.value < 0.6


def test_the_pairs_to_measure_with_are_the_same_each_time() -> None:
    classes = np.random.default_rng(0).integers(0, 10, 50).tolist()
    data = dataset(classes, classes)
    seen: list[bytes] = []

    def guess(images: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(images["right"].tobytes())
        return comparing(images)

    Comparison().score(guess, data)
    first, seen[:] = list(seen), []
    Comparison().score(guess, data)
    assert seen == first


@pytest.mark.parametrize("seed", range(5))
def test_no_image_is_compared_with_itself(seed: int) -> None:
    """Not even the only one of its label, which gets one of another label."""
    classes = np.array([0, 1, 0, 2, 1, 0, 1])
    split = Split(images=pixels_of(list(range(7))), classes=classes)
    indices = np.arange(7)
    random = np.random.default_rng(seed)
    images, targets = Comparison().batch(split, indices, 3, random)
    right = images["right"][:, 0, 0, 0]
    assert (right != indices).all()
    np.testing.assert_array_equal(
        targets["same"][:, 0], classes[right] == classes[indices]
    )
    assert targets["same"][3] == 0


def test_all_images_of_a_label_can_be_partners() -> None:
    classes = np.array([0, 1, 0, 0, 1, 0])
    split = Split(images=pixels_of(list(range(6))), classes=classes)
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        images, _targets = Comparison().batch(split, np.array([2]), 2, random)
        seen.add(int(images["right"][0, 0, 0, 0]))
    assert seen == {0, 1, 3, 4, 5}


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_has_the_targets_of_its_images(seed: int) -> None:
    classes = np.array([0, 0, 1, 1, 2, 2])
    split = Split(images=pixels_of(classes.tolist()), classes=classes)
    indices = np.array([5, 0, 2, 3])
    random = np.random.default_rng(seed)
    images, targets = Comparison().batch(split, indices, 3, random)
    left, right = (images[side][:, 0, 0, 0] for side in ("left", "right"))
    assert left.tolist() == [2, 0, 1, 1]
    np.testing.assert_array_equal(targets["left_probabilities"].argmax(axis=1), left)
    np.testing.assert_array_equal(targets["right_probabilities"].argmax(axis=1), right)
    np.testing.assert_array_equal(targets["same"][:, 0], left == right)
