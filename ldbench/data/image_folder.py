"""Data sets that come as image files, one folder per class: any folder of the user's, and Imagenette.

A file is decoded once, straight into its place in one byte tensor; only the files that were chosen are decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torchvision.datasets as tv
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ldbench.data.folder_listing import find_splits, list_classes
from ldbench.data.raw import Source, corrupt, download_errors, missing
from ldbench.errors import UserError, one_line
from ldbench.seeds import stratified_order

_GREY_MODES = {"1", "L", "LA"}
# By content, whatever a file is called; among PIL's other formats is one (EPS) that hands the file to another program.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
_WIDE_MODES = ("I", "F")  # more than eight bits a channel, in PIL's names: I;16, F, ...

# torchvision's names of the three releases, their folders, and the images in a complete one.
IMAGENETTE_FOLDERS = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}
IMAGENETTE_COUNTS = {"train": 9469, "val": 3925}

T = TypeVar("T")
R = TypeVar("R")


def _in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Maps in order over threads (PIL lets go of the interpreter lock while it works); the first error ends it."""
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _opened(path: str, use: Callable[[Image.Image], R]) -> R:
    """Applies ``use`` to an open image; a file PIL cannot digest becomes a UserError that names it."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode.startswith(_WIDE_MODES):
                raise UserError(f"{path} has more than 8 bits per channel (PIL mode {image.mode}): convert it first")
            return use(image)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise UserError(f"{path} is not a readable image ({one_line(error)}): delete or replace it") from error


def _orientation(image: Image.Image) -> int:
    """How a camera was held: 1 upright, from 5 on width and height are exchanged. What EXIF cannot tell is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken block of it beside a sound image
        return 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after EXIF rotation; of a PNG file, which would have to be decoded for that, as they are."""
    turned = image.format != "PNG" and _orientation(image) >= 5
    return image.size[::-1] if turned else image.size


def _decode_square(image: Image.Image, out: npt.NDArray[np.uint8], upright: bool) -> None:
    """Writes the centre square of an image, resized (bilinear, antialiased), into ``out`` uint8 [C, S, S]."""
    channels, side, _ = out.shape
    if upright and _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    image = image.convert("L" if channels == 1 else "RGB")
    shorter = min(image.size)
    left, top = ((length - shorter) / 2 for length in image.size)
    if image.size != (side, side):
        # The same as resizing the shorter side and cropping the centre, without the pixels that are cropped away.
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + shorter, top + shorter))
    out[:] = np.asarray(image).reshape(side, side, channels).transpose(2, 0, 1)


@dataclass(frozen=True)
class FilePool:
    """Image files and their labels; ``upright``: photos are turned as their EXIF data say."""

    paths: tuple[str, ...]
    labels: Tensor
    channels: int
    upright: bool = True

    def read(self, indices: Tensor, side: int) -> Tensor:
        """See Pool.read."""
        out = torch.empty(len(indices), self.channels, side, side, dtype=torch.uint8)
        chosen = zip(out.numpy(), (self.paths[i] for i in indices.tolist()), strict=True)
        _in_threads(lambda pair: _opened(pair[1], lambda image: _decode_square(image, pair[0], self.upright)), chosen)
        return out


def _headers(paths: Sequence[str]) -> tuple[int, bool, bool]:
    """Returns the median shorter side in pixels, whether all images are such squares, and whether all are grey."""
    found = _in_threads(lambda path: _opened(path, lambda image: (*_upright_size(image), image.mode)), paths)
    sizes = {(width, height) for width, height, _ in found}
    side = median_low(min(width, height) for width, height, _ in found)
    return side, sizes == {(side, side)}, all(mode in _GREY_MODES for *_, mode in found)


def _pool(samples: Sequence[tuple[str, int]], channels: int, upright: bool = True) -> FilePool:
    labels = torch.tensor([label for _, label in samples])
    return FilePool(tuple(path for path, _ in samples), labels, channels, upright)


def open_folder(path: Path, seed: int) -> Source:
    """A folder of images: class folders, a fifth of whose images is the test, or splits (``find_splits``): training
    images beside test images, or beside validation images, which are the test then.

    Grey when all files are grey, else RGB. What was left out is told in the source's notes.
    """
    if not path.is_dir():
        raise UserError(
            f"data set folder {path} not found (looked for {path.absolute()}, and in the data root): one folder per class"
        )
    splits, notes = find_splits(path), list[str]()
    if splits is not None:
        listings = [list_classes(folder) for folder in splits[:2]]
        (classes, test_classes), (train, test) = zip(*((list(o.images), o.samples) for o in listings), strict=True)
        if classes != test_classes:
            odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
            names = f"{splits[0].name} and {splits[1].name}"
            raise UserError(f"{path}: {names} must have the same class folders; not so: {odd}")
        notes += [f"{path}: {further.name} is not read: {splits[1].name} is the test set" for further in splits[2]]
    else:
        listings = [list_classes(path)]
        classes, samples = list(listings[0].images), listings[0].samples
        single = [name for name, files in listings[0].images.items() if len(files) < 2]
        if single:
            raise UserError(
                f"{path}: {', '.join(single[:4])} has one image; a class takes two at least, one to train on and one to test: "
                "add images, or give folders train and test"
            )
        order = stratified_order(torch.tensor([label for _, label in samples]), seed).tolist()
        cut = max(1, len(samples) // 5)
        test, train = ([samples[i] for i in part] for part in (order[:cut], order[cut:]))
        tested = {label for _, label in test}
        without = [name for label, name in enumerate(classes) if label not in tested]
        if without:
            notes.append(
                f"{path}: a fifth of the images, {cut}, is the test and holds none of {', '.join(without[:4])}: add images, "
                "or give folders train and test"
            )
    for listing in listings:
        told = ", ".join(f"{count} {what}" for what, count in listing.skipped.items() if count)
        notes += [f"{listing.folder}: left out {told}"] if told else []
    side, uniform, grey = _headers([file for file, _ in train])
    channels = 1 if grey and _headers([file for file, _ in test])[2] else 3
    return Source(
        tuple(classes),
        channels,
        _pool(train, channels),
        _pool(test, channels),
        side=side,
        uniform=uniform,
        default_side=min(side, 224),
        notes=tuple(notes),
    )


def open_imagenette(root: Path, download: bool, image_size: int | None) -> Source:
    """Imagenette: the largest release that is there, else (with ``download``) the smallest one that is large enough."""
    here = [size for size, folder in IMAGENETTE_FOLDERS.items() if (root / folder).is_dir()]
    if not here and not download:
        raise missing("imagenette", [root / folder for folder in IMAGENETTE_FOLDERS.values()])
    side = image_size or 224
    release = here[0] if here else "160px" if side <= 160 else "320px" if side <= 320 else "full"
    if not here:
        with download_errors("imagenette", root):
            tv.Imagenette(str(root), size=release, download=True)
    folder = root / IMAGENETTE_FOLDERS[release]
    pools = []
    for part, count in IMAGENETTE_COUNTS.items():
        try:
            # With str for a loader an item is (path, label), and nothing is decoded here.
            listed = tv.Imagenette(str(root), split=part, size=release, loader=str)
            samples = [listed[i] for i in range(len(listed))]
        except (OSError, RuntimeError, KeyError) as error:
            raise corrupt(folder / part, "its class folders are not all there") from error
        if len(samples) != count:
            raise corrupt(folder, f"{part} has {len(samples)} of {count} images")
        pools.append(_pool(samples, 3, upright=False))  # as everybody reads it, so that accuracies compare
    names = tuple(names[0] for names in listed.classes)
    side, uniform, _ = _headers(pools[0].paths)
    return Source(names, 3, pools[0], pools[1], side=side, uniform=uniform, default_side=224)
