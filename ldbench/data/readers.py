"""Data sets that come as arrays: digits, IDX files, CIFAR-10, random images. Each becomes a `Source`.

Downloads and checksums are torchvision's; what is added is that nothing is unpickled, and that every failure is one
line that says what to do.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets as tv
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import download_and_extract_archive

from ldbench.data.cifar_pickle import NoBatch, read_batch
from ldbench.data.raw import ArrayPool, Source, corrupt, download_errors, missing
from ldbench.devices import check_memory
from ldbench.errors import UserError, one_line, shown
from ldbench.io.places import scratch_folder
from ldbench.seeds import derive_seed, stratified_order

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# Of the unpacked files: torchvision's checksums are of its own downloads' packed ones, which Debian, for one, repacks.
IDX_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def read_digits(seed: int) -> Source:
    """scikit-learn's 1,797 digits of 8x8 pixels, every fifth of each class to the test: 1,437 and 360."""
    from sklearn.datasets import load_digits  # a second of import time that no other data set needs

    images, labels = load_digits(return_X_y=True)
    # Values 0..16 as they come, spread over a byte.
    pixels = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    order = stratified_order(targets, seed)
    test, train = order[:360], order[360:]
    names = tuple(str(digit) for digit in range(10))
    return Source(
        names,
        1,
        ArrayPool(pixels[train], targets[train]),
        ArrayPool(pixels[test], targets[test]),
        side=8,
        uniform=True,
        default_side=32,
    )


