"""The parts of the lab's run: what each is, how long it may take, and the environment it runs in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESERVE = 8.0  # seconds of a call kept back for packing


class Part(NamedTuple):
    """A command that writes its findings to ``NAME.json``, and ends within a bound by itself.

    Exit code 0: done; 3: something is left for another call; 1: something is wrong. A finding ``unavailable_reason``
    says that this machine has nothing to find there.

    Attributes:
        seconds: the bound, the start of Python and torch included.
        command: to which ``--out FILE --seconds BOUND`` are added.
        least: with fewer seconds left it is not begun; None: ``seconds``. Where it is given, the part also takes what
            the parts before it left over.
        asked: what decides how much there is to find; a part is run again where an earlier call asked otherwise.
    """

    name: str
    seconds: float
    command: list[str]
    least: float | None = None
    asked: str = ""

    def bound(self, left: float) -> float | None:
        """Seconds that the part may take when ``left`` are left; None where it cannot end in time."""
        if left < (self.seconds if self.least is None else self.least):
            return None
        return self.seconds if self.least is None else left


# Modules; seconds on a GPU, estimated for an H100, and in the rehearsal on a CPU.
PARTS = {
    "machine": ("lab_machine", 28, 30),
    "tests": ("lab_tests", 85, 80),
    "kernels": ("gpu_kernels", 95, 45),
    "meter": ("meter_check", 52, 20),
    "steps": ("lab_steps", 70, 60),
    "trainings": ("lab_trainings", 142, 150),
}
LEAST_TRAINING = 75.0


def parts(device: str, data_root: str | None, work: Path, seeds: int, epochs: int | None) -> list[Part]:
    """All parts in the order that a reader wants them."""
    made = []
    for name, (module, on_gpu, on_cpu) in PARTS.items():
        command, least, asked = [sys.executable, "-m", f"benches.{module}", "--device", device], None, ""
        if name == "trainings":
            command += ["--folder", str(work / "training"), "--seeds", str(seeds)]
            command += ["--data-root", data_root] if data_root else []
            command += ["--epochs", str(epochs)] if epochs else []
            least, asked = LEAST_TRAINING, f"{seeds} seeds, epochs: {epochs or 'default'}"
        made.append(Part(name, float(on_cpu if device == "cpu" else on_gpu), command, least, asked))
    return made


def surroundings_for(scratch: Path) -> dict[str, str]:
    """The environment of a part: all that Python, Triton, torch and pytest keep goes into ``scratch``."""
    folders = {
        "TRITON_CACHE_DIR": "triton", "TRITON_HOME": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "MPLCONFIGDIR": "matplotlib", "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis", "TMPDIR": "tmp",
        "XDG_CACHE_HOME": "cache", "TORCH_HOME": "torch", "CUDA_CACHE_PATH": "cuda", "HOME": "home",
    }  # fmt: skip
    for folder in folders.values():
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    settings["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes that a bound would have to wait for
    return os.environ | {name: str(scratch / folder) for name, folder in folders.items()} | settings
