"""Folders of images and Imagenette, on small files in their real formats."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.datasets import Imagenette

from ldbench.data import image_folder
from ldbench.data.datasets import load_dataset
from ldbench.errors import UserError


def complaint(name: str, root: Path | None = None, **options: object) -> str:
    """The one line a failing load says."""
    with pytest.raises(UserError) as caught:
        load_dataset(name, root=root, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def write_image(path: Path, width: int, height: int, mode: str = "RGB", shade: int | None = None) -> None:
    """A noisy image, or a plain one of the given shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    pixels = noise if shade is None else np.full_like(noise, shade)
    Image.fromarray(pixels.squeeze()).save(path)


def write_classes(folder: Path, counts: dict[str, int], **options: Any) -> None:
    for name, count in counts.items():
        for i in range(count):
            write_image(folder / name / f"{i:03}.png", **{"width": 12, "height": 12, **options})


def test_a_folder_with_train_and_test_is_taken_as_it_is(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 3, "dog": 5})
    write_classes(tmp_path / "test", {"cat": 2, "dog": 1})
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 3 + [1] * 5
    assert data.test.labels.tolist() == [0, 0, 1]
    assert (data.channels, data.image_size, data.resized_from) == (3, 12, None)


def test_a_folder_with_val_instead_of_test_uses_it_as_the_test(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat": 3, "dog": 5})
    write_classes(tmp_path / "val", {"cat": 2, "dog": 2})
    assert len(load_dataset(f"folder:{tmp_path}", root=None).test) == 4


def test_a_folder_of_classes_is_split_the_same_way_each_time_and_class_by_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 20, "b": 20, "train": 10})
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert torch.bincount(data.test.labels).tolist() == [4, 4, 2]
    assert torch.bincount(data.train.labels).tolist() == [16, 16, 8]
    assert data.fingerprint == load_dataset(f"folder:{tmp_path}", root=None).fingerprint


def test_files_that_are_all_grey_give_one_channel_and_28_pixels_are_padded(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5}, width=28, height=28, mode="L")
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert (data.channels, data.image_size, data.padded_from, data.resized_from) == (1, 32, 28, None)
    write_image(tmp_path / "a" / "colour.png", 28, 28)
    assert load_dataset(f"folder:{tmp_path}", root=None).channels == 3


def test_an_alpha_channel_is_dropped(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5}, mode="RGBA")
    assert load_dataset(f"folder:{tmp_path}", root=None).channels == 3


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (41, 60), (25, 90), (9, 31)])
def test_decoding_is_resizing_the_shorter_side_and_cropping_the_centre(tmp_path: Path, width: int, height: int) -> None:
    # Two ramps, red to the right and green downwards, tell where every pixel of the result was taken from.
    right, down = np.meshgrid(np.arange(width), np.arange(height))
    ramps = np.stack([right * 2, down * 2, np.zeros_like(right)], axis=2).astype(np.uint8)
    Image.fromarray(ramps).save(tmp_path / "x.png")
    pool = image_folder.FilePool((str(tmp_path / "x.png"),), torch.zeros(1, dtype=torch.int64), 3)
    got = pool.read(torch.tensor([0]), 24)[0].double()
    shorter = min(width, height)
    centres = (torch.arange(24) + 0.5) * shorter / 24 - 0.5
    inner = slice(2, -2)  # near the edge of the file the filter has pixels on one side only
    expected_right, expected_down = (2 * (centres + (length - shorter) / 2) for length in (width, height))
    assert (got[0] - expected_right[None, :])[inner, inner].abs().max() <= 1.01
    assert (got[1] - expected_down[:, None])[inner, inner].abs().max() <= 1.01


