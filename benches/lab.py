"""Everything a lab's GPU can tell about ldbench within minutes, in two files.

    python -m benches.lab --data-root DATA --out FOLDER [--minutes 8] [--device cuda:0]

Needs a checkout, what ldbench imports, pytest and hypothesis, and Fashion-MNIST under DATA as torchvision lays it out
(gzipped files will do); no network, and no place to write but FOLDER. The parts, in the order that a reader wants them:
machine (ceilings, the doctor), tests (of the kernels on the device, and under compute-sanitizer), kernels (against a
device copy and their peers), meter, steps, trainings. Each is a process with a bound; one that cannot end in time is
left for another call, and one that is killed keeps what it had written. The same line goes on: what is done is kept,
and what failed, was cut short or left out is tried again.

FOLDER ends with ``lab.json`` (machine, versions, every figure with its n) and ``lab.tar.gz`` (records and logs). Exit
code 0: all is done; 1: a part failed; 3: something is left for another call. ``--device cpu`` rehearses it at small
sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benches.lab_folder import Busy, Folder, counted
from benches.lab_parts import RESERVE, ROOT, Part, parts, surroundings_for
from ldbench.records.cell_files import write_json
from ldbench.records.environment import checkout_commit

GRACE = 3.0  # seconds between asking a part to end and killing it
FORMAT = 1


class Stop:
    """Remembers SIGTERM or SIGINT: the part that runs is ended, and what there is gets packed."""

    def __init__(self) -> None:
        self.came = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Listen in this block."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.came = True


def run_part(part: Part, bound: float, folder: Folder, stop: Stop) -> dict[str, Any]:
    """Run a part; its state: done, unavailable, partial or failed, with the reason and the seconds it took."""
    began = time.monotonic()
    before = folder.findings(part.name) or {}
    command = [*part.command, "--out", str(folder.result(part.name)), "--seconds", f"{bound:.0f}"]
    cut, env = "", surroundings_for(folder.scratch)
    with folder.log(part.name).open("a") as log:
        running = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env, start_new_session=True
        )
        while running.poll() is None:
            if stop.came or time.monotonic() > began + bound:
                cut = "stopped" if stop.came else f"not done within {bound:.0f} s"
                end(running)
                break
            time.sleep(0.05)
        kill_group(running)  # whatever the part has left running
    seconds = round(time.monotonic() - began, 1)
    found, code = folder.findings(part.name), running.returncode
    if (cut or code) and len(str(found)) < len(str(before)):  # an earlier try came further
        write_json(folder.result(part.name), before)
    state: dict[str, Any] = {"seconds": seconds, "budget_seconds": bound}
    if cut:
        return {"state": "partial", "reason": cut, **state}
    if code == 3:
        return {"state": "partial", "reason": "it ran out of time", **state}
    if code != 0 or found is None:
        said = folder.log(part.name).read_text(errors="replace").strip().splitlines()[-1:]
        return {"state": "failed", "reason": f"exit code {code}: {' '.join(said)[-300:]}", **state}
    if "unavailable_reason" in found:
        return {"state": "unavailable", "reason": found["unavailable_reason"], **state}
    return {"state": "done", "reason": "", **state}


def end(running: subprocess.Popen[bytes]) -> None:
    """Ask the part and its children to end, wait a little, kill them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(GRACE)
    kill_group(running)
    running.wait()


def kill_group(running: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the part's processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.pid, signal.SIGKILL)


def call(folder: Folder, planned: Sequence[Part], seconds: float, commit: str | None, stop: Stop) -> None:
    """Run what is left, what was never tried first, and write both files after every part."""
    began = time.monotonic()
    state = folder.state
    before = state.get("minutes", 0.0)
    state |= {"format": FORMAT, "date": datetime.now(UTC).date().isoformat(), "calls": state.get("calls", 0) + 1}
    state["git_commit"] = commit or state.get("git_commit")
    known: dict[str, dict[str, Any]] = state.setdefault("parts", {})
    left = [part for part in planned if not settled(known.get(part.name, {}), part)]
    for part in sorted(left, key=lambda part: "seconds" in known.get(part.name, {})):
        free = seconds - RESERVE - (time.monotonic() - began)
        bound = part.bound(free)
        if stop.came or bound is None:
            least = part.seconds if part.least is None else part.least
            reason = "stopped" if stop.came else f"{max(free, 0):.0f} s were left, it may take {least:.0f}"
            entry = {"state": "skipped", "reason": reason, "budget_seconds": part.seconds}
            if "seconds" not in known.get(part.name, {}):  # what an earlier call cut short is worth more than that
                known[part.name] = entry
        else:
            print(f"{part.name} ... at most {bound:.0f} s", flush=True)
            told = {"call": state["calls"], "asked": part.asked}
            told |= {name: state[name] for name in ("date", "git_commit")}
            entry = known[part.name] = run_part(part, bound, folder, stop) | told
            print(f"  {entry['state']} after {entry['seconds']} s {entry['reason']}", flush=True)
        state["minutes"] = round(before + (time.monotonic() - began) / 60, 2)
        state["machine"] = machine(folder, planned)
        folder.write()


def settled(entry: Mapping[str, Any], part: Part) -> bool:
    """Whether another call has nothing to do for a part: it is done as asked for, or there is nothing to find here."""
    return entry.get("state") in ("done", "unavailable") and entry.get("asked", "") == part.asked


def machine(folder: Folder, planned: Sequence[Part]) -> dict[str, Any] | None:
    """What the figures are true for, as the first part that could tell has it."""
    found = (folder.findings(part.name) or {} for part in planned)
    return next((part["environment"] for part in found if part.get("environment")), None)


def main() -> int:
    """Run what is left; see the module's docstring for the exit codes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--data-root", help="folder of the data sets, for Fashion-MNIST")
    parser.add_argument("--minutes", type=float, default=8.0, help="of this call at most")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seeds", type=int, default=3, help="of the trainings, as far as there is time")
    parser.add_argument("--epochs", type=int, help="of the trainings; 16 on a GPU by default")
    parser.add_argument("--commit", default=os.environ.get("LDBENCH_COMMIT"), help="of a copy without its history")
    options = parser.parse_args()
    if options.device == "cpu":  # small sizes: threads that wait for each other cost more than they do
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Folder(options.out.resolve())
    root = str(Path(options.data_root).resolve()) if options.data_root else None
    planned = parts(options.device, root, folder.work, options.seeds, options.epochs)
    try:
        with Stop().listening() as stop, folder.opened():
            call(folder, planned, 60 * options.minutes, options.commit or checkout_commit(), stop)
    except Busy as reason:
        parser.error(str(reason))
    for name, entry in folder.state["parts"].items():
        print(f"{name}: {entry['state']} {entry['reason']}")
    return counted(folder.state["parts"])


if __name__ == "__main__":
    sys.exit(main())
