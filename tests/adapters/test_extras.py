"""The examples run; what they need is imported by nobody else, and is asked for in one line where it is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NEEDS = {
    "lightning_callback": ["lightning"],
    "accelerate_loop": ["accelerate"],
    "transformers_trainer": ["transformers", "accelerate", "timm"],
}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300, env=variables
    )


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == NEEDS.keys()


@pytest.mark.parametrize("example", NEEDS)
def test_an_example_drops_stages_and_learns(example: str, tmp_path: Path) -> None:
    for package in NEEDS[example]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    done = python(str(ROOT / "examples" / f"{example}.py"))
    assert done.returncode == 0, done.stderr
    drops = re.findall(r"step (\d+): (\d+) stages have left training, ([\d.]+) MB are stored", done.stdout)
    steps, cuts, sizes = zip(*drops, strict=True)
    assert len(drops) == 2
    assert int(steps[0]) < int(steps[1])
    assert int(cuts[0]) < int(cuts[1])
    assert float(sizes[0]) > 0
    accuracy = re.search(r"accuracy ([\d.]+)", done.stdout.splitlines()[-1])
    assert accuracy is not None
    assert float(accuracy[1]) > 0.93


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_library_is_asked_for_in_one_line(name: str) -> None:
    code = f"""
import sys
sys.modules[{name!r}] = None
from ldbench.errors import UserError
try:
    import ldbench.adapters.{name}
except UserError as error:
    print(error)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"\w+ is not installed: pip install 'ldbench\[{name}\]'", done.stdout.strip())


def test_nothing_but_its_adapter_imports_a_library() -> None:
    code = """
import sys
for name in ("lightning", "accelerate", "transformers"):
    sys.modules[name] = None
import ldbench
import ldbench.cli
import ldbench.adapters.detour
[getattr(ldbench, name) for name in ldbench.__all__]
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
