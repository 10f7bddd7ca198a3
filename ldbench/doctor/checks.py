"""``ldbench doctor``: what this machine can do, each thing tried, with a cure for each gap.

A check never assumes that another one passed: on a broken installation the rest still speaks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldbench.doctor import machine, software
from ldbench.doctor.software import FAIL, GAP, OK, UNTRIED, Check
from ldbench.errors import clean, one_line

CHECKS: tuple[tuple[str, Callable[[], Check | list[Check]]], ...] = (
    ("Python", software.check_python),
    ("torch", software.check_torch),
    ("torchvision", software.check_torchvision),
    ("versions", software.check_versions),
    ("CUDA", software.check_cuda),
    ("triton", software.check_triton),
    ("GPU", machine.check_gpus),
    ("energy", machine.check_energy),
    ("powercap", machine.check_powercap),
    ("data sets", machine.check_datasets),
    ("memory", machine.check_memory),
    ("disk", machine.check_disk),
    ("training", software.check_training),
)


def doctor(screen: Console, *, as_json: bool = False) -> int:
    """Run all checks and print them. Exit code 0 when a training step ran, else 1."""
    checks = list(_run_all())
    works = any(check.name == "training" and check.status == OK for check in checks)
    if as_json:
        print(json.dumps({"training_works": works, "checks": [asdict(check) for check in checks]}, indent=1))
        return 0 if works else 1
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    colours = {OK: "green", GAP: "yellow", FAIL: "red", UNTRIED: "dim"}
    for check in checks:
        text = clean(check.found) + (f"\n  -> {clean(check.cure)}" if check.cure else "")
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", escape(text))
    screen.print(table)
    screen.print("Training works here." if works else "Training does not work here.")
    return 0 if works else 1


def _run_all() -> Iterator[Check]:
    for name, check in CHECKS:
        try:
            with warnings.catch_warnings(action="ignore"):  # what is wrong stands in the findings
                made = check()
        except Exception as error:  # whatever is broken here, the other checks still run
            made = Check(name, FAIL, one_line(error, kind=True), "close the gaps above first")
        yield from made if isinstance(made, list) else [made]
