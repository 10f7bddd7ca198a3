"""What may not cost the seconds that torch takes to import, so that the command line answers at once."""

from __future__ import annotations

import subprocess
import sys

LIGHT = ("ldbench.errors", "ldbench.io", "ldbench.policies", "ldbench.experiment", "ldbench.training.interrupts")
HEAVY = ("ldbench.io.tensors",)  # tensors are what it reads and writes

# Without torch every import of it raises, and the traceback says who asked for it.
CODE = """
import importlib, pkgutil, sys
sys.modules["torch"] = None
light, heavy = (set(names.split()) for names in sys.argv[1:])
for name in sorted(light):
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
        if found.name not in heavy:
            importlib.import_module(found.name)
            light.add(found.name)
print(*sorted(light))
"""


def test_what_starts_the_command_line_imports_no_torch() -> None:
    command = [sys.executable, "-c", CODE, " ".join(LIGHT), " ".join(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for package in ("ldbench.io", "ldbench.policies", "ldbench.experiment"):
        assert f"{package}." in done.stdout, f"no module of {package} was found"
