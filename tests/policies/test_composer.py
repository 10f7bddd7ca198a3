"""Composer's two methods: the published formulas, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldbench.errors import UserError
from ldbench.policies.base import NeverDrop, Observation
from ldbench.policies.composer import LinearFreezing, ProgressiveResizing
from ldbench.policies.registry import build_policy


def seen(step: int, stages: int = 10, dropped: int = 0) -> Observation:
    return Observation(step, 100, dropped, stages)


def test_stages_freeze_linearly_from_the_start_and_the_last_one_never() -> None:
    rule = LinearFreezing()
    counts = {step: rule.stopped(seen(step)) for step in (0, 49, 50, 54, 55, 60, 75, 99, 100)}
    assert counts == {0: 0, 49: 0, 50: 0, 54: 0, 55: 1, 60: 2, 75: 5, 99: 9, 100: 9}
    assert rule.stopped(seen(10, dropped=4)) == 4
    half = LinearFreezing(freeze_start=0.0, freeze_level=0.5)
    assert [half.stopped(seen(step)) for step in (10, 20, 50, 100)] == [0, 1, 2, 5]
    assert LinearFreezing().stopped(seen(99, stages=1)) == 0
    assert LinearFreezing(freeze_level=0.0).stopped(seen(100)) == 0


@given(st.floats(0, 0.99), st.floats(0, 1), st.integers(1, 20), st.integers(1, 99))
def test_a_stage_is_frozen_when_its_reason_says_so(start: float, level: float, stages: int, step: int) -> None:
    rule = LinearFreezing(start, level)
    texts = rule.why(seen(step, stages))
    stopped = rule.stopped(seen(step, stages))
    assert texts.count("has stopped") == stopped
    for stage, text in enumerate(texts[:-1]):
        assert text.startswith("stays to the end") == ((stage + 1) / stages > level and stage >= stopped)
    assert rule.stopped(seen(step + 1, stages)) >= stopped


def test_images_begin_small_and_are_whole_for_the_last_fifth() -> None:
    rule = ProgressiveResizing(rise_from=0.5)
    sides = {step: rule.image_side(step / 100, 32) for step in (0, 50, 55, 60, 65, 70, 75, 79, 80, 100)}
    # 16 + 16 x (p - 0.5) / 0.3 is 18.7, 21.3, 24, 26.7, 29.3, 31.5 on the way, to the nearest 4
    assert sides == {0: 16, 50: 16, 55: 20, 60: 20, 65: 24, 70: 28, 75: 28, 79: 32, 80: 32, 100: 32}
    early = ProgressiveResizing(multiple=1)
    assert [early.image_side(p, 224) for p in (0.0, 0.4, 0.8)] == [112, 168, 224]
    at_once = ProgressiveResizing(rise_from=0.5, finetune_from=0.5)
    assert [at_once.image_side(p, 32) for p in (0.49, 0.5)] == [16, 32]
    assert ProgressiveResizing(initial_scale=0.01).image_side(0.0, 32) == 4
    assert ProgressiveResizing(initial_scale=0.99, multiple=64).image_side(0.0, 33) == 33


@given(st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 16), st.integers(1, 300), st.floats(0, 1))
def test_images_only_grow_and_never_beyond_their_own_size(
    initial: float, one: float, other: float, multiple: int, side: int, progress: float
) -> None:
    rule = ProgressiveResizing(initial, min(one, other), max(one, other), multiple)
    now, later = rule.image_side(progress, side), rule.image_side(min(1.0, progress + 0.1), side)
    assert now is not None
    assert later is not None
    assert 1 <= now <= later <= side
    assert now == side or now % multiple == 0
    assert rule.image_side(1.0, side) == side


def test_no_other_rule_scales_images() -> None:
    assert NeverDrop().image_side(0.0, 32) is None
    assert LinearFreezing().image_side(0.0, 32) is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear-freezing", {"freeze_start": 1.0}),
        ("linear-freezing", {"freeze_start": -0.1}),
        ("linear-freezing", {"freeze_level": "all"}),
        ("resize", {"initial_scale": 0}),
        ("resize", {"initial_scale": 2}),
        ("resize", {"rise_from": 0.9}),
        ("resize", {"finetune_from": 1.5}),
        ("resize", {"multiple": 0}),
        ("resize", {"multiple": 2.5}),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=name):
        build_policy(name, options)
