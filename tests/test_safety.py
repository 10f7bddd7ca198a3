"""Nothing that somebody else made runs code here: no format of ours is pickled, and no name reaches the page or the
disk raw.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torchvision.datasets as tv
from support.cifar import write_cifar
from support.hostile import everything_below, ldbench, refused
from support.report_records import make_record, write_cell

import ldbench as package
from ldbench import kernels
from ldbench.data.cifar_pickle import NoBatch, read_batch
from ldbench.data.datasets import load_dataset
from ldbench.errors import UserError
from ldbench.io.checksums import Damaged, write_sealed
from ldbench.io.tensors import read_checkpoint
from ldbench.store.store_file import find_store

# --- what the source may not hold
# --------------------------------------------------------------------------------------

PICKLERS = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg", "yaml", "dbm",
    "code", "runpy",
}  # fmt: skip
RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
SOURCES = [file for module in (package, kernels) for file in sorted(Path(str(module.__file__)).parent.rglob("*.py"))]


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def offences(tree: ast.AST) -> Iterator[str]:
    """Everything in a module that unpickles, or runs text or files as code."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"import {name}" for name in names if name.split(".")[0] in PICKLERS)
        if not isinstance(node, ast.Call):
            continue
        name, given = called(node), {word.arg: word.value for word in node.keywords}
        if name in RUNNERS or name.endswith(("import_module", ".read_pickle", ".to_pickle", "os.system", "os.popen")):
            yield name
        if name.endswith(("torch.load", "hub.load")) and not getattr(given.get("weights_only"), "value", False):
            yield name
        if name in ("torch.save", "np.save", "np.load", "numpy.load") or getattr(
            given.get("allow_pickle"), "value", False
        ):
            yield name
        if getattr(given.get("shell"), "value", False):
            yield f"{name}(shell=True)"


def test_the_package_neither_pickles_nor_runs_text_but_in_the_places_named_here() -> None:
    found = {(file.name, offence) for file in SOURCES for offence in offences(ast.parse(file.read_text()))}
    assert found == {
        ("user_code.py", "importlib.import_module"),  # --model package.module:factory, which says so
        ("__init__.py", "import_module"),  # ldbench's own modules, by name out of a table
        ("transformers.py", "torch.save"),  # plain values and tensors, loaded with weights_only
        ("cifar_pickle.py", "import pickle"),  # a reader that refuses every name; see below
    }


def test_the_search_finds_what_it_is_for() -> None:
    text = "import pickle as p\nfrom joblib import load\neval('1')\ntorch.load(f)\ntorch.load(f, weights_only=False)\n"
    text += "np.load(f)\nx(allow_pickle=True)\nrun('ls', shell=True)\nos.system('x')\n"
    assert len(list(offences(ast.parse(text)))) == 9
    assert not list(
        offences(ast.parse("model.eval()\ntorch.compile(f)\nre.compile('x')\ntorch.load(f, weights_only=True)"))
    )


def test_pickles_only_use_is_a_reader_without_names() -> None:
    tree = ast.parse((Path(str(package.__file__)).parent / "data/cifar_pickle.py").read_text())
    used = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle.")
    ]
    assert used == ["pickle.Unpickler"]
    (reader,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases)
    ]
    assert [item.name for item in reader.body if isinstance(item, ast.FunctionDef)] == ["find_class"]


@pytest.mark.parametrize("command", ["run", "profile"])
def test_the_option_that_runs_the_users_code_says_so(command: str) -> None:
    told = " ".join(re.sub(r"[│|]", " ", ldbench(command, "--help").out).split())
    assert re.search(r"package\.module:factory, whose code is then run", told)


