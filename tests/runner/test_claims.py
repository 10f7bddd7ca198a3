"""A suite with claims from the first run to the verdict, on the embedded digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ldbench.cli.progress import ConsoleProgress
from ldbench.experiment.files import read_experiment
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import read_sealed
from ldbench.records.results import load_results
from ldbench.reporting.report import write_report
from ldbench.reporting.summary import tabulate
from ldbench.runner.run_grid import run_experiment

SUITE = """
model = ["tiny"]
dataset = ["digits"]
scenario = ["scratch", "online"]
method = ["full", "short", "autofreeze+store", "schedule"]
seeds = [3, 4]
epochs = 3
batch_size = 16
train_size = 120
test_size = 80
chunks = 2
threads = 1
eval_every = "last"

[claims]
method = "schedule"
"""


def suite(folder: Path, text: str = SUITE, **changes: Any) -> Any:
    path = folder / "suite.toml"
    path.write_text(text.replace('"tiny"', '"support.tiny_nets:net"'))
    return experiment_from_dict(read_experiment(str(path)) | changes)


def ran(experiment: Any, out: Path) -> Any:
    return run_experiment(experiment, out, ConsoleProgress(Console(quiet=True), quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    outcome = ran(suite(folder), folder / "out")
    assert (outcome.finished, outcome.failed) == (2 * 2 * (1 + 5 + 2), 0)
    return folder


def test_every_record_carries_what_was_declared_and_the_report_judges_that_alone(finished: Path) -> None:
    out = finished / "out"
    digest = read_sealed(out / "experiment.json")["claims_sha256"]
    records = [read_sealed(path) for path in out.glob("cells/*/result.json")]
    assert {record["claims_sha256"] for record in records} == {digest}
    cells = load_results(out)
    assert set(cells["typical_train_seconds"].notna()) == {True}
    tables = tabulate(cells)
    standings = {(row["method"], row["kind"]): row["standing"] for row in tables.groups.to_dict("records")}
    assert standings == {
        ("schedule", "single set"): "declared",
        ("schedule", "streams"): "declared",
        ("autofreeze+store", "single set"): "exploratory",
        ("autofreeze+store", "streams"): "exploratory",
    }
    judged = tables.groups[tables.groups["standing"] == "declared"]
    assert set(judged["verdict"]) <= {"ahead", "behind", "undecided", "n/a"}
    streams = tables.lines[tables.lines["scenario"] == "online"].set_index("label")
    low = streams.loc["autofreeze+store", "average_difference_to_full_points_two_way_low"]
    assert low == low  # the mean over chunks has its record image by image
    page = write_report(out).read_text()
    assert "Declared before the runs: 2 groups of comparisons" in page
    assert "it is judged when all are" not in page


def test_more_seeds_after_a_look_make_it_exploratory(finished: Path, tmp_path: Path) -> None:
    out = finished / "out"
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/result.json")}
    ran(suite(tmp_path, seeds=[3, 4, 5]), out)
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    groups = tabulate(load_results(out)).groups
    single = groups[(groups["method"] == "schedule") & (groups["kind"] == "single set")].to_dict("records")
    assert [row["standing"] for row in single] == ["exploratory"]
    assert "were not made under what is declared now" in single[0]["verdict_reason"]
    ran(suite(tmp_path), out)  # what was declared first is asked for again: what is there now is not what it says
    groups = tabulate(load_results(out)).groups
    assert set(groups["standing"]) == {"exploratory"}
