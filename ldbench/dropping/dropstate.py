"""A dropper's state, out and in again: what decides the bits of every step still to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldbench.store.budget import StoreBudget

if TYPE_CHECKING:
    from ldbench.dropping.engine import LayerDropper

COUNTERS = (
    "step_count", "epoch_count", "summed_lr", "cache_build_seconds", "scoring_seconds", "store_read_seconds",
    "peak_store_bytes", "pending", "total_steps", "stretched", "waiting",
)  # fmt: skip
LISTS = ("declined", "checks", "incidents")


def dropper_state(dropper: LayerDropper) -> dict[str, Any]:
    """Counters, decisions, policy, scores and ledger; JSON values and, within the scores, tensors."""
    ledger, budget = dropper.ledger, dropper.budget
    return {
        **{name: getattr(dropper, name) for name in COUNTERS},
        **{name: list(getattr(dropper, name)) for name in LISTS},
        "drops": [dataclasses.asdict(drop) for drop in dropper.drops],
        "chain": dropper.activations.chain,
        "chunk": dropper.chunk,
        "budget": dataclasses.asdict(budget) if isinstance(budget, StoreBudget) else None,
        "policy": dropper.policy.state_dict(),
        "tracker": None if dropper.tracker is None else dropper.tracker.state_dict(),
        "watchers": {name: watcher.state_dict() for name, watcher in dropper.watchers.items()},
        "averages": None if dropper.averages is None else dropper.averages.state_dict(),
        "skipped_steps": None if dropper.depth is None else list(dropper.depth.skipped_steps),
        "ledger": None if ledger is None else [ledger.forward, ledger.backward, ledger.building, ledger.scoring],
    }


def load_dropper_state(dropper: LayerDropper, state: Mapping[str, Any]) -> None:
    """See ``LayerDropper.load_state_dict``."""
    from ldbench.dropping.drop import Drop

    if dropper.step_count:
        raise ValueError("load the state into a new LayerDropper: this one has made steps already")
    for name in COUNTERS:
        setattr(dropper, name, state[name])
    for name in LISTS:
        getattr(dropper, name)[:] = state[name]
    dropper.drops[:] = [Drop(**drop) for drop in state["drops"]]
    if state["budget"] is not None:  # what is free differs from day to day, and with it the cuts that fit
        dropper.budget = StoreBudget(**state["budget"])
    dropper.policy.load_state_dict(state["policy"])
    if dropper.ledger is not None and state["ledger"] is not None:
        forward, backward, dropper.ledger.building, dropper.ledger.scoring = state["ledger"]
        dropper.ledger.forward, dropper.ledger.backward = list(forward), list(backward)
    if dropper.drops:
        dropper.retire(dropper.drops[-1].cut)
    if dropper.tracker is not None and state["tracker"] is not None:
        dropper.tracker.load_state_dict(state["tracker"])
    for name, watcher in dropper.watchers.items():
        watcher.load_state_dict(state["watchers"][name])
    if dropper.averages is not None:
        dropper.averages.load_state_dict(state["averages"])
    if dropper.depth is not None:
        dropper.depth.skipped_steps = list(state["skipped_steps"])
    dropper.activations.chain = [(cut, tier, chunk) for cut, tier, chunk in state["chain"]]
    dropper.activations.chunk = state["chunk"]
    if dropper.activations.chain:
        dropper.activations.recover()
    dropper.rebuild_live()
