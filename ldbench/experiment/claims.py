"""What an experiment sets out to show, declared before anything runs: the rule, the axes, the groups of comparisons.

A ``[claims]`` table of a suite::

    [claims]
    method = "autofreeze+store"
    axes = ["flops", "time"]                                         # the default
    groups = [["vgg11_bn", "single set"], ["vgg11_bn", "streams"]]   # the default: every model x kind of the grid

says that ``method`` beats shortened training, on every axis, in the mean over the comparisons of each group: all
scenarios and data sets of one model, those whose data are there at once apart from those that arrive in chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldbench.data.names import own_name
from ldbench.errors import UserError, nearest, shown
from ldbench.experiment.scenarios import SCENARIOS
from ldbench.policies.registry import shortened_methods

if TYPE_CHECKING:
    from ldbench.experiment.config import Experiment

AXES = ("flops", "time")
SINGLE, STREAMS = KINDS = ("single set", "streams")
FEWEST_BUDGETS = 5  # a frontier through fewer points bends between them more than a claim may depend on
# What does not decide an experiment's numbers, or can be added to it without touching what was declared.
_BESIDE_IT = (
    "method", "policy", "device", "data_root", "download", "checkpoint_minutes", "cost_table", "save_model", "threads",
    "cache_budget",
)  # fmt: skip


def claims_table(name: str, value: Any) -> dict[str, Any]:
    """The table as it was written, its keys and types checked. Raises ``UserError`` that begins with ``name``."""
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be a table with a method, not {shown(value)}")
    for key in value:
        if key not in ("method", "axes", "groups"):
            raise UserError(f"{name}: unknown key {shown(key)}: {nearest(str(key), ('method', 'axes', 'groups'))}")
    method, axes, groups = value.get("method"), value.get("axes", list(AXES)), value.get("groups")
    if not isinstance(method, str):
        raise UserError(f"{name}: method names the one rule that is claimed to be ahead, not {shown(method)}")
    if not isinstance(axes, (list, tuple)) or not axes or len(set(map(str, axes))) < len(axes):
        raise UserError(f"{name}: axes is a list of {' and '.join(AXES)}, not {shown(axes)}")
    for axis in axes:
        if axis not in AXES:
            raise UserError(f"{name}: axis {shown(axis)} is unknown: {nearest(str(axis), AXES)}")
    table: dict[str, Any] = {"method": method, "axes": [axis for axis in AXES if axis in axes]}
    if groups is None:
        return table
    pairs = groups if isinstance(groups, (list, tuple)) else [groups]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise UserError(f'{name}: groups is a list such as [["vgg11_bn", "{SINGLE}"]], not {shown(groups)}')
        if pair[1] not in KINDS:
            raise UserError(f"{name}: {shown(pair[1])} is no kind of group: {nearest(pair[1], KINDS)}")
    return table | {"groups": [list(pair) for pair in pairs]}


def kind_of(scenario: str) -> str:
    """The kind of group that a scenario belongs to."""
    return STREAMS if SCENARIOS[scenario].streamed else SINGLE


def resolved_claims(experiment: Experiment, name: str) -> dict[str, Any] | None:
    """The claims with every group spelled out, held against the grid. Raises ``UserError`` that begins with ``name``."""
    table = experiment.claims
    if table is None:
        return None
    method = table["method"]
    if method == "full" or method in shortened_methods():
        raise UserError(f"{name}: method {method} is a control; claim that a rule is ahead of it")
    if method not in experiment.method:
        raise UserError(f"{name}: method {method} is claimed to be ahead but is not run: add --method {method}")
    missing = [control for control in ("full", "short") if control not in experiment.method]
    if missing:
        raise UserError(f"{name}: a claim is held against full and short training: add --method {missing[0]}")
    if len(experiment.short_budgets) < FEWEST_BUDGETS:
        raise UserError(
            f"{name}: a claim needs a frontier of {FEWEST_BUDGETS} budgets or more, not of "
            f"{len(experiment.short_budgets)}: leave --short-budgets out, or name more"
        )
    there = [[model, kind] for model in experiment.model for kind in KINDS if _has(experiment, kind)]
    groups = table.get("groups", there)
    for model, kind in groups:
        if model not in experiment.model:
            raise UserError(f"{name}: model {model} is not run: {nearest(model, experiment.model)}")
        if not _has(experiment, kind):
            raise UserError(
                f"{name}: no scenario of the grid makes the group {model}, {kind}: add one, or leave it out"
            )
    if len({tuple(pair) for pair in groups}) < len(groups) or not groups:
        raise UserError(f"{name}: groups must not be empty, nor name one twice")
    return {**table, "groups": groups}


def _has(experiment: Experiment, kind: str) -> bool:
    return any(kind_of(scenario) == kind for scenario in experiment.scenario)


def claims_digest(experiment: Experiment) -> str | None:
    """What was declared, in 16 hex digits: the claims and all that decides the numbers they rest on; None without any.

    Every record carries it. More seeds, other budgets or another recipe are another declaration; further methods, and
    on what machine it runs, are not.
    """
    if experiment.claims is None:
        return None
    import hashlib  # here and not above, since --help reads this module and hashes nothing
    import json

    defaults = {entry.name: entry.default for entry in dataclasses.fields(experiment)}
    declared = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(experiment).items()
        if key not in _BESIDE_IT and (key in ("seeds", "short_budgets") or value != defaults[key])
    }
    if "dataset" in declared:
        declared["dataset"] = [own_name(name) for name in experiment.dataset]  # wherever a folder lies
    if experiment.pretrain_dataset is not None:
        sources = [own_name(name) for name in experiment.pretrain_dataset]
        declared["pretrain_dataset"] = sources if len(sources) > 1 else sources[0]
    declared.pop("for_model", None)
    if of_models := {model: said for model in experiment.model if (said := experiment.options_for(model))}:
        declared["for_model"] = of_models  # what it comes to: of several patterns that fit, the later one has the say
    declared["policy"] = experiment.policy.get(experiment.claims["method"], {})
    text = json.dumps(declared, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
