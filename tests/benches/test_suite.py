"""The asv suite needs what ldbench needs and no more: asv imports all of it where nothing else is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("pytest", "hypothesis", "asv", "benches")


def imported(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Import a package and every module of it, as asv does, where tests and tools are not to be had."""
    code = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({ELSEWHERE!r}))
sys.path.insert(0, {str(folder)!r})
for _, module, _ in pkgutil.iter_modules(importlib.import_module({name!r}).__path__, {name!r} + "."):
    importlib.import_module(module)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_every_file_of_the_suite_can_be_imported_with_ldbench_alone() -> None:
    folder = ROOT / json.loads((ROOT / "asv.conf.json").read_text())["benchmark_dir"]
    done = imported(folder.parent, folder.name)
    assert done.returncode == 0, done.stderr


def test_a_file_that_needs_more_is_found(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted/__init__.py").write_text("")
    (tmp_path / "planted/bench.py").write_text("import pytest\n")
    assert "pytest" in imported(tmp_path, "planted").stderr
