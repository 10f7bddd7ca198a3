"""Monitors: what each one measures, by hand, and that nothing is measured which nobody needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldbench.dropping.monitor import Levels, Monitor
from ldbench.dropping.monitors import GradientMonitor, Monitors, PerturbationMonitor, PlasticityMonitor


def figures(monitor: Monitor, progress: float = 0.0) -> Levels:
    (levels,) = monitor.check(progress, 1.0).values()
    return levels


def test_gradients_are_summed_before_the_norm_is_taken() -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    monitor = GradientMonitor([[first], [second]], intervals=2)
    for sign in (1.0, -1.0, 1.0):
        first.grad, second.grad = torch.tensor([sign, 2.0]), torch.tensor([-3.0])
        monitor.see_gradients(None)
    assert figures(monitor, 0.3) == [None, None]
    assert figures(monitor, 0.5) == [7.0, 9.0]
    assert figures(monitor, 1.0) == [0.0, 0.0]
    monitor.drop(1)
    second.grad = torch.tensor([4.0])
    monitor.see_gradients(None)
    monitor.done = 0
    assert figures(monitor, 0.5) == [None, 4.0]


def test_a_scalar_that_goes_to_and_fro_is_settled_and_one_that_travels_is_not() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    monitor = PerturbationMonitor([[parameter]], threshold=0.25, memory=0.8)
    for i in range(30):
        with torch.no_grad():
            parameter += torch.tensor([1.0, (-1.0) ** i, 0.0, 3.0 * (-1.0) ** i])
        share = figures(monitor)
    assert share == [0.75]


def test_plasticity_is_the_similarity_loss_against_the_snapshot() -> None:
    torch.manual_seed(0)
    stages = nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)))
    x = torch.randn(6, 5)
    monitor = PlasticityMonitor(stages, 6, 2, lambda samples, cut: x[:samples], torch.enable_grad)
    assert figures(monitor) == [None, None]
    assert figures(monitor) == [0.0, 0.0]
    before = stages[0](x)
    with torch.no_grad():
        stages[0].weight += 0.5
    now = stages[0](x)

    def similarity(a: torch.Tensor) -> torch.Tensor:
        g = a @ a.t()
        return g / g.norm(dim=1, keepdim=True)

    expected = float((similarity(now) - similarity(before)).square().sum().detach()) / 36
    found = figures(monitor)
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert found[1] is not None
    assert found[1] > 0
    assert figures(monitor) == [0.0, 0.0]  # the snapshot was renewed at the last check
    assert stages[1].training
    assert stages[1][0].training
    assert monitor.flops == [2 * 36 * 4, 2 * 36 * 3]
    monitor.drop(1)
    monitor.source = lambda samples, cut: stages[0](x[:samples])
    assert figures(monitor) == [None, 0.0]


def monitors(*needs: str) -> Monitors:
    stages = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    return Monitors(
        stages, {name: {} for name in needs}, lambda samples, cut: torch.zeros(samples, 2), torch.enable_grad
    )


def test_a_policy_that_needs_nothing_has_nothing_measured() -> None:
    nothing = monitors()
    nothing.after_step(0.1)
    assert nothing.check(0.5) == {}
    assert nothing.passes() == []


def test_rates_are_summed_from_check_to_check() -> None:
    """The layer-change score is movement per unit of learning rate: one that is summed twice would halve it."""
    scored = monitors("scores")
    tracker = scored._monitors["scores"]
    seen = []

    def check(progress: float, summed: float) -> dict[str, Levels]:
        seen.append(summed)
        return {}

    tracker.check = check  # type: ignore[method-assign]
    for rates in ((0.5, 0.25), (1.0,), ()):
        for rate in rates:
            scored.after_step(rate)
        scored.check(0.5)
    assert seen == [0.75, 1.0, 0.0]


def test_a_need_that_nothing_measures_is_refused() -> None:
    with pytest.raises(ValueError, match="which nothing here measures"):
        monitors("phase of the moon")
