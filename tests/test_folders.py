"""A folder of pictures as a data set: what is read, skipped, split and refused."""

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.card import ImageInput
from models.datasets import Dataset
from models.folders import UnusableFolder, channels_of, folder
from tests.support import encode

SHADES = {"dark": 40, "light": 200, "white": 255}
GREY = ImageInput(tensor="images", height=6, width=5, channels=1, colour_order="grey")
RGB = ImageInput(tensor="images", height=6, width=5, channels=3, colour_order="rgb")


def picture(shade: int, number: int) -> bytes:
    """One colour, of a size and in a format that depend on the number."""
    pixels = np.full((7 + number, 9, 3), shade, np.uint8)
    return encode(pixels, "JPEG" if number % 2 else "PNG")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures of each shade, some of them a folder deeper."""
    for label, shade in SHADES.items():
        (tmp_path / label / "more").mkdir(parents=True)
        for number in range(10):
            below = tmp_path / label / ("more" if number > 6 else "")
            (below / f"{number}.picture").write_bytes(picture(shade, number))
    return tmp_path


def read(
    directory: Path, image_input: ImageInput = RGB, *, share: float = 0.2, seed: int = 0
) -> Dataset:
    return folder(directory, image_input, validation_share=share, seed=seed)


def test_sub_folders_are_labels_in_alphabetical_order(pictures: Path) -> None:
    assert read(pictures).labels == ("dark", "light", "white")


@pytest.mark.parametrize("image_input", [GREY, RGB], ids=["grey", "rgb"])
def test_pictures_of_any_size_become_images_of_the_models_size(
    pictures: Path, image_input: ImageInput
) -> None:
    data = read(pictures, image_input)
    for part in (data.train, data.validation, data.held_out):
        assert part.images.shape[1:] == (6, 5, image_input.channels)
        assert part.images.dtype == np.uint8
        assert part.classes.dtype == np.int64


def test_every_picture_keeps_its_label(pictures: Path) -> None:
    data = read(pictures)
    for part in (data.train, data.validation, data.held_out):
        shades = [SHADES[data.labels[index]] for index in part.classes]
        np.testing.assert_allclose(part.images.mean(axis=(1, 2, 3)), shades, atol=2)


def test_each_label_is_split_by_the_share(pictures: Path) -> None:
    described = read(pictures).describe()
    assert described.images == {"dark": 10, "light": 10, "white": 10}
    assert (described.train, described.validation, described.held_out) == (18, 6, 6)
    assert np.bincount(read(pictures).validation.classes).tolist() == [2, 2, 2]
    assert np.bincount(read(pictures).held_out.classes).tolist() == [2, 2, 2]


def test_a_small_share_leaves_one_picture_of_each_label(pictures: Path) -> None:
    described = read(pictures, share=0.01).describe()
    assert (described.train, described.validation, described.held_out) == (24, 3, 3)


def test_no_picture_is_in_two_parts(tmp_path: Path) -> None:
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for number in range(12):
            shade = 10 * (12 * label + number)
            (tmp_path / str(label) / f"{number}.png").write_bytes(picture(shade, 0))
    data = read(tmp_path)
    shades = np.concatenate(
        [part.images[:, 0, 0, 0] for part in (data.train, data.validation)]
        + [data.held_out.images[:, 0, 0, 0]]
    )
    assert sorted(shades) == list(range(0, 240, 10))


def test_the_split_depends_on_the_seed_alone(pictures: Path) -> None:
    first, again, other = (read(pictures, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.held_out.images, again.held_out.images)
    np.testing.assert_array_equal(first.held_out.classes, again.held_out.classes)
    assert not np.array_equal(first.held_out.classes, other.held_out.classes)


def test_files_that_are_no_pictures_are_skipped_and_listed(pictures: Path) -> None:
    (pictures / "dark" / "notes.txt").write_text("no picture")
    (pictures / "white" / "cut.png").write_bytes(picture(255, 0)[:40])
    data = read(pictures)
    assert len(data.skipped) == 2
    assert any(line.startswith("dark/notes.txt: ") for line in data.skipped)
    assert any(line.startswith("white/cut.png: ") for line in data.skipped)
    assert data.describe().skipped_files == 2
    assert sum(data.describe().images.values()) == 30


def test_what_file_managers_leave_behind_does_not_count(pictures: Path) -> None:
    (pictures / ".cache").mkdir()
    (pictures / "dark" / ".DS_Store").write_bytes(b"\0")
    (pictures / "dark" / "Thumbs.db").write_bytes(b"\0")
    (pictures / "light" / ".trash").mkdir()
    (pictures / "light" / ".trash" / "0.png").write_bytes(picture(200, 0))
    (pictures / "README.md").write_text("about these pictures")
    data = read(pictures)
    assert data.labels == ("dark", "light", "white")
    assert data.skipped == ()
    assert sum(data.describe().images.values()) == 30


def test_originals_are_held_out_pictures_in_their_own_size(pictures: Path) -> None:
    data = read(pictures)
    assert len(data.originals) == 6
    assert {original.shape[1:] for original in data.originals} == {(9, 3)}
    heights = {original.shape[0] for original in data.originals}
    assert heights <= set(range(7, 17))
    assert len(heights) > 1


@pytest.mark.parametrize(
    ("labels", "message"), [(0, "holds 0 sub-folders"), (1, "holds 1 sub-folders")]
)
def test_fewer_than_two_labels_are_refused(
    tmp_path: Path, labels: int, message: str
) -> None:
    for label in range(labels):
        (tmp_path / str(label)).mkdir()
    with pytest.raises(UnusableFolder, match=message):
        read(tmp_path)


def test_a_label_with_too_few_files_is_named(pictures: Path) -> None:
    (pictures / "new").mkdir()
    (pictures / "new" / "0.png").write_bytes(picture(0, 0))
    with pytest.raises(UnusableFolder, match=r"label 'new' .* has 1 pic.*; expected"):
        read(pictures)


def test_a_label_with_too_few_readable_pictures_is_named(pictures: Path) -> None:
    (pictures / "new").mkdir()
    for number in range(4):
        (pictures / "new" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UnusableFolder, match=r"label 'new' .* has 0 pictures .*0\.png"):
        read(pictures)


def test_a_damaged_picture_costs_only_itself(tmp_path: Path) -> None:
    """Whichever it is, also where a label has just enough others."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(4):
            (tmp_path / label / f"{number}.png").write_bytes(picture(50, 0))
    for number in range(4):
        damaged = tmp_path / "a" / f"{number}.png"
        whole = damaged.read_bytes()
        damaged.write_bytes(b"no picture")
        described = read(tmp_path).describe()
        assert described.images == {"a": 3, "b": 4}
        assert described.skipped_files == 1
        damaged.write_bytes(whole)


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_however_large_the_share_some_pictures_are_left_to_train_on(
    tmp_path: Path, count: int
) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(count):
            (tmp_path / label / f"{number}.png").write_bytes(picture(50, 0))
    data = read(tmp_path, share=0.49)
    for part in (data.train, data.validation, data.held_out):
        assert set(part.classes.tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["caf\udce9", "two\nlines"])
