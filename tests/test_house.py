"""The floors of the house: a package imports only packages below it, files import each other in one direction alone.

Every import is read from the source, those within functions and under ``TYPE_CHECKING`` too.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import ldbench

# What a package may import lies on a lower floor; the package's own face, "", is used by nobody within.
FLOORS = [
    {"errors", "seeds", "io", "kernels", "suites"},
    {"stages", "policies", "devices"},
    {"data", "models", "meters"},
    {"store", "experiment", "doctor"},
    {"costs", "records"},
    {"dropping", "reporting"},
    {"training", "adapters"},
    {"runner"},
    {"cli"},
    {"__main__", ""},
]
NEIGHBOURS = {("io", "errors")}  # on one floor, and still imported
ONE_NAME = {("experiment", "models"): {"Recipe"}}  # nothing else of that package
FACES = {"", "cli", "meters", "kernels"}  # packages whose ``__init__`` hands names on
HOUSE = Path(ldbench.__file__).parent


@dataclass(frozen=True)
class Import:
    """``from module import name``, or ``import module``; the module is a file of the house."""

    line: int
    module: str
    name: str | None


@dataclass
class File:
    """What one file of the house imports, defines, uses as ``module.name``, and says to be public."""

    imports: list[Import] = field(default_factory=list)
    imported: dict[str, Import] = field(default_factory=dict)  # by the name it has here
    defined: set[str] = field(default_factory=set)
    attributes: list[tuple[int, str, str]] = field(default_factory=list)  # line, module's name here, attribute
    public: set[str] = field(default_factory=set)


def read_house(root: Path) -> dict[str, File]:
    """Every file of the package in ``root``, by module name."""
    paths = [Path(folder) / name for folder, _, names in os.walk(root, followlinks=True) for name in names]
    trees = {_module(root, path): (path, ast.parse(path.read_text())) for path in paths if path.suffix == ".py"}
    return {module: _file(module, path, tree, set(trees)) for module, (path, tree) in sorted(trees.items())}


def _module(root: Path, path: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file(module: str, path: Path, tree: ast.Module, modules: set[str]) -> File:
    file, package = File(), module.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules:
                    file.imports.append(Import(node.lineno, alias.name, None))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                if f"{source}.{alias.name}" in modules:
                    found = Import(node.lineno, f"{source}.{alias.name}", None)
                elif source in modules:
                    found = Import(node.lineno, source, alias.name)
                else:
                    continue
                file.imports.append(found)
                file.imported[alias.asname or alias.name] = found
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            file.attributes.append((node.lineno, node.value.id, node.attr))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            file.public |= {part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)}
    unseen: list[ast.AST] = [*tree.body]
    while unseen:
        node = unseen.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            file.defined.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            file.defined.add(node.id)
        unseen += ast.iter_child_nodes(node)
    return file


def package_of(module: str) -> str:
    """The package, or single file, of the house that a module belongs to; "" is the house's face."""
    return module.split(".")[1] if "." in module else ""


def upward(root: Path) -> Iterator[str]:
    """Packages that import what does not lie below them."""
    floor_of = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    for module, file in read_house(root).items():
        for found in file.imports:
            ours, theirs = package_of(module), package_of(found.module)
            names = ONE_NAME.get((ours, theirs), {found.name})
            if ours not in floor_of:
                yield f"{module} lies on no floor"
            elif ours == theirs or ((ours, theirs) in NEIGHBOURS and found.name in names):
                continue
            elif floor_of.get(theirs, len(FLOORS)) >= floor_of[ours] or found.name not in names:
                yield f"{module}:{found.line} imports {found.module} ({found.name})"


def circles(root: Path) -> Iterator[str]:
    """Files that import each other, over however many others."""
    house = read_house(root)
    try:
        graphlib.TopologicalSorter(
            {module: {i.module for i in file.imports} for module, file in house.items()}
        ).prepare()
    except graphlib.CycleError as error:
        yield " <- ".join(error.args[1])


def handed_on(root: Path) -> Iterator[str]:
    """Names that are taken from a file, or offered by one, which only imports them."""
    house = read_house(root)
    faces = {".".join(filter(None, [root.name, face])) for face in FACES}

    def only_imports(module: str, name: str | None) -> bool:
        file = house[module]
        return module not in faces and name in file.imported and name not in file.defined

    for module, file in house.items():
        for found in file.imports:
            if only_imports(found.module, found.name):
                yield f"{module}:{found.line} takes {found.name} from {found.module}, which only imports it"
        for line, local, name in file.attributes:
            source = file.imported.get(local)
            if source is not None and source.name is None and only_imports(source.module, name):
                yield f"{module}:{line} takes {name} from {source.module}, which only imports it"
        for name in sorted(file.public):
            if only_imports(module, name):
                yield f"{module} offers {name}, which it only imports"


def unlisted(root: Path) -> Iterator[str]:
    """Folders with Python files, and packages in pyproject.toml, that the other side lacks."""
    told = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [Path(folder) for folder, _, names in os.walk(root, followlinks=True) if "__init__.py" in names]
    yield from sorted({".".join(folder.relative_to(root.parent).parts) for folder in folders} ^ set(told))