# --- real attempts
# -----------------------------------------------------------------------------------------------------


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What a payload would make; it must not be there after the test, and the payload must be one that works."""
    mark = tmp_path / "pwned"
    pickle.loads(pickle.dumps(Payload(mark)))
    mark.rmdir()
    yield mark
    assert not mark.exists()


def payloads(mark: Path, folder: Path) -> dict[str, bytes]:
    torch.save(Payload(mark), folder / "saved.pt")
    plain = [pickle.dumps(Payload(mark), protocol) for protocol in (0, 2, 4)]
    return {str(i): data for i, data in enumerate([*plain, (folder / "saved.pt").read_bytes()])}


def test_planted_pickles_are_named_as_damaged_and_never_run(mark: Path, tmp_path: Path) -> None:
    for key, data in payloads(mark, tmp_path).items():
        root = tmp_path / key
        write_cell(root, make_record("full", 0))
        odd = write_cell(root, make_record("learn-and-drop", 0))
        planted = (
            "result.json",
            "config.json",
            "epochs.jsonl",
            "scores.jsonl",
            "model.safetensors",
            "checkpoint.safetensors",
        )
        for name in planted:
            (odd / name).write_bytes(data)
        (root / "costs").mkdir()
        (root / "costs" / "table.json").write_bytes(data)
        (root / "experiment.json").write_bytes(data)
        assert not refused(ldbench("report", root))
        verified = ldbench("verify", root, "--json")
        assert verified.code == 1
        named = {Path(entry["path"]).name for entry in json.loads(verified.out)["damaged"]}
        assert named >= {*planted, "table.json", "experiment.json"}
        assert refused(ldbench("run", root / "experiment.json", "--dry-run"))
        assert refused(
            ldbench(
                "run",
                "--model",
                "support.tiny_nets:net",
                "--dataset",
                "digits",
                "--image-size",
                "8",
                "--cost-table",
                root / "costs",
                "--dry-run",
                "--json",
            )
        )
        with pytest.raises(Damaged):
            read_checkpoint(odd / "checkpoint.safetensors")


def test_a_planted_store_is_never_taken_for_one(mark: Path, tmp_path: Path) -> None:
    for key, data in payloads(mark, tmp_path).items():
        (tmp_path / f"store-{key}.json").write_bytes(data)
        (tmp_path / f"store-{key}.bin").write_bytes(data)
    (tmp_path / "store-x.bin").write_bytes(b"rows")
    card = {"fingerprint": "f", "content_sha256": hashlib.sha256(b"rows").hexdigest(), "samples": 1, "shape": [1]}
    write_sealed(tmp_path / "store-x.json", card | {"dtype": "__class__", "out_dtype": "load", "channels_last": False})
    assert find_store(tmp_path, "f", torch.device("cpu")) is None


def test_a_cost_table_of_anything_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldbench.runner import preparation

    for table in ({}, [], None, {"flops": [{}], "tiers": 3}, {"flops": "x", "tiers": {}}):
        write_sealed(tmp_path / "table.json", {"what": {"model": "m"}, "table": table})
        with pytest.raises(UserError, match=r"table\.json holds no cost table"):
            preparation.given_table(tmp_path, {"model": "m"})


def test_a_planted_data_file_is_never_unpickled_even_with_the_right_checksum(
    mark: Path,
    tmp_path: Path,
    cifar_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_cifar(tmp_path, cifar_files)
    for file in ("data_batch_3", "batches.meta"):
        for data in payloads(mark, tmp_path).values():
            (folder / file).write_bytes(data)
            with pytest.raises(UserError, match=rf"{file} is damaged \(its checksum"):
                load_dataset("cifar10", root=tmp_path)
            with monkeypatch.context() as colliding:  # as if somebody had found a file with the published checksum
                lists = [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in cifar_files]
                colliding.setattr(tv.CIFAR10, "train_list", lists[:5])
                colliding.setattr(tv.CIFAR10, "test_list", lists[5:6])
                colliding.setattr(tv.CIFAR10, "meta", {**tv.CIFAR10.meta, "md5": lists[6][1]})
                with pytest.raises(UserError, match=rf"{file} is damaged"):
                    load_dataset("cifar10", root=tmp_path)
        (folder / file).write_bytes(cifar_files[file])
    assert len(load_dataset("cifar10", root=tmp_path).train) == 20


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfrombuffer\n.",
        b"\x80\x02cnumpy\ndtype\n(U\x01OK\x00K\x01tR.",
        b"P1\n.",
        b"\x80\x02\x82\x01.",
        b"",
        b".",
        b"\x80\x09.",
        b"}(U\x04dataK\x01u",
        b"I" + b"9" * 9000 + b"\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\n.",
        b"(cos\nsystem\no.",
        b"cnumpy\ndtype\n}U\x0c__setstate__NsbS''\nb.",
    ],
)
def test_programs_in_place_of_a_batch_are_refused(data: bytes) -> None:
    with pytest.raises(NoBatch):
        read_batch(data)


def test_a_folder_of_an_older_format_is_not_loaded_on_the_way_to_a_download(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldbench.data import readers

    monkeypatch.setattr(tv.MNIST, "mirrors", [(tmp_path / "nothing").as_uri() + "/"])
    monkeypatch.setattr(readers, "DEBIAN_FASHION_MNIST", tmp_path / "nothing")
    old = tmp_path / "MNIST" / "processed"
    old.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save(Payload(mark), old / name)
    with pytest.raises(UserError, match="could not be downloaded"):
        load_dataset("mnist", root=tmp_path, download=True)


def test_an_image_that_another_program_would_have_to_draw_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("0.png", "1.png"):
            (tmp_path / name / file).write_bytes(
                b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
            )
    with pytest.raises(UserError, match=r"[01]\.png is not a readable image"):
        load_dataset(f"folder:{tmp_path}", root=None)


# --- names
# -------------------------------------------------------------------------------------------------------------

NAMES = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</title><svg onload=alert(1)>", "javascript:alert(1)", "]]><script>alert(1)</script>",
    "--><script>alert(1)</script>",
    "&lt;script&gt;", "../../../../tmp/owned", "/etc/passwd", "..", "a\0b", "$\\input{/etc/passwd}$",
    "\u202egnp.exe", "{{7*7}}", "=cmd|' /C calc'!A0",
]  # fmt: skip
PLAIN = {
    "html", "head", "meta", "title", "style", "body", "header", "section", "h1", "h2", "h3", "p", "a", "div",
    "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "pre", "br", "dl", "dt", "dd",
}  # fmt: skip
ATTRIBUTES = {
    "lang",
    "charset",
    "name",
    "content",
    "http-equiv",
    "href",
    "class",
    "id",
    "data-label",
    "src",
    "alt",
    "width",
    "height",
}
SVG = {
    "svg", "metadata", "defs", "style", "g", "path", "clipPath", "pattern", "rect", "use", "image", "text",
    "title", "RDF", "Work", "type", "format", "creator", "Agent", "date",
}  # fmt: skip


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))


def elements(page: Path) -> list[tuple[str, dict[str, str]]]:
    parser = Elements()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


@pytest.fixture(params=NAMES)
def named(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Results in which everything that has a name is called the same bad thing."""
    name, root = request.param, tmp_path / "deep" / "results"
    changes = {
        "model": f"m{name}" if name.startswith(".") else name, "dataset": name, "cell_id": name, "error": name,
        "peak_memory_kind": name, "store_tier": name, "energy_unavailable_reason": name,
        "energy_method": name, "augmentation": name, "augmentation_after_drop": name, "precision": name,
        "stem": name, "head": name,
        "environment": {name: name, "cpu": name, "gpu": name}, "stages": [{"name": name, "parameters": 1}] * 8,
    }  # fmt: skip
    for method, budget in (("full", None), ("short", 0.5), ("learn-and-drop", None), (name, None)):
        record = make_record(method, 0, budget=budget) | changes
        drop = {"step": 1, "cut": name, "reason": name, "store_tier": name, "store_dtype": name, "epoch": name}
        write_cell(root, record | {"drops": [*record["drops"], drop], "declined": [drop]}, policy={name: name}, lr=name)
    failed = make_record("freeze", 1) | changes | {"status": "failed"}
    write_cell(root, failed)
    write_sealed(root / "experiment.json", {name: name})
    if "/" not in name and "\0" not in name and name != "..":
        (root / "cells" / name).mkdir()
        (root / "cells" / name / "result.json").write_text(name)
    return root