def test_a_folder_whose_name_is_no_text_is_refused(pictures: Path, name: str) -> None:
    (pictures / name).mkdir()
    with pytest.raises(UnusableFolder, match="cannot be a label"):
        read(pictures)


def test_labels_may_have_any_letters(pictures: Path) -> None:
    for name in ("[red]", "日本\u3000語", "a b", "$x$"):
        (pictures / "dark").rename(pictures / name)
        assert name in read(pictures).labels
        (pictures / name).rename(pictures / "dark")


def test_pictures_that_no_disk_has_room_for_are_refused(
    pictures: Path,
) -> None:
    """Before any is read: writing them would end the process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(UnusableFolder, match=r"no room in .* TMPDIR"):
            read(pictures)
    finally:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def test_a_huge_picture_is_kept_in_a_size_that_fits_the_memory(pictures: Path) -> None:
    huge = encode(np.full((2400, 3000), 40, np.uint8))
    for number in range(10):
        (pictures / "dark" / f"{number}.picture").write_bytes(huge)
    sizes = [o.shape[0] * o.shape[1] for o in read(pictures).originals]
    assert 3_900_000 < max(sizes) <= 4_000_000


def test_a_file_too_large_to_decode_has_no_say_in_the_colours(pictures: Path) -> None:
    """Pillow takes its header for an attack."""
    bomb = encode(np.zeros((1, 1), np.uint8))
    header = bomb[:16] + (60_000).to_bytes(4) * 2
    (pictures / "dark" / "0.picture").write_bytes(header + bomb[24:])
    assert channels_of(pictures) == 3
    assert len(read(pictures).skipped) == 1


def test_a_folder_of_grey_pictures_is_told_from_one_with_colours(
    pictures: Path, tmp_path: Path
) -> None:
    assert channels_of(pictures) == 3
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        with Image.open(path) as image:
            grey = image.convert("L")
        grey.save(path, "PNG")
    assert channels_of(pictures) == 1
