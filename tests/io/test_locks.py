"""WorkQueue: a lock dies with its owner, and processes on one results folder share its cells, each done once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ldbench.experiment.config import Cell
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io import locks
from ldbench.io.locks import FolderLock, NoLocks
from ldbench.runner.plan import plan
from ldbench.runner.work_queue import WorkQueue

HOLD = """
import sys, time
from pathlib import Path
from ldbench.io.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as told:
        assert told.readline() == "held\n"
    return process


def test_a_lock_is_held_until_its_owner_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path)
    lock = FolderLock(tmp_path)
    assert not lock.acquire()
    assert lock.owner().startswith(f"process {process.pid} on ")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert lock.acquire()
    assert not FolderLock(tmp_path).acquire()  # nor may this process take it twice
    lock.release()
    assert FolderLock(tmp_path).acquire()


def test_a_file_system_without_locks_is_told_and_worked_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(NoLocks, match="one process at a time"):
        FolderLock(tmp_path).acquire()
    said: list[str] = []
    cells = plan(experiment_from_dict({"method": "full", "seeds": 3}))
    assert list(WorkQueue(tmp_path, cells, lambda cell: False, said.append)) == cells
    assert len(said) == 1


def test_busy_cells_come_last_and_a_replay_waits_for_its_source(tmp_path: Path) -> None:
    cells = plan(experiment_from_dict({"method": ["learn-and-drop", "freeze"], "seeds": 2}))
    source = next(cell for cell in cells if cell.method == "learn-and-drop" and cell.seed == 0)
    process = holder(tmp_path / "cells" / source.cell_id)
    said: list[str] = []
    order: list[Cell] = []

    def sleep(seconds: float) -> None:
        process.kill()
        process.wait(10)

    for cell in WorkQueue(tmp_path, cells, lambda cell: cell in order, said.append, sleep):
        order.append(cell)
    expected = [("learn-and-drop", 1), ("freeze", 1), ("learn-and-drop", 0), ("freeze", 0)]
    assert [(cell.method, cell.seed) for cell in order] == expected
    assert len(said) == 1
    assert f"process {process.pid}" in said[0]


WORKER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from ldbench.runner.work_queue import WorkQueue
out = Path(sys.argv[1])
cells = [SimpleNamespace(cell_id=f"c{i}", method="full", model="m", dataset="d", seed=i) for i in range(12)]
print("ready", flush=True)
done = lambda cell: (out / "cells" / cell.cell_id / "done").exists()
while not (out / "go").exists():
    time.sleep(0.01)
for cell in WorkQueue(out, cells, done, lambda text: None, lambda seconds: time.sleep(0.05)):
    time.sleep(0.05)
    with open(out / "cells" / cell.cell_id / "done", "x"):
        print(cell.cell_id, flush=True)
"""


def test_two_processes_share_the_cells_and_do_none_twice(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    shares = [set(worker.communicate(timeout=60)[0].split()) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert all(shares)
    assert not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) == 12
