"""Kills a small grid again and again, fills its disk now and then, and compares it with an undisturbed run at the end.

    python -m benches.soak --kills 10 --minutes 5 --out soak

Every kill is a SIGKILL at a random moment, most of them while cells train, some while the process starts. In one start
of five the largest file the process may write is limited (``RLIMIT_FSIZE``), so that a checkpoint, a store or a result
meets a full disk in the middle. At the end the grid runs on undisturbed; then every record but for its documented
volatile fields, every epoch, every score and every weight must be equal to those of a run that nothing happened to, and
``ldbench verify`` must find no damaged file. Exit code 0 when all of that holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from ldbench.io.checksums import read_sealed
from ldbench.records.cell_files import VOLATILE_FIELDS
from ldbench.records.integrity import verify

METHODS = ("full", "short", "learn-and-drop", "freeze", "freezeout", "schedule")
GRID = [
    "run", "--model", "vgg11_bn", "--dataset", "digits", "--width", "0.0625", "--image-size", "32", "--train-size",
    "600", "--test-size", "100", "--batch-size", "50", "--epochs", "6", "--seeds", "2", "--short-budgets", "0.5",
    "--save-model", "final", "--cache-budget", "0,0,200MB", "--dropout", "0.2", "--checkpoint-minutes", "0.005",
    "--quiet", *(part for method in METHODS for part in ("--method", method)),
    "--set", "schedule.drops=[[0.25,0.3],[0.5,0.6]]", "--set", "learn-and-drop.remaining=0.9",
]  # fmt: skip
DISK_FULL_EVERY = 5


def command(out: Path, costs: Path | None) -> list[str]:
    """The grid's command line; ``costs`` is a table to decide by."""
    table = [] if costs is None else ["--cost-table", str(costs)]
    return [sys.executable, "-c", "from ldbench.cli import main; main()", *GRID, *table, "--out", str(out)]


def run(out: Path, costs: Path | None) -> None:
    """Run the grid to its end."""
    subprocess.run(command(out, costs), check=True, stdout=subprocess.DEVNULL)


def limit_file_size(limit: int) -> None:
    """In the child: files end at ``limit`` bytes, as on a disk that fills up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def disturb(out: Path, costs: Path, dice: random.Random, longest: float, disk_full: bool) -> str:
    """Start the grid and kill it at a random moment; tells what happened."""
    limit = dice.choice([2_000, 20_000, 200_000]) if disk_full else None
    limited = None if limit is None else lambda: limit_file_size(limit)
    process = subprocess.Popen(
        command(out, costs), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limited
    )
    try:
        _, said = process.communicate(timeout=dice.uniform(0.5, longest))
        what = f"ended by itself with code {process.returncode}: {said.strip().splitlines()[-1:] or ''}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        what = "killed"
    return what if limit is None else f"{what}, files limited to {limit} bytes"


def lasting(folder: Path) -> dict[str, Any]:
    """What must be equal to the bit: record without volatile fields, epochs, scores, weights."""
    record = {k: v for k, v in read_sealed(folder / "result.json").items() if k not in VOLATILE_FIELDS}
    for field in (name for name in VOLATILE_FIELDS if name.startswith(("drops.", "declined."))):
        group, key = field.split(".")
        record[group] = [{k: v for k, v in entry.items() if k != key} for entry in record[group]]
    lines: dict[str, list[Any]] = {}
    for name in ("epochs.jsonl", "scores.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()[1:]]
        lines[name] = [{k: v for k, v in row.items() if f"epochs.{k}" not in VOLATILE_FIELDS} for row in rows]
    arrays = load_file(folder / "model.safetensors")
    weights = {name: (array.dtype.str, array.tobytes()) for name, array in arrays.items()}
    return {"record": record, **lines, "weights": weights}


def differences(plain: Path, hit: Path) -> list[str]:
    """Cells in which the disturbed run differs, with the parts that do; damaged files."""
    found = [f"{path}: {said}" for path, said in verify(hit)]
    for folder in sorted((plain / "cells").iterdir()):
        there = hit / "cells" / folder.name
        if not (there / "result.json").exists():
            found.append(f"{folder.name}: missing")
            continue
        a, b = lasting(folder), lasting(there)
        if a["record"] != b["record"]:
            found += [f"{folder.name}: {key}" for key in a["record"] if a["record"][key] != b["record"].get(key)]
        found += [f"{folder.name}: {part}" for part in a if part != "record" and a[part] != b[part]]
    return found


def main() -> int:
    """Run the soak; exit code 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs to survive (default 10)")
    parser.add_argument("--minutes", type=float, default=60.0, help="disturb no longer than this (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs; emptied first")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    plain, hit, dice = options.out / "undisturbed", options.out / "disturbed", random.Random(options.seed)
    for folder in (plain, hit):
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    run(plain, None)
    whole = time.monotonic() - began
    print(f"undisturbed: {whole:.0f} s", flush=True)
    kills = rounds = 0
    while kills < options.kills and time.monotonic() - began < 60 * options.minutes:
        # Longer than a start takes, so that work goes on, and such that one grid lasts for all kills.
        what = disturb(hit, plain / "costs", dice, 8 + 2 * whole / max(options.kills, 1), rounds % DISK_FULL_EVERY == 2)
        rounds += 1
        kills += what.startswith("killed")
        print(f"{rounds}: {what}", flush=True)
        if what.startswith("ended by itself with code 0"):  # the grid is done: begin another
            problems = differences(plain, hit)
            if problems:
                break
            shutil.rmtree(hit)
    run(hit, plain / "costs")
    problems = differences(plain, hit)
    resumes = sum(read_sealed(path)["resumes"] for path in hit.glob("cells/*/result.json"))
    lost = sum(read_sealed(path)["lost_seconds"] for path in hit.glob("cells/*/result.json"))
    for problem in problems:
        print(problem)
    print(
        f"{kills} kills in {time.monotonic() - began:.0f} s, the last grid gone on with {resumes} times, {lost:.0f} s "
        f"of work lost: {'every bit is equal' if not problems else f'{len(problems)} differences'}"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
