"""Loops drawn at random: optimizer, loss, dtype, frozen stages, BatchNorm's mode, accumulation, rule and execution.

What every one of them keeps: no error once the dropper is made; until something is dropped the weights are those of the
same loop without a dropper, bit for bit; what was dropped never moves again; the user's flags come back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.loops import SmallNet, free_store, small_data
from support.optimizers import Lookahead, SharpnessAware
from torch import Tensor, nn

from ldbench import AutoFreeze, FixedSchedule, FreezeOut, LayerDropper, LearnAndDrop
from ldbench.costs import timing
from ldbench.policies.base import NeverDrop, Policy
from ldbench.policies.plateaus import Egeria, ParameterFreezing

EPOCHS, BATCH = 3, 16
Parameters = Any

OPTIMIZERS: dict[str, Callable[[Parameters], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01),
    "plain sgd": lambda p: torch.optim.SGD(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-4, momentum=0.5),
    "lookahead": lambda p: Lookahead(torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01)),
    "sharpness-aware": lambda p: SharpnessAware(p, torch.optim.SGD, 0.02, lr=0.01, momentum=0.9),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.05, max_iter=2, history_size=3),
}
POLICIES: dict[str, Callable[[], Policy]] = {
    "never": NeverDrop,
    "schedule": lambda: FixedSchedule(((0.2, 1), (0.5, 2), (0.8, 3))),
    "cheapest": lambda: FixedSchedule(((0.3, 0.5),), cheapest=True),
    "autofreeze": lambda: AutoFreeze(percentile=80, intervals=6),
    "learn-and-drop": lambda: LearnAndDrop(remaining=1.0, patience=1, earliest=0.0),
    "freezeout": lambda: FreezeOut(t_first=0.3),
    "egeria": lambda: Egeria(window=2, tolerance=1.0, patience=1, samples=8),
    "apf": lambda: ParameterFreezing(threshold=0.9, patience=1),
}


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, y)


def binary(output: Tensor, y: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output[:, 0], (y > 2).to(output.dtype))


def regression(output: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(output.mean(1), y.to(output.dtype))


@dataclass(frozen=True)
class Loop:
    optimizer: str
    loss: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype
    frozen: int
    norm: str
    accumulate: int
    policy: str
    execution: str
    measured: bool
    criterion: str
    order: str


LOOPS = st.builds(
    Loop,
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    loss=st.sampled_from([cross_entropy, binary, regression]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    frozen=st.integers(0, 3),
    norm=st.sampled_from(["train", "eval", "no momentum", "no statistics"]),
    accumulate=st.integers(1, 3),
    policy=st.sampled_from(sorted(POLICIES)),
    execution=st.sampled_from(["store", "freeze"]),
    measured=st.booleans(),
    criterion=st.sampled_from(["none", "given", "wrong"]),
    order=st.sampled_from(["zero_grad first", "zero_grad before dropper.step"]),
)


def network(loop: Loop) -> SmallNet:
    torch.manual_seed(3)
    model = SmallNet()
    if loop.norm == "no momentum":
        model.first[1].momentum = None
    if loop.norm == "no statistics":
        model.second[1] = nn.BatchNorm2d(8, track_running_stats=False)
    model = model.to(loop.dtype).train()
    if loop.norm == "eval":
        model.first[1].eval()
    for stage in [model.first, model.second, model.hidden][: loop.frozen]:
        stage.requires_grad_(False)
    return model


class Twin:
    """A model and its optimizer, stepped on minibatches in the way the loop was drawn."""

    def __init__(self, loop: Loop, model: SmallNet) -> None:
        self.loop, self.model = loop, model
        self.optimizer = OPTIMIZERS[loop.optimizer]([p for p in model.parameters() if p.requires_grad])

    def step(self, minibatches: list[Any], forward: Callable[[Tensor], Tensor]) -> None:
        def backward() -> Tensor:
            self.optimizer.zero_grad()
            losses = [self.loop.loss(forward(x), y) / len(minibatches) for x, y in minibatches]
            for loss in losses:
                loss.backward()
            return sum(loss.detach() for loss in losses)  # type: ignore[return-value]

        if self.loop.optimizer == "lbfgs":
            self.optimizer.step(backward)
        else:
            backward()
            if self.loop.optimizer == "sharpness-aware":
                self.optimizer.climb()
                backward()
            self.optimizer.step()
        if self.loop.order != "zero_grad first":
            self.optimizer.zero_grad()


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit; loops drawn at random may diverge, and do so alike."""
    return all(bool(((value == b[name]) | (value.isnan() & b[name].isnan())).all()) for name, value in a.items())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(loop=LOOPS)
def test_any_loop(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_PROBE_BYTES", 2**18)  # the store's speed is of no interest here
    model = network(loop)
    flags, held = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    mine, plain = Twin(loop, model), Twin(loop, copy.deepcopy(model))
    images, targets = small_data()
    images = images.to(loop.dtype)
    wrong = binary if loop.loss is regression else lambda output, y: nn.functional.nll_loss(output[:, 0], y)
    dropper = LayerDropper(
        model,
        mine.optimizer,
        (images, targets),
        batch_size=BATCH,
        epochs=EPOCHS,
        check_every=1,
        policy=POLICIES[loop.policy](),
        execution=loop.execution,  # type: ignore[arg-type]
        costs=None if loop.measured else free_store(model),
        criterion={"none": None, "given": loop.loss, "wrong": wrong}[loop.criterion],
    )
    gone: dict[str, Tensor] = {}
    groups = [list(group["params"]) for group in dropper.optimizer.param_groups]
    for _ in range(EPOCHS):
        waiting: list[Any] = []
        for x, y, index in dropper:
            waiting.append((x, y, index))
            if len(waiting) < loop.accumulate:
                continue
            mine.step([(x, y) for x, y, _ in waiting], dropper)
            if dropper.cut == 0:
                plain.step([(images[index], targets[index]) for _, _, index in waiting], plain.model)
                assert same(bits(model), bits(plain.model)), "without a drop it is an ordinary loop"
            assert same(gone, bits(model)), "what was dropped never moves"
            waiting = []
            if dropper.step() is not None:
                before = [f"{n}." for n in ("first", "second", "hidden")[: dropper.cut]]
                gone = {n: value for n, value in bits(model).items() if n.startswith(tuple(before))}
    if loop.norm == "no statistics":
        assert dropper.cut < 2, "rows behind it depend on their minibatch"
    assert dropper.explain().stages[-1].why
    dropper.close()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == held
    assert all(
        p is q
        for a, group in zip(groups, dropper.optimizer.param_groups, strict=True)
        for p, q in zip(a, group["params"], strict=True)
    )
