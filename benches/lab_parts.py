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
        asked: what decides how much there is to find; a part that is done is run again where an earlier call asked otherwise.
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


# Seconds on a GPU, estimated for an H100, and in the rehearsal on a CPU.
SECONDS = {
    "machine": (28, 30), "tests": (85, 80), "kernels": (95, 45), "meter": (52, 20), "steps": (70, 60), "trainings": (142, 150),
}  # fmt: skip
LEAST_TRAINING = (75, 75)


def parts(device: str, data_root: str | None, work: Path, seeds: int, epochs: int | None) -> list[Part]:
    """All parts in the order that a reader wants them."""
    on_cpu = device == "cpu"
    seconds = {name: float(both[on_cpu]) for name, both in SECONDS.items()}
    modules = {
        "machine": "lab_machine", "tests": "lab_tests", "kernels": "gpu_kernels", "meter": "meter_check", "steps": "lab_steps",
        "trainings": "lab_trainings",
    }  # fmt: skip
    made = []
    for name, module in modules.items():
        command = [sys.executable, "-m", f"benches.{module}", "--device", device]
        if name == "trainings":
            command += ["--folder", str(work / "training"), "--seeds", str(seeds)]
            command += ["--data-root", data_root] if data_root else []
            command += ["--epochs", str(epochs)] if epochs else []
        trains = name == "trainings"
        least, asked = (
            (float(LEAST_TRAINING[on_cpu]), f"{seeds} seeds, epochs: {epochs or 'default'}") if trains else (None, "")
        )
        made.append(Part(name, seconds[name], command, least, asked))
    return made


def surroundings_for(scratch: Path) -> dict[str, str]:
    """The environment of a part: everything that Python, Triton, torch and pytest keep goes into ``scratch``, nothing elsewhere."""
    folders = {
        "TRITON_CACHE_DIR": "triton", "TRITON_HOME": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "MPLCONFIGDIR": "matplotlib",
        "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis", "TMPDIR": "tmp", "XDG_CACHE_HOME": "cache", "TORCH_HOME": "torch",
        "CUDA_CACHE_PATH": "cuda", "HOME": "home",
    }  # fmt: skip
    for folder in folders.values():
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {name: str(scratch / folder) for name, folder in folders.items()} | {
        "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes that a bound would have to wait for
    }  # fmt: skip
