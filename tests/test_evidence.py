"""Defaults, claims and what the texts say agree with the committed runs."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import ldbench
from ldbench.experiment.claims import claims_digest
from ldbench.experiment.files import read_experiment
from ldbench.experiment.validation import experiment_from_dict
from ldbench.policies.base import DEFAULT_METHOD
from ldbench.policies.registry import get_method
from ldbench.records.declared import Declared

ROOT = Path(__file__).parents[1]
README, PAGE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/evidence.md"))
FIGURE = re.compile(r"(?:[≥≤] )?[+-]?\d+\.\d\dx? \[[^\]]+\]")
TABLE = re.compile(r"<!-- [\w -]+ table -->\n(.*?)<!-- end -->", re.DOTALL)


@functools.cache
def evidence(name: str) -> pd.DataFrame:
    return ldbench.load_results(ROOT / "results" / f"evidence-{name}.jsonl")


def texts() -> dict[str, str]:
    """What speaks of measured results, tables and code aside."""
    found = {
        "README": TABLE.sub("", README),
        "page": TABLE.sub("", PAGE),
        "GUIDE": (ROOT / "GUIDE.md").read_text(encoding="utf-8"),
    }
    for path in sorted((ROOT / "docs" / "methods").glob("*.md")):
        measured = path.read_text(encoding="utf-8").partition("\n## Measured\n")[2]
        found[f"card of {path.stem}"] = re.sub(r"<!-- verdict: ([a-z-]+) -->\n", r"\n\n`\1`: ", measured)
    return found


def quoted(text: str) -> Iterator[tuple[str, str]]:
    """Every figure with its interval, and the method whose name in backticks stands last before it in its paragraph."""
    for paragraph in re.split(r"\n\s*\n|\n(?=\* )|\n(?=#)", text):
        flat = " ".join(paragraph.split())
        named = [(match.start(), match[1]) for match in re.finditer(r"`([a-z][a-z+-]*)`", flat)]
        known = [(at, name) for at, name in named if _is_method(name)]
        for match in FIGURE.finditer(flat):
            before = [name for at, name in known if at < match.start()]
            yield match[0], before[-1] if before else ""


def _is_method(name: str) -> bool:
    try:
        get_method(name)
    except ldbench.UserError:
        return False
    return True


def rows() -> list[list[str]]:
    """The rows of every table that was made from the records."""
    made = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "results").glob("evidence-*.md"))]
    made += TABLE.findall(PAGE)
    return [line.strip("| ").split(" | ") for text in made for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("name", ["cpu", "confirm"])
def test_the_default_with_its_options_is_the_rule_that_was_furthest_ahead(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benches.leads import winner

    assert winner(evidence(name)).is_the_default()


def test_the_default_is_one_and_the_same_everywhere() -> None:
    assert experiment_from_dict({}).method == ("full", "short", DEFAULT_METHOD)
    for suite in ("quickstart", "digits"):
        asked = experiment_from_dict(read_experiment(suite))
        assert asked.method == ("full", "short", DEFAULT_METHOD)
        assert asked.claims is None or asked.claims["method"] == DEFAULT_METHOD
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    data = torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)
    with ldbench.LayerDropper(model, torch.optim.SGD(model.parameters(), 0.1), data, batch_size=4, epochs=1) as dropper:
        assert type(dropper.policy) is type(get_method(DEFAULT_METHOD).policy())
        assert dropper.execution == get_method(DEFAULT_METHOD).execution
    for text in (README, (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8"), texts()["GUIDE"]):
        assert re.search(rf"`{re.escape(DEFAULT_METHOD)}`,? the default", text)


@pytest.mark.parametrize("name", ["cpu", "confirm", "long", "augment", "photographs"])
def test_what_a_suite_claims_is_what_its_committed_runs_were_made_under(name: str) -> None:
    cells = evidence(name)
    declared, asked = cells.attrs["declared"], experiment_from_dict(read_experiment(f"evidence-{name}"))
    assert isinstance(declared, Declared)
    assert declared.digest == claims_digest(asked)
    assert asked.claims is not None
    assert declared.method == asked.claims["method"]
    # The same rule with other options, and other methods, added later, are exploratory: they carry another digest.
    options = asked.policy.get(declared.method, {})
    other = (cells["method"] == declared.method) & (cells["policy"].map(json.loads) != options)
    other |= ~cells["method"].isin(asked.method)
    assert set(cells[~other]["claims_sha256"]) == {declared.digest}
    assert declared.digest not in set(cells[other]["claims_sha256"])
    assert set(cells["seed"]) == set(asked.seeds)
    assert set(cells["status"]) == {"finished"}


@pytest.mark.parametrize("name", [name for name, text in texts().items() if FIGURE.search(text)])
def test_every_quoted_figure_is_in_a_line_of_its_method(name: str) -> None:
    made = rows()
    wrong = [
        (method, figure)
        for figure, method in quoted(texts()[name])
        if not any(
            any(cell.startswith(figure) for cell in row) and any(_named(cell, method) for cell in row) for row in made
        )
    ]
    assert wrong == []


NETWORKS = {"VGG-11": "vgg11_bn", "ResNet-18": "resnet18", "both networks": "all"}


def test_every_figure_of_the_page_on_augmentation_is_in_a_line_of_its_network() -> None:
    page = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for text in TABLE.findall(page) for line in text.splitlines()]
    wrong, quotes = [], 0
    for paragraph in re.split(r"\n\s*\n|\n(?=\* )", TABLE.sub("", page)):
        flat = " ".join(paragraph.split())
        for match in FIGURE.finditer(flat):
            named = re.findall("|".join(NETWORKS), flat[: match.start()])
            network, quotes = NETWORKS[named[-1]] if named else "", quotes + 1
            if not any(row[1:2] == [network] and match[0] in row for row in lines):
                wrong.append((network, match[0]))
    assert wrong == []
    assert quotes >= 5


def test_every_figure_of_the_page_beside_the_paper_is_in_a_line_of_its_network() -> None:
    """The network is the last one named before it in its paragraph, in backticks as in the tables."""
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for text in TABLE.findall(page) for line in text.splitlines()]
    wrong, quotes = [], 0
    for paragraph in re.split(r"\n\s*\n|\n(?=\* )", TABLE.sub("", page)):
        flat = " ".join(paragraph.split())
        for match in re.finditer(r"[+-]?\d+\.\d+x? \[[^\]]+\]", flat):
            named = re.findall(r"`((?:vgg|resnet|convnext|efficientnet|timm:)[\w:]*)`", flat[: match.start()])
            quotes += 1
            if not any(named[-1:] == row[:1] and match[0] in row for row in lines):
                wrong.append((named[-1:], match[0]))
    assert wrong == []
    assert quotes >= 5


def test_what_page_and_readme_count_beside_the_paper_is_what_the_table_counts() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    counts = [line for line in page.splitlines() if line.startswith("| cifar10-jpeg | learn-and-drop | ")]
    assert any("halved | on 13 of 13 architectures, surely on 12 |" in line for line in counts)
    assert any("same FLOPs | surely on 8 of 13 architectures, surely worse on 0 |" in line for line in counts)
    assert any("lower | on 2 of 13 architectures, surely on 1 |" in line for line in counts)
    said = [" ".join(text.split()) for text in (page, README)]
    assert all("surely better" in text and "on eight of thirteen" in text for text in said)
    assert "more than halved on all thirteen**, surely on twelve" in said[0]


def _named(cell: str, method: str) -> bool:
    """Whether a cell of a table names a method, its options aside, or the other execution of one."""
    return cell.partition(" ")[0] in (method, f"{method}+store", f"{method}+freeze")


def test_enough_is_quoted_for_the_tests_above_to_mean_something() -> None:
    assert all(len(list(quoted(texts()[name]))) >= 5 for name in ("README", "page", "GUIDE"))
    sample = "`paced` is cheaper, 1.10x\n[1.00, 1.20] at 0.34 [0.30, 0.40].\n* `freeze` by -0.50 [-0.70, -0.30], `short` too\n\n2.00x [1.00, > 3.00]"
    assert list(quoted(sample)) == [
        ("1.10x [1.00, 1.20]", "paced"), ("0.34 [0.30, 0.40]", "paced"), ("-0.50 [-0.70, -0.30]", "freeze"), ("2.00x [1.00, > 3.00]", ""),
    ]  # fmt: skip
