"""Dropping: what leaves training is really gone, what stays is untouched, and skipping the forward pass changes
nothing else.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.loops import BATCH, SAMPLES, Net, Training, cheap_store, data, state
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from ldbench import FixedSchedule, LayerDropper, LearnAndDrop, Stream, UserError
from ldbench.costs.table import CostTable
from ldbench.policies.base import Policy
from ldbench.policies.registry import Execution
from ldbench.policies.rules import Replay
from ldbench.store.budget import StoreBudget, StoreOptions
from ldbench.store.fill import PROBED

DROP_TWO = ((0.25, 1), (0.5, 2))


@pytest.mark.parametrize("execution", ["store", "freeze"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_dropped_parameters_gradients_and_statistics_never_move_again(optimizer: str, execution: Execution) -> None:
    training = Training(FixedSchedule(DROP_TWO), execution, dropout=0.5, optimizer=optimizer)
    training.epoch()
    training.epoch()
    training.epoch()
    assert training.dropper.cut == 2
    before = state(training.model)
    gone = [*training.model.first.parameters(), *training.model.second.parameters()]
    for p in gone:
        assert p.grad is None
        assert not p.requires_grad
        assert p not in training.optimizer.state
        assert all(p is not q for group in training.optimizer.param_groups for q in group["params"])
    training.model.train()  # as every loop says: it must not wake what the engine runs
    assert training.model.first[1].training
    training.epoch()
    for name, value in training.model.state_dict().items():
        if name.startswith(("first", "second")):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(training.model.head.weight, before["head.weight"])


def test_new_samples_join_the_store_in_evaluation_mode_whatever_model_train_did() -> None:
    sets = Stream([torch.arange(48), torch.arange(24, SAMPLES)])
    training = Training(FixedSchedule(((0.1, 2),), waits=False), stream=sets)
    while training.dropper.cut == 0:
        training.epoch()
    before = state(training.model)
    training.model.train()
    training.dropper.begin_chunk(1)
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    new = torch.arange(48, SAMPLES)
    with torch.no_grad():
        direct = training.model.eval().second(training.model.first(data()[0][new]))
    torch.testing.assert_close(training.dropper.activations.read(new), direct.flatten(1), rtol=1e-5, atol=1e-6)


def test_a_set_in_which_nothing_is_new_goes_on_with_the_store_as_it_is() -> None:
    sets = Stream([torch.arange(48), torch.arange(48), torch.arange(24, 48)])
    training = Training(FixedSchedule(((0.1, 2),), waits=False), stream=sets)
    while training.dropper.cut == 0:
        training.epoch()
    before = training.dropper.activations.read(torch.arange(24, 48)).clone()
    for chunk in (1, 2):
        training.dropper.begin_chunk(chunk)
        training.epoch()
    assert torch.equal(training.dropper.activations.read(torch.arange(24, 48)), before)


# --- the model stays the user's own
# ------------------------------------------------------------------------------------


def moves_statistics(model: nn.Module) -> bool:
    """Whether a forward pass in train mode moves the statistics of the first stage's BatchNorm."""
    norm = model.first[1]
    before = norm.running_mean.clone()
    model.train()
    model(data()[0] * 3 + 1)
    return norm.training and not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("execution", ["store", "freeze"])
def test_copies_and_averages_of_a_model_with_dropped_stages_are_ordinary_models(execution: Execution) -> None:
    training = Training(FixedSchedule(DROP_TWO), execution)
    for _ in range(3):
        training.epoch()
    assert training.dropper.cut == 2
    before = state(training.model)
    copied, averaged = copy.deepcopy(training.model), AveragedModel(training.model)
    averaged.update_parameters(training.model)
    assert all("train" not in vars(module) for module in (*copied.modules(), *averaged.modules()))
    assert moves_statistics(copied)
    assert moves_statistics(averaged.module)
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