def test_an_image_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", 24, 24)
    pool = image_folder.FilePool((str(tmp_path / "x.png"),), torch.zeros(1, dtype=torch.int64), 3)
    with Image.open(tmp_path / "x.png") as image:
        assert torch.equal(pool.read(torch.tensor([0]), 24)[0], torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_varied_sizes_come_to_the_median_shorter_side_and_each_image_stays_with_its_label(tmp_path: Path) -> None:
    for label in range(3):
        for i in range(10):
            write_image(tmp_path / f"c{label}" / f"{i}.jpg", 30 + 4 * i, 70 - 4 * i, shade=80 * label)
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert data.resized_from == data.image_size
    for split in (data.train, data.test):
        shades = split.images.double().mean((1, 2, 3))
        assert torch.equal((shades / 80).round().long(), split.labels)
    small = load_dataset(f"folder:{tmp_path}", root=None, image_size=16, train_size=9, test_size=3)
    assert small.train.images.shape == (9, 3, 16, 16)


def test_only_chosen_files_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "train", {"a": 20, "b": 20})
    write_classes(tmp_path / "test", {"a": 5, "b": 5})
    decoded = []
    original = image_folder._decode_square

    def counted(image: Image.Image, out: npt.NDArray[np.uint8], upright: bool) -> None:
        decoded.append(out)
        original(image, out, upright)

    monkeypatch.setattr(image_folder, "_decode_square", counted)
    load_dataset(f"folder:{tmp_path}", root=None, train_size=6, test_size=2)
    assert len(decoded) == 8


@pytest.mark.parametrize("harm", ["truncated", "empty", "text"])
def test_a_damaged_image_is_named(tmp_path: Path, harm: str) -> None:
    for suffix in ("png", "jpg"):
        folder = tmp_path / suffix
        write_classes(folder, {"a": 4, "b": 4})
        bad = folder / "a" / f"bad.{suffix}"
        write_image(bad, 50, 50)
        content = bad.read_bytes()
        bad.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"no image"}[harm])
        text = complaint(f"folder:{folder}")
        assert str(bad) in text
        assert "not a readable image" in text


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    Image.fromarray(np.full((12, 12), 40_000, dtype=np.uint16)).save(tmp_path / "a" / "deep.png")
    text = complaint(f"folder:{tmp_path}")
    assert "deep.png has more than 8 bits" in text


def test_wrong_folders_say_what_is_wrong(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'} not found" in complaint(f"folder:{tmp_path / 'nowhere'}")
    assert "one folder of images per class" in complaint(f"folder:{tmp_path}")
    (tmp_path / "empty class").mkdir()
    assert "one folder of images per class" in complaint(f"folder:{tmp_path}")
    write_classes(tmp_path / "single", {"only": 3})
    assert "one class folder (only)" in complaint(f"folder:{tmp_path / 'single'}")
    write_classes(tmp_path / "odd" / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "odd" / "test", {"a": 2, "c": 2})
    assert "not so: b, c" in complaint(f"folder:{tmp_path / 'odd'}")
    with pytest.raises(UserError, match="unknown data set 'folder:'"):
        load_dataset("folder:", root=None)


# --- as they lie on people's disks -----------------------------------------------------------------------------------


def test_what_is_hidden_is_no_class_and_no_image_and_is_counted(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 5, "dog": 5, ".ipynb_checkpoints": 2, "__MACOSX": 1})
    (tmp_path / "cat" / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "dog" / "notes.txt").write_text("good dog")
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"")
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert data.class_names == ("cat", "dog")
    assert len(data.train) + len(data.test) == 10
    told = "4 hidden files and folders, 1 files that are no images"
    assert data.notes == (f"{tmp_path}: left out {told}",)


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("train", name) for name in ("val", "valid", "validation", "test")]
    + [("training", "testing"), ("Train", "Test"), ("training", "validation")],
)
def test_splits_by_their_usual_names(tmp_path: Path, train: str, held_out: str) -> None:
    write_classes(tmp_path / train, {"cat": 3, "dog": 5})
    write_classes(tmp_path / held_out, {"cat": 2, "dog": 2})
    (tmp_path / "annotations").mkdir()
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert (len(data.train), len(data.test)) == (8, 4)
    assert data.class_names == ("cat", "dog")


