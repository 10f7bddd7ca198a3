"""Why every stage is where it is: gone since when, or there for which reason, with the figures the policy went by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldbench.dropping.drop import Drop
from ldbench.policies.base import Observation, Policy

_FIGURES = ("change", "continuation", "gradient", "plasticity", "settled", "cka")


@dataclass(frozen=True)
class StageReport:
    """One stage.

    Attributes:
        name: where in the model it is.
        dropped_at: optimizer steps made before it left; None while it is there.
        why: it left, or is still there.
        figures: by their names in ``Observation``, at the last check.
    """

    name: str
    dropped_at: int | None
    why: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Explanation:
    """Every stage of a network, and what was not done; as text it is a table for people.

    Attributes:
        heading: where the run stands.
        stages: in order.
        declined: cuts that a policy proposed and that were not made: step, cut, reason.
        incidents: what went wrong without ending the run: step, what.
    """

    heading: str
    stages: tuple[StageReport, ...]
    declined: tuple[Mapping[str, Any], ...]
    incidents: tuple[Mapping[str, Any], ...]

    def __str__(self) -> str:
        width = max(len(stage.name) for stage in self.stages)
        lines = [self.heading]
        for number, stage in enumerate(self.stages, start=1):
            figures = ", ".join(f"{name} {value:.3g}" for name, value in stage.figures.items())
            lines.append(f"{number:3d}  {stage.name:{width}}  {stage.why}" + (f"  [{figures}]" if figures else ""))
        lines += [f"not dropped at step {d['step']}, {d['cut']} stages: {d['reason']}" for d in self.declined]
        lines += [f"at step {i['step']}: {i['what']}" for i in self.incidents]
        return "\n".join(lines)


def explain_stages(
    names: Sequence[str],
    drops: Sequence[Drop],
    policy: Policy,
    seen: Observation | None,
    frozen: Sequence[bool],
    first_check: str,
) -> list[StageReport]:
    """What can be said of every stage.

    Args:
        seen: what the policy was last shown; None: nothing yet.
        frozen: per stage, whether it has no parameter to train.
        first_check: in words, when the policy is first asked.
    """
    cuts = [drop.cut for drop in drops]
    gone = cuts[-1] if cuts else 0
    reasons = _reasons(policy, seen, len(names), first_check)
    reports = []
    for stage, name in enumerate(names):
        if stage < gone:
            drop = next(drop for drop in drops if drop.cut > stage)
            reports.append(StageReport(name, drop.step, f"left at step {drop.step}: {drop.reason}", {}))
            continue
        why = "has no parameter to train" if frozen[stage] else reasons[stage]
        reports.append(StageReport(name, None, why, _figures(seen, stage)))
    return reports


def _reasons(policy: Policy, seen: Observation | None, stages: int, first_check: str) -> list[str]:
    if seen is None:
        return [first_check] * stages
    why = getattr(policy, "why", None)  # a user's policy may have no words
    if why is None:
        return [f"{type(policy).__name__} has not stopped it"] * stages
    return list(why(seen))


def _figures(seen: Observation | None, stage: int) -> dict[str, float]:
    found = {} if seen is None else {name: getattr(seen, name) for name in _FIGURES}
    return {name: values[stage] for name, values in found.items() if len(values) > stage and values[stage] is not None}
