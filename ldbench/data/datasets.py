"""Data sets by name: the same images, in the same splits and sizes, for every seed and method.

What the files look like is known to `ldbench.data.readers` and `ldbench.data.image_folder`; here their images are
chosen, brought to one size, split, and described.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ldbench.data import image_folder, readers
from ldbench.data.class_subset import select
from ldbench.data.names import (
    DATASET_FORMS,
    DATASET_NAMES,
    check_folder_name,
    own_name,
    split_folder,
    split_selection,
)
from ldbench.data.raw import Pool, Source
from ldbench.devices import check_memory
from ldbench.errors import UserError, nearest, one_line, shown
from ldbench.io.places import expanded
from ldbench.seeds import stratified_order

# Which images are in a subset or a validation split never depends on the seed of a run: seeds stay comparable.
DATA_SEED = 20240423


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, H, W] and labels int64 [N], both on the CPU."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Samples in the split."""
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training.

    Attributes:
        name: the name it was asked for by; of ``NAME=folder:PATH`` the name alone.
        class_names: one per class, in label order.
        train, val, test: the splits; ``val`` is cut from the training images and may be empty.
        mean, std: per channel, of the pixels of ``train`` as they stand here (padding included), in units where a
            pixel is 0..1; the std of a constant channel is given as 1.
        padded_from: side in pixels before black pixels were put around the images, or None.
        resized_from: side in pixels before the images were resized (the median shorter side where sizes vary), or
            None.
        synthetic: the images are random: an accuracy on them means nothing.
        fingerprint: SHA-256 over class names, shapes, images and labels of all three splits, hexadecimal.
        notes: for people: what of the files was left out.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padded_from: int | None
    resized_from: int | None
    synthetic: bool
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels of an image: 1 grey, 3 RGB."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.train.images.shape[2]


def check_dataset_name(name: str) -> None:
    """Raises UserError, with the nearest names, unless ``name`` could be a data set; reads nothing."""
    check_folder_name(name)
    whole, _ = split_selection(name)
    if split_folder(whole) is not None:
        return
    kind, colon, argument = whole.partition(":")
    if kind == "synthetic" and colon:
        readers.parse_synthetic(argument)
    elif not (whole in DATASET_NAMES or (kind == "folder" and argument)):
        raise UserError(f"unknown data set {shown(name)}: {nearest(whole, DATASET_NAMES + DATASET_FORMS)}")


def data_root(root: Path | None) -> Path:
    """Returns the folder that holds data sets: ``root``, else the environment's LDBENCH_DATA, else ./data."""
    return expanded(root or os.environ.get("LDBENCH_DATA") or "data")


def _open(name: str, root: Path, download: bool, image_size: int | None) -> Source:
    whole, ranges = split_selection(name)
    if ranges is not None:
        return select(name, _open(whole, root, download, image_size), ranges)
    named = split_folder(name)
    kind, _, argument = ("folder", ":", named[1]) if named is not None else name.partition(":")
    if kind == "folder":
        return image_folder.open_folder(_found(expanded(argument), root), DATA_SEED)
    if kind == "synthetic":
        return readers.make_synthetic(argument, DATA_SEED)
    openers: dict[str, Callable[[], Source]] = {
        "digits": lambda: readers.read_digits(DATA_SEED),
        "mnist": lambda: readers.read_idx("mnist", root, download),
        "fashion-mnist": lambda: readers.read_idx("fashion-mnist", root, download),
        "cifar10": lambda: readers.read_cifar10(root, download),
        "imagenette": lambda: image_folder.open_imagenette(root, download, image_size),
    }
    return openers[name]()


def _found(folder: Path, root: Path) -> Path:
    """Returns a folder as it is told, or below the data root where a relative one is only there."""
    below = root / folder
    return below if not folder.is_dir() and below.is_dir() else folder


def _count(option: str, wanted: int | None, pool: Pool, least: int) -> int:
    """Returns how many images of a pool to take, or raises UserError for a count that cannot be had."""
    have = len(pool.labels)
    if wanted is not None and not least <= wanted <= have:
        raise UserError(f"{option} {wanted} cannot be had: choose {least} to {have}")
    return have if wanted is None else wanted


