"""The digits, how they are split, and how training distorts them."""

from typing import Any

import keras
import numpy as np
import pytest

from models.augmentation import augment
from models.datasets import Dataset, digits, inverted

Images = np.ndarray[Any, Any]


@pytest.fixture
def data(digit_data: Dataset) -> Dataset:
    return digit_data


def augmented(images: Images, seed: int = 0) -> Images:
    keras.utils.set_random_seed(seed)
    return np.asarray(augment(images))


def test_the_digits_are_grey_images_of_bytes(data: Dataset) -> None:
    assert (data.train_images.shape, data.train_images.dtype) == (
        (4000, 28, 28, 1),
        np.uint8,
    )
    assert (data.held_out_images.shape, data.held_out_images.dtype) == (
        (1000, 28, 28, 1),
        np.uint8,
    )
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)


def test_the_digits_are_light_on_dark(data: Dataset) -> None:
    corners = data.train_images[:, :2, :2]
    assert corners.mean() < 1
    assert (np.median(data.held_out_images, axis=(1, 2, 3)) == 0).all()


def test_each_digit_has_as_many_images_as_the_others(data: Dataset) -> None:
    assert data.labels == tuple("0123456789")
    assert data.train_classes.dtype == data.held_out_classes.dtype == np.int64
    assert np.bincount(data.train_classes).tolist() == [400] * 10
    assert np.bincount(data.held_out_classes).tolist() == [100] * 10


def test_no_held_out_image_is_trained_on(data: Dataset) -> None:
    seen = {image.tobytes() for image in data.train_images}
    held_out = {image.tobytes() for image in data.held_out_images}
    assert len(seen) + len(held_out) == 5000
    assert seen.isdisjoint(held_out)


def test_the_split_is_the_same_each_time_whatever_was_seeded(data: Dataset) -> None:
    np.random.seed(7)  # noqa: NPY002, what a caller's own seed must not change
    again = digits()
    for part in ("train_images", "train_classes", "held_out_images"):
        np.testing.assert_array_equal(getattr(again, part), getattr(data, part))


def test_images_belong_to_their_classes(data: Dataset) -> None:
    """The mean image of a class is closest to most images of that class."""
    means = np.stack(
        [data.train_images[data.train_classes == c].mean(axis=0) for c in range(10)]
    )
    distances = ((data.held_out_images[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == data.held_out_classes).mean() > 0.75


def test_inverting_twice_gives_the_same_image(data: Dataset) -> None:
    images = data.held_out_images[:10]
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
    images = data.train_images[:50]
    np.testing.assert_array_equal(augmented(images), augmented(images))
    assert (augmented(images) != augmented(images, seed=1)).any(axis=(1, 2, 3)).all()


def test_augmentation_moves_each_image_in_its_own_way(data: Dataset) -> None:
    moved = augmented(np.repeat(data.train_images[:1], 50, axis=0))
    assert len({image.tobytes() for image in moved}) == 50


def test_augmentation_leaves_its_input_as_it_is(data: Dataset) -> None:
    images = data.train_images[:5].copy()
    augmented(images)
    np.testing.assert_array_equal(images, data.train_images[:5])


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
    images = data.train_images[:500]
    moved = augmented(images)
    assert (moved.min(), moved.max()) == (0, 255)
    upright = np.where(
        np.median(moved, axis=(1, 2), keepdims=True) > 127, ~moved, moved
    )
    # As much ink as before, but for the zoom and what has left the image.
    ratio = upright.mean(axis=(1, 2, 3)) / images.mean(axis=(1, 2, 3))
    assert ratio.min() > 0.5
    assert ratio.max() < 1.6
    assert 0.9 < ratio.mean() < 1.15


def test_an_augmented_digit_stays_the_digit_that_it_was(data: Dataset) -> None:
    """The distortion is light: the middle of the ink moves by few pixels."""

    def centres(images: Images) -> Images:
        weights = images[..., 0] / images.sum(axis=(1, 2, 3))[:, None, None]
        grid = np.stack(np.mgrid[:28, :28], axis=-1)
        return (weights[..., None] * grid).sum(axis=(1, 2))

    images = data.train_images[::20]
    moved = augmented(images)
    upright = np.where(
        np.median(moved, axis=(1, 2), keepdims=True) > 127, ~moved, moved
    )
    distance = np.linalg.norm(centres(upright) - centres(images), axis=1)
    assert distance.max() < 6
    assert distance.mean() > 0.5
