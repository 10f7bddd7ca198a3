"""The lab's run: parts within their time, what is done is kept, two files at the end. Parts are small commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Writes its findings as the real parts do; {} is what follows.
HEAD = "import json, pathlib, sys, time; out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); "


@pytest.fixture(autouse=True)
def _benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def part(name: str, code: str, seconds: float = 20.0, least: float | None = None) -> Any:
    from benches.lab_parts import Part

    return Part(name, seconds, [sys.executable, "-S", "-c", HEAD + code], least)


def writes(**found: Any) -> str:
    return f"out.write_text({json.dumps(json.dumps(found))})"


def called(path: Path, planned: list[Any], seconds: float = 60.0) -> dict[str, Any]:
    """One call; what lab.json says afterwards."""
    from benches.lab import Stop, call
    from benches.lab_folder import Folder

    folder = Folder(path)
    with folder.opened():
        call(folder, planned, seconds, "abc", Stop())
    return dict(json.loads((path / "lab.json").read_text()))


def packed(path: Path) -> list[str]:
    with tarfile.open(path / "lab.tar.gz") as archive:
        return archive.getnames()


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_the_parts_fit_into_eight_minutes_by_arithmetic(device: str, tmp_path: Path) -> None:
    from benches.lab_parts import RESERVE, parts

    planned = parts(device, None, tmp_path, 3, None)
    assert [p.name for p in planned] == ["machine", "tests", "kernels", "meter", "steps", "trainings"]
    left = 8 * 60 - RESERVE
    for p in planned:
        bound = p.bound(left)
        assert bound is not None, f"{p.name} is skipped although every part before it kept its bound"
        assert bound >= p.seconds
        left -= bound
    assert left >= 0
    assert planned[0].bound(planned[0].seconds - 1) is None


def test_a_part_is_done_failed_cut_short_or_unavailable_and_the_others_are_kept(tmp_path: Path) -> None:
    planned = [
        part("good", writes(n=3, environment={"gpu": "GPU X"})),
        part("bad", writes(half=1) + "; print('what went wrong'); sys.exit(1)"),
        part("slow", writes(begun=1) + "; time.sleep(30)", seconds=1.0),
        part("absent", writes(unavailable_reason="no counter")),
        part("more", writes(seeds=1) + "; sys.exit(3)"),
        part("last", writes(n=4)),
    ]
    lab = called(tmp_path / "lab", planned)
    states = {name: entry["state"] for name, entry in lab["parts"].items()}
    ended = ("done", "failed", "partial", "unavailable", "partial", "done")
    assert states == {entry.name: state for entry, state in zip(planned, ended, strict=True)}
    assert lab["parts"]["bad"]["reason"] == "exit code 1: what went wrong"
    assert lab["parts"]["slow"]["reason"] == "not done within 1 s"
    assert lab["parts"]["slow"]["seconds"] < 10
    assert lab["parts"]["absent"]["reason"] == "no counter"
    assert lab["results"]["slow"] == {"begun": 1}
    assert lab["results"]["last"] == {"n": 4}
    assert lab["machine"] == {"gpu": "GPU X"}
    assert (lab["git_commit"], lab["calls"]) == ("abc", 1)
    assert sorted(path.name for path in (tmp_path / "lab").iterdir()) == ["lab.json", "lab.tar.gz"]
    for name in states:
        assert {f"{name}.json", f"{name}.log"} <= set(packed(tmp_path / "lab"))


def test_a_part_without_time_is_skipped_and_told_and_the_exit_code_asks_for_another_call(tmp_path: Path) -> None:
    from benches.lab_folder import counted

    planned = [
        part("long", writes(n=1), seconds=30.0),
        part("short", writes(n=2), seconds=5.0),
        part("rest", writes(n=3) + "; print(sys.argv)", seconds=30.0, least=2.0),
    ]
    lab = called(tmp_path, planned, seconds=20.0)
    assert lab["parts"]["long"]["state"] == "skipped"
    assert lab["parts"]["long"]["reason"] == "12 s were left, it may take 30"
    assert lab["parts"]["short"]["state"] == lab["parts"]["rest"]["state"] == "done"
    assert 8 <= lab["parts"]["rest"]["budget_seconds"] <= 12, "it takes what is left"
    assert counted(lab["parts"]) == 3
    assert counted({"a": {"state": "done"}, "b": {"state": "unavailable"}}) == 0
    assert counted({"a": {"state": "failed"}, "b": {"state": "skipped"}}) == 1


def test_a_later_call_goes_on_from_the_archive(tmp_path: Path) -> None:
    marks, folder = tmp_path / "marks", tmp_path / "lab"
    mark = f"open({str(marks)!r}, 'a').write(out.stem + ' '); "
    training = (
        f"{mark}cells = out.parent / 'training' / 'cells'; old = len(list(cells.glob('*'))) if cells.exists() else 0; "
        + (
            "(cells / str(old)).mkdir(parents=True); (cells / str(old) / 'result.json').write_text('{}'); "
            "(cells / str(old) / 'weights.safetensors').write_text('large'); "
            "(cells / str(old) / '.lock').write_text(''); "
            "out.write_text(json.dumps({'old': old})); sys.exit(0 if old else 3)"
        )
    )
    broken = f"{mark}before = {str(marks)!r}; again = open(before).read().count('broken') > 1; " + (
        "out.write_text(json.dumps({'again': again})); sys.exit(0 if again else 1)"
    )
    planned = [part("first", mark + writes(n=1)), part("broken", broken), part("trainings", training)]
    before = called(folder, planned)
    states = [before["parts"][name]["state"] for name in ("first", "broken", "trainings")]
    assert states == ["done", "failed", "partial"]
    names = packed(folder)
    assert "training/cells/0/result.json" in names
    assert not [name for name in names if name.endswith((".safetensors", ".lock")) or "scratch" in name]
    lab = called(folder, [*planned, part("new", mark + writes(n=5))])
    assert marks.read_text().split() == ["first", "broken", "trainings", "new", "broken", "trainings"]
    assert {entry["state"] for entry in lab["parts"].values()} == {"done"}
    assert lab["results"]["trainings"] == {"old": 1}, "the second call found the first one's run"
    assert lab["results"]["first"] == {"n": 1}
    assert lab["calls"] == 2
    assert lab["minutes"] >= before["minutes"]
    called(folder, [planned[0]._replace(asked="more of it")])
    assert marks.read_text().split()[6:] == ["first"], "what an earlier call was not asked for is not done"
    (folder / "lab.tar.gz").unlink()
    assert called(folder, [])["results"] == lab["results"], "the summary alone is enough to keep what is done"
    assert "first.json" in packed(folder)


def test_a_second_try_that_comes_less_far_leaves_the_first_one_s_findings(tmp_path: Path) -> None:
    slow = writes(a=1, b=2, c=3) + "; time.sleep(30)"
    called(tmp_path, [part("slow", slow, seconds=1.0)])
    lab = called(tmp_path, [part("slow", writes(a=1) + "; time.sleep(30)", seconds=1.0)])
    assert lab["parts"]["slow"]["call"] == 2
    assert lab["results"]["slow"] == {"a": 1, "b": 2, "c": 3}


def test_an_archive_that_reaches_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder, evil = tmp_path / "lab", tmp_path / "evil"
    folder.mkdir()
    evil.write_text("x")
    with tarfile.open(folder / "lab.tar.gz", "w:gz") as archive:
        archive.add(evil, arcname="../../outside")
    with pytest.raises(tarfile.FilterError):
        called(folder, [part("one", writes(n=1))])
    assert not (tmp_path / "outside").exists()


def test_findings_too_large_for_the_summary_are_named_and_stay_in_the_archive(tmp_path: Path) -> None:
    from benches.lab_folder import MOST_SUMMARY

    lab = called(
        tmp_path,
        [part("small", writes(n=1)), part("large", f"out.write_text(json.dumps({{'x': 'y' * {MOST_SUMMARY}}}))")],
    )
    assert lab["results"]["small"] == {"n": 1}
    assert "see large.json in lab.tar.gz" in lab["results"]["large"]["left_out"]
    assert (tmp_path / "lab.json").stat().st_size < 300_000
    assert "large.json" in packed(tmp_path)


def test_two_calls_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    from benches.lab_folder import Busy, Folder

    with Folder(tmp_path).opened(), pytest.raises(Busy), Folder(tmp_path).opened():
        pass


def test_parts_write_their_caches_into_the_folder_and_no_child_outlives_them(tmp_path: Path) -> None:
    names = ["HOME", "TMPDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"]
    names += ["HYPOTHESIS_STORAGE_DIRECTORY"]
    code = f"import os, subprocess; found = {{n: os.environ[n] for n in {names}}}; " + (
        "found['bytecode'] = os.environ['PYTHONDONTWRITEBYTECODE']; "
        "found['path'] = os.environ['PYTHONPATH'].split(os.pathsep)[0]; "
        "found['child'] = subprocess.Popen(['sleep', '60']).pid; out.write_text(json.dumps(found))"
    )
    found = called(tmp_path / "lab", [part("one", code)])["results"]["one"]
    assert all(Path(found[name]).is_relative_to(tmp_path / "lab" / "work") for name in names)
    assert (found["bytecode"], found["path"]) == ("1", str(ROOT))
    state = Path(f"/proc/{found['child']}/stat")
    assert not state.exists() or state.read_text().rpartition(") ")[2].startswith("Z")


def test_sigterm_packs_what_there_is(tmp_path: Path) -> None:
    """The whole command in a process of its own, with parts of this test's."""
    script = tmp_path / "script.py"
    code = HEAD + "out.write_text(json.dumps({'begun': 1})); time.sleep(60)"
    planned = f"[Part('slow', 30.0, [sys.executable, '-S', '-c', {code!r}]), Part('next', 5.0, ['false'])]"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom benches import lab\nfrom benches.lab_parts import Part\n"
        f"lab.parts = lambda *_: {planned}\nsys.exit(lab.main())\n"
    )
    folder = tmp_path / "lab"
    running = subprocess.Popen(
        [sys.executable, script, "--out", folder, "--device", "cpu", "--commit", "abc"], stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 20
    while not (folder / "work" / "slow.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(20) == 3
    lab = json.loads((folder / "lab.json").read_text())
    assert lab["parts"]["slow"]["reason"] == lab["parts"]["next"]["reason"] == "stopped"
    assert lab["results"]["slow"] == {"begun": 1}
    assert sorted(path.name for path in folder.iterdir()) == ["lab.json", "lab.tar.gz"]


def test_tests_without_time_are_named_and_those_that_passed_are_not_repeated(tmp_path: Path) -> None:
    """In a process of its own: pytest within pytest shares its settings."""
    cases = (
        "import time\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): time.sleep(0.6)\ndef test_d(): pass\n"
    )
    (tmp_path / "test_some.py").write_text(cases)
    out = tmp_path / "found.json"
    script = (
        f"import sys, time, pathlib; sys.path.insert(0, {str(ROOT)!r}); import pytest; "
        "from benches.lab_tests import Watch; "
        f"watch = Watch(pathlib.Path({str(out)!r}), (0, 1), ['test_some.py::test_a'], time.monotonic() + 0.5); "
        "pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'no:hypothesispytest', 'test_some.py'], plugins=[watch])"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["planned"] == [f"test_some.py::test_{letter}" for letter in "bcd"]
    assert found["outcomes"] == {"test_some.py::test_b": "failed", "test_some.py::test_c": "passed"}
    assert "assert 0" in found["errors"]["test_some.py::test_b"]


def test_a_group_without_one_of_its_methods_says_nothing_and_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    from benches import lab_trainings
    from benches.lab_trainings import GPU, GRID, whole_groups
    from ldbench.experiment.validation import experiment_from_dict
    from ldbench.runner.plan import plan

    planned = plan(experiment_from_dict(GRID | GPU | {"seeds": 2}))
    assert [cell.seed for cell in planned] == [0] * 20 + [1] * 20, "seed by seed"
    assert len({cell.pretrain_epochs for cell in planned if cell.scenario == "fine-tune"}) == 1
    cells = pd.DataFrame([{"cell": cell.cell_id, "status": "finished"} for cell in planned[:8]])
    whole, incomplete = whole_groups(cells, planned)
    assert list(whole["cell"]) == [cell.cell_id for cell in planned[:5]]
    assert incomplete == ["resnet18, scratch, seed 0"]
    folder = tmp_path / "training"
    for cell in (*planned[:8], planned[25]):
        (folder / "cells" / cell.cell_id).mkdir(parents=True)
    (folder / "cells" / "of another plan").mkdir()
    monkeypatch.setattr(lab_trainings, "load_results", lambda _: cells)
    lab_trainings.remove_cut_short(folder, planned)
    left = {path.name for path in (folder / "cells").iterdir()}
    assert left == {cell.cell_id for cell in planned[:5]} | {"of another plan"}, (
        "begun anew: its weights to begin with are gone"
    )
    cells.loc[0, "status"] = "failed"
    assert whole_groups(cells, planned)[0].empty


def test_work_is_broken_off_at_its_bound() -> None:
    from benches.kernel_timing import TookTooLong, bounded

    began = time.monotonic()
    with pytest.raises(TookTooLong, match="not done within"), bounded(0.2):
        time.sleep(5)
    assert time.monotonic() - began < 2
    with bounded(0.2):
        pass
    time.sleep(0.3)  # nothing rings any more


def test_a_window_is_covered_by_both_bounds_or_it_is_not() -> None:
    from benches.meter_check import held_against
    from ldbench.meters import Energy

    reference = Energy(1000.0, 10.0, None, seconds=10.0)  # 100 W, known to 1 %
    assert held_against(Energy(110.0, 11.0, None, seconds=1.0), reference)["covered"]  # 10 % off, 10 % + 1 %
    assert not held_against(Energy(120.0, 12.0, None, seconds=1.0), reference)["covered"]
    assert "error" not in held_against(Energy(None, None, "no counter", seconds=1.0), reference)


class SteadyMeter:
    """100 W exactly, known to a joule; windows under ``least`` have no figure."""

    def __init__(self, least: float = 0.0) -> None:
        self.least, self.began, self.seconds = least, 0.0, 0.0

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.seconds = time.perf_counter() - self.began

    def total(self) -> Any:
        from ldbench.meters import Energy

        if self.seconds < self.least:
            return Energy(None, None, "too short", seconds=self.seconds)
        return Energy(100 * self.seconds, 1.0, None, 80 * self.seconds, 1.0, "test", 0.01, self.seconds, 1)


@pytest.mark.parametrize("seconds", [20.0, 10.0])
def test_the_meter_s_check_tries_every_length_and_tells_what_it_had_no_time_for(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from benches import meter_check
    from benches.lab_results import Results

    monkeypatch.setattr(meter_check, "energy_meter", lambda device, minimum_seconds=5.0: SteadyMeter())
    monkeypatch.setattr(meter_check, "LONGEST", 0.1)
    monkeypatch.setattr(meter_check, "WINDOWS", (0.05, 0.2))
    monkeypatch.setattr(meter_check.Load, "run", lambda self, seconds: time.sleep(min(seconds, 0.2)))
    results = Results(tmp_path / "meter.json", seconds)
    meter_check.check(torch.device("cpu"), results)
    found = json.loads((tmp_path / "meter.json").read_text())
    assert found["meter"]["load_watts"] == pytest.approx(100.0)
    assert found["meter"]["idle_watts"] == pytest.approx(20.0)
    tried = [] if seconds < 12 else [0.05, 0.2] * 2
    assert [row["seconds"] for row in found.get("windows", [])] == pytest.approx(tried, rel=0.2)
    assert all(row["error"] == pytest.approx(0.0) for row in found.get("windows", []))
    assert found["windows_left_out"] == ([] if tried else [0.05, 0.2] * 2)
    assert [(row["seconds"], row["n"]) for row in found["by_length"]] == [
        (length, len(tried) // 2) for length in (0.05, 0.2)
    ]


def test_joules_of_a_step_are_those_of_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from benches import lab_steps
    from ldbench.meters import block

    sizes = lab_steps.CPU._replace(images=64, batch=16)
    steps = lab_steps.Steps("resnet18", "half", torch.device("cpu"), sizes)
    assert steps.engine.cut == (len(steps.engine.stages) - 1) // 2
    for least in (0.0, 5.0):
        monkeypatch.setattr(block, "energy_meter", lambda device, minimum_seconds, least=least: SteadyMeter(least))
        found = steps.joules(0.2, 2)
        if least:
            assert found["unavailable_reason"] == "too short"
            assert "joules_per_step" not in found
        else:
            assert found["steps"] % 2 == 0
            assert found["joules_per_step"] * found["steps"] == pytest.approx(found["watts"] * found["seconds"])
            assert found["watts"] == pytest.approx(100.0, rel=0.5)  # other clocks than the meter's, on a busy machine
    steps.engine.close()