def _choose(name: str, source: Source, train_size: int | None, test_size: int | None, val_size: int) -> list[Tensor]:
    """Returns which images are train, val (of the training pool) and test (of the test pool), int64 indices each."""
    classes = len(source.class_names)
    train_count = _count(f"{name}: train size", train_size, source.train, classes)
    test_count = _count(f"{name}: test size", test_size, source.test, 1)
    if not 0 <= val_size <= train_count - classes:
        most = train_count - classes
        raise UserError(f"{name}: validation size {val_size} cannot be cut from {train_count}: choose 0 to {most}")
    train = stratified_order(source.train.labels, DATA_SEED)[:train_count]
    test = stratified_order(source.test.labels, DATA_SEED)[:test_count]
    cut = train_count - val_size
    # Every epoch shuffles anyway; in the order of the files a whole split is read without a jump.
    return [part.sort().values for part in (train[:cut], train[cut:], test)]


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std per channel of uint8 images [N, C, H, W], in units of 1/255, from exact pixel counts."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for start in range(0, len(images), 1024):
            counts += torch.bincount(images[start : start + 1024, channel].reshape(-1), minlength=256)
        share = counts / counts.sum()
        mean = float(share @ levels)
        std = float((share @ (levels - mean).square()).sqrt())
        means.append(mean)
        stds.append(std or 1.0)
    return tuple(means), tuple(stds)


def _fingerprint(class_names: tuple[str, ...], splits: list[Split]) -> str:
    # A folder's name need not be text: such bytes count as they are.
    digest = hashlib.sha256("\0".join(class_names).encode(errors="surrogateescape"))
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.view(-1).numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()


def load_dataset(
    name: str,
    *,
    root: Path | None,
    download: bool = False,
    image_size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    val_size: int = 0,
) -> Dataset:
    """Loads a data set into memory.

    Args:
        name: one of DATASET_NAMES; "folder:PATH"; "NAME=folder:PATH", which is called NAME from then on;
            a relative PATH is looked for in the current folder, then in ``root``; "synthetic:CxHxW:CLASSES:N"
            (N training images, a fifth to test); each may choose some of its classes, "mnist[5-9]", see
            `ldbench.data.class_subset`. Sizes apply after that.
        root: see data_root.
        download: fetch what is missing into ``root``.
        image_size: side in pixels to bring the images to (bilinear, antialiased; 28 to 32 is padding instead). None:
            as the files have it, except digits (32), imagenette (224), 28-pixel images (padded to 32), and folders
            (the median shorter side, at most 224).
        train_size, test_size: how many images to take, stratified by class, the same for every seed; None: all.
        val_size: how many of the training images just taken become the validation split.

    Raises:
        UserError: unknown name, data missing, corrupt or not downloadable, or a size that cannot be had.
    """
    check_dataset_name(name)
    if image_size is not None and image_size < 1:
        raise UserError(f"image size {image_size} cannot be had: choose 1 or more")
    try:
        source = _open(name, data_root(root), download, image_size)
    except OSError as error:  # such as a data root that may not be entered
        raise UserError(f"{name} cannot be read: {one_line(error)}") from error
    train, val, test = _choose(name, source, train_size, test_size, val_size)

    pad = source.uniform and source.side == 28 and image_size in (None, 32)
    side = 28 if pad else image_size or source.default_side
    padded = side + 4 * pad
    size = (len(train) + len(val) + len(test)) * source.channels * padded * padded
    check_memory(f"{name} at {side} pixels", size, "take fewer images (train size, test size) or a smaller image size")

    def read(pool: Pool, indices: Tensor) -> Split:
        images = pool.read(indices, side)
        return Split(F.pad(images, (2, 2, 2, 2)) if pad else images, pool.labels[indices])

    splits = [read(source.train, train), read(source.train, val), read(source.test, test)]
    mean, std = _statistics(splits[0].images)
    return Dataset(
        name=own_name(name),
        class_names=source.class_names,
        train=splits[0],
        val=splits[1],
        test=splits[2],
        mean=mean,
        std=std,
        padded_from=28 if pad else None,
        resized_from=None if source.uniform and source.side == side else source.side,
        synthetic=source.synthetic,
        fingerprint=_fingerprint(source.class_names, splits),
        notes=source.notes,
    )
