"""The kernels' property tests on this machine's device, and odd cases under compute-sanitizer, within a time.

    python -m benches.lab_tests [--out FILE.json] [--seconds 90] [--device cuda:0]

Compiling a kernel's many variants is most of the work on a GPU, so the tests are dealt out to several processes, beside
the one that compute-sanitizer watches. Tests for which no time was left are named; tests that passed in an earlier try,
as the file tells, are not repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .lab_parts import ROOT

FILES = ("tests/kernels/test_delta_norm.py", "tests/kernels/test_gather.py", "tests/store/test_activation_store.py")
MOST_PROCESSES = 6
ENDING = 4.0  # seconds that the test which runs when time is up may take, before its process is killed
SANITIZER = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


class Watch:
    """A pytest plugin: keeps the outcome of every test in a file as it is known, deals tests out, and stops in time."""

    def __init__(self, path: Path, share: tuple[int, int], skip: Sequence[str], ends: float) -> None:
        self.path, self.share, self.skip, self.ends = path, share, set(skip), ends
        self.session: pytest.Session | None = None
        self.found: dict[str, Any] = {"planned": [], "outcomes": {}, "errors": {}}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep every n-th test that did not pass before."""
        place, count = self.share
        items[:] = [item for item in items if item.nodeid not in self.skip][place::count]
        self.found["planned"] = [item.nodeid for item in items]
        self._write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note an outcome; a test fails if any of its phases does."""
        name = report.nodeid
        if report.when == "call" or report.outcome != "passed":
            if self.found["outcomes"].get(name) != "failed":
                self.found["outcomes"][name] = report.outcome
            if report.failed:
                self.found["errors"][name] = " ".join(str(report.longrepr).split())[-300:]
            self._write()

    def pytest_runtest_logfinish(self) -> None:
        """Stop after the test that has run where no time is left."""
        if time.monotonic() > self.ends and self.session is not None:
            self.session.shouldstop = "no time left"

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember whom to stop."""
        self.session = session

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read is a failure."""
        if report.failed:
            self.found["outcomes"][report.nodeid] = "failed"
            self.found["errors"][report.nodeid] = " ".join(str(report.longrepr).split())[-300:]
            self._write()

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.found))
        part.replace(self.path)


def run_share(path: Path, share: tuple[int, int], skip: Path, seconds: float) -> int:
    """One process's tests."""
    os.chdir(ROOT)
    plugin = Watch(path, share, json.loads(skip.read_text()), time.monotonic() + seconds)
    arguments = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), *FILES]
    return int(pytest.main(arguments, plugins=[plugin]))


def tests(folder: Path, skip: Sequence[str], seconds: float, processes: int) -> list[subprocess.Popen[bytes]]:
    """Start the processes; each leaves ``tests-NUMBER.json`` in ``folder``."""
    (folder / "tests-skip.json").write_text(json.dumps(list(skip)))
    started = []
    for place in range(processes):
        path = folder / f"tests-{place}.json"
        path.unlink(missing_ok=True)
        share = map(str, (place, processes, path, folder / "tests-skip.json", "--seconds", seconds))
        command = [sys.executable, "-m", "benches.lab_tests", "--share", *share]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr))
    return started


def gathered(folder: Path, passed: Sequence[str], processes: int) -> dict[str, Any]:
    """What the processes found, and what passed before."""
    planned, outcomes, errors = [], dict.fromkeys(passed, "passed"), {}
    missing = []
    for place in range(processes):
        try:
            found = json.loads((folder / f"tests-{place}.json").read_text())
        except OSError:
            missing.append(place)
            continue
        planned += found["planned"]
        outcomes |= found["outcomes"]
        errors |= found["errors"]
    counts = {kind: sum(o == kind for o in outcomes.values()) for kind in ("passed", "failed", "skipped")}
    not_run = [name for name in planned if name not in outcomes]
    names = sorted(name for name, outcome in outcomes.items() if outcome == "passed")
    return {**counts, "not_run": not_run, "failures": errors, "passed_tests": names, "processes_without_tests": missing}


