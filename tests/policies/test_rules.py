"""Policies: pure decisions, and the method registry around them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldbench.errors import UserError
from ldbench.policies import registry
from ldbench.policies.base import NeverDrop, Observation, Policy
from ldbench.policies.baselines import FreezeOut
from ldbench.policies.registry import Method, build_policy, get_method, register_method
from ldbench.policies.rules import FixedSchedule, LearnAndDrop, Paced, Replay, hold_at_depth


def seen(
    step: int, change: list[float | None], ahead: list[float | None], dropped: int = 0, total: int = 100
) -> Observation:
    return Observation(step, total, dropped, len(change), change, ahead)


def test_learn_and_drop_stops_a_prefix_and_never_skips_a_moving_stage() -> None:
    policy = LearnAndDrop(remaining=0.2, patience=2, earliest=0.0, pace=100.0)
    policy.stopped(seen(10, [1.0] * 4, [1.0] * 4))
    for step in (20, 30):  # stage 1 keeps moving: stage 2, calm, has to wait for it
        assert policy.stopped(seen(step, [0.1, 0.9, 0.1, 0.1], [1.0] * 4)) == (0 if step == 20 else 1)
    assert policy.stopped(seen(40, [None, 0.1, 0.1, 0.1], [None, 1.0, 1.0, 1.0], dropped=1)) == 1
    assert policy.stopped(seen(50, [None, 0.1, 0.1, 0.1], [None, 1.0, 1.0, 1.0], dropped=1)) == 3  # the last one stays


@pytest.mark.parametrize(
    ("change", "ahead", "cut"),
    [(0.1, 1.0, 1), (1.0, 0.1, 1), (0.4, 0.4, 1), (0.5, 0.5, 0), (0.1, None, 0), (None, None, 0)],
)
def test_learn_and_drop_weighs_movement_by_its_directedness(
    change: float | None, ahead: float | None, cut: int
) -> None:
    policy = LearnAndDrop(remaining=0.2, patience=1, earliest=0.0, pace=100.0)
    policy.stopped(seen(1, [1.0, 1.0], [1.0, 1.0]))
    assert policy.stopped(seen(2, [change, 1.0], [ahead, 1.0])) == cut


def test_a_calm_check_between_lively_ones_does_not_add_up() -> None:
    policy = LearnAndDrop(patience=2, earliest=0.0, pace=100.0)
    for step, change in enumerate([1.0, 0.1, 0.9, 0.1, 0.9, 0.1], 1):
        assert policy.stopped(seen(step, [change, 1.0], [1.0, 1.0])) == 0


def test_learn_and_drop_waits_until_earliest() -> None:
    policy = LearnAndDrop(patience=1, earliest=0.5)
    policy.stopped(seen(1, [1.0, 1.0], [1.0, 1.0]))
    assert policy.stopped(seen(49, [0.1, 1.0], [0.0, 1.0])) == 0
    assert policy.stopped(seen(50, [0.1, 1.0], [0.0, 1.0])) == 1


def test_what_has_stopped_leaves_at_a_pace() -> None:
    policy, gone = LearnAndDrop(patience=1, earliest=0.0, pace=1.5), []
    for step in range(5, 100, 5):
        change = [1.0 if step == 5 else 0.0] * 10
        gone.append(policy.stopped(seen(step, change, [1.0] * 10, dropped=gone[-1] if gone else 0)))
    assert gone[1:] == [min(9, math.floor(1.5 * (step / 100) * 10)) for step in range(10, 100, 5)]
    with pytest.raises(UserError, match="pace is a number from 0 up"):
        LearnAndDrop(pace=-1.0)


def test_a_paced_timetable_by_hand() -> None:
    gone = [Paced(pace=1.5, earliest=0.2).stopped(Observation(step, 60, 0, 10)) for step in range(61)]
    # floor(1.5 x step / 60 x 10): a stage every 4 steps, the first three at step 12, the last one never
    assert gone == [0] * 12 + [min(9, step // 4) for step in range(12, 61)]
    assert Paced().stopped(Observation(20, 60, 8, 10)) == 8  # what is gone stays gone
    assert Paced(pace=0.0).stopped(Observation(60, 60, 0, 10)) == 0
    assert Paced(pace=1e6, earliest=0.0).stopped(Observation(1, 60, 0, 10)) == 9


def test_of_a_deep_network_stages_leave_in_proportion_faster() -> None:
    # 22 stages at a pace for 11: floor(2 x 1.5 x p x 22), so 13 of them after a fifth of the run, and of 11 floor(1.5 x p x 11)
    assert [Paced().stopped(Observation(12, 60, 0, stages)) for stages in (10, 11, 22)] == [3, 3, 13]
    assert Paced(pace_depth=22).stopped(Observation(12, 60, 0, 22)) == 6
    assert Paced().leaves(21 - 6, 22) == pytest.approx(16 / 22 / 3)
    hurried, steady = (LearnAndDrop(patience=1, earliest=0.0, pace_depth=depth) for depth in (11, 22))
    for policy, most in ((hurried, 13), (steady, 6)):
        policy.stopped(seen(5, [1.0] * 22, [1.0] * 22))
        assert policy.stopped(seen(20, [0.0] * 22, [1.0] * 22)) == most
        assert f"at most {most} of 22" in " ".join(policy.why(seen(20, [0.0] * 22, [1.0] * 22)))
    for wrong in (0, 1.5, True):
        with pytest.raises(UserError, match="pace_depth is a whole number from 1 up"):
            Paced(pace_depth=wrong)  # type: ignore[arg-type]


def test_in_a_deep_network_no_stage_holds_back_the_others_for_long() -> None:
    # 22 stages, none of them ever calm: due after a fifth of the run and (s + 1) / 22 / 3, and held 0.2 x 11 / 11 of the run beyond that.
    policy, gone = LearnAndDrop(), [0]
    for step in range(1, 101):
        gone.append(policy.stopped(seen(step, [1.0] * 22, [1.0] * 22, dropped=gone[-1])))
    for step, cut in enumerate(gone):
        due = [stage for stage in range(21) if step / 100 >= max(0.2, (stage + 1) / 66) + 0.2]
        assert cut == len(due), step
    assert "; leaves after 40 % of the run at the latest" in policy.why(seen(30, [1.0] * 22, [1.0] * 22))[3]
    for stages, hold in ((11, 0.2), (22, 1e6)):  # as deep as the pace was chosen for, or held without end
        kept = LearnAndDrop(hold=hold)
        assert all(kept.stopped(seen(step, [1.0] * stages, [1.0] * stages)) == 0 for step in range(1, 101))
        assert "at the latest" not in " ".join(kept.why(seen(30, [1.0] * stages, [1.0] * stages)))
    assert [hold_at_depth(0.2, 11, stages) for stages in (10, 11, 52)] == [math.inf, math.inf, pytest.approx(2.2 / 41)]
    with pytest.raises(UserError, match="hold is a number from 0 up"):
        LearnAndDrop(hold=-0.1)


@given(pace=st.floats(0.0, 20.0), earliest=st.floats(0.0, 1.0), stages=st.integers(2, 60), total=st.integers(1, 500))
def test_a_paced_stage_leaves_at_the_first_step_after_its_time(
    pace: float, earliest: float, stages: int, total: int
) -> None:
    policy = Paced(pace, earliest)
    gone = [policy.stopped(Observation(step, total, 0, stages)) for step in range(total + 1)]
    assert gone == sorted(gone)
    for stage in range(stages):
        at = policy.leaves(stage, stages)
        for step, cut in enumerate(gone):
            if abs(step / total - at) > 1e-6:  # at the very moment rounding decides
                assert (cut > stage) == (step / total > at)


def test_a_paced_stage_says_when_it_leaves() -> None:
    why = Paced(pace=1.5, earliest=0.2).why(Observation(15, 60, 2, 10))
    assert why[:2] == ["", ""]
    assert why[2:4] == ["has stopped", "leaves after 26.7 % of the run, now 25 %"]
    assert why[9] == "the last stage always stays"
    assert "stays to the end at a pace of 0.5" in Paced(pace=0.5).why(Observation(15, 60, 0, 10))[8]


def test_scores_that_are_not_numbers_never_drop_a_stage() -> None:
    policy = LearnAndDrop(patience=1, earliest=0.0, pace=100.0)
    for step in range(1, 6):
        assert policy.stopped(seen(step, [math.nan] * 3, [math.nan] * 3)) == 0


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), min_size=8, max_size=40), st.integers(1, 7))
def test_a_policy_resumed_from_json_goes_on_as_if_never_stopped(scores: list[tuple[float, float]], stop: int) -> None:
    whole, first, second = (LearnAndDrop(earliest=0.0, pace=100.0) for _ in range(3))
    answers = []
    for policy_of in (lambda i: whole, lambda i: first if i < stop else second):
        answers.append([])
        for i, (change, ahead) in enumerate(scores):
            if i == stop:
                second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            answers[-1].append(policy_of(i).stopped(seen(i + 1, [change, change], [ahead, ahead])))
    assert answers[0] == answers[1]


@given(
    st.sampled_from(["full", "learn-and-drop", "freeze", "freezeout", "schedule"]),
    st.integers(1, 30),
    st.integers(1, 99),
    st.data(),
)
def test_every_policy_keeps_what_is_gone_and_the_last_stage(
    name: str, stages: int, step: int, data: st.DataObject
) -> None:
    policy = build_policy(name, {}, [(5, min(2, stages - 1))] if name == "freeze" else None)
    dropped = data.draw(st.integers(0, stages - 1))
    values = [None if s < dropped else 0.0 for s in range(stages)]
    assert dropped <= policy.stopped(seen(step, values, values, dropped)) <= stages - 1
    assert isinstance(policy, Policy)


def test_freezeout_times_and_rates_are_the_papers() -> None:
    policy = FreezeOut(t_first=0.5, cubic=True, scaled=True)
    assert policy.freeze_times(3) == [0.5**3, 0.75**3, 1.0]
    assert policy.lr_scales(0.0, 3) == pytest.approx([8.0, 1 / 0.75**3, 1.0])  # scaled: 1 / t_i at the start
    rates = policy.lr_scales(0.2, 3)
    assert rates is not None
    assert rates[0] == 0.0
    assert rates[2] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.2)))
    assert policy.stopped(Observation(13, 100, 0, 3)) == 1
    assert policy.stopped(Observation(99, 100, 0, 3)) == 2
    plain = FreezeOut(t_first=0.5, cubic=False, scaled=False)
    assert plain.freeze_times(3) == [0.5, 0.75, 1.0]
    assert plain.lr_scales(0.0, 3) == [1.0, 1.0, 1.0]


def test_a_schedule_counts_stages_or_shares() -> None:
    policy = FixedSchedule([(0.5, 2), (0.75, 0.9)])
    cuts = [policy.stopped(Observation(step, 100, 0, 10)) for step in (49, 50, 74, 75, 99)]
    assert cuts == [0, 2, 2, 9, 9]
    assert NeverDrop().stopped(Observation(99, 100, 3, 10)) == 3
    assert Replay([(10, 2), (30, 5)]).stopped(Observation(30, 100, 2, 10)) == 5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("learn-and-drop", {"patience": 0}),
        ("learn-and-drop", {"patient": 2}),
        ("learn-and-drop", {"patience": "x"}),
        ("freezeout", {"t_first": 0.0}),
        ("paced", {"pace": -1.0}),
        ("paced", {"earliest": 1.5}),
        ("paced", {"pace": True}),
        ("schedule", {"drops": 3}),
        ("schedule", {"drops": [[2.0, 1]]}),
        ("full", {"a": 1}),
        ("freeze", {"events": [[1, 2]]}),
    ],
)
def test_wrong_policy_options_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        build_policy(name, options)


def test_unknown_methods_name_the_nearest_and_own_ones_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    with pytest.raises(UserError, match="learn-and-drop"):
        get_method("learn-and-dropp")
    register_method("half-way", Method(lambda: FixedSchedule([(0.5, 1)])))
    assert get_method("half-way").execution == "store"
    with pytest.raises(ValueError, match="exists"):
        register_method("full", Method(NeverDrop))