def test_of_two_held_out_splits_the_test_is_the_test(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        write_classes(tmp_path / name, {"cat": count, "dog": count})
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert (len(data.train), len(data.test)) == (6, 4)
    assert data.notes == (f"{tmp_path}: val is not read: test is the test set",)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["train"], "train looks like a split"),
        (["test"], "test looks like a split"),
        (["fold1", "fold2"], "fold1 looks like a split"),
        (["north", "south"], "north looks like a split"),
        (["train", "test", "extra"], "train and test, and beside them extra"),
    ],
)
def test_what_looks_like_a_split_and_is_none_is_refused_by_name(tmp_path: Path, folders: list[str], said: str) -> None:
    for name in folders:
        write_classes(tmp_path / name, {"cat": 2, "dog": 2})
    assert said in complaint(f"folder:{tmp_path}")


def test_class_folders_may_have_folders_of_their_own(tmp_path: Path) -> None:
    write_classes(tmp_path / "cat", {"images": 5})
    write_classes(tmp_path / "dog", {"images": 5})
    write_image(tmp_path / "dog" / "front.png", 12, 12)
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert data.class_names == ("cat", "dog")
    assert len(data.train) + len(data.test) == 11


def test_links_that_lead_back_end_and_others_are_followed(tmp_path: Path) -> None:
    write_classes(tmp_path / "set", {"cat": 5, "dog": 5})
    write_classes(tmp_path / "elsewhere", {"owl": 5})
    (tmp_path / "set" / "owl").symlink_to(tmp_path / "elsewhere" / "owl")
    (tmp_path / "set" / "dog" / "again").symlink_to(tmp_path / "set" / "dog")
    data = load_dataset(f"folder:{tmp_path / 'set'}", root=None)
    assert data.class_names == ("cat", "dog", "owl")
    assert len(data.train) + len(data.test) == 15
    assert data.notes == (f"{tmp_path / 'set'}: left out 1 links to folders that are read already",)


@pytest.mark.parametrize("where", ["cat/up", "self", "cat/deep/up"])
def test_a_link_to_a_folder_above_brings_no_other_classs_images(tmp_path: Path, where: str) -> None:
    write_classes(tmp_path, {"cat": 5, "dog": 5})
    write_image(tmp_path / "cat" / "deep" / "x.png", 12, 12)
    (tmp_path / where).symlink_to(tmp_path)
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert data.class_names == ("cat", "dog")
    assert torch.bincount(torch.cat([data.train.labels, data.test.labels])).tolist() == [6, 5]


def test_folders_that_all_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    write_classes(tmp_path / "set", {"cat": 5, "dog": 5})
    rooms = [tmp_path / "rooms" / str(i) for i in range(12)]
    for room in rooms:
        write_image(room / "x.png", 12, 12)
    for room in rooms:
        for other in rooms:
            (room / f"to {other.name}").symlink_to(other)
    (tmp_path / "set" / "cat" / "rooms").symlink_to(rooms[0])
    data = load_dataset(f"folder:{tmp_path / 'set'}", root=None)
    assert len(data.train) + len(data.test) == 10 + 12


def test_a_pipe_that_is_called_an_image_is_not_waited_for(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 5, "dog": 5})
    os.mkfifo(tmp_path / "cat" / "x.png")
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert len(data.train) + len(data.test) == 10


def test_a_class_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 5, "b": 5})
    os.rename(tmp_path / "b", os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH104 - bytes
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert data.classes == 2
    assert len(data.fingerprint) == 64


def test_a_test_too_small_for_every_class_says_so(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 2, "dog": 2})
    (note,) = load_dataset(f"folder:{tmp_path}", root=None).notes
    assert "a fifth of the images, 1, is the test and holds none of" in note