def memcheck_command(device: str, seconds: float, out: Path) -> tuple[list[str], dict[str, str], str]:
    """Command, environment and what watches it."""
    command = [sys.executable, "-m", "benches.kernel_memcheck", "--device", device]
    command += ["--seconds", f"{seconds:.0f}", "--out", str(out)]
    if device == "cpu":
        return command, {"TRITON_INTERPRET": "1", "LDBENCH_KERNELS": "triton"}, "none: Triton's interpreter"
    tool = next((found for name in SANITIZER if (found := shutil.which(name))), None)
    if tool is None:
        return command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "none: there is no compute-sanitizer here"
    # Calls of the CUDA API that fail are not looked for: torch makes some on purpose.
    tool_line = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "99"]
    return [*tool_line, *command], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "memcheck"


def memcheck_findings(printed: str, returncode: int | None, out: Path, watched: str) -> dict[str, Any]:
    """What the sanitizer and the cases say."""
    try:
        cases = json.loads(out.read_text())
    except OSError:
        cases = {}
    cases.pop("environment", None)
    summary = re.search(r"ERROR SUMMARY: (\d+) error", printed)
    lines = [line for line in printed.splitlines() if line.startswith("=========") and "COMPUTE-SANITIZER" not in line]
    found = {"watched_by": watched, "finished": returncode is not None, "exit_code": returncode}
    found |= {"memory_errors": int(summary.group(1)) if summary else None, "first_lines": lines[:12]}
    return found | cases


def main() -> int:
    """Run everything; exit code 1 if a test failed or a result or access was wrong, 3 if time ran out."""
    if "--share" in sys.argv:
        place, count, path, skip, _, seconds = sys.argv[sys.argv.index("--share") + 1 :]
        return run_share(Path(path), (int(place), int(count)), Path(skip), float(seconds))

    from .lab_results import Results, device_of, options, surroundings

    chosen = options(__doc__).parse_args()
    device, results = device_of(chosen.device), Results(chosen.out, chosen.seconds)
    folder = (chosen.out or Path.cwd() / "tests.json").resolve().parent
    results.put("environment", surroundings(device))
    passed = results.earlier.get("tests", {}).get("passed_tests", [])
    on_gpu = device.type == "cuda"
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2))
    left, log, cases = results.left, folder / "memcheck.log", folder / "memcheck.json"
    command, extra, watched = memcheck_command(chosen.device if on_gpu else "cpu", left - 3 * ENDING, cases)
    with log.open("w") as printed:
        checking = subprocess.Popen(command, cwd=ROOT, env=os.environ | extra, stdout=printed, stderr=subprocess.STDOUT)
        if not on_gpu:  # two cores at most: one after the other
            with contextlib.suppress(subprocess.TimeoutExpired):
                checking.wait(left / 2)
        running = tests(folder, passed, results.left - 2 * ENDING, processes)
        for process in (*running, checking):
            try:
                process.wait(max(results.left - ENDING / 2, 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                if process is checking:
                    process.returncode = None
            results.put("tests", gathered(folder, passed, processes))
    checked = memcheck_findings(log.read_text(), checking.returncode, cases, watched)
    results.put("memcheck", checked)
    found = results.found["tests"]
    for path in (*folder.glob("tests-*.json"), cases):
        path.unlink(missing_ok=True)
    print(json.dumps(results.found, indent=1))
    print(
        f"{found['failed']} of {found['failed'] + found['passed']} tests failed, {len(found['not_run'])} were not run; "
        f"memcheck ended with {checked['exit_code']}, {len(checked.get('wrong', ()))} wrong results, "
        f"{checked['memory_errors']} memory errors"
    )
    wrong = checked.get("wrong") or checked["memory_errors"] or checked["exit_code"] not in (0, None)
    if found["failed"] or found["processes_without_tests"] or wrong:
        return 1
    return 3 if found["not_run"] or not checked["finished"] or checked.get("left_out") else 0


if __name__ == "__main__":
    sys.exit(main())
