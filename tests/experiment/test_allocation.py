"""A budget over chunks: every step is spent, no chunk gets more than all of it, and what ``short`` does is among them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldbench.experiment.allocation import allocations, chunk_steps

lengths = st.lists(st.integers(1, 60), min_size=2, max_size=7)
budgets = st.floats(0.01, 0.99)


@given(lengths, st.integers(1, 40), budgets, st.data())
def test_any_allocation_spends_the_whole_budget_and_fills_no_chunk_beyond_its_end(
    chunks: list[int], epochs: int, budget: float, data: st.DataObject
) -> None:
    parts = data.draw(st.lists(st.integers(0, 9), min_size=len(chunks), max_size=len(chunks)).filter(any))
    steps = chunk_steps(chunks, epochs, budget, allocation=[part / sum(parts) for part in parts])
    assert all(1 <= some <= epochs * length for some, length in zip(steps, chunks, strict=True))
    assert abs(sum(steps) - round(budget * epochs * sum(chunks))) <= len(chunks)


@given(lengths, st.integers(1, 40), budgets)
def test_what_is_tried_holds_the_plans_of_short_and_short_early_and_each_plan_once(
    chunks: list[int], epochs: int, budget: float
) -> None:
    tried = allocations(chunks, epochs, budget)
    plans = [chunk_steps(chunks, epochs, budget, allocation=shares) for shares in tried]
    assert plans[0] == chunk_steps(chunks, epochs, budget)
    assert chunk_steps(chunks, epochs, budget, early=True) in plans
    assert len(set(map(tuple, plans))) == len(plans) <= len(chunks) + 2
    assert all(sum(shares) == pytest.approx(1) for shares in tried)


def test_each_chunk_has_its_turn_and_there_is_a_middle_way() -> None:
    tried = allocations([3, 5, 5], 2, 0.5)
    plans = [chunk_steps([3, 5, 5], 2, 0.5, allocation=shares) for shares in tried]
    assert plans == [[3, 5, 5], [6, 4, 4], [1, 10, 2], [1, 2, 10], [5, 4, 4]]


@pytest.mark.parametrize(
    ("shares", "steps"),
    [
        ((1.0, 0.0, 0.0), [6, 4, 4]),  # the first is full, the others share what is left
        ((0.5, 0.5, 0.0), [6, 7, 1]),
        ((0.0, 0.5, 0.5), [1, 6, 6]),
        ((0.8, 0.1, 0.1), [6, 4, 4]),
    ],
)
def test_what_a_chunk_cannot_take_goes_to_the_others(shares: tuple[float, ...], steps: list[int]) -> None:
    assert chunk_steps([3, 5, 5], 2, 0.5, allocation=shares) == steps
