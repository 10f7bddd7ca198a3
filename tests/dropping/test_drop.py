"""A drop is made whole or not at all, and its cut is the one that pays best where the rule leaves a choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.interruptions import Bench, check_resuming

from ldbench.errors import UserError
from ldbench.policies.registry import build_policy


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("drops"))


def test_interrupted_anywhere_the_cheapest_cut_ends_with_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    policy = {"schedule": {"drops": [[0.25, 0.3], [0.6, 0.6]], "cheapest": True}}
    check_resuming(bench, bench.cell("schedule", policy=policy), tmp_path, once=23, often=9)


@pytest.mark.parametrize("wrong", [{"cheapest": 1}, {"drops": [[2, 1]]}, {"anneal": 0.1}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        build_policy("schedule", wrong)


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_a_drop_without_room_leaves_everything_in_place(bench: Bench, tmp_path: Path) -> None:
    options = {"schedule": {"drops": [[0.25, 0.3]]}}
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
