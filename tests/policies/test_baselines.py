"""Rivals: their rules as published, each with both executions, resumed to the same bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.interruptions import Bench, check_resuming, lasting

from ldbench.errors import UserError
from ldbench.policies.base import Observation, Policy
from ldbench.policies.baselines import AutoFreeze, FreezeOut, StochasticDepth
from ldbench.policies.plateaus import Egeria, ParameterFreezing, SimFreeze
from ldbench.policies.registry import build_policy, get_method, method_names

figures = st.one_of(st.none(), st.floats(0, 10), st.just(math.nan), st.just(math.inf))
RULES: list[tuple[str, Callable[[], Policy]]] = [
    ("gradient", AutoFreeze),
    ("plasticity", lambda: Egeria(window=2, patience=1, earliest=0.0)),
    ("settled", lambda: ParameterFreezing(patience=1, earliest=0.0)),
    ("cka", lambda: SimFreeze(patience=1, earliest=0.0)),
]


def seen(field: str, values: list[float | None], step: int = 50, dropped: int = 0) -> Observation:
    kept = [None if s < dropped else value for s, value in enumerate(values)]
    return Observation(step, 100, dropped, len(values), **{field: kept})


@pytest.mark.parametrize(("field", "make"), RULES)
@given(st.lists(st.tuples(figures, figures, figures, figures), min_size=1, max_size=20), st.integers(0, 20))
def test_whatever_is_measured_a_prefix_stops_the_last_stage_stays_and_json_resumes(
    field: str, make: Callable[[], Policy], rows: list[tuple[float | None, ...]], stop: int
) -> None:
    whole, resumed, dropped = make(), make(), 0
    for number, row in enumerate(rows):
        if number == stop:
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = make()
            resumed.load_state_dict(state)
        view = seen(field, list(row), number + 1, dropped)
        cut = whole.stopped(view)
        assert resumed.stopped(view) == cut
        assert dropped <= cut <= 3
        dropped = cut


def test_autofreeze_keeps_the_first_stage_whose_gradient_changed_by_the_median_or_more() -> None:
    rule = AutoFreeze()
    assert rule.stopped(seen("gradient", [1.0] * 5)) == 0  # nothing to compare with
    assert rule.stopped(seen("gradient", [None] * 5)) == 0  # in the middle of an interval
    # changes 0.1, 0.2, 0.5, 0.0, 0.4 of the norms before: the median is 0.2, and stage 1 is the first to reach it
    assert rule.stopped(seen("gradient", [0.9, 1.2, 0.5, 1.0, 0.6])) == 1
    # among the active ones 0.0, 0.0, 1.0, 0.0: the median is 0, and stage 1 reaches it
    assert rule.stopped(seen("gradient", [9.9, 1.2, 0.5, 2.0, 0.6], dropped=1)) == 1
    assert rule.stopped(seen("gradient", [9.9, 1.2, 0.6, 2.6, 1.2], dropped=1)) == 3


@given(st.lists(st.floats(0.01, 100), min_size=4, max_size=4), st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_autofreeze_agrees_with_the_published_loop(before: list[float], now: list[float]) -> None:
    rule = AutoFreeze(percentile=50)
    rule.stopped(seen("gradient", list(before)))
    change = [abs(a - b) / a for a, b in zip(before, now, strict=True)]
    expected = next(s for s in range(4) if change[s] >= np.percentile(change, 50))
    assert rule.stopped(seen("gradient", list(now))) == min(expected, 3)


def test_egeria_freezes_the_front_when_its_plasticity_has_flattened() -> None:
    rule = Egeria(window=2, tolerance=0.2, patience=2, earliest=0.0)
    falling, flat = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0], [2.9, 2.9, 2.9, 2.9]
    cuts = [rule.stopped(seen("plasticity", [value, 1.0 / (i + 1), 5.0])) for i, value in enumerate(falling + flat)]
    # the slope of the averages is -1, then -0.55 and 0: two flat readings in a row at the ninth value
    assert cuts == [0] * 8 + [cuts[8]] * 2
    assert cuts[8] >= 1


def test_egeria_never_freezes_a_stage_behind_one_that_still_learns() -> None:
    rule = Egeria(window=2, patience=1, earliest=0.0)
    for i in range(20):
        assert rule.stopped(seen("plasticity", [float(100 - 5 * i), 1.0, 1.0])) == 0


def test_parameter_freezing_wants_the_share_at_several_checks_in_a_row() -> None:
    rule = ParameterFreezing(share=0.4, patience=2, earliest=0.0)
    answers = [rule.stopped(seen("settled", [value, 0.9, 0.9])) for value in (0.5, 0.3, 0.5, 0.4)]
    assert answers == [0, 0, 0, 2]


def test_simfreeze_freezes_a_stage_whose_similarity_varies_by_less_than_a_hundredth_twice_in_a_row() -> None:
    rule = SimFreeze(earliest=0.0)
    first = [0.9, 0.8, 0.795, 0.79, 0.789]  # varies by 0.11, 0.00625, 0.0063, 0.0013
    second = [0.5, 0.5, 0.5, 0.5, 0.5]  # at rest from the third check on, and waits for the first
    cuts = [
        rule.stopped(seen("cka", [a, b, c])) for a, b, c in zip(first, second, [1.0, 0.5, 0.9, 0.4, 0.9], strict=True)
    ]
    assert cuts == [0, 0, 0, 2, 2]
    assert rule.why(seen("cka", [None, None, 0.9], dropped=2)) == ["", "", "the last stage always stays"]


def test_simfreeze_compares_no_readings_across_a_new_beginning() -> None:
    rule = SimFreeze(patience=2, earliest=0.0)
    answers = [rule.stopped(seen("cka", [value, 1.0])) for value in (0.9, 0.9, None, 0.9, 0.9, 0.9)]
    assert answers == [0, 0, 0, 0, 0, 1]  # the pair before counts for nothing, the one over the gap is none
    assert SimFreeze(patience=1, earliest=0.0, variation=0.0).stopped(seen("cka", [0.9, 0.9])) == 0


def test_simfreeze_says_what_its_reading_did() -> None:
    rule = SimFreeze(earliest=0.0)
    rule.stopped(seen("cka", [0.8, 1.0]))
    assert rule.why(seen("cka", [0.8, 1.0]))[0] == "no two readings of its similarity to compare yet"
    rule.stopped(seen("cka", [0.6, 1.0]))
    said = "its similarity varied by 25 % since the check before; stops below 1 %, 2 checks in a row (0 so far)"
    assert rule.why(seen("cka", [0.6, 1.0]))[0] == said


@given(st.floats(0.01, 1), st.integers(1, 60), st.floats(0, 1))
def test_survival_falls_linearly_with_depth_and_progressively_in_time(
    last: float, blocks: int, progress: float
) -> None:
    fixed = StochasticDepth(last=last).survival(progress, blocks)
    assert fixed is not None
    assert fixed[-1] == pytest.approx(last)
    assert fixed == [pytest.approx(1 - (i + 1) / blocks * (1 - last)) for i in range(blocks)]
    progressive = StochasticDepth(last=last, gamma=100.0)
    start, end = progressive.survival(0.0, blocks), progressive.survival(1.0, blocks)
    assert start == [1.0] * blocks
    assert end == pytest.approx(fixed)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("autofreeze", {"percentile": 101}),
        ("autofreeze", {"intervals": 1}),
        ("egeria", {"window": 1}),
        ("egeria", {"tolerance": "x"}),
        ("egeria", {"patience": 0}),
        ("apf", {"share": 2}),
        ("apf", {"memory": True}),
        ("simfreeze", {"variation": 2}),
        ("simfreeze", {"samples": 1}),
        ("simfreeze", {"patience": 0.5}),
        ("simfreeze", {"earliest": "x"}),
        ("stochastic-depth", {"last": 0}),
        ("progressive-depth", {"gamma": -1}),
        ("freezeout-linear", {"t_first": 0}),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        build_policy(name, options)


def test_every_freezing_rule_has_both_executions_and_the_controls_have_none() -> None:
    for rule in ("freezeout", "freezeout-linear", "autofreeze", "egeria", "apf", "linear-freezing", "simfreeze"):
        assert get_method(rule).execution == "freeze"
        stored = get_method(f"{rule}+store")
        assert stored.execution == "store"
        assert type(stored.policy()) is type(get_method(rule).policy())
    assert get_method("schedule+freeze").execution == "freeze"
    for name in (
        "full+store",
        "short+freeze",
        "freeze+store",
        "autofreeze+freeze",
        "stochastic-depth+store",
        "resize+store",
    ):
        assert name not in method_names()
        with pytest.raises(UserError, match="unknown method"):
            get_method(name)
    linear = build_policy("freezeout-linear", {})
    assert isinstance(linear, FreezeOut)
    assert linear.freeze_times(3) == [0.5, 0.75, 1.0]
    assert linear.lr_scales(0.0, 3) == [1.0, 1.0, 1.0]


# --- what they look at -----------------------------------------------------------------------------------------------


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("rivals"))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("residual"), "support.tiny_nets:residual_net")


@pytest.mark.parametrize(
    "method", ["autofreeze+store", "egeria", "apf+store", "freezeout+store", "simfreeze", "linear-freezing+store"]
)
def test_an_interrupted_rival_ends_with_the_same_bits(method: str, bench: Bench, tmp_path: Path) -> None:
    cell = bench.cell(method)
    check_resuming(bench, cell, tmp_path, once=14, often=7)


def test_random_depth_is_a_function_of_seed_and_step_and_its_skips_are_counted(residual: Bench, tmp_path: Path) -> None:
    cell = residual.cell("stochastic-depth")
    plain = residual.run(cell, tmp_path / "plain")
    resumed, stopped = residual.interrupted(cell, tmp_path / "often", *[5] * 30)
    assert stopped >= 4
    assert lasting(resumed) == lasting(plain)
    stages = plain.result["stages"]
    skipped = [stage["skipped_steps"] for stage in stages]
    assert skipped[0] == skipped[-1] == 0
    assert sum(skipped) > 0
    steps, samples = plain.result["steps"], plain.result["steps"] * 20
    for stage, skips in zip(stages, skipped, strict=True):
        kept = stage["forward_flops"] * 20 * (steps - skips)
        assert kept <= stage["executed_forward_flops"] <= stage["forward_flops"] * samples
        projects = stage["executed_forward_flops"] > kept
        assert projects == (stage["name"] == "3" and skips > 0)
    other = residual.run(residual.cell("stochastic-depth", seeds=[5]), tmp_path / "other")
    assert [stage["skipped_steps"] for stage in other.result["stages"]] != skipped
    assert plain.result["predicted_saved_seconds"] > 0


@pytest.mark.parametrize("rule", ["autofreeze", "egeria", "simfreeze"])
def test_a_rule_decides_alike_with_either_execution(rule: str, bench: Bench, tmp_path: Path) -> None:
    frozen = bench.run(bench.cell(rule), tmp_path / "freeze")
    stored = bench.run(bench.cell(f"{rule}+store"), tmp_path / "store")
    assert frozen.result["drops"]
    decided: list[list[tuple[int, int]]] = [
        [(drop["step"], drop["cut"]) for drop in run.result["drops"]] for run in (frozen, stored)
    ]
    assert decided[0] == decided[1]
    assert stored.result["forward_flops"] < frozen.result["forward_flops"]
    weights: list[dict[str, Any]] = [run.model.state_dict() for run in (frozen, stored)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


def test_what_scoring_costs_is_in_the_flops(bench: Bench, tmp_path: Path) -> None:
    full = bench.run(bench.cell("full"), tmp_path / "full").result
    probing = bench.run(bench.cell("egeria", policy={"egeria": {"earliest": 1.0}}), tmp_path / "egeria").result
    assert not probing["drops"]
    assert probing["scoring_flops"] > 0
    assert probing["forward_flops"] == full["forward_flops"] + probing["scoring_flops"]
    assert probing["test_accuracy"] == full["test_accuracy"]  # looking changes nothing


def test_a_network_without_residual_blocks_and_compiled_ones_are_refused(
    bench: Bench, residual: Bench, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has none"):
        bench.run(bench.cell("stochastic-depth"), tmp_path / "plain")
    with pytest.raises(UserError, match="--compile"):
        residual.run(residual.cell("progressive-depth", compile=True), tmp_path / "compiled")