def test_names_make_no_element_no_handler_and_no_link_in_the_report(named: Path) -> None:
    assert not refused(ldbench("report", named))
    found = elements(named / "report" / "index.html")
    assert {tag for tag, _ in found} <= PLAIN
    assert sum(tag == "style" for tag, _ in found) == 1
    for _, attributes in found:
        assert attributes.keys() <= ATTRIBUTES
        assert attributes.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
        assert re.fullmatch(r"#comparison-\d+", attributes.get("href", "#comparison-0"))
    pictures = [attributes["src"] for tag, attributes in found if tag == "img"]
    assert len(pictures) == 6
    for picture in pictures:
        for element in ElementTree.fromstring(base64.b64decode(picture.partition(",")[2])).iter():
            assert element.tag.rpartition("}")[2] in SVG
            for key, value in element.attrib.items():
                assert not key.rpartition("}")[2].startswith("on")
                assert "script" not in value
                assert not key.endswith("href") or value.startswith(("#", "data:image/png;base64,"))


def test_names_write_nothing_outside_the_results(named: Path, tmp_path: Path) -> None:
    before = everything_below(tmp_path)
    assert not refused(ldbench("report", named, "--json"))
    after = everything_below(tmp_path)
    assert {path: after[path] for path in before} == before
    made = {path.removeprefix("deep/results/") for path in after.keys() - before.keys()}
    assert made == {
        "report",
        *(f"report/{name}" for name in ("index.html", "groups.csv", "table.csv", "cells.csv", "drops.csv")),
    }


def test_the_page_forbids_scripts_besides(tmp_path: Path) -> None:
    write_cell(tmp_path, make_record("full", 0))
    assert not refused(ldbench("report", tmp_path))
    policies = [
        a["content"]
        for t, a in elements(tmp_path / "report" / "index.html")
        if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
