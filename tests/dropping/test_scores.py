"""Scores: known paths have known scores, and the tracker keeps the right history."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ldbench.dropping.scores import ScoreTracker, continuation_score


def parameters(*values: list[float]) -> list[list[nn.Parameter]]:
    return [[nn.Parameter(torch.tensor(v))] for v in values]


def test_a_straight_path_has_continuation_one_and_a_turning_one_zero() -> None:
    stages = parameters([1.0, 0.0], [1.0, 0.0])
    tracker = ScoreTracker(stages, window=4)
    turn = [(0.1, 0.0), (0.0, 0.1), (-0.1, 0.0), (0.0, -0.1)]  # a square: net movement 0
    for i in range(4):
        with torch.no_grad():
            stages[0][0] += torch.tensor([0.1, 0.2])
            stages[1][0] += torch.tensor(turn[i])
        scores = tracker.score(summed_rate=1.0)
        if i < 3:
            assert scores.continuation == [None, None]
    assert scores.continuation == [pytest.approx(1.0, abs=1e-5), pytest.approx(0.0, abs=1e-5)]


def test_change_is_relative_movement_per_unit_of_learning_rate() -> None:
    stages = parameters([3.0, 4.0])
    tracker = ScoreTracker(stages)
    with torch.no_grad():
        stages[0][0] += torch.tensor([0.0, 1.0])
    assert tracker.score(summed_rate=0.5).change == [pytest.approx(1.0 / 5.0 / 0.5)]
    assert tracker.score(summed_rate=0.5).change == [0.0]


def test_a_stage_that_starts_at_zero_has_a_finite_change() -> None:
    stages = parameters([0.0, 0.0, 0.0, 0.0])
    tracker = ScoreTracker(stages)
    with torch.no_grad():
        stages[0][0] += 1e-3
    (change,) = tracker.score(summed_rate=1.0).change
    assert change == pytest.approx(1.0)


def test_a_random_walk_scores_near_zero_and_far_below_a_drift() -> None:
    generator = torch.Generator().manual_seed(0)
    walk, drift = nn.Parameter(torch.zeros(10_000)), nn.Parameter(torch.zeros(10_000))
    tracker = ScoreTracker([[walk], [drift]], window=4)
    for _ in range(8):
        noise = torch.randn(2, 10_000, generator=generator)
        with torch.no_grad():
            walk += noise[0]
            drift += 0.2 * noise[1] + 1.0
        scores = tracker.score(1.0)
    assert scores.continuation[0] == pytest.approx(0.0, abs=0.05)
    assert scores.continuation[1] is not None
    assert scores.continuation[1] > 0.9


@given(st.floats(0, 100), st.floats(0, 100), st.integers(2, 16))
def test_continuation_lies_in_the_unit_interval(net: float, path: float, window: int) -> None:
    assert 0.0 <= continuation_score(min(net, path), path, window) <= 1.0
    assert continuation_score(path, path, window) == (1.0 if path > 0 else 0.0)


def moved(tracker: ScoreTracker, stages: list[list[nn.Parameter]], seed: int) -> object:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for stage in stages:
            stage[0] += torch.randn(stage[0].shape, generator=generator)
    return tracker.score(0.1)


def test_dropping_keeps_the_other_stages_history() -> None:
    values = ([1.0, 2.0], [3.0], [4.0, 5.0, 6.0])
    kept, cut = parameters(*values), parameters(*values)
    trackers = ScoreTracker(kept), ScoreTracker(cut)
    for seed in range(9):
        if seed == 6:
            trackers[1].drop(1)
        scores = moved(trackers[0], kept, seed), moved(trackers[1], cut, seed)
        for name in ("change", "continuation"):
            reference, after = getattr(scores[0], name), getattr(scores[1], name)
            assert after[1:] == reference[1:]
            assert after[0] == (None if seed >= 6 else reference[0])


def test_a_restored_tracker_goes_on_with_the_same_bits() -> None:
    whole, other = parameters([1.0, 2.0], [3.0]), parameters([1.0, 2.0], [3.0])
    first, second = ScoreTracker(whole), ScoreTracker(other)
    for seed in range(8):
        scores = moved(first, whole, seed)
        if seed < 5:
            moved(second, other, seed)
            continue
        if seed == 5:
            state = second.state_dict()
            second = ScoreTracker(other)
            second.load_state_dict(state)
        assert moved(second, other, seed) == scores


def test_a_shared_parameter_counts_for_every_stage_that_uses_it() -> None:
    shared = nn.Parameter(torch.ones(4))
    tracker = ScoreTracker([[shared], [shared, nn.Parameter(torch.ones(4))]])
    with torch.no_grad():
        shared += 1.0
    first, second = tracker.score(1.0).change
    assert first == pytest.approx(1.0)
    assert second == pytest.approx(1 / math.sqrt(2))
