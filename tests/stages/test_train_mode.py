"""Train and evaluation mode: every module's own flag comes back, however the block ends."""

from __future__ import annotations

import pytest
from torch import nn

from ldbench.stages.train_mode import evaluating, preserved_modes


@pytest.fixture
def mixed() -> nn.Sequential:
    """A network in train mode with a frozen part in evaluation mode, and in that a dropout that is awake."""
    frozen = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval()
    frozen[1].train()
    return nn.Sequential(nn.Linear(2, 2), frozen)


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


MIXED = [True, True, False, False, True]


def test_evaluating_reaches_every_module_and_gives_each_its_own_flag_back(mixed: nn.Sequential) -> None:
    with evaluating(mixed):
        assert flags(mixed) == [False] * 5
    assert flags(mixed) == MIXED


def test_a_block_may_set_any_mode_itself(mixed: nn.Sequential) -> None:
    with preserved_modes(mixed):
        assert flags(mixed) == MIXED
        mixed.train()
    assert flags(mixed) == MIXED


@pytest.mark.parametrize("manager", [evaluating, preserved_modes])
def test_flags_come_back_after_an_exception(manager, mixed: nn.Sequential) -> None:
    def interrupted() -> None:
        mixed.train()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), manager(mixed):
        interrupted()
    assert flags(mixed) == MIXED


def test_flags_come_back_where_eval_itself_fails(mixed: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(mode: bool = True) -> nn.Module:
        raise RuntimeError("no mode for this one")

    monkeypatch.setattr(mixed[1], "train", train)
    with pytest.raises(RuntimeError, match="no mode"), evaluating(mixed):
        pass
    assert flags(mixed) == MIXED


def test_a_module_added_within_the_block_is_left_alone(mixed: nn.Sequential) -> None:
    with evaluating(mixed):
        mixed.append(nn.Dropout())
    assert flags(mixed) == [*MIXED, True]