def test_one_image_in_a_class_is_told_in_a_sentence(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 1, "dog": 1})
    assert "cat, dog has one image; a class takes two at least" in complaint(f"folder:{tmp_path}")
    write_classes(tmp_path / "cat2", {})
    write_classes(tmp_path, {"cat": 2, "dog": 2})
    assert len(load_dataset(f"folder:{tmp_path}", root=None).train) == 3


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "owl").mkdir()
    assert "no image in owl" in complaint(f"folder:{tmp_path}")


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "webp", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_whichever_way_the_camera_was_held(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:, :12] = 200  # bright on the left
    upright[:4] = 90  # and grey on top
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180,
               2: Image.Transpose.FLIP_LEFT_RIGHT, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
               7: Image.Transpose.TRANSVERSE}  # fmt: skip
    image = Image.fromarray(upright)
    held = image.transpose(inverse[orientation]) if orientation in inverse else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a", "b"):
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
            held.save(tmp_path / name / f"{i}.{suffix}", exif=exif, **options)
    data = load_dataset(f"folder:{tmp_path}", root=None)
    assert data.image_size == 16
    expected = torch.from_numpy(upright[:, 4:20].transpose(2, 0, 1).copy()).float()
    assert float((data.train.images[0].float() - expected).abs().mean()) < 6


WNIDS = list(Imagenette._WNID_TO_CLASS)


@pytest.fixture
def small_imagenette(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    monkeypatch.setattr(image_folder, "IMAGENETTE_COUNTS", {"train": 30, "val": 10})
    return {"train": 3, "val": 1}


def write_imagenette(folder: Path, counts: dict[str, int]) -> None:
    for part, count in counts.items():
        for label, wnid in enumerate(WNIDS):
            for i in range(count):
                mode = "L" if i == 0 else "RGB"  # as in the real one, some files are grey
                write_image(folder / part / wnid / f"{part}_{i}.JPEG", 64 + 10 * i, 48, mode, shade=25 * label)


def test_imagenette_is_read_from_its_own_layout(tmp_path: Path, small_imagenette: dict[str, int]) -> None:
    write_imagenette(tmp_path / "imagenette2-320", small_imagenette)
    data = load_dataset("imagenette", root=tmp_path)
    assert data.train.images.shape == (30, 3, 224, 224)
    assert (data.image_size, data.resized_from, data.classes) == (224, 48, 10)
    assert data.class_names[0] == "tench"
    shades = data.train.images.double().mean((1, 2, 3))
    assert torch.equal((shades / 25).round().long(), data.train.labels)
    assert load_dataset("imagenette", root=tmp_path, image_size=64, test_size=5).test.images.shape == (5, 3, 64, 64)


def test_the_largest_imagenette_that_is_there_is_read(tmp_path: Path, small_imagenette: dict[str, int]) -> None:
    write_imagenette(tmp_path / "imagenette2", small_imagenette)
    (tmp_path / "imagenette2-160").mkdir()
    assert len(load_dataset("imagenette", root=tmp_path, image_size=32).train) == 30


def test_an_imagenette_unpacked_in_part_is_refused(tmp_path: Path, small_imagenette: dict[str, int]) -> None:
    folder = tmp_path / "imagenette2-160"
    write_imagenette(folder, small_imagenette)
    (folder / "val" / WNIDS[0] / "val_0.JPEG").rename(folder / "val" / WNIDS[1] / "other.JPEG")
    assert f"{folder / 'val'} is damaged" in complaint("imagenette", tmp_path)
    (folder / "train" / WNIDS[2] / "train_0.JPEG").unlink()
    assert "train has 29 of 30 images" in complaint("imagenette", tmp_path)


def test_missing_imagenette_says_where_it_was_looked_for(tmp_path: Path) -> None:
    text = complaint("imagenette", tmp_path)
    assert str(tmp_path / "imagenette2-320") in text
    assert "--download" in text


@pytest.mark.parametrize(("image_size", "release"), [(64, "160px"), (None, "320px"), (400, "full")])
def test_the_smallest_release_that_is_large_enough_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_size: int | None, release: str
) -> None:
    asked = []

    def refuse(self: Imagenette) -> None:
        asked.append(self._size)
        raise RuntimeError("not today\nnor tomorrow")

    monkeypatch.setattr(Imagenette, "_download", refuse)
    assert "not today nor tomorrow" in complaint("imagenette", tmp_path, download=True, image_size=image_size)
    assert asked == [release]