def wrong_face(root: Path) -> Iterator[str]:
    """Public names that are not there, or that a type checker would find elsewhere than the interpreter."""
    face, checked = importlib.import_module(root.name), {}
    for node in ast.parse((root / "__init__.py").read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for found in node.body:
                if isinstance(found, ast.ImportFrom):
                    checked |= {alias.asname or alias.name: found.module for alias in found.names}
    lazy = {name: f"{root.name}.{home}" for name, home in face._HOME.items()}
    for name in sorted(lazy.keys() | checked.keys()):
        if lazy.get(name) != checked.get(name):
            yield f"{name}: {lazy.get(name)} and {checked.get(name)}"
    if len(set(face.__all__)) < len(face.__all__) or not lazy.keys() <= set(face.__all__):
        yield "__all__ lacks a name or says one twice"
    for name in face.__all__:
        try:
            getattr(face, name)
        except (AttributeError, ImportError) as error:
            yield f"{name}: {error}"


CHECKS = [upward, circles, handed_on, unlisted, wrong_face]


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_keeps_its_floors(check: Callable[[Path], Iterator[str]]) -> None:
    assert list(check(HOUSE)) == []


# A house in which all is well: packages of three floors, a face, a list of packages.
SOUND = {
    "pyproject.toml": """
[tool.setuptools]
packages = ["NAME", "NAME.io", "NAME.stages", "NAME.models", "NAME.experiment"]
""",
    "NAME/__init__.py": """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from NAME.stages.split import split as split

_HOME = {"split": "stages.split"}
__all__ = ["__version__", *_HOME]
__version__ = "1"


def __getattr__(name):
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(name)
    return getattr(import_module(f"NAME.{_HOME[name]}"), name)
""",
    "NAME/errors.py": "class UserError(Exception):\n    pass\n",
    "NAME/io/__init__.py": "",
    "NAME/io/atomic.py": "from NAME.errors import UserError\n\n\ndef write():\n    raise UserError\n",
    "NAME/stages/__init__.py": "",
    "NAME/stages/split.py": "from NAME.io.atomic import write\n\n\ndef split():\n    write()\n",
    "NAME/models/__init__.py": "",
    "NAME/models/zoo.py": "from ..stages import split\n\n\nclass Recipe:\n    model = split.split\n",
    "NAME/experiment/__init__.py": "",
    "NAME/experiment/grid.py": "def cells():\n    from NAME.models.zoo import Recipe\n\n    return Recipe()\n",
}


def build(folder: Path, name: str, files: dict[str, str]) -> Path:
    """The sound house with these files added to it, or put in the place of its own."""
    for path, text in (SOUND | files).items():
        place = folder / path.replace("NAME", name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text.replace("NAME", name))
    return folder / name


FACE = SOUND["NAME/__init__.py"]
ZOO = SOUND["NAME/models/zoo.py"]
PLANTED = {
    "upward": (upward, {"NAME/stages/new.py": "from NAME.models.zoo import Recipe\n"}),
    "upward in a function": (upward, {"NAME/io/new.py": "def f():\n    from ..models import zoo\n"}),
    "upward for a type": (
        upward,
        {"NAME/stages/new.py": "if TYPE_CHECKING:\n    from NAME.models.zoo import Recipe\n"},
    ),
    "upward as a module": (upward, {"NAME/stages/new.py": "import NAME.models.zoo\n"}),
    "on one floor": (upward, {"NAME/errors.py": "from NAME.io.atomic import write\n"}),
    "the face from within": (upward, {"NAME/stages/new.py": "from NAME import split\n"}),
    "on no floor": (upward, {"NAME/annex.py": "from NAME.errors import UserError\n"}),
    "more than one name": (upward, {"NAME/experiment/new.py": "from NAME.models import zoo\n"}),
    "a circle of two": (circles, {"NAME/io/a.py": "from . import b\n", "NAME/io/b.py": "from NAME.io.a import x\n"}),
    "a circle of three": (
        circles,
        {
            "NAME/io/a.py": "import NAME.io.b\n",
            "NAME/io/b.py": "def f():\n    from .c import x\n",
            "NAME/io/c.py": "if TYPE_CHECKING:\n    from NAME.io.a import y\n",
        },
    ),
    "handed on to another": (handed_on, {"NAME/models/new.py": "from NAME.stages.split import write\n"}),
    "handed on as an attribute": (handed_on, {"NAME/models/zoo.py": ZOO.replace("split.split", "split.write")}),
    "handed on by a list": (
        handed_on,
        {"NAME/stages/split.py": 'from ..io.atomic import write\n\n__all__ = ["write"]\n'},
    ),
    "handed on by a package": (
        handed_on,
        {"NAME/io/__init__.py": "from .atomic import write\n", "NAME/models/new.py": "from NAME.io import write\n"},
    ),
    "a package not listed": (unlisted, {"NAME/store/__init__.py": ""}),
    "a package that is gone": (unlisted, {"pyproject.toml": SOUND["pyproject.toml"].replace('"]', '", "NAME.gone"]')}),
    "a name without a home": (wrong_face, {"NAME/__init__.py": FACE.replace("*_HOME", "*_HOME, 'gone'")}),
    "a home without the name": (wrong_face, {"NAME/stages/split.py": "def cut():\n    pass\n"}),
    "two homes": (wrong_face, {"NAME/__init__.py": FACE.replace("NAME.stages.split import", "NAME.models.zoo import")}),
    "a home for no type checker": (
        wrong_face,
        {"NAME/__init__.py": FACE.replace("from NAME.stages.split import split as split", "pass")},
    ),
    "a name that is not public": (wrong_face, {"NAME/__init__.py": FACE.replace(", *_HOME", "")}),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_seen_by_its_check(planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    check, files = PLANTED[planted]
    assert len(list(check(build(tmp_path, "house_" + planted.replace(" ", "_"), files)))) == 1


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_house_passes(
    check: Callable[[Path], Iterator[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert list(check(build(tmp_path, f"sound_{check.__name__}", {}))) == []
