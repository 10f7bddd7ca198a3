"""Why a stage is still there, in words, and stages that have nothing to train: for every rule."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldbench.dropping.scores import ScoreTracker
from ldbench.policies.base import NeverDrop, Observation, Policy
from ldbench.policies.baselines import AutoFreeze, FreezeOut, StochasticDepth
from ldbench.policies.composer import LinearFreezing, ProgressiveResizing
from ldbench.policies.plateaus import Egeria, ParameterFreezing, SimFreeze
from ldbench.policies.rules import CHECKS_TO_SCORE, FixedSchedule, LearnAndDrop, Replay

STEPS, LAST = 20, "the last stage always stays"
RULES: dict[str, Callable[[], NeverDrop]] = {
    "full": NeverDrop,
    "depth": StochasticDepth,
    "learn-and-drop": lambda: LearnAndDrop(patience=1),
    "learn-and-drop, deep": lambda: LearnAndDrop(patience=1, pace_depth=2),
    "learn-and-drop, slow": lambda: LearnAndDrop(earliest=0.0, pace=0.5),
    "schedule": FixedSchedule,
    "schedule with a gap": lambda: FixedSchedule([(0.4, 2)]),
    "replay": lambda: Replay([(4, 1), (9, 3, True)]),
    "freezeout": FreezeOut,
    "autofreeze": lambda: AutoFreeze(intervals=10),
    "egeria": lambda: Egeria(window=2, patience=1),
    "apf": ParameterFreezing,
    "simfreeze": lambda: SimFreeze(patience=1),
    "linear-freezing": LinearFreezing,
    "linear-freezing, half": lambda: LinearFreezing(freeze_start=0.0, freeze_level=0.5),
    "resize": ProgressiveResizing,
}
FIELDS = ("change", "continuation", "gradient", "plasticity", "settled", "cka")
figures = st.sampled_from([None, 0.0, 0.05, 0.2, 0.5, 0.9, 1.0, 3.0, math.nan, math.inf])


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[Observation, float]]:
    """Observations of a run, and which share of what is proposed at each is really dropped."""
    stages = draw(st.integers(1, 5))
    trainable = draw(st.sampled_from([(), (True,) * stages, draw(st.tuples(*[st.booleans()] * stages))]))
    rows = []
    for step in range(1, draw(st.integers(1, STEPS)) + 1):
        row = draw(st.tuples(*[figures] * stages))
        levels = dict.fromkeys(FIELDS, row) | {"continuation": row[::-1]}
        if step % 2:
            levels["gradient"] = (None,) * stages  # in the middle of an interval
        rows.append((Observation(step, STEPS, 0, stages, **levels, trainable=trainable), draw(st.floats(0, 1))))
    return rows


def as_dropped(row: Observation, dropped: int) -> Observation:
    """The observation of a run in which so many stages are gone."""
    levels = {name: [None] * dropped + list(getattr(row, name)[dropped:]) for name in FIELDS}
    return dataclasses.replace(row, dropped=dropped, **levels)


@pytest.mark.parametrize("name", RULES)
@given(runs())
def test_every_stage_has_its_reason_and_asking_for_it_changes_nothing(
    name: str, rows: list[tuple[Observation, float]]
) -> None:
    rule, silent, dropped = RULES[name](), RULES[name](), 0
    for row, taken in rows:
        seen, last = as_dropped(row, dropped), row.stages - 1
        stopped = min(rule.stopped(seen), last)
        before = copy.deepcopy(rule.state_dict())
        texts = rule.why(seen)
        assert repr(rule.state_dict()) == repr(before)  # nan is like itself here
        assert stopped == min(silent.stopped(seen), last)
        assert len(texts) == seen.stages
        assert [not text for text in texts] == [stage < dropped for stage in range(seen.stages)]
        assert [stage for stage, text in enumerate(texts) if text == "has stopped"] == list(range(dropped, stopped))
        assert texts[-1] == LAST
        assert all(len(text) < 160 and text.isprintable() for text in texts)
        resumed = RULES[name]()
        resumed.load_state_dict(json.loads(json.dumps(rule.state_dict())))
        assert resumed.why(seen) == texts
        dropped += int(taken * (stopped - dropped))


@pytest.mark.parametrize("name", RULES)
@given(runs())
def test_saying_that_every_stage_trains_says_nothing(name: str, rows: list[tuple[Observation, float]]) -> None:
    silent, told = RULES[name](), RULES[name]()
    for row, _ in rows:
        bare = dataclasses.replace(row, trainable=())
        assert told.stopped(dataclasses.replace(row, trainable=[True] * row.stages)) == silent.stopped(bare)
        assert told.why(bare) == silent.why(bare)


# --- stages without a trainable parameter ----------------------------------------------------------------------------

FROZEN = [True, False, True, True]


def cuts(rule: Policy, field: str, rows: Sequence[Sequence[float | None]], frozen: bool) -> list[int]:
    trainable = FROZEN if frozen else ()
    return [
        rule.stopped(Observation(50 + step, 100, 0, 4, **{field: row}, trainable=trainable))
        for step, row in enumerate(rows)
    ]


@pytest.mark.parametrize("figure", [None, 0.0])
def test_a_frozen_stage_keeps_none_behind_it_from_leaving(figure: float | None) -> None:
    lively = 1.0 if figure is None else figure  # what the stage's figure would be if nobody had frozen it
    settled = [[0.9, figure, 0.9, 0.0]] * 2
    assert cuts(ParameterFreezing(), "settled", settled, frozen=True) == [0, 3]
    assert cuts(ParameterFreezing(), "settled", settled, frozen=False) == [0, 1]
    flat = [[9.0 - min(step, 6), None, 9.0 - min(step, 6), 20.0 - step] for step in range(12)]
    assert cuts(Egeria(window=2), "plasticity", flat, frozen=True)[-1] == 3
    assert cuts(Egeria(window=2), "plasticity", flat, frozen=False)[-1] == 1
    gradients = [[1.0, figure, 1.0, 1.0], [0.9, figure, 0.5, 0.4]]  # changes 0.1, -, 0.5, 0.6 with the median 0.5
    assert cuts(AutoFreeze(), "gradient", gradients, frozen=True) == [0, 2]
    assert cuts(AutoFreeze(), "gradient", gradients, frozen=False) == [0, 1]
    rule, free = (LearnAndDrop(patience=1, pace=100.0) for _ in range(2))
    for change in (1.0, 0.1):
        row = [change, lively, change, 1.0]
        seen = Observation(50, 100, 0, 4, row, [1.0, figure, 1.0, 1.0], trainable=FROZEN)
        cut, unfrozen = rule.stopped(seen), free.stopped(dataclasses.replace(seen, trainable=()))
    assert cut == 3
    assert unfrozen == (1 if figure is None else 3)


def test_autofreeze_leaves_frozen_stages_out_of_the_percentile_and_within_an_interval_too() -> None:
    rule = AutoFreeze()
    trainable = [True, True, False, False, True]
    rule.stopped(Observation(10, 100, 0, 5, gradient=[1.0, 1.0, 1.0, 1.0, 1.0], trainable=trainable))
    # among those that train 0.1, 0.2, 0.3: the median is 0.2; the two frozen ones would make it 0.1
    seen = Observation(20, 100, 0, 5, gradient=[0.9, 1.2, 1.0, 1.0, 0.7], trainable=trainable)
    assert rule.stopped(seen) == 1
    assert rule.why(seen)[1].startswith("its gradient changed by 0.2 since")
    within = Observation(22, 100, 0, 5, gradient=[None, None, 0.0, 0.0, None], trainable=trainable)
    assert rule.stopped(within) == 0
    assert rule.before == [0.9, 1.2, 1.0, 1.0, 0.7]


def test_stages_that_do_not_train_wait_for_those_before_them() -> None:
    rule = ParameterFreezing(patience=1)
    seen = Observation(50, 100, 0, 4, settled=[0.1, None, 0.1, 0.1], trainable=FROZEN)
    assert rule.stopped(seen) == 0
    assert rule.why(seen)[1] == "has no parameter to train, and leaves once it is reached"


@pytest.mark.parametrize(
    ("rule", "field", "value"),
    [
        (LearnAndDrop(earliest=0.0, pace=100.0), "change", 0.0),
        (Egeria(window=2, earliest=0.0), "plasticity", 1.0),
        (ParameterFreezing(earliest=0.0), "settled", 1.0),
    ],
)
def test_a_stage_that_trains_again_is_judged_by_what_it_does_from_then_on(
    rule: Policy, field: str, value: float
) -> None:
    answers = []
    for step in range(1, 13):
        levels = {"continuation": [1.0, 1.0]} if field == "change" else {}
        seen = Observation(step, 20, 0, 2, **{field: [value] * 2}, **levels, trainable=[step > 10, True])
        answers.append(rule.stopped(seen))
    assert answers[:11] == [1] * 10 + [0]


def test_where_the_pace_holds_a_stage_back_no_frozen_one_is_blamed() -> None:
    rule = LearnAndDrop(patience=1, earliest=0.0)
    for step, change in ((18, 1.0), (20, 0.1)):
        seen = Observation(step, 100, 0, 4, [change] * 4, [1.0] * 4, trainable=[True, False, True, True])
        assert rule.stopped(seen) == int(step == 20)
    text = "calm, but at most 1 of 4 stages may be gone after 20 % of the run (pace 1.5)"
    assert rule.why(seen) == ["has stopped", "has no parameter to train, and leaves once it is reached", text, LAST]


# --- the texts -------------------------------------------------------------------------------------------------------


def asked(rule: NeverDrop, *rows: Observation) -> list[str]:
    for seen in rows:
        rule.stopped(seen)
    return rule.why(rows[-1])


def test_learn_and_drop_names_the_figure_the_pace_and_the_stage_that_blocks() -> None:
    def row(step: int, change: Sequence[float | None], dropped: int = 0) -> Observation:
        return Observation(step, 100, dropped, len(change), change, [1.0] * len(change))

    first = row(30, [1.0] * 5)
    assert asked(LearnAndDrop(), first, row(40, [0.83, 0.5, None, math.nan, 0.5])) == [
        "useful change at 0.83 of its peak; stops at 0.6 or less, 2 checks in a row (0 so far)",
        "useful change at 0.5 of its peak; stops at 0.6 or less, 2 checks in a row (1 so far)",
        "no score at this check",
        "its score is not a number",
        LAST,
    ]
    once = LearnAndDrop(patience=1)
    assert asked(once, first, row(40, [0.1, 0.9, 0.1, 0.1, 0.1])) == [
        "has stopped",
        "useful change at 0.9 of its peak; stops at 0.6 or less",
        *["calm, but stage 2 before it is not"] * 2,
        LAST,
    ]
    paced = "calm, but at most 3 of 5 stages may be gone after 40 % of the run (pace 1.5)"
    assert asked(once, row(40, [None, 0.1, 0.1, 0.1, 0.1], dropped=1)) == ["", *["has stopped"] * 2, paced, LAST]
    early = "calm, but before 20 % of the run nothing leaves"
    assert asked(LearnAndDrop(patience=1), row(1, [1.0] * 3), row(2, [0.1] * 3)) == [early, early, LAST]


def test_learn_and_drop_says_how_many_checks_a_score_takes() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    tracker, rule = ScoreTracker([[parameter], [torch.nn.Parameter(torch.ones(3))]]), LearnAndDrop()
    for check in range(1, CHECKS_TO_SCORE + 1):
        with torch.no_grad():
            parameter.mul_(1.1)
        scores = tracker.score(1.0)
        text = asked(rule, Observation(check, 100, 0, 2, scores.change, scores.continuation))[0]
        assert (text == "no score yet: 4 checks are needed") == (check < CHECKS_TO_SCORE)


def test_autofreeze_names_the_first_that_stays_and_when_it_decides_again() -> None:
    rule = AutoFreeze(intervals=10)

    def row(step: int, gradient: Sequence[float | None], dropped: int = 0) -> Observation:
        return Observation(step, 100, dropped, len(gradient), gradient=gradient)

    none, waits = [None] * 4, "no two intervals to compare yet: interval {} of 10 is under way"
    assert asked(rule, row(5, none)) == [waits.format(1)] * 3 + [LAST]
    assert asked(rule, row(10, [1.0] * 4)) == [waits.format(2)] * 3 + [LAST]
    figures = (
        "its gradient changed by 0.31 since the interval before, at least 0.205 (percentile 50): the first that stays"
    )
    assert asked(rule, row(20, [0.9, 1.31, 0.9, 0.6])) == ["has stopped", figures, "behind stage 2, which stays", LAST]
    again = "; decided again at the end of interval 3 of 10"
    assert asked(rule, row(25, [None] * 4)) == [
        "between two intervals: decided at the end of interval 3 of 10",  # it was not dropped: that did not pay
        figures + again,
        "behind stage 2, which stays" + again,
        LAST,
    ]
    gone = asked(rule, row(25, [None] * 4, dropped=2))  # the user froze the one that was to stay
    assert gone == ["", "", "between two intervals: decided at the end of interval 3 of 10", LAST]


@pytest.mark.parametrize("nothing", [0.0, None])
def test_a_loop_that_hides_its_gradients_is_told_so(nothing: float | None) -> None:
    rows = [Observation(step, 20, 0, 3, gradient=[0.0, nothing, 0.0]) for step in (1, 2, 3)]
    for many in (1, 2, 3):
        assert asked(AutoFreeze(), *rows[:many]) == ["no gradient was seen"] * 2 + [LAST]
    partly = [Observation(step, 20, 0, 3, gradient=[nothing, 1.0, 1.0]) for step in (1, 2)]
    assert asked(AutoFreeze(), *partly)[0] == "the change of its gradient cannot be told: the first that stays"


def test_egeria_counts_its_readings_and_then_names_the_slope() -> None:
    rule = Egeria(window=3, patience=2, tolerance=0.2, earliest=0.0)
    for number, value in enumerate([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0], 1):
        seen = Observation(number, 100, 0, 2, plasticity=[value, 1.0])
        assert asked(rule, seen)[0] == f"its plasticity is judged from 8 readings on, {number} so far"
    figures = "its plasticity changes by {}; stops at 0.2 or less, 2 checks in a row ({} so far)"
    assert asked(rule, Observation(8, 100, 0, 2, plasticity=[2.0, 1.0]))[0] == figures.format("1 a check", 0)
    rest = [Observation(9 + step, 100, 0, 2, plasticity=[2.0, 1.0]) for step in range(4)]
    # the averages are 4, 3, 2.33, 2, 2: slopes 0.83, 0.5, 0.17
    for slope, flat in (("0.833", 0), ("0.5", 0), ("0.167", 1)):
        assert asked(rule, rest.pop(0))[0] == figures.format(f"{slope} a check", flat)
    assert asked(rule, rest[0])[0] == "has stopped"
    assert asked(Egeria(), Observation(1, 100, 0, 2, plasticity=[None, None]))[0].endswith("on, 0 so far")


def test_parameter_freezing_names_the_share_of_settled_scalars() -> None:
    rule = ParameterFreezing()
    seen = [Observation(step, 100, 0, 4, settled=[0.123, 0.5, None, 0.5]) for step in (1, 2)]
    wanted = "stops at 30 % or more, 2 checks in a row ({} so far)"
    assert asked(rule, seen[0]) == [
        f"12.3 % of its scalars are settled; {wanted.format(0)}",
        f"50 % of its scalars are settled; {wanted.format(1)}",
        f"not measured at this check; {wanted.format(0)}",
        LAST,
    ]
    assert asked(rule, seen[1])[1] == "settled, but before 10 % of the run nothing leaves"
    assert asked(rule, dataclasses.replace(seen[1], step=50))[1] == "settled, but stage 1 before it is not"


def test_rules_that_go_by_the_clock_name_the_time() -> None:
    seen = Observation(42, 100, 0, 4)
    assert asked(FixedSchedule([(0.3, 1), (0.7, 0.5)]), seen) == [
        "has stopped",
        "leaves after 70 % of the run, now 42 %",
        "is not on the schedule",
        LAST,
    ]
    text = "its rate reaches zero after {} % of the run, now 42 %"
    assert asked(FreezeOut(t_first=0.5, cubic=False), seen)[:2] == [text.format(50), text.format("66.7")]
    assert asked(Replay([(42, 1), (42, 2, True), (120, 3)]), dataclasses.replace(seen, stages=5)) == [
        "has stopped",
        "leaves when the chunk is over, at step 42, as recorded",
        "leaves at step 120, as recorded",
        "stays to the end, as recorded",
        LAST,
    ]


def test_a_rule_without_words_of_its_own_is_not_called_one_that_drops_nothing() -> None:
    class Mine(NeverDrop):
        def stopped(self, seen: Observation) -> int:
            return max(seen.dropped, 1)

    seen = Observation(42, 100, 1, 3)
    assert NeverDrop().why(seen) == ["", "this rule drops nothing", LAST]
    assert Mine().why(seen) == ["", "Mine gives no reason", LAST]


def test_a_schedule_with_a_share_beyond_any_number_of_stages_drops_all_but_the_last() -> None:
    assert FixedSchedule([(0.9, 1e308), (0.1, 1e308)]).stopped(Observation(20, 100, 0, 5)) == 4
