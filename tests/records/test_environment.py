"""What a record says of the code: the commit of the checkout that ldbench runs from, and of no other repository."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

import ldbench
from ldbench.records import environment

SOURCE = Path(environment.__file__)
PACKAGE = Path(ldbench.__file__).parent


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit_told_by_a_copy(root: Path) -> str | None:
    """What the module says when it lies in ``root / "ldbench"``, as deep in it as in this package."""
    copied = root / "ldbench" / SOURCE.relative_to(PACKAGE)
    spec = importlib.util.spec_from_file_location("copied_environment", copied)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told: str | None = module.checkout_commit()
    return told


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder that holds ``ldbench`` with this one module, in no repository yet."""
    copied = tmp_path / "checkout" / "ldbench" / SOURCE.relative_to(PACKAGE)
    copied.parent.mkdir(parents=True)
    copied.write_bytes(SOURCE.read_bytes())
    return tmp_path / "checkout"


def commit_all(folder: Path) -> str:
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all of it")
    return git(folder, "rev-parse", "HEAD")


def test_a_checkout_tells_its_commit_and_whether_it_has_changes(copy: Path) -> None:
    commit = commit_all(copy)
    assert commit_told_by_a_copy(copy) == commit
    (copy / "ldbench" / "more.py").write_text("")
    assert commit_told_by_a_copy(copy) == f"{commit}+dirty"


def test_telling_the_commit_writes_nothing_into_the_repository(copy: Path) -> None:
    commit = commit_all(copy)
    os.utime(copy / "ldbench" / SOURCE.relative_to(PACKAGE), (0, 0))  # what a plain git status would note in the index
    index = copy / ".git" / "index"
    before = index.read_bytes()
    assert commit_told_by_a_copy(copy) == commit
    assert index.read_bytes() == before


def test_a_package_outside_every_repository_tells_no_commit(copy: Path) -> None:
    assert commit_told_by_a_copy(copy) is None


def test_a_package_installed_within_another_repository_does_not_tell_that_ones_commit(copy: Path) -> None:
    commit_all(copy.parent)
    assert commit_told_by_a_copy(copy) is None


def test_a_machine_without_git_tells_no_commit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_all(copy)
    monkeypatch.setenv("PATH", str(copy))
    assert commit_told_by_a_copy(copy) is None