def test_a_saved_model_is_loaded_where_there_is_no_ldbench(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    dropper = LayerDropper(
        model,
        optimizer,
        data(),
        batch_size=BATCH,
        epochs=1,
        policy=FixedSchedule(((0.2, 2),)),
        execution="freeze",
        check_every=2,
    )
    for x, y, _ in dropper:
        optimizer.zero_grad()
        nn.functional.cross_entropy(dropper(x), y).backward()
        optimizer.step()
        dropper.step()
    assert dropper.cut == 2
    torch.save(model, tmp_path / "model.pt")
    images = data()[0] * 3 + 1
    torch.save(images, tmp_path / "images.pt")
    code = """
import sys
sys.modules["ldbench"] = None
import torch
model = torch.load("model.pt", weights_only=False).train()
assert all(module.training for module in model.modules())
before = model[1].running_mean.clone()
model(torch.load("images.pt"))
assert not torch.equal(model[1].running_mean, before)
torch.save(model.eval()(torch.load("images.pt")), "out.pt")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    direct = copy.deepcopy(model).train()
    direct(images)
    assert torch.equal(torch.load(tmp_path / "out.pt"), direct.eval()(images))


def test_batchnorm_statistics_can_be_made_anew_on_the_model_itself() -> None:
    training = Training(FixedSchedule(DROP_TWO)).run()
    assert training.dropper.cut == 2
    images = data()[0]
    update_bn([images], training.model)
    plain = Net()
    plain.load_state_dict(training.model.state_dict())
    update_bn([images], plain)
    for (name, value), other in zip(training.model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_freeze_and_store_end_with_the_same_weights_within_rounding(dropout: float) -> None:
    stored = Training(FixedSchedule(DROP_TWO), "store", dropout).run()
    frozen = Training(FixedSchedule(DROP_TWO), "freeze", dropout).run()
    assert stored.dropper.cut == frozen.dropper.cut == 2
    for (name, a), b in zip(stored.model.state_dict().items(), frozen.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    untouched = Training(FixedSchedule(()), "store", dropout).run()
    assert not torch.allclose(untouched.model.head.weight, stored.model.head.weight, rtol=1e-2, atol=1e-3)


def test_cached_activations_are_the_prefixs_output_in_evaluation_mode() -> None:
    training = Training(FixedSchedule(DROP_TWO)).run()
    training.model.eval()
    images, targets = data()
    seen = 0
    for x, y, index in training.dropper.loader(99):
        with torch.no_grad():
            direct = training.model.second(training.model.first(images[index]))
        torch.testing.assert_close(x, direct.flatten(1) if x.dim() == 2 else direct, rtol=1e-5, atol=1e-6)
        assert torch.equal(y, targets[index])
        seen += len(index)
    assert seen == SAMPLES


def test_a_second_drop_reads_the_first_store_and_not_the_images() -> None:
    training = Training(FixedSchedule(DROP_TWO))
    while training.dropper.cut == 0:
        training.epoch()
    training.dropper.activations.images = None  # type: ignore[assignment]
    training.run()
    assert training.dropper.cut == 2


@pytest.mark.parametrize("policy", [FixedSchedule(((0.5, 1),)), Replay([(8, 1)])])
def test_batchnorm_statistics_stay_as_training_left_them_whatever_the_rule(policy: Policy) -> None:
    training = Training(policy)
    ledger = training.dropper.count_flops((1, 8, 8))
    norm, running = training.model.first[1], []
    norm.register_forward_hook(
        lambda module, x, y: running.append((module.training, module.running_mean.clone())) and None
    )
    training.run()
    assert training.dropper.cut == 1
    assert torch.equal(norm.running_mean, [mean for training, mean in running if training][-1])
    assert ledger.building == ledger.table[0].forward * (SAMPLES + PROBED)  # the pass that fills the store, no other


def test_batchnorm_statistics_are_the_populations_where_they_are_re_estimated() -> None:
    training = Training(FixedSchedule(((0.5, 1),)), refresh_statistics=True)
    while training.dropper.cut == 0:
        training.epoch()
    norm, conv = training.model.first[1], training.model.first[0]
    with torch.no_grad():
        out = conv(data()[0])
    torch.testing.assert_close(norm.running_mean, out.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, out.var((0, 2, 3)), rtol=0.05, atol=1e-4)  # averaged over minibatches
    assert norm.momentum == 0.1


def test_order_and_dropout_do_not_depend_on_what_was_dropped() -> None:
    runs = [Training(FixedSchedule(drops), dropout=0.5) for drops in ((), DROP_TWO)]
    orders = [[index.tolist() for epoch in range(2) for _, _, index in run.dropper.loader(epoch)] for run in runs]
    assert orders[0] == orders[1]
    masks: list[list[Tensor]] = [[], []]
    for run, seen in zip(runs, masks, strict=True):
        run.model.drop.register_forward_hook(lambda m, x, y, seen=seen: seen.append((y == 0) & (x[0] != 0)))
        run.run()
    assert runs[1].dropper.cut == 2
    assert len(masks[0]) == len(masks[1]) == runs[0].dropper.total_steps
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
    assert not torch.equal(masks[0][0], masks[0][1])  # and a new mask every step


@pytest.mark.parametrize(("dtype", "drift"), [("fp16", 0.05), ("bf16", 0.2), ("int8", 0.2)])
def test_narrow_stores_train_close_to_the_exact_one(dtype: str, drift: float) -> None:
    exact = Training(FixedSchedule(DROP_TWO)).run()
    narrow = Training(FixedSchedule(DROP_TWO), store=StoreOptions(dtype=dtype)).run()
    assert narrow.dropper.account.peak_store_bytes < exact.dropper.account.peak_store_bytes
    limit = {"fp16": 2**-11, "bf16": 2**-8, "int8": 0.02}[dtype]
    assert all(drop.store_relative_error == 0.0 for drop in exact.dropper.drops)
    assert all(0.0 < drop.store_relative_error <= limit for drop in narrow.dropper.drops)
    images, targets = data()
    losses = []
    for run in (exact, narrow):
        run.model.eval()
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(run.model(images), targets)))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=drift)


def test_a_store_on_disk_trains_to_the_same_bits_and_is_deleted(tmp_path: Path) -> None:
    device = Training(FixedSchedule(DROP_TWO)).run()
    disk = Training(FixedSchedule(DROP_TWO), store=StoreOptions(budget=StoreBudget(0, 0, 10**9), folder=tmp_path)).run()
    assert {drop.store_tier for drop in disk.dropper.drops} == {"disk"}
    assert len(list(tmp_path.iterdir())) == 1  # the first store went when the second was made
    for a, b in zip(device.model.state_dict().values(), disk.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    disk.dropper.close()
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_while_building_falls_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldbench.store.activation_store import ActivationStore

    def no_memory(self: ActivationStore, *arguments: object) -> Tensor:
        if self.tier == "device":
            raise MemoryError
        return allocate(self, *arguments)  # type: ignore[arg-type]

    allocate = ActivationStore._allocate
    monkeypatch.setattr(ActivationStore, "_allocate", no_memory)
    training = Training(FixedSchedule(DROP_TWO), store=StoreOptions(folder=tmp_path)).run()
    assert [drop.store_tier for drop in training.dropper.drops] == ["disk", "disk"]


def test_a_drop_that_cannot_pay_is_not_made_and_says_why() -> None:
    table = CostTable.from_dict(cheap_store(Net()).to_dict() | {"inference": [1e9] * 4})
    training = Training(FixedSchedule(((0.6, 2),)), epochs=2, costs=table).run()
    assert training.dropper.cut == 0
    assert "does not pay" in training.dropper.account.declined[0]["reason"]


def test_the_model_is_whole_and_ordinary_again_after_close() -> None:
    training = Training(FixedSchedule(DROP_TWO)).run()
    training.dropper.close()
    training.model.train()
    assert all(module.training for module in training.model.modules())
    assert all(p.requires_grad for p in training.model.parameters())
    plain = Net()
    plain.load_state_dict(training.model.state_dict())
    images = data()[0]
    assert torch.equal(plain.eval()(images), training.model.eval()(images))


def test_training_without_a_drop_is_ordinary_training_bit_for_bit() -> None:
    run = Training(FixedSchedule(())).run()
    torch.manual_seed(3)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
    images, targets = data()
    for epoch in range(4):
        for _, _, index in run.dropper.loader(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[index]), targets[index]).backward()
            optimizer.step()
    for a, b in zip(run.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{}, {"views": 1, "store_data": data()}])
def test_training_with_a_store_is_a_loop_by_hand_bit_for_bit(options: dict[str, object]) -> None:
    run = Training(FixedSchedule(((0.3, 2),), waits=False), **options).run()
    (drop,) = run.dropper.drops
    torch.manual_seed(3)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
    images, targets = data()
    stored: Tensor | None = None
    steps = 0
    for epoch in range(4):
        for _, _, index in run.dropper.loader(epoch):
            optimizer.zero_grad()
            out = model(images[index]) if stored is None else model.head(model.drop(model.hidden(stored[index])))
            nn.functional.cross_entropy(out, targets[index]).backward()
            optimizer.step()
            steps += 1
            if steps == drop.step:
                with torch.no_grad():
                    gone = nn.Sequential(model.first, model.second).eval()
                    stored = torch.cat([gone(part).flatten(1) for part in torch.split(images, BATCH)])
                for p in gone.parameters():
                    p.grad = None  # which the optimizer leaves alone
    assert 0 < drop.step < steps
    for a, b in zip(run.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_default_policy_measures_its_own_costs_and_records_scores() -> None:
    training = Training(LearnAndDrop(remaining=1.0, patience=1, earliest=0.0), costs=None, epochs=6).run()
    assert training.dropper.costs.known is not None
    assert training.dropper.checks[0]["change"]
    assert training.dropper.drops or training.dropper.account.declined


def test_map_style_data_sets_can_feed_the_loop() -> None:
    tensors = data()
    plain = Training(FixedSchedule(DROP_TWO)).run()
    torch.manual_seed(3)
    training = Training(FixedSchedule(DROP_TWO))
    training.dropper = LayerDropper(
        training.model,
        training.optimizer,
        torch.utils.data.TensorDataset(*tensors),
        batch_size=BATCH,
        epochs=4,
        policy=FixedSchedule(DROP_TWO),
        check_every=2,
        costs=cheap_store(training.model),
    )
    training.run()
    for a, b in zip(plain.model.state_dict().values(), training.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", ["tensors of different length", "no length", "no duration"])
def test_wrong_arguments_are_refused(wrong: str) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    images, targets = data()
    feeds = {
        "tensors of different length": (images, targets[:5]),
        "no length": iter([]),
        "no duration": (images, targets),
    }
    length = {} if wrong == "no duration" else {"epochs": 1}
    with pytest.raises((ValueError, UserError)):
        LayerDropper(model, optimizer, feeds[wrong], batch_size=4, **length)


def test_a_stale_gradient_cannot_move_a_dropped_parameter() -> None:
    """Momentum or weight decay on a parameter that kept its gradient is how frozen layers drift elsewhere."""
    training = Training(FixedSchedule(((0.25, 1),)), epochs=2)
    while training.dropper.cut == 0:
        training.epoch()
    weight = training.model.first[0].weight
    before = weight.clone()
    weight.grad = torch.ones_like(weight)
    training.optimizer.step()
    assert torch.equal(weight, before)


class Shared(nn.Module):
    """One dropout behind two layers, so that a dropped and a live stage hold the same module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(torch.flatten(x, 1)))
        return self.head(self.drop(self.second(x)))


