"""What may be compared with what: methods by name, settings by what differs, and what spoils a comparison."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ldbench.errors import clean
from ldbench.policies.registry import shortened_methods

BETWEEN = " | "  # separates the warnings of a comparison
COMPARISON = ["model", "dataset", "scenario", "setting"]
HARDWARE = ("device", "cpu", "cpu_count", "threads", "gpu", "driver", "platform")
SOFTWARE = ("python", "torch", "torchvision", "triton", "numpy", "cuda", "cudnn", "ldbench", "git_commit")
# Rules that made BatchNorm's statistics anew at every drop before that became an option of the run.
RE_ESTIMATED_ONCE = ("learn-and-drop", "freeze", "schedule", "cost-benefit")
Record = dict[str, Any]
Variant = tuple[str, float, str]
Frontier = Mapping[int, dict[float, Record]]


def controls() -> tuple[str, ...]:
    """The methods that every other one is compared with: full training, and those that train less."""
    return "full", *shortened_methods()


def records_of(frame: pd.DataFrame) -> list[Record]:
    """The rows of a table as dicts of plain Python values; faster than ``DataFrame.to_dict``."""
    names = [str(name) for name in frame.columns]
    columns = (frame.iloc[:, place].tolist() for place in range(len(names)))
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def by_comparison(frame: pd.DataFrame) -> dict[tuple[Any, ...], list[Record]]:
    """The rows of every comparison, in the order of the table; much faster than ``DataFrame.groupby``."""
    found: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records_of(frame) if len(frame) else ():
        found[tuple(record[name] for name in COMPARISON)].append(record)
    return dict(found)


def method_labels(records: Iterable[Record]) -> dict[Variant, str]:
    """Readable name per (method, budget or -1, policy): the budget of ``short``, and the options that were set."""
    keys = {variant(record) for record in records}
    policies: dict[str, set[str]] = defaultdict(set)
    for method, _, policy in keys:
        policies[method].add(policy)
    labels = {}
    for method, budget, policy in keys:
        text = with_options(method if budget < 0 else f"{method} {budget:g}", policy)
        alone = policy != "{}" or len(policies[method]) == 1
        labels[method, budget, policy] = text if alone else f"{text} (default options)"
    return labels


def with_options(name: str, policy: str) -> str:
    """A method's name with the options that were set: "paced (pace=2.0)". ``policy``: these, as JSON."""
    options = ", ".join(f"{key}={json.dumps(value)}" for key, value in sorted(json.loads(policy).items()))
    return f"{name} ({options})" if options else name


def variant(record: Mapping[str, Any]) -> Variant:
    """What makes cells of one comparison the same method: name, budget (-1 for none), policy options."""
    budget = float(record["budget"])
    return str(record["method"]), -1.0 if math.isnan(budget) else budget, str(record["policy"])


def total_flops(record: Mapping[str, Any]) -> float:
    """Forward and backward FLOPs executed in training, the method's own costs included."""
    return float(record["forward_flops"]) + float(record["backward_flops"])


def variant_order(name: Variant) -> tuple[int, str, float, str]:
    """Sort key: the frontier by rising budget, full training at its end, then the methods."""
    first = (*shortened_methods(), "full", "learn-and-drop")
    return first.index(name[0]) if name[0] in first else len(first), *name


