"""Data sets by name: which images, at what size, described how; and what a wrong request gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ldbench.data import datasets as sources
from ldbench.data.datasets import Dataset, check_dataset_name, data_root, load_dataset
from ldbench.data.names import DATASET_NAMES
from ldbench.errors import UserError

SMALL = "synthetic:2x12x12:5:60"


def load(name: str = SMALL, /, **options: int) -> Dataset:
    return load_dataset(name, root=None, **options)  # type: ignore[arg-type]


def complaint(name: str = SMALL, /, **options: int) -> str:
    """The one line a failing load says."""
    with pytest.raises(UserError) as caught:
        load(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize(
    ("name", "near"),
    [("mnsit", "mnist"), ("Fashion_MNIST", "fashion-mnist"), ("cifar-10", "cifar10"), ("folder", "folder:PATH")],
)
def test_an_unknown_name_gets_the_nearest_ones(name: str, near: str) -> None:
    text = complaint(name)
    assert f"unknown data set '{name}'" in text
    assert near in text


def test_a_name_like_no_other_gets_all_of_them() -> None:
    text = complaint("zzz")
    for name in DATASET_NAMES:
        assert name in text


def test_names_are_checked_without_reading_anything() -> None:
    for name in (*DATASET_NAMES, "folder:/nowhere/at/all", "synthetic:3x224x224:1000:1000000"):
        check_dataset_name(name)
    for name in ("", "folder:", "synthetic", "synthetic:1", "digits:3"):
        with pytest.raises(UserError):
            check_dataset_name(name)


def test_the_data_root_is_the_one_given_then_the_environments_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDBENCH_DATA", "/somewhere")
    assert data_root(Path("/given")) == Path("/given")
    assert data_root(None) == Path("/somewhere")
    monkeypatch.delenv("LDBENCH_DATA")
    assert data_root(None) == Path("data")
    monkeypatch.setenv("HOME", "/home/me")
    assert data_root(Path("~/sets")) == Path("/home/me/sets")


@given(st.integers(5, 60), st.integers(1, 12), st.data())
def test_sizes_are_kept_splits_disjoint_and_subsets_nested(train: int, test: int, data: st.DataObject) -> None:
    val = data.draw(st.integers(0, train - 5))
    got = load(train_size=train, test_size=test, val_size=val)
    assert (len(got.train), len(got.val), len(got.test)) == (train - val, val, test)
    whole = load()
    assert not rows(got.train.images) & rows(got.val.images)
    assert rows(got.train.images) | rows(got.val.images) <= rows(whole.train.images)
    assert rows(got.test.images) <= rows(whole.test.images)
    smaller = load(train_size=max(5, train // 2))
    assert rows(smaller.train.images) <= rows(got.train.images) | rows(got.val.images)


def test_subsets_are_stratified_and_images_keep_their_labels() -> None:
    whole = load()
    label_of = {
        image.numpy().tobytes(): int(label) for image, label in zip(whole.train.images, whole.train.labels, strict=True)
    }
    part = load(train_size=40, val_size=10)
    assert torch.bincount(part.train.labels).tolist() == [6] * 5
    assert torch.bincount(part.val.labels).tolist() == [2] * 5
    for split in (part.train, part.val):
        assert [label_of[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_size": 61}, "train size 61 cannot be had: choose 5 to 60"),
        ({"train_size": 0}, "train size 0 cannot be had"),
        ({"train_size": 4}, "train size 4 cannot be had: choose 5 to 60"),
        ({"test_size": 13}, "test size 13 cannot be had: choose 1 to 12"),
        ({"test_size": 0}, "test size 0 cannot be had"),
        ({"val_size": 56}, "validation size 56 cannot be cut from 60: choose 0 to 55"),
        ({"val_size": -1}, "validation size -1 cannot be cut"),
        ({"train_size": 10, "val_size": 10}, "validation size 10 cannot be cut from 10: choose 0 to 5"),
        ({"image_size": 0}, "image size 0 cannot be had"),
    ],
)
def test_sizes_that_cannot_be_had_say_which_can(options: dict[str, int], said: str) -> None:
    assert said in complaint(**options)


def test_a_set_larger_than_the_machine_is_refused_before_it_is_read() -> None:
    text = complaint("digits", image_size=1_000_000)
    assert "digits at 1000000 pixels takes" in text
    assert "GB" in text


@pytest.mark.parametrize(
    ("native", "image_size", "side", "padded", "resized"),
    [
        (28, None, 32, 28, None),
        (28, 32, 32, 28, None),
        (28, 28, 28, None, None),
        (28, 40, 40, None, 28),
        (12, None, 12, None, None),
        (12, 12, 12, None, None),
        (12, 20, 20, None, 12),
        (32, 28, 28, None, 32),
    ],
)
def test_image_sizes_and_what_is_recorded_of_them(
    native: int, image_size: int | None, side: int, padded: int | None, resized: int | None
) -> None:
    name = f"synthetic:1x{native}x{native}:2:6"
    got = load_dataset(name, root=None, image_size=image_size)
    assert got.image_size == got.train.images.shape[3] == side
    assert (got.padded_from, got.resized_from) == (padded, resized)
    original = load_dataset(name, root=None, image_size=native).train.images
    if padded:
        assert torch.equal(got.train.images, F.pad(original, (2, 2, 2, 2)))
    if resized:
        exact = F.interpolate(original.double(), size=(side, side), mode="bilinear", antialias=True)
        assert (got.train.images - exact).abs().max() <= 1.05  # rounded once in each direction


def test_digits_come_at_a_size_that_vgg_takes() -> None:
    digits = load("digits")
    assert (digits.image_size, digits.resized_from, digits.channels, digits.classes) == (32, 8, 1, 10)


@pytest.mark.parametrize("options", [{}, {"train_size": 40, "val_size": 15}, {"image_size": 20}])
def test_mean_and_std_are_those_of_the_training_split_as_it_stands(options: dict[str, int]) -> None:
    got = load(**options)
    pixels = got.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(got.mean), pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(torch.tensor(got.std), pixels.std((0, 2, 3), correction=0).float())


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    mean, std = sources._statistics(torch.full((3, 1, 4, 4), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,))
    assert std == (1.0,)


def test_the_fingerprint_tells_every_difference_in_content_and_nothing_else() -> None:
    first = load()
    assert first.fingerprint == load(train_size=60, test_size=12, image_size=12).fingerprint
    others = [
        load(train_size=59),
        load(test_size=11),
        load(val_size=1),
        load(image_size=13),
        load("synthetic:2x12x12:6:60"),
    ]
    assert len({data.fingerprint for data in [first, *others]}) == 6
    changed = sources.Split(first.train.images.clone(), first.train.labels)
    changed.images[3, 1, 2, 2] ^= 1
    splits = [changed, first.val, first.test]
    assert sources._fingerprint(first.class_names, splits) != first.fingerprint
    assert len(first.fingerprint) == 64


@pytest.mark.parametrize(
    ("name", "folder", "mean", "std", "labels"),
    [
        ("mnist", "MNIST", 0.1307, 0.3081, [5, 0, 4, 1, 9]),
        ("fashion-mnist", "FashionMNIST", 0.2860, 0.3530, [9, 0, 0, 3, 0]),
    ],
)
def test_the_real_files_are_the_published_data(
    name: str, folder: str, mean: float, std: float, labels: list[int]
) -> None:
    root = os.environ.get("LDBENCH_DATA")
    if not root or not (Path(root) / folder / "raw").is_dir():
        pytest.skip(f"LDBENCH_DATA names no folder with {folder}/raw in it")
    data = load_dataset(name, root=None, image_size=28)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.mean[0] == pytest.approx(mean, abs=5e-5)
    assert data.std[0] == pytest.approx(std, abs=5e-5)
    assert data.train.labels[:5].tolist() == labels
    padded = load_dataset(name, root=None, train_size=2000, test_size=500, val_size=100)
    assert (padded.image_size, padded.padded_from) == (32, 28)
    if name == "fashion-mnist":
        assert torch.bincount(padded.train.labels).tolist() == [190] * 10
