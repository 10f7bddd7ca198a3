"""How data sets are called: ``mnist``, ``folder:PATH``, ``NAME=folder:PATH``, each with or without a choice of classes;
and how augmentations are: ``flip+crop``, ``flip+trivial-augment``.

Reads no file and imports no torch, so that an experiment can be checked, and a record of it read, without either.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from ldbench.errors import UserError, nearest, shown

DATASET_NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "imagenette")
DATASET_FORMS = ("folder:PATH", "NAME=folder:PATH", "synthetic:CxHxW:CLASSES:N")
AUGMENTATIONS = ("none", "flip", "crop", "flip+crop", "trivial-augment", "flip+crop+trivial-augment")
_FOLDER = "=folder:"
_SIMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MARKED = re.compile(r"(?P<name>.+)\[(?P<classes>[0-9,\- ]*)\]", re.DOTALL)
_PART = re.compile(r" *([0-9]{1,6}) *(?:- *([0-9]{1,6}) *)?")


def split_selection(name: str) -> tuple[str, list[tuple[int, int]] | None]:
    """The data set's own name, and the ranges of classes (both ends included) that are chosen; None for all of them.

    A folder whose own name ends like a selection is written with a slash behind it.

    Raises:
        UserError: the brackets hold no list of classes, or one class twice, or fewer than two.
    """
    marked = _MARKED.fullmatch(name)
    if marked is None:
        return name, None
    ranges = []
    for part in marked["classes"].split(","):
        found = _PART.fullmatch(part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"data set {shown(name)}: {shown(part)} chooses no classes: write [5-9] or [0,2,7-9]")
        ranges.append((int(found[1]), int(found[2] or found[1])))
    ranges.sort()
    if any(after[0] <= before[1] for before, after in itertools.pairwise(ranges)):
        raise UserError(f"data set {shown(name)}: a class is chosen twice")
    if sum(last - first + 1 for first, last in ranges) < 2:
        raise UserError(f"data set {shown(name)}: a classifier needs at least 2 classes")
    return marked["name"], ranges


def split_folder(text: str) -> tuple[str, str, str] | None:
    """Name, path and choice of classes ("" or "[5-9]") of ``NAME=folder:PATH[5-9]``; None for what is no such text."""
    marked = _MARKED.fullmatch(text)
    whole, chosen = (text, "") if marked is None else (marked["name"], f"[{marked['classes']}]")
    name, mark, path = whole.partition(_FOLDER)
    return (name, path, chosen) if mark and ":" not in name else None


def own_name(text: str) -> str:
    """What records call a data set: of ``NAME=folder:PATH[5-9]`` it is ``NAME[5-9]``, of any other the text itself."""
    named = split_folder(text)
    return text if named is None else f"{named[0]}{named[2]}"


def without_path(text: str) -> str:
    """``NAME=folder:NAME[5-9]`` for ``NAME=folder:PATH[5-9]``: to be looked for by its name, on any machine."""
    named = split_folder(text)
    return text if named is None else f"{named[0]}{_FOLDER}{named[0]}{named[2]}"


def check_folder_name(text: str) -> None:
    """Raises ``UserError`` where ``text`` gives a folder a name that cannot be its own."""
    named = split_folder(text)
    if named is None:
        return
    name, path, _ = named
    if not _SIMPLE.fullmatch(name):
        raise UserError(
            f"data set {shown(text)}: {shown(name)} is no simple name: letters, digits, '.', '_' and '-', a letter or "
            "digit first"
        )
    if name.lower() in (*DATASET_NAMES, "folder", "synthetic"):
        raise UserError(f"data set {shown(text)}: {name} is the name of another data set: choose one of its own")
    if not path:
        raise UserError(f"data set {shown(text)} names no folder: write {name}=folder:PATH")
    if _MARKED.fullmatch(path):
        raise UserError(
            f"data set {shown(text)} chooses classes twice; a folder called so is written with a slash behind"
        )


def check_one_path_each(texts: Iterable[str]) -> None:
    """Raises ``UserError`` where two of the data sets of an experiment have one name and different paths."""
    paths: dict[str, str] = {}
    for name, path, _ in filter(None, map(split_folder, texts)):
        if paths.setdefault(name, path) != path:
            raise UserError(
                f"data set {name} is to be two folders, {shown(paths[name])} and {shown(path)}: give each its own name"
            )


def augmentation_parts(kind: str) -> tuple[bool, bool, str | None]:
    """Whether an augmentation mirrors, whether it crops, and the transform behind: "trivial-augment", or a user's
    ``package.module:factory``.

    Raises:
        UserError: ``kind`` is neither one of ``AUGMENTATIONS`` nor a factory, alone or behind "flip+", "crop+" or both.
    """
    if kind in ("none", "flip", "crop", "flip+crop"):
        return "flip" in kind, "crop" in kind, None
    words = kind.split("+")
    in_order = "+".join(sorted(set(words), key=lambda word: ("flip", "crop", word).index(word)))
    if in_order != kind and set(words) & {"flip", "crop"}:
        raise UserError(f"unknown augmentation {shown(kind)}: did you mean {in_order}?")
    rest = kind.removeprefix("flip+").removeprefix("crop+")
    if rest != "trivial-augment" and ":" not in rest:
        raise UserError(
            f"unknown augmentation {shown(kind)}: {nearest(kind, AUGMENTATIONS)}; a transform of your own is "
            "package.module:factory"
        )
    before = kind[: len(kind) - len(rest)]
    return "flip" in before, "crop" in before, rest
