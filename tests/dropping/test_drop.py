"""What this project's rules do about a drop: annealed rates, averaged weights, spent savings, cuts by cost and benefit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.interruptions import Bench, check_resuming
from torch import nn

from ldbench.costs.break_even import StorePlan
from ldbench.costs.model import StepCosts, step_flops
from ldbench.costs.table import CostTable, TierCost
from ldbench.dropping.weight_average import WeightAverages
from ldbench.errors import UserError
from ldbench.policies.base import Observation
from ldbench.policies.registry import build_policy
from ldbench.policies.rules import CostBenefit, FixedSchedule, LearnAndDrop, half_cosine
from ldbench.stages.flops import StageFlops
from ldbench.store.budget import StoreBudget

shares = st.floats(0, 1)


def seen(step: int, useful: list[float], dropped: int = 0, saving: list[float] | None = None) -> Observation:
    values = [None if s < dropped else value for s, value in enumerate(useful)]
    ones = [None if s < dropped else 1.0 for s in range(len(useful))]
    return Observation(step, 100, dropped, len(useful), values, ones, saving=saving or [0.0] * len(useful))


# --- annealing -------------------------------------------------------------------------------------------------------


@given(shares, shares, st.floats(0.001, 1))
def test_an_annealed_rate_falls_from_one_to_zero_and_stays(a: float, b: float, length: float) -> None:
    early, late = sorted((a, b))
    assert 0 <= half_cosine(late, 0.3, length) <= half_cosine(early, 0.3, length) <= 1
    assert half_cosine(0.3, 0.3, length) == 1.0
    assert half_cosine(0.3 + length + 1e-9, 0.3, length) == 0.0


def test_learn_and_drop_anneals_what_has_stopped_and_drops_it_when_its_rate_is_gone() -> None:
    policy = LearnAndDrop(patience=1, earliest=0.0, pace=100.0, anneal=0.2)
    assert policy.lr_scales(0.0, 3) == [1.0] * 3
    assert policy.stopped(seen(10, [1.0, 1.0, 1.0])) == 0
    assert policy.stopped(seen(20, [0.1, 1.0, 1.0])) == 0
    assert policy.lr_scales(0.3, 3) == pytest.approx([0.5, 1.0, 1.0])
    assert policy.stopped(seen(30, [0.9, 0.1, 1.0])) == 0  # the decision is final, the next stage follows
    assert policy.lr_scales(0.4, 3) == pytest.approx([0.0, 0.5, 1.0])
    assert policy.stopped(seen(40, [0.9, 0.9, 1.0])) == 1
    again = LearnAndDrop(patience=1, earliest=0.0, pace=100.0, anneal=0.2)
    again.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert again.stopped(seen(50, [0.9, 0.9, 1.0], dropped=1)) == 2
    assert again.lr_scales(0.5, 3) == pytest.approx([0.0, 0.0, 1.0])


@given(
    st.lists(st.lists(st.floats(0, 2), min_size=4, max_size=4), min_size=6, max_size=30), st.floats(0.01, 0.5),
    st.sampled_from([LearnAndDrop, CostBenefit]), st.integers(0, 30),
)  # fmt: skip
def test_only_stages_whose_rate_is_zero_are_dropped_whatever_the_scores(
    rows: list[list[float]], anneal: float, kind: Any, stop: int
) -> None:
    policy, dropped = kind(patience=1, earliest=0.0, anneal=anneal), 0
    for i, row in enumerate(rows):
        if i == stop:
            state = json.loads(json.dumps(policy.state_dict()))
            policy = kind(patience=1, earliest=0.0, anneal=anneal)
            policy.load_state_dict(state)
        view = seen(3 * i + 1, row, dropped, saving=[0.0, 0.3, 0.6, 0.9])
        cut = policy.stopped(view)
        assert dropped <= cut <= 3
        scales = policy.lr_scales(view.progress, 4)
        assert scales is not None
        assert all(scale < 1e-9 for scale in scales[:cut])
        assert scales[-1] == 1.0
        dropped = cut


def test_a_schedule_anneals_every_stage_to_its_own_time() -> None:
    policy = FixedSchedule([(0.4, 1), (0.8, 3)], anneal=0.2)
    assert policy.lr_scales(0.1, 5) == [1.0] * 5
    assert policy.lr_scales(0.3, 5) == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0])
    assert policy.lr_scales(0.7, 5) == pytest.approx([0.0, 0.5, 0.5, 1.0, 1.0])
    assert FixedSchedule([(0.4, 1)]).lr_scales(0.3, 5) is None
    assert FixedSchedule([(0.5, 1)], anneal=1.0).lr_scales(0.0, 2) == pytest.approx([0.5, 1.0])


# --- cost and benefit ------------------------------------------------------------------------------------------------


def test_cost_benefit_takes_the_cut_that_costs_most_beyond_what_it_learns() -> None:
    policy = CostBenefit(price=1.0, patience=2, earliest=0.0)
    useful, saving = [0.1, 0.1, 0.4, 0.4], [0.0, 0.4, 0.5, 0.8]
    # balances: 0.4 - 0.1, 0.5 - 0.2, 0.8 - 0.6: the first of the best two
    assert policy.stopped(seen(10, useful, saving=saving)) == 0  # patience
    assert policy.stopped(seen(20, useful, saving=saving)) == 1
    assert CostBenefit(price=0.2, patience=1, earliest=0.0).stopped(seen(10, useful, saving=saving)) == 0
    assert CostBenefit(price=5.0, patience=1, earliest=0.0).stopped(seen(10, useful, saving=saving)) == 3
    assert CostBenefit(price=5.0, patience=1, earliest=0.5).stopped(seen(10, useful, saving=saving)) == 0
    assert CostBenefit(patience=1, earliest=0.0).stopped(seen(10, [math.nan] * 4, saving=saving)) == 0
    quick = CostBenefit(price=1.0, patience=1, earliest=0.0)
    assert quick.stopped(seen(10, useful)) == 0  # nothing to save yet
    assert quick.stopped(seen(20, useful, saving=saving)) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("learn-and-drop", {"anneal": 2}), ("learn-and-drop", {"spend": -1}), ("schedule", {"average": "x"}),
        ("schedule", {"cheapest": 1}), ("cost-benefit", {"price": -1}), ("cost-benefit", {"patience": 0}),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        build_policy(name, options)


# --- averages --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(1, 10))
def test_the_average_is_the_mean_of_all_steps_until_the_horizon_and_fades_from_then_on(
    values: list[float], horizon: int
) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    averages = WeightAverages([[parameter]], horizon)
    expected = 0.0
    for i, value in enumerate(values, 1):
        with torch.no_grad():
            parameter.fill_(value)
        averages.after_step()
        expected += (value - expected) / min(i, horizon)
    undo = averages.put_into(1)
    assert float(parameter.detach()) == pytest.approx(expected, abs=1e-4)
    if len(values) <= horizon:
        assert expected == pytest.approx(sum(values) / len(values), abs=1e-4)
    undo()
    assert float(parameter.detach()) == pytest.approx(values[-1], abs=1e-6)


# --- spending --------------------------------------------------------------------------------------------------------

FLOPS = [StageFlops(10, 20, 10, (4,)), StageFlops(20, 40, 20, (2,)), StageFlops(30, 60, 30, (1,))]
TABLE = CostTable(
    ["a", "b", "c"], 5, [6.0, 4.0, 1.0], [1.0] * 3, [2.0] * 3, [1.0] * 3, 0.5, {"device": TierCost(0.1, 0.0, 0.0)}, FLOPS,
    [False] * 3,
)  # fmt: skip


def test_step_costs_know_what_each_execution_skips() -> None:
    assert step_flops(FLOPS, 0, store=True) == 60 + 10 + 40 + 60
    assert step_flops(FLOPS, 1, store=True) == 50 + 20 + 60
    assert step_flops(FLOPS, 1, store=False) == 60 + 20 + 60
    frozen = StepCosts(TABLE, None)
    assert [frozen.seconds(cut) for cut in range(3)] == [6.5, 5.5, 3.5]
    stored = StepCosts(TABLE, StorePlan(100, "fp32", StoreBudget(10**9, 0, 0)))
    assert [stored.seconds(cut) for cut in range(3)] == [6.5, 4.1, 1.1]
    assert stored.savings(0) == pytest.approx([0.0, 1 - 4.1 / 6.5, 1 - 1.1 / 6.5])
    assert stored.savings(1)[:2] == [0.0, 0.0]
    full = StepCosts(TABLE, StorePlan(100, "fp32", StoreBudget(0, 0, 0)))
    assert full.savings(0) == [0.0, 0.0, 0.0]
    assert math.isinf(full.seconds(1))


@given(shares, st.integers(1, 2), st.integers(0, 1000), st.integers(0, 10**6))
def test_spending_never_exceeds_the_seconds_or_the_flops_that_were_saved(
    spend: float, cut: int, remaining: int, building: int
) -> None:
    costs = StepCosts(TABLE, StorePlan(100, "fp32", StoreBudget(10**9, 0, 0)))
    seconds = remaining * (costs.seconds(0) - costs.seconds(cut)) - 3.0
    extra = costs.extra_steps(spend, 0, cut, remaining, seconds, building)
    assert 0 <= extra <= remaining
    flops = remaining * (costs.flops(0) - costs.flops(cut)) - building
    if extra:
        assert extra * costs.seconds(cut) <= spend * seconds + 1e-9
        assert extra * costs.flops(cut) <= spend * flops + 1e-9
    if seconds > 0 and flops > 0:
        affordable = spend * min(seconds / costs.seconds(cut), flops / costs.flops(cut))
        assert extra + 1 > min(affordable, remaining) - 1e-9


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("drops"))


DROPS = [[0.25, 0.3], [0.6, 0.6]]
OPTIONS: dict[str, dict[str, Any]] = {
    "annealed": {"schedule": {"drops": DROPS, "anneal": 0.2}},
    "averaged": {"schedule": {"drops": DROPS, "average": 0.2}},
    "spent": {"schedule": {"drops": DROPS, "spend": 1.0}},
    "cheapest": {"schedule": {"drops": DROPS, "cheapest": True}},
    "everything": {"learn-and-drop": {"remaining": 0.9, "patience": 1, "anneal": 0.1, "average": 0.1, "spend": 0.5}},
    "cost-benefit": {"cost-benefit": {"price": 0.9, "patience": 1, "anneal": 0.1}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_interrupted_anywhere_every_option_ends_with_the_same_bits(name: str, bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell(next(iter(OPTIONS[name])), policy=OPTIONS[name])
    check_resuming(bench, cell, tmp_path, once=23, often=9)


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_annealing_and_averaging_change_the_dropped_weights_and_nothing_before(bench: Bench, tmp_path: Path) -> None:
    runs = {
        name: bench.run(bench.cell("schedule", policy=OPTIONS[name]), tmp_path / name)
        for name in ("annealed", "averaged")
    }
    plain = bench.run(bench.cell("schedule", policy={"schedule": {"drops": DROPS}}), tmp_path / "plain")
    decided = [(d["step"], d["cut"]) for d in plain.result["drops"]]
    for run in runs.values():
        assert [(d["step"], d["cut"]) for d in run.result["drops"]] == decided
        assert run.result["forward_flops"] == plain.result["forward_flops"]
        assert not torch.equal(weights(run)["0.weight"], weights(plain)["0.weight"])


def test_averaged_weights_of_a_dropped_stage_are_the_mean_of_its_last_steps(bench: Bench, tmp_path: Path) -> None:
    from ldbench.dropping.engine import LayerDropper

    cell = bench.cell("schedule", policy={"schedule": {"drops": [[0.5, 1]], "average": 1.0}})
    seen_weights: list[torch.Tensor] = []
    step = LayerDropper.step

    def watching(self: LayerDropper, samples: int | None = None) -> object:
        if self.cut == 0:
            seen_weights.append(self.stage_parameters[0][0].detach().clone())
        return step(self, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerDropper, "step", watching)
        run = bench.run(cell, tmp_path)
    assert run.result["drops"][0]["step"] == len(seen_weights)
    torch.testing.assert_close(run.model.state_dict()["0.weight"], torch.stack(seen_weights).mean(0))


def test_what_is_saved_is_spent_up_to_the_cost_of_full_training_and_the_rate_still_ends_at_zero(
    bench: Bench, tmp_path: Path
) -> None:
    def run(spend: float) -> Any:
        options = {"schedule": {"drops": DROPS, "spend": spend}}
        return bench.run(bench.cell("schedule", policy=options), tmp_path / str(spend))

    results = [run(spend) for spend in (0.0, 0.5, 1.0)]
    steps = [r.result["steps"] for r in results]
    assert steps[0] == 20
    assert steps[0] < steps[1] < steps[2]
    flops = [r.result["forward_flops"] + r.result["backward_flops"] for r in results]
    full = results[0].result["forward_flops_full"] + results[0].result["backward_flops_full"]
    assert flops[0] < flops[1] < flops[2] <= full
    for r in results:
        extra = sum(drop["extra_steps"] for drop in r.result["drops"])
        assert r.result["steps"] == 20 + extra
        assert r.epochs[-1]["step"] == r.result["steps"]
        rates = [row["lr"] for row in r.epochs]
        assert rates[-1] < 0.1 * max(rates)
    saved = [r.result["predicted_saved_seconds"] for r in results]
    assert saved[2] < 4.0 + 2.0 < saved[0]  # at most one step at each cut is left, by the bench's table


def test_a_drop_without_room_leaves_the_last_weights_in_place(bench: Bench, tmp_path: Path) -> None:
    options = {"schedule": {"drops": [[0.25, 0.3]], "average": 0.2}}
    plain = bench.run(bench.cell("full"), tmp_path / "full")
    tight = bench.cell("schedule", policy=options)
    from ldbench.store import activations
    from ldbench.store.fill import NoRoom

    def no_room(*arguments: object) -> object:
        raise NoRoom((6, 4, 4), MemoryError("full"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "fill_store", no_room)
        run = bench.run(tight, tmp_path / "tight")
    assert not run.result["drops"]
    assert run.result["declined"]
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(run)[name], msg=name)


def test_a_price_of_nothing_drops_nothing_and_a_higher_one_never_less(bench: Bench, tmp_path: Path) -> None:
    cuts = []
    for price in (0.0, 0.5, 5.0):
        cell = bench.cell("cost-benefit", policy={"cost-benefit": {"price": price, "patience": 1, "earliest": 0.0}})
        result = bench.run(cell, tmp_path / str(price)).result
        cuts.append(result["drops"][0]["cut"] if result["drops"] else 0)
    assert cuts[0] == 0
    assert cuts == sorted(cuts)
    assert cuts[-1] == 4