def _read_idx_file(folder: Path, file: str, md5: str, reader: Callable[[str], Tensor]) -> Tensor:
    """Reads an IDX file, unpacked or as FILE.gz, whose unpacked content must have the given MD5."""
    path = folder / file if (folder / file).is_file() else folder / f"{file}.gz"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise corrupt(path, one_line(error)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise corrupt(path, "its checksum is not the published one")
    with scratch_folder() as folder:
        # torchvision reads unpacked files by name; the data root may be read-only, or shared with another run.
        unpacked = folder / path.stem
        unpacked.write_bytes(content)
        return reader(str(unpacked))


def read_idx(name: str, root: Path, download: bool) -> Source:
    """MNIST or Fashion-MNIST ("mnist", "fashion-mnist"): IDX files, packed or not, in torchvision's folder.

    Fashion-MNIST is found in Debian's package too.
    """
    kind = {"mnist": tv.MNIST, "fashion-mnist": tv.FashionMNIST}[name]
    places = [root / kind.__name__ / "raw"]
    other = ""
    if name == "fashion-mnist":
        places.append(DEBIAN_FASHION_MNIST)
        other = " (or install Debian's package dataset-fashion-mnist)"

    def absent(place: Path) -> list[str]:
        return [f for f in IDX_MD5[name] if not ((place / f"{f}.gz").is_file() or (place / f).is_file())]

    folder = next((place for place in places if not absent(place)), None)
    if folder is None and download:
        with download_errors(name, root):
            _fetch_idx(kind, places[0])
        folder = places[0]
    if folder is None:
        lacking = absent(places[0])
        raise missing(name, places, other, absent=lacking if len(lacking) < len(IDX_MD5[name]) else [])
    images, labels, test_images, test_labels = (
        _read_idx_file(folder, file, md5, read_image_file if "images" in file else read_label_file)
        for file, md5 in IDX_MD5[name].items()
    )
    train, test = ArrayPool(images.unsqueeze(1), labels), ArrayPool(test_images.unsqueeze(1), test_labels)
    return Source(tuple(kind.classes), 1, train, test, side=28, uniform=True, default_side=28)


def _fetch_idx(kind: type[tv.MNIST], folder: Path) -> None:
    """torchvision's own class does the same, and loads whatever lies in an old folder "processed" besides."""
    for file, md5 in kind.resources:
        for mirror in kind.mirrors:
            try:
                download_and_extract_archive(mirror + file, str(folder), filename=file, md5=md5)
            except (OSError, RuntimeError):
                if mirror == kind.mirrors[-1]:
                    raise
            else:
                break


def read_cifar10(root: Path, download: bool) -> Source:
    """CIFAR-10 in its "python version": pickled batches, read by `cifar_pickle` where the checksums agree."""
    folder = root / tv.CIFAR10.base_folder
    meta = (tv.CIFAR10.meta["filename"], tv.CIFAR10.meta["md5"])
    files = [*((file, md5) for file, md5 in tv.CIFAR10.train_list + tv.CIFAR10.test_list), meta]
    absent = [file for file, _ in files if not (folder / file).is_file()]
    if absent and not download:
        raise missing("cifar10", [folder], absent=absent if len(absent) < len(files) else [])
    if absent:
        with download_errors("cifar10", root):
            # torchvision's class would unpickle what it has fetched.
            download_and_extract_archive(
                tv.CIFAR10.url, str(root), filename=tv.CIFAR10.filename, md5=tv.CIFAR10.tgz_md5
            )
    batches = {file: _read_batch_file(folder / file, md5) for file, md5 in files}
    try:
        pools = []
        for part in (tv.CIFAR10.train_list, tv.CIFAR10.test_list):
            pixels = np.concatenate([batches[file]["data"] for file, _ in part]).reshape(-1, 3, 32, 32)
            labels = [label for file, _ in part for label in batches[file]["labels"]]
            pools.append(ArrayPool(torch.from_numpy(pixels), torch.tensor(labels)))
        names = tuple(map(str, batches[meta[0]][tv.CIFAR10.meta["key"]]))
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(folder, f"a batch lacks {one_line(error)}") from error
    return Source(names, 3, pools[0], pools[1], side=32, uniform=True, default_side=32)


def _read_batch_file(path: Path, md5: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise corrupt(path, "its checksum is not the published one")
    try:
        return read_batch(content)
    except NoBatch as error:
        raise corrupt(path, one_line(error)) from error


def parse_synthetic(argument: str) -> tuple[int, int, int, int]:
    """Returns channels, side, classes and training images of "CxHxW:CLASSES:N".

    Raises:
        UserError: not of that form, not square, or fewer images than classes.
    """
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)x([1-9][0-9]*):([1-9][0-9]*):([1-9][0-9]*)", argument)
    form = f"synthetic:{shown(argument)} is not of the form synthetic:CxHxW:CLASSES:N, as in synthetic:3x32x32:10:5000"
    if match is None:
        raise UserError(form)
    if len(argument) > 60:
        raise UserError(f"synthetic:{shown(argument)}: no machine holds so many images")
    channels, height, width, classes, images = map(int, match.groups())
    if height != width:
        raise UserError(f"synthetic:{argument}: images must be square, and {height}x{width} is not")
    if classes < 2 or images < classes:
        raise UserError(f"synthetic:{argument}: at least 2 classes, and an image for each, are needed")
    return channels, height, classes, images


def make_synthetic(argument: str, seed: int) -> Source:
    """Random images of pixels 1..255 (an image of zeros would flatter power and time) and labels that mean nothing."""
    channels, side, classes, count = parse_synthetic(argument)
    size = channels * side * side * (count + max(1, count // 5))
    check_memory(f"synthetic:{argument}", size, "take fewer or smaller images")

    def pool(part: str, images: int) -> ArrayPool:
        bits = np.random.Generator(np.random.Philox(derive_seed(seed, part)))
        pixels = bits.integers(1, 256, size=(images, channels, side, side), dtype=np.uint8)
        return ArrayPool(torch.from_numpy(pixels), torch.arange(images) % classes)

    names = tuple(str(label) for label in range(classes))
    train, test = pool("synthetic train", count), pool("synthetic test", max(1, count // 5))
    return Source(names, channels, train, test, side=side, uniform=True, default_side=side, synthetic=True)
