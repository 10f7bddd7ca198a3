"""A check: scores are taken, the policy says what has stopped, and costs and benefits decide what is dropped."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from ldbench.costs.break_even import best_cut
from ldbench.devices import synchronize
from ldbench.dropping.drop import Drop, make_drop
from ldbench.dropping.weighing import cost_table, step_costs, store_plan
from ldbench.policies.base import Observation

if TYPE_CHECKING:
    from ldbench.dropping.engine import LayerDropper


def check(dropper: LayerDropper) -> Drop | None:
    """Take the scores, ask the policy, and drop what it says has stopped where that pays."""
    synchronize(dropper.device)
    began = time.perf_counter()
    scores = {} if dropper.tracker is None else asdict(dropper.tracker.check(dropper.summed_lr))
    dropper.summed_lr = 0.0
    for name, watcher in dropper.watchers.items():
        scores[name] = watcher.check(dropper.progress)
        if dropper.ledger is not None:
            dropper.ledger.add_scoring(
                watcher.probed, 0 if dropper.execution == "freeze" else dropper.cut, watcher.flops
            )
    saving = step_costs(dropper).savings(dropper.cut) if "saving" in dropper.policy.needs else ()
    progress = None if dropper.stretched is None else dropper.progress
    seen = Observation(
        dropper.step_count,
        dropper.total_steps,
        dropper.cut,
        len(dropper.stages),
        **scores,
        saving=saving,
        stretched=progress,
    )
    stopped = dropper.policy.stopped(seen)
    if scores:
        dropper.checks.append({"step": dropper.step_count, "dropped": dropper.cut, **scores})
    dropper.scoring_seconds += time.perf_counter() - began
    if dropper.policy.waits and len(dropper.stream) > 1:
        dropper.waiting = max(dropper.waiting, stopped)
        return None
    return consider(dropper, stopped) if stopped > dropper.cut else None


def drop_what_waited(dropper: LayerDropper) -> Drop | None:
    """At the end of a chunk: drop what a policy has let wait for it, where that pays."""
    stopped = dropper.policy.at_chunk_end(dropper.step_count, dropper.waiting)
    return consider(dropper, stopped, at_chunk_end=True) if stopped > dropper.cut else None


def consider(dropper: LayerDropper, stopped: int, at_chunk_end: bool = False) -> Drop | None:
    """Drop some or all of the first ``stopped`` stages, as costs and benefits say, or note why none. Raises ``ValueError``."""
    if not 0 <= stopped < len(dropper.stages):
        raise ValueError(f"the policy wants {stopped} of {len(dropper.stages)} stages gone; the last one has to stay")
    remaining = dropper.total_steps - dropper.step_count
    if dropper.execution == "freeze":
        cut = max((c for c in range(dropper.cut, stopped + 1) if dropper.legal[c]), default=dropper.cut)
        if cut == dropper.cut:
            return None
        saving = 0.0
        if dropper.costs is not None:
            costs = step_costs(dropper)
            saving = remaining * (costs.seconds(dropper.cut) - costs.seconds(cut))
        return make_drop(dropper, cut, "frozen", saving, None, at_chunk_end)
    table, plan = cost_table(dropper), store_plan(dropper)
    choice = best_cut(table, plan, dropper.cut, stopped, remaining, dropper.legal, dropper.policy.exact)
    if choice.cut == dropper.cut:
        entry = {"step": dropper.step_count, "cut": stopped, "reason": choice.reason}
        if not dropper.declined or dropper.declined[-1]["cut"] != stopped:
            dropper.declined.append(entry)
        return None
    with dropper.around_building():
        return make_drop(dropper, choice.cut, choice.reason, choice.saving_seconds, choice.tier, at_chunk_end)
