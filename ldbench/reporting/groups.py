"""Rows of the group table: a rule over all comparisons of one model, data at once and streams apart."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ldbench.experiment.claims import SINGLE, STREAMS, kind_of
from ldbench.experiment.config import OF_STREAMS, OF_TUNING
from ldbench.records.declared import Declared
from ldbench.records.results import canonical
from ldbench.reporting.columns import columns, speed_columns
from ldbench.reporting.comparisons import Record, setting_labels
from ldbench.reporting.equal_accuracy import speed_up
from ldbench.reporting.moderation import NO_PRIOR, Prior, moderated
from ldbench.reporting.sentences import group_statement, line_statement
from ldbench.reporting.verdicts import (
    AXES,
    Evidence,
    Group,
    Verdict,
    group_of,
    judge_groups,
    judge_lines,
    of_images,
    priors_of,
)

UNDECLARED = "nothing was declared before these runs were made"


class _Key(NamedTuple):
    """What the lines of a group share: model, kind, the recipe but for what belongs to a scenario, and the rule."""

    model: str
    kind: str
    setting: str
    method: str
    policy: str


def group_rows(rows: Sequence[Record], evidence: Sequence[Evidence | None], declared: Declared | None) -> list[Record]:
    """One row per rule and group, those that were declared first; and the verdicts of ``rows`` filled in.

    Args:
        rows: of the line table, ``evidence`` of each beside it (None: a control).
        declared: what the experiment set out to show.
    """
    members: dict[_Key, list[int]] = defaultdict(list)
    for place, (row, shown) in enumerate(zip(rows, evidence, strict=True)):
        row |= _of_verdict(Verdict("control")) | {"standing": "control", "statement": ""}
        if shown is not None:
            members[_key(row)].append(place)
    order = sorted(members, key=lambda key: not _claimed(key, declared))
    groups = []
    for key in order:
        lines = [some for place in members[key] if (some := evidence[place]) is not None]
        why, missing = _standing(key, [rows[place] for place in members[key]], lines, declared)
        groups.append(group_of(lines, declared.axes if declared and not why else tuple(AXES), why, missing))
    verdicts = judge_groups(groups)
    for key, of_lines in zip(order, judge_lines(groups, verdicts), strict=True):
        for place, verdict in zip(members[key], of_lines, strict=True):
            row, shown = rows[place], evidence[place]
            assert shown is not None
            row |= _of_verdict(_comparable(verdict, shown))
            row["standing"] = "exploratory" if verdict.kind == "exploratory" else "declared"
            row["statement"] = line_statement(row)
    names = setting_labels({(key.model, key.kind, "", key.setting) for key in order})
    tests = sum(math.isfinite(verdict.adjusted) for verdict in verdicts)
    priors = priors_of([group.leads for group in groups if group.tested])
    made = []
    for key, group, verdict in zip(order, groups, verdicts, strict=True):
        named = {"setting_label": names[key.model, key.kind, "", key.setting], "label": _label(rows, members[key])}
        of_these = [rows[place] for place in members[key]]
        made.append(_row(key, group, verdict, tests, of_these, {} if group.exploratory else priors) | named)
    for model, kind in _never_run(order, declared):
        empty = Group([], {}, (), "", "no run yet")
        key = _Key(model, kind, "{}", declared.method if declared else "", "{}")
        verdict = Verdict("n/a", "no run yet")
        made.append(_row(key, empty, verdict, tests, [], {}) | {"setting_label": "", "label": key.method})
    return made


def _key(row: Record) -> _Key:
    setting = json.loads(row["setting"])
    shared = {key: value for key, value in setting.items() if key not in (*OF_STREAMS, *OF_TUNING)}
    kind = STREAMS if row["streamed"] else SINGLE
    return _Key(row["model"], kind, canonical(shared), row["method"], row["policy"])


def _claimed(key: _Key, declared: Declared | None) -> bool:
    return declared is not None and key.method == declared.method and (key.model, key.kind) in declared.groups


def _never_run(order: Sequence[_Key], declared: Declared | None) -> list[tuple[str, str]]:
    if declared is None:
        return []
    seen = {(key.model, key.kind) for key in order if key.method == declared.method}
    return [pair for pair in declared.groups if pair not in seen]


def _standing(
    key: _Key, rows: Sequence[Record], lines: Sequence[Evidence], declared: Declared | None
) -> tuple[str, str]:
    """Why a group is exploratory, "" where it was declared; and why a declared one cannot be judged."""
    if declared is None:
        return UNDECLARED, ""
    if key.method != declared.method:
        return "it is not the rule that was declared", ""
    if (key.model, key.kind) not in declared.groups:
        return "this group was not declared", ""
    others = sum(line.undeclared for line in lines)
    if others:
        return f"{others} of its runs and controls were not made under what is declared now", ""
    wanted = {(d, s) for d in declared.datasets for s in declared.scenarios if kind_of(s) == key.kind}
    missing = wanted - {(row["dataset"], row["scenario"]) for row in rows}
    if missing:
        return "", f"no run yet of {', '.join(' '.join(pair) for pair in sorted(missing))}"
    for row in rows:
        seeds = set(json.loads(row["seeds"]))
        if seeds != set(declared.seeds):
            there = len(seeds & set(declared.seeds))
            return "", f"{there} of {len(declared.seeds)} declared seeds are there: it is judged when all are"
    return "", ""


def _comparable(verdict: Verdict, shown: Evidence) -> Verdict:
    """An exploratory line that no control reaches is said to be none."""
    if verdict.kind != "exploratory" or any(some.seeds for some in shown.leads.values()):
        return verdict
    reasons = dict.fromkeys(some.reason for some in shown.leads.values())
    return Verdict("n/a", "; ".join(reasons))


def _of_verdict(verdict: Verdict) -> Record:
    return {
        "verdict": verdict.kind,
        "verdict_reason": verdict.reason,
        "p": verdict.p,
        "adjusted_p": verdict.adjusted,
    }


def _label(rows: Sequence[Record], places: Sequence[int]) -> str:
    return min((str(rows[place]["label"]) for place in places), key=len)


def _row(
    key: _Key,
    group: Group,
    verdict: Verdict,
    tests: int,
    rows: Sequence[Mapping[str, Any]],
    priors: Mapping[str, Prior],
) -> Record:
    row: Record = {name: getattr(key, name) for name in ("model", "kind", "method", "policy", "setting")}
    row |= {"comparisons": len(group.lines), "tests": tests}
    row |= {"standing": "exploratory" if group.exploratory else "declared", "axes": ", ".join(group.axes)}
    for of in ("scenario", "dataset"):
        row[f"{of}s"] = ", ".join(dict.fromkeys(str(some[of]) for some in rows))
    row["flat"] = bool(rows) and all(some["frontier_state"] == "saturated" for some in rows)
    row["n"] = max((len(some.seeds) for some in group.leads.values()), default=0)
    for axis, some in group.leads.items():
        seeds, both = some.pair()
        prior = priors.get(axis, NO_PRIOR)
        if axis in priors and seeds.n > 1:  # the interval of the test that decides
            seeds = replace(moderated(some.differences, prior, of_images(some)), reason=seeds.reason)
        row |= columns(f"lead_{axis}_points", seeds.scaled(100), both.scaled(100))
        row |= speed_columns(f"speed_up_{axis}", speed_up(some, prior))
    row |= _of_verdict(verdict)
    return row | {"statement": group_statement(row)}
