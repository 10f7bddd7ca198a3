"""When a stage leaves: what the rule proposes, what the user has frozen, and which of it pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ldbench.costs.break_even import CutChoice, StorePlan
from ldbench.costs.model import CostModel, Unmeasurable
from ldbench.dropping.account import Account
from ldbench.dropping.monitors import Monitors
from ldbench.dropping.optimizer_link import OptimizerLink
from ldbench.dropping.schedule import Schedule
from ldbench.policies.base import Observation, Policy
from ldbench.store.activations import Activations


class Decider:
    """Asks the policy at every check, and the cost model which of the stopped stages it pays to drop.

    Stages in front without a parameter to train have stopped whatever the policy says.

    Args:
        parameters: of each stage.
        obstacles: per cut why it cannot be made, "" where it can.
        stored: dropped stages are skipped forward too, so that a store has to pay.
        drop_frozen: propose stages in front without a parameter to train.
        refreshed: BatchNorm's statistics are re-estimated at a drop, which costs.

    Attributes:
        frozen: per stage, whether no step moves a parameter of it.
        seen: what the policy was last shown.
    """

    def __init__(
        self,
        policy: Policy,
        schedule: Schedule,
        monitors: Monitors,
        costs: CostModel,
        activations: Activations,
        link: OptimizerLink,
        account: Account,
        *,
        parameters: Sequence[Sequence[nn.Parameter]],
        obstacles: Sequence[str],
        stored: bool,
        drop_frozen: bool,
        refreshed: bool,
    ) -> None:
        self.policy, self.schedule, self.monitors, self.costs = policy, schedule, monitors, costs
        self.activations, self.link, self.account = activations, link, account
        self.parameters, self.obstacles, self.stored, self.refreshed = parameters, list(obstacles), stored, refreshed
        self.seen: Observation | None = None
        self._waiting = 0  # stages that have stopped and are dropped when their chunk is over
        self._considered = 0 if drop_frozen else len(parameters)  # frozen stages in front that were proposed already
        self.look_for_frozen()

    # --- what the user has frozen ------------------------------------------------------------------------------------

    def look_for_frozen(self) -> None:
        """See which stages the optimizer moves: a user may freeze some at any time."""
        trained = self.link.trained()
        self.frozen = [trained.isdisjoint(parameters) for parameters in self.parameters]

    @property
    def frozen_prefix(self) -> int:
        """Leading stages without a parameter to train; one stage always stays."""
        return next((s for s, still in enumerate(self.frozen) if not still), len(self.frozen) - 1)

    def propose_frozen(self, cut: int) -> CutChoice | None:
        """Stages in front without a parameter to train, where that pays, when they are first met."""
        prefix = self.frozen_prefix
        if prefix <= max(cut, self._considered):
            return None
        self._considered = prefix
        choice = self._weigh(cut, prefix, exact=False)
        return choice and dataclasses.replace(choice, reason=f"no parameter to train; {choice.reason}")

    # --- what the policy says ----------------------------------------------------------------------------------------

    def check(self, cut: int, runs_from: int) -> CutChoice | None:
        """A check with the first ``cut`` stages gone: the cut to make now, or None.

        ``runs_from``: the first stage that a forward pass runs.
        """
        self.look_for_frozen()
        settled, stages = max(cut, self.frozen_prefix), len(self.parameters)
        with self.account.scoring(wait=True):
            levels = self.monitors.check(min(1.0, self.schedule.progress))
            for samples, own in self.monitors.passes():
                self.account.flops.add_scoring(samples, runs_from, own)
            step, total = self.schedule.step, self.schedule.total_steps
            trainable = tuple(not still for still in self.frozen) if any(self.frozen[cut:]) else ()
            position = self.schedule.steps_of_plan
            self.seen = Observation(step, total, settled, stages, trainable=trainable, position=position, **levels)
            stopped = self.policy.stopped(self.seen)
        if levels:
            self.monitors.log.append({"step": step, "dropped": cut, **levels})
        self._look_out(levels)
        if self.policy.waits and len(self.activations.stream) > 1:
            self._waiting = max(self._waiting, stopped)
            return self.propose_frozen(cut)
        return self._weigh(cut, stopped, self.policy.exact) if stopped > settled else self.propose_frozen(cut)

    def at_chunk_end(self, cut: int) -> CutChoice | None:
        """The cut to make now that a chunk is over, or None."""
        stopped = self.policy.at_chunk_end(self.schedule.step, self._waiting)
        return self._weigh(cut, stopped, self.policy.exact) if stopped > cut else None

    def _look_out(self, levels: Mapping[str, Sequence[float | None]]) -> None:
        """Say what a loop does that keeps the rule from working."""
        gradients = [value for value in levels.get("gradient", ()) if value is not None]
        if gradients and not any(gradients):
            self._note(
                "no gradient was seen when the optimizer stepped: the rule cannot decide; the optimizer given to "
                "LayerDropper has to be the one that steps"
            )
        if self.link.unfrozen():
            self._note("parameters of dropped stages were made to need a gradient: they are not trained any more")

    # --- what pays ---------------------------------------------------------------------------------------------------

    def _weigh(self, cut: int, stopped: int, exact: bool) -> CutChoice | None:
        """As many of the first ``stopped`` stages as pays, or None, with a note why. Raises ``ValueError``."""
        if not 0 <= stopped < len(self.parameters):
            count = len(self.parameters)
            raise ValueError(f"the policy wants {stopped} of {count} stages gone; the last one has to stay")
        try:
            choice = self._choose(cut, stopped, exact)
        except Unmeasurable as reason:
            self._note(f"costs could not be measured, so nothing is dropped: {reason}; give costs= or criterion=")
            choice = CutChoice(cut, f"costs could not be measured: {reason}")
        if choice.cut > cut:
            return choice
        declined = self.account.declined
        if self.stored and (not declined or declined[-1]["cut"] != stopped):
            self.account.decline(self.schedule.step, stopped, choice.reason)
        return None

    def _choose(self, cut: int, stopped: int, exact: bool) -> CutChoice:
        remaining = self.schedule.remaining
        if not self.stored:
            return self.costs.choose_freeze(cut, stopped, remaining, self.obstacles)
        activations, stream = self.activations, self.activations.stream
        plan = StorePlan(
            len(activations.active),
            activations.dtype,
            self.costs.budget,
            activations.store.tier if activations.store is not None else "device",
            stream.capacity,
            stream.still_to_come(activations.chunk),
            self.refreshed,
            activations.views.count,
            activations.views.renewed / self.schedule.rate,
        )
        return self.costs.choose_store(cut, stopped, remaining, self.obstacles, exact, plan)

    def refuse(self, cut: int, reason: str) -> None:
        """This cut is not proposed again."""
        self.obstacles[cut] = reason

    def _note(self, what: str) -> None:
        self.account.note_once(self.schedule.step, what)

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        return {
            "policy": self.policy.state_dict(),
            "waiting": self._waiting,
            "considered": self._considered,
            "obstacles": list(self.obstacles),
            "seen": None if self.seen is None else dataclasses.asdict(self.seen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        self.policy.load_state_dict(state["policy"])
        self._waiting, self._considered = state["waiting"], state["considered"]
        self.obstacles = list(state["obstacles"])
        self.seen = None if state["seen"] is None else Observation(**state["seen"])
