"""accelerate needs no adapter: ``LayerDropper`` takes what ``prepare`` gives, and is saved with its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.loops import BATCH, SAMPLES, Net, cheap_store, data, state
from torch import Tensor, nn

from ldbench import FixedSchedule, LayerDropper
from ldbench.policies.base import NeverDrop
from ldbench.seeds import sample_order

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ldbench[accelerate]'")

EPOCHS = 4
STEPS = SAMPLES // BATCH

pytestmark = pytest.mark.usefixtures("one_thread")


class Loop:
    """A loop with all that accelerate offers on one device; without a policy it does without a dropper."""

    def __init__(self, policy: Any = None, precision: str = "no", accumulate: int = 1) -> None:
        accelerate.state.AcceleratorState._reset_state(True)
        self.accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate
        )
        torch.manual_seed(3)
        self.network = Net()
        optimizer = torch.optim.AdamW(self.network.parameters(), 1e-2, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, EPOCHS * STEPS // accumulate)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(self.network, optimizer, scheduler)
        self.dropper: Any = None
        if policy is not None:
            self.dropper = LayerDropper(
                self.model,
                self.optimizer,
                data(),
                batch_size=BATCH,
                epochs=EPOCHS,
                policy=policy,
                costs=cheap_store(Net()),
                check_every=2,
                autocast=self.accelerator.autocast,
            )
            self.accelerator.register_for_checkpointing(self.dropper)
        self.weights: list[dict[str, Tensor]] = []

    def train(self, epochs: range, folder: Path | None = None, at: int = 0) -> Loop:
        forward = self.model if self.dropper is None else self.dropper
        for epoch in epochs:
            self.model.train()
            for x, y in self._plain(epoch) if self.dropper is None else ((x, y) for x, y, _ in self.dropper):
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(nn.functional.cross_entropy(forward(x).float(), y))
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
                if self.accelerator.sync_gradients and self.dropper is not None:
                    self.dropper.step()
                    self.weights.append(state(self.network))
                    if folder is not None and self.dropper.step_count == at:
                        self.accelerator.save_state(str(folder))
        return self

    def _plain(self, epoch: int) -> Any:
        images, targets = data()
        return [(images[i], targets[i]) for i in torch.split(sample_order(SAMPLES, 0, epoch), BATCH)]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_without_a_drop_it_trains_as_accelerate_does(precision: str, accumulate: int) -> None:
    plain = Loop(None, precision, accumulate).train(range(EPOCHS))
    ours = Loop(NeverDrop(), precision, accumulate).train(range(EPOCHS))
    assert same(state(plain.network), state(ours.network))
    assert ours.dropper.step_count == EPOCHS * STEPS // accumulate


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_was_dropped_never_moves_and_the_model_stays_whole(precision: str, accumulate: int) -> None:
    loop = Loop(FixedSchedule(((0.2, 1), (0.5, 2))), precision, accumulate).train(range(EPOCHS))
    drops = loop.dropper.drops
    assert [drop.cut for drop in drops] == [1, 2]
    for drop, part in zip(drops, ("first.", "second."), strict=True):
        after = loop.weights[drop.step - 1 :]
        gone = [{name: value for name, value in weights.items() if name.startswith(part)} for weights in after]
        assert len(gone) > 1
        assert all(same(gone[0], weights) for weights in gone)
        assert not torch.equal(after[0]["head.weight"], after[-1]["head.weight"])
    assert loop.model(data()[0]).shape == (SAMPLES, 4)


@pytest.mark.parametrize("at", [2, STEPS, 9, 15])
def test_a_loaded_state_goes_on_with_the_same_drops(tmp_path: Path, at: int) -> None:
    policy = FixedSchedule(((0.2, 1), (0.5, 2)))
    straight = Loop(policy, "bf16").train(range(EPOCHS), tmp_path, at)
    resumed = Loop(policy, "bf16")
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(range(at // STEPS, EPOCHS))
    assert resumed.dropper.step_count == straight.dropper.step_count == EPOCHS * STEPS
    assert [(d.step, d.cut) for d in resumed.dropper.drops] == [(d.step, d.cut) for d in straight.dropper.drops]
    assert same(state(straight.network), state(resumed.network))


@pytest.mark.parametrize("given", [True, False])
def test_a_prepared_models_precision_is_missed_where_nobody_gives_it(given: bool) -> None:
    loop = Loop(precision="bf16")
    options: dict[str, Any] = {"batch_size": BATCH, "epochs": 1, "policy": NeverDrop()}
    if given:
        options["autocast"] = loop.accelerator.autocast
    with LayerDropper(loop.model, loop.optimizer, data(), **options) as dropper:
        told = [incident["what"] for incident in dropper.account.incidents]
    assert told == [] if given else ("model.forward was replaced" in told[0] and len(told) == 1)
