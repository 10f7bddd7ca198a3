"""A run's epochs: a budget takes its share of every chunk, and every step belongs to one epoch."""

from __future__ import annotations

import pytest
import torch

from ldbench.data.stream import chunked, full_steps
from ldbench.training.epochs import plan_epochs


@pytest.mark.parametrize(("budget", "steps"), [(None, [30, 45, 45]), (0.5, [15, 22, 22]), (0.001, [1, 1, 1])])
def test_a_budget_takes_its_share_of_every_chunk(budget: float | None, steps: list[int]) -> None:
    stream = chunked(torch.zeros(303, dtype=torch.int64), 0, chunks=3, memory=52)
    course = plan_epochs(stream, 10, 3, budget)
    assert full_steps(stream, 10, 3) == 120
    assert [sum(e.steps for e in course if e.chunk == chunk) for chunk in range(3)] == steps
    assert [e.first_step for e in course] == [0, *(e.end for e in course)][:-1]
    assert [e.chunk for e in course if e.closes_chunk] == [0, 1, 2]
    assert all(e.steps <= len(stream.sets[e.chunk]) // 10 for e in course)
