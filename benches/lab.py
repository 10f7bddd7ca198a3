"""Everything a lab's GPU can tell about ldbench, in one folder, in parts that go on where they stopped.

    python -m benches.lab --data-root DATA --out results/gpu/NAME [--minutes 8]

Parts: doctor (what the machine can do), tests (the kernels' property tests on the device), meter (tick, idle power,
short-window errors), kernels (correctness, determinism, bandwidth, ratios), profiles of two networks, and trainings with
energy (the suite ``energy``). A part that is done is skipped; a call ends after ``--minutes`` at the latest and exits with 3
if something is left, so that the same line can be repeated until it exits with 0. Exit code 1: a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LEAST_SECONDS = 45.0  # not worth starting a training with less


class Part(NamedTuple):
    """A command whose result is ``file`` in the folder; ``seconds``: what it takes at most on an H200."""

    name: str
    file: str
    seconds: float
    command: list[str]
    from_stdout: bool = False  # the result is what the command prints


def parts(out: Path, device: str, data: list[str], models: Sequence[str]) -> list[Part]:
    """All but the trainings, in the order they run."""
    ldbench = [sys.executable, "-m", "ldbench"]
    tests = [str(ROOT / "tests" / name) for name in ("test_delta_norm.py", "test_gather.py")]
    made = [
        Part("doctor", "doctor.json", 60, [*ldbench, "doctor", "--json"], from_stdout=True),
        Part("tests", "tests.txt", 300, [sys.executable, "-m", "pytest", "-q", *tests], from_stdout=True),
        Part("meter", "meter.json", 120, [sys.executable, "-m", "benches.meter_check", "--device", device,
                                          "--out", str(out / "meter.json")]),
    ]  # fmt: skip
    if device.startswith("cuda"):
        command = [sys.executable, "-m", "benches.gpu_kernels", "--out", str(out)]
        made.append(Part("kernels", "kernels.done", 400, command, from_stdout=True))
    for model in models:
        command = [*ldbench, "profile", "--model", model, "--dataset", "fashion-mnist", "--device", device, *data]
        command += ["--energy", "--json"]
        made.append(Part(f"profile {model}", f"profile-{model}.json", 240, command, from_stdout=True))
    return made


def main() -> int:
    """Run what is left; see the module's docstring for the exit codes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", help="folder of the data sets, for Fashion-MNIST")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--models", nargs="+", default=["vgg11_bn", "resnet50"], help="networks to profile")
    parser.add_argument("--suite", default="energy", help="suite or TOML file of the trainings")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = ["--data-root", options.data_root] if options.data_root else []
    failed = []
    for part in parts(out, options.device, data, options.models):
        if (out / part.file).exists():
            continue
        if time.monotonic() + part.seconds > ends and part.seconds < 60 * options.minutes:
            print(f"{part.name}: left for the next call")
            return 3
        if not run_part(part, out, ends):
            failed.append(part.name)
    state = train(options.suite, options.device, data, out / "training", ends)
    if state == "failed":
        failed.append("training")
    if failed:
        print(f"failed: {', '.join(failed)}; see the .log files in {out}")
        return 1
    return 3 if state == "left" else 0


def run_part(part: Part, out: Path, ends: float) -> bool:
    """One part; its result appears only when it is whole. Whether it succeeded."""
    print(f"{part.name} ...", flush=True)
    began = time.monotonic()
    log = out / f"{part.file}.log"
    try:
        with log.open("w") as errors:
            done = subprocess.run(
                part.command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                timeout=max(30.0, ends - began),
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{part.name}: no time left, to be run again")
        return True
    print(f"{part.name}: exit code {done.returncode} after {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode and not (part.name == "doctor" and done.stdout):
        with log.open("a") as errors:
            errors.write(done.stdout)
        return False
    if part.from_stdout:
        (out / part.file).write_text(done.stdout)
    log.unlink()
    return True


def train(suite: str, device: str, data: list[str], out: Path, ends: float) -> str:
    """Run the suite until it is done or the time is up: "done", "failed" or "left"."""
    left = ends - time.monotonic()
    if left < LEAST_SECONDS:
        print("training: left for the next call")
        return "left"
    command = [sys.executable, "-m", "ldbench", "run", suite, "--device", device, *data, "--out", str(out), "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        text, _ = running.communicate(timeout=left - 15)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)  # what is finished is kept, and skipped by the next call
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=12)
        running.kill()
        print("training: to be continued by the next call")
        return "left"
    cells = json.loads(text)["cells"] if text.strip() else []
    print(f"training: exit code {running.returncode}, {len(cells)} runs")
    return "failed" if running.returncode else "done"


if __name__ == "__main__":
    sys.exit(main())
