"""Nothing that comes from somebody else is executed: results, checkpoints, models, stores, data."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import pytest
import torch
from hostile import everything_below, ldbench
from report_records import make_record, write_cell

from ldbench.checkpoint import read_checkpoint
from ldbench.errors import UserError
from ldbench.results import load_results
from ldbench.sealed import Damaged, write_sealed
from ldbench.sources import load_dataset

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "ldbench").rglob("*.py"), *(ROOT / "kernels").glob("*.py")])
EXECUTING = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle", "code", "runpy"}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_can_execute_what_it_reads(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & EXECUTING
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in EXECUTING
        if isinstance(node, ast.Call):
            name = called(node)
            assert name not in ("eval", "exec", "compile", "__import__", "os.system"), name
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("allow_pickle", "False") == "False"
            assert options.get("shell", "False") == "False"
            if name in ("torch.load", "torch.hub.load"):
                assert options.get("weights_only") == "True"
            if name in ("np.load", "numpy.load"):
                assert options.get("allow_pickle", "False") == "False"
            if name.endswith("import_module"):  # --model package.module:factory, and nothing else
                assert path.name in ("models.py", "cli.py", "__init__.py", "readers.py", "sources.py", "fitting.py"), (
                    path
                )


def test_the_one_place_that_runs_user_code_says_so() -> None:
    assert "one place where code of yours is run" in (ROOT / "README.md").read_text()
    code, out, _ = ldbench("run", "--help")
    assert code == 0
    assert "whose code is then run" in " ".join(out.split())


class Payload:
    """Unpickling one writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def poison(target: Path) -> bytes:
    """A pickle that makes the folder ``target`` when it is read; shown to work here."""
    data = pickle.dumps(Payload(target))
    pickle.loads(data)
    assert target.is_dir()
    target.rmdir()
    return data


def test_a_pickle_in_place_of_a_file_of_ours_stays_unread(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    data = poison(target)
    torch.save(Payload(target), tmp_path / "saved.pt")
    for name, content in (("pickle", data), ("torch.save", (tmp_path / "saved.pt").read_bytes())):
        cell = tmp_path / name / "cells" / "cell"
        cell.mkdir(parents=True)
        for file in (
            "result.json",
            "config.json",
            "model.safetensors",
            "checkpoint.safetensors",
            "store-0.bin",
            "epochs.jsonl",
        ):
            (cell / file).write_bytes(content)
        with pytest.raises(Damaged):
            read_checkpoint(cell / "checkpoint.safetensors")
        assert load_results(tmp_path / name).empty
        for command in ("report", "verify"):
            code, _, err = ldbench(command, str(tmp_path / name))
            assert "Traceback" not in err
            assert code in (0, 1, 2)
        code, _, err = ldbench("run", "--cost-table", cell / "result.json", "--dry-run", "--out", tmp_path / "o")
        assert code == 2, err
        code, _, err = ldbench("run", str(cell / "result.json"), "--dry-run", "--out", str(tmp_path / "o"))
        assert code == 2, err
    assert not target.exists()


def test_a_poisoned_cifar10_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    data = poison(target)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load_dataset("cifar10", root=tmp_path)
    assert not target.exists()


HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><script>x</script>", "javascript:alert(1)",
    "../../../etc/passwd", "a/b", "${jndi:x}", "&lt;b&gt;", "'-alert(1)-'", "]]><svg onload=alert(1)>",
]  # fmt: skip


class Elements(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_record_does_no_harm_in_the_report_or_on_disk(tmp_path: Path, name: str) -> None:
    out = tmp_path / "results"
    hostile = {"dataset": name, "error": name, "energy_unavailable_reason": name, "augmentation": name}
    stages = [{"name": name, "parameters": 1}] * 6
    for method, budget in (("full", None), ("short", 0.5), ("learn-and-drop", None)):
        record = make_record(method, 0, budget=budget) | hostile | {"model": name, "stages": stages}
        record["drops"] = [{**drop, "reason": name, "store_tier": name} for drop in record["drops"]]
        folder = write_cell(out, make_record(method, 0, budget=budget))
        write_sealed(folder / "result.json", record)
    before = everything_below(tmp_path)
    code, _, err = ldbench("report", str(out))
    assert code == 0, err
    new = everything_below(tmp_path).keys() - before.keys()
    assert new
    assert all(path.startswith("results/report") for path in new)
    page = Elements()
    page.feed((out / "report" / "index.html").read_text())
    for tag, attributes in page.found:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form")
        for key, value in attributes:
            assert not key.startswith("on"), (tag, key)
            if key in ("href", "src", "xlink:href", "action"):
                assert (value or "").startswith(("#", "data:image/")), (tag, key, value)


def test_a_model_factory_is_the_only_thing_imported_by_name(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    with mock.patch.object(sys, "path", [str(tmp_path), *sys.path]), contextlib.chdir(tmp_path):
        for option in ("--dataset", "--method", "--optimizer", "--set"):
            code, _, err = ldbench("run", option, "planted:net", "--dry-run")
            assert code == 2, err
        assert not (tmp_path / "executed").exists()
        ldbench("run", "--model", "planted:net", "--dry-run")
    assert (tmp_path / "executed").exists()
    shutil.rmtree(tmp_path / "executed")