def shared(execution: Execution) -> tuple[Shared, torch.optim.Optimizer, LayerDropper]:
    torch.manual_seed(0)
    model = Shared()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    policy = FixedSchedule(((0.4, 1),), cheapest=False)
    dropper = LayerDropper(
        model, optimizer, data(), batch_size=BATCH, epochs=4, policy=policy, execution=execution, check_every=2
    )
    return model, optimizer, dropper


def train(model: nn.Module, optimizer: torch.optim.Optimizer, dropper: LayerDropper, epochs: int) -> None:
    for _ in range(epochs):
        for x, y, _ in dropper:
            optimizer.zero_grad()
            nn.functional.cross_entropy(dropper(x), y).backward()
            optimizer.step()
            dropper.step()


def test_a_dropout_that_a_dropped_and_a_live_stage_share_stays_on_and_resuming_gives_the_same_bits() -> None:
    model, optimizer, dropper = shared("freeze")
    train(model, optimizer, dropper, 2)
    assert dropper.cut == 1
    assert model.drop.training
    seen: list[bool] = []
    model.drop.register_forward_hook(lambda module, x, y: seen.append(module.training))
    saved = copy.deepcopy((model.state_dict(), dropper.state_dict(), optimizer.state_dict()))
    train(model, optimizer, dropper, 2)
    assert seen == [False, True] * 12  # in the dropped stage, then in the live one
    again, optimizer, resumed = shared("freeze")
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    optimizer.load_state_dict(saved[2])
    train(again, optimizer, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_flops_can_be_counted_from_a_state_on_that_did_not_count() -> None:
    model, optimizer, dropper = shared("freeze")
    train(model, optimizer, dropper, 1)
    _, _, resumed = shared("freeze")
    resumed.count_flops((1, 8, 8))
    resumed.load_state_dict(dropper.state_dict())
    resumed.step()
    assert resumed.account.flops.total > 0


def test_a_store_whose_rebuilding_was_cut_short_is_made_again(tmp_path: Path) -> None:
    training = Training(FixedSchedule(DROP_TWO), store=StoreOptions(budget="0,0,100MB", folder=tmp_path)).run()
    activations = training.dropper.activations
    before = activations.read(torch.arange(SAMPLES)).clone()

    def stop() -> None:
        raise KeyboardInterrupt

    chain, activations.on_batch = list(activations.chain), stop
    with pytest.raises(KeyboardInterrupt):
        activations.rebuild()
    assert activations.chain == chain
    activations.on_batch = lambda: None
    again, _ = activations.batch(torch.arange(SAMPLES))
    assert torch.equal(again, before)


def test_a_set_out_of_turn_and_an_execution_that_is_none_are_refused() -> None:
    _, _, dropper = shared("store")
    with pytest.raises(ValueError, match="does not follow"):
        dropper.begin_chunk(2)
    with pytest.raises(ValueError, match="store or freeze"):
        shared("frezze")  # type: ignore[arg-type]
    _, _, frozen = shared("freeze")
    with pytest.raises(ValueError, match="execution"):
        frozen.load_state_dict(dropper.state_dict())
