"""Which files of a user's folder are the images of which class, and which of its folders are splits.

Class folders may have folders of their own. What is hidden is no class and no image: editors, file managers and version
control leave such folders, and other systems a ``._picture.png`` beside every picture.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from ldbench.errors import UserError, one_line

TRAIN = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation")  # the first that is there is the test set
_SPLIT = re.compile(r"(train|training|test|testing|val|valid|validation|dev|eval|holdout|split|fold)[-_ ]?\d*")


@dataclass
class Listing:
    """The image files of a folder of classes.

    Attributes:
        folder: of the classes.
        images: per class, in order of their names, its files in order.
        skipped: how many files were left out, by what they are.
    """

    folder: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def samples(self) -> list[tuple[str, int]]:
        """Every file with the number of its class."""
        return [(path, label) for label, paths in enumerate(self.images.values()) for path in paths]


def list_classes(folder: Path) -> Listing:
    """The classes of a folder. Raises ``UserError`` where it holds none, or one without an image."""
    listing = Listing(folder)
    try:
        names = _folders(folder)
        for entry in _entries(folder):
            if entry.name not in names:
                hidden = _hidden(entry.name)
                link = not hidden and _is_folder(entry)
                kind = "links to folders that are read already" if link else "files that are no images"
                listing.skipped["hidden files and folders" if hidden else kind] += 1
        for name in names:
            listing.images[name] = _images(folder / name, listing.skipped)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {one_line(error)}") from error
    empty = [name for name, paths in listing.images.items() if not paths]
    if not listing.images or empty:
        what = f"no image in {', '.join(empty[:4])}" if empty else "no folder in it"
        raise UserError(f"{folder} is not a data set of one folder of images per class: {what}")
    if len(listing.images) < 2:
        only = next(iter(listing.images))
        raise UserError(f"{folder} has one class folder ({only}); classification needs two or more")
    return listing


def find_splits(path: Path) -> tuple[Path, Path, list[Path]] | None:
    """The folders of the training and of the test images, and those of further splits, which are not read.

    ``train`` or ``training`` beside ``test``, ``testing``, ``val``, ``valid`` or ``validation``, in capitals too, as far
    as they hold folders; None where ``path`` holds classes.

    Raises:
        UserError: something in it looks like a split, and is no such pair.
    """
    try:
        inside = {name: set(_folders(path / name)) for name in _folders(path)}
        own = {name for name in inside if any(_is_image(entry.name) for entry in _entries(path / name))}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    by_name = {name.lower(): name for name in inside if inside[name]}
    train = next((by_name[name] for name in TRAIN if name in by_name), None)
    held_out = [by_name[name] for name in HELD_OUT if name in by_name]
    if train is not None and held_out:
        used = {train, *held_out}
        odd = [name for name in inside if name not in used and (own & {name} or inside[name] & inside[train])]
        if odd:
            raise UserError(
                f"{path} has {train} and {held_out[0]}, and beside them {', '.join(odd)} with images, too: move that out, or "
                "name a folder that has classes or splits alone"
            )
        return path / train, path / held_out[0], [path / name for name in held_out[1:]]
    alike = Counter(frozenset(names) for name, names in inside.items() if len(names) > 1 and name not in own)
    splits = [
        name
        for name, names in inside.items()
        if names and name not in own and (_SPLIT.fullmatch(name.lower()) or alike[frozenset(names)] > 1)
    ]
    if splits:
        raise UserError(
            f"{path / splits[0]} looks like a split: its own folders hold the images; name the folder of one split, or have "
            f"{TRAIN[0]} beside {HELD_OUT[0]} in {path}"
        )
    return None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not _hidden(name)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _folders(folder: Path) -> list[str]:
    """Names of the folders in it that may be classes or splits, sorted: neither hidden, nor links to where they lie."""
    return [
        entry.name
        for entry in _entries(folder)
        if _is_folder(entry) and not _hidden(entry.name) and not (entry.is_symlink() and _leads_up(Path(entry.path)))
    ]


def _leads_up(link: Path) -> bool:
    """Whether a link leads to a folder that it lies in: its images are other classes', or it never ends."""
    place, target = link.parent.resolve(), link.resolve()
    return target == place or target in place.parents


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 - of what a link leads to
    return status.st_dev, status.st_ino


def _images(folder: Path, skipped: Counter[str]) -> list[str]:
    """Image files in a folder and below, those of a folder before those of the folders in it; links are followed, but
    every folder is read once.
    """
    found: list[str] = []
    read: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if _identity(here) in read or (here.is_symlink() and _leads_up(here)):
            skipped["links to folders that are read already"] += 1
            continue
        read.add(_identity(here))
        deeper = []
        for entry in _entries(here):
            if _hidden(entry.name):
                skipped["hidden files and folders"] += 1
            elif _is_folder(entry):
                deeper.append(here / entry.name)
            elif _is_image(entry.name) and _may_be_opened(entry):
                found.append(entry.path)
            else:
                skipped["files that are no images"] += 1
        waiting += reversed(deeper)
    return found


def _may_be_opened(entry: os.DirEntry[str]) -> bool:
    """False for pipes and devices, which would be waited for; a link to nowhere is named when it is opened."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True