def machine(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The hardware that a run was timed on."""
    return tuple(str(record.get(f"environment_{key}")) for key in HARDWARE)


def values_seen(cells: pd.DataFrame, column: str) -> list[str]:
    """What stands in a column of the runs, each value once, harmless to print."""
    return sorted({clean(value) for value in cells[column].dropna()} - {""}) if column in cells else []


def mixed_seeds(records: Sequence[Record]) -> set[int]:
    """Seeds whose runs were not all timed on the same hardware."""
    seen: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for record in records:
        if record["status"] == "finished":
            seen[record["seed"]].add(machine(record))
    return {seed for seed, machines in seen.items() if len(machines) > 1}


def comparison_warnings(records: list[Record], mixed: set[int], full: dict[int, Record], twice: list[str]) -> list[str]:
    """What a reader must know before believing a comparison: mixed machines or data, broken or missing controls."""
    notes = []
    finished = [record for record in records if record["status"] == "finished"]
    for kind, keys in (("hardware", HARDWARE), ("software", SOFTWARE)):
        differing = []
        for key in keys:
            values = Counter(_said(record.get(f"environment_{key}")) for record in finished)
            if len(values) > 1:
                said = ", ".join(f"{value} in {count} of {len(finished)}" for value, count in values.most_common(5))
                differing.append(f"{key}: {said}")
        if differing:
            notes.append(f"mixed {kind} in one comparison: " + "; ".join(differing))
    if mixed:
        some = ", ".join(str(seed) for seed in sorted(mixed)[:5]) + (", ..." if len(mixed) > 5 else "")
        notes.append(f"times compare different machines within a seed ({some}): they decide nothing")
    if len({_said(record["data_fingerprint"]) for record in finished}) > 1:
        notes.append("the runs of this comparison saw different data")
    begun: dict[int, set[str]] = defaultdict(set)
    for record in finished:
        begun[record["seed"]].add(_said(record.get("init_sha256")))
    if any(len(weights) > 1 for weights in begun.values()):
        notes.append("the runs of a seed began with different weights: their differences are not those of the methods")
    if unequal := _unequal_statistics(finished):
        notes.append(unequal)
    if any(record["at_chance"] for record in full.values()):
        notes.append("full training ended at chance level in some runs: the recipe does not work here")
    if finished and not full:
        notes.append("no finished full run with this setting: nothing to compare with")
    if twice:
        notes.append(f"{len(twice)} cells repeat a seed of the same method and were not used, for instance {twice[0]}")
    return [note.replace("|", "/") for note in notes]


def _unequal_statistics(finished: Sequence[Record]) -> str:
    """That rules were compared with different treatment of BatchNorm's statistics; "" where all had the same."""
    treated: dict[str, set[str]] = defaultdict(set)
    for record in finished:
        if record["method"] not in controls():
            treated[record["method"]].add(record["refreshes"])
    unknown = sorted(method for method, ways in treated.items() if "" in ways)
    once = [method for method in unknown if method.partition("+")[0] in RE_ESTIMATED_ONCE]
    if once and len(once) < len(treated):
        return (
            f"{', '.join(once)} re-estimated BatchNorm's statistics at every drop, which costs a pass and was not an option "
            "then; the other rules did not"
        )
    if len({frozenset(ways - {""}) for ways in treated.values() if ways != {""}}) > 1:
        return "BatchNorm's statistics are re-estimated for some rules and not for others: they are not compared like with like"
    return ""


def _said(value: Any) -> str:
    return "none" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def comparison_title(row: Mapping[str, Any]) -> str:
    """Model, data set, scenario where it is not the ordinary one, and what tells the setting from its siblings."""
    scenario = f", {row['scenario']}" if row["scenario"] != "scratch" else ""
    label = f" ({row['setting_label']})" if row["setting_label"] else ""
    return f"{row['model']} on {row['dataset']}{scenario}{label}"


def setting_labels(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """For each (model, dataset, scenario, setting) the options in which it differs from its siblings, or ""."""
    siblings: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for *place, setting in keys:
        siblings[tuple(place)].append(setting)
    names = {}
    for place_of, settings in siblings.items():
        tables = {setting: json.loads(setting) for setting in settings}
        options = sorted({option for table in tables.values() for option in table})
        differing = [o for o in options if len({str(table.get(o)) for table in tables.values()}) > 1]
        for setting, table in tables.items():
            names[*place_of, setting] = ", ".join(f"{option}={table.get(option)}" for option in differing)
    return names
