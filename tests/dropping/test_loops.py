"""Loops as people write them: what they freeze, wrap, accumulate, hold in evaluation mode, and how they put it."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.loops import SmallNet, free_store, small_data
from support.optimizers import Lookahead, SharpnessAware
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from ldbench import AutoFreeze, FixedSchedule, LayerDropper, LearnAndDrop, StoreOptions, UserError
from ldbench.policies.base import NeverDrop

ONE = ((0.1, 1),)
EPOCHS = 4


def dropper_of(model: nn.Module, optimizer: Any, **options: Any) -> LayerDropper:
    """A dropper of a small network on small data, in whose cost table every drop pays."""
    plain = getattr(model, "_orig_mod", model)
    given: dict[str, Any] = {"batch_size": 16, "epochs": EPOCHS, "check_every": 2, "policy": FixedSchedule(ONE)}
    if "costs" not in options:
        given["costs"] = free_store(plain)
    return LayerDropper(model, optimizer, options.pop("data", small_data()), **(given | options))


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.05, momentum=0.9, **options)


def train(dropper: LayerDropper, optimizer: Any, epochs: int = EPOCHS, loss: Any = nn.functional.cross_entropy) -> None:
    for _ in range(epochs):
        for x, y, _ in dropper:
            optimizer.zero_grad()
            loss(dropper(x), y).backward()
            optimizer.step()
            dropper.step()


@pytest.fixture
def model() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet()


# --- silently wrong in ordinary loops --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["zero_grad first", "step, zero_grad, dropper"])
def test_the_order_of_zero_grad_makes_no_difference_to_a_rule_that_reads_gradients(order: str) -> None:
    cuts = []
    torch.manual_seed(0)
    model = SmallNet()
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, policy=AutoFreeze(percentile=100, intervals=8))
    seen = []
    for _ in range(EPOCHS):
        for x, y, _ in dropper:
            if order == "zero_grad first":
                optimizer.zero_grad()
            nn.functional.cross_entropy(dropper(x), y).backward()
            optimizer.step()
            if order != "zero_grad first":
                optimizer.zero_grad()
            dropper.step()
    seen = [check["gradient"] for check in dropper.checks]
    cuts.append(dropper.cut)
    assert any(value for check in seen for value in check if value)
    assert dropper.cut > 0


def test_a_loop_that_hides_its_gradients_is_told_so(model: SmallNet, caplog: pytest.LogCaptureFixture) -> None:
    held, steps = sgd(model), sgd(model)
    dropper = dropper_of(model, held, policy=AutoFreeze(intervals=8))
    train(dropper, steps)
    assert dropper.cut == 0
    assert "no gradient was seen" in caplog.text


def test_closing_puts_flags_and_optimizer_back(model: SmallNet) -> None:
    optimizer = sgd(model)
    before = [list(group["params"]) for group in optimizer.param_groups]
    with dropper_of(model, optimizer) as dropper:
        train(dropper, optimizer)
        assert dropper.cut == 1
        assert not any(p.requires_grad for p in model.first.parameters())
    assert all(p.requires_grad for p in model.parameters())
    after = [list(group["params"]) for group in optimizer.param_groups]
    assert all(p is q for a, b in zip(before, after, strict=True) for p, q in zip(a, b, strict=True))
    dropper.close()
    weight = model.first[0].weight.clone()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model.train()(small_data()[0]), small_data()[1]).backward()
    optimizer.step()
    assert not torch.equal(weight, model.first[0].weight)


def test_a_dropper_that_is_deleted_lets_the_model_go(model: SmallNet) -> None:
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    train(dropper, optimizer)
    assert dropper.cut == 1
    del dropper
    assert all(p.requires_grad for p in model.parameters()), "without waiting for the garbage collector"


def test_a_second_dropper_of_a_model_ends_the_first(model: SmallNet, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = sgd(model)
    first = dropper_of(model, optimizer)
    train(first, optimizer)
    second = dropper_of(model, optimizer)
    assert second.cut == 0
    assert not any(second.decider.frozen)
    assert "at work already" in caplog.text


def test_dropout_leaves_the_users_random_numbers_alone() -> None:
    torch.manual_seed(0)
    model = SmallNet(dropout=0.5)
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    drawn = []
    torch.manual_seed(1)
    for x, y, _ in dropper:
        nn.functional.cross_entropy(dropper(x), y).backward()
        optimizer.step()
        dropper.step()
        drawn.append(float(torch.rand(())))
    torch.manual_seed(1)
    assert drawn == [float(torch.rand(())) for _ in drawn]


def test_a_replaced_forward_and_hooks_of_containers_are_noticed(
    model: SmallNet, caplog: pytest.LogCaptureFixture
) -> None:
    plain = model.forward
    model.forward = lambda x: plain(x).float()  # type: ignore[method-assign]
    model.first.register_forward_hook(lambda module, x, y: None)
    model.first[0].register_forward_hook(lambda module, x, y: None)
    dropper = dropper_of(model, sgd(model))
    told = [incident["what"] for incident in dropper.account.incidents]
    assert len(told) == 2
    assert "model.forward was replaced" in told[0]
    assert "hooks of first are not called" in told[1]
    assert told[0] in caplog.text


def test_a_store_is_made_under_the_autocast_that_the_loop_runs_in(model: SmallNet) -> None:
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    for x, y, _ in dropper:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(dropper(x), y)
        loss.backward()
        optimizer.step()
        dropper.step()
    assert dropper.cut == 1
    assert dropper.activations.read(torch.arange(4)).dtype == torch.bfloat16
    state = dropper.state_dict()
    other = copy.deepcopy(model).requires_grad_(True)
    again = dropper_of(other, sgd(other))
    again.load_state_dict(state)
    assert torch.equal(again.activations.read(torch.arange(4)), dropper.activations.read(torch.arange(4)))


def test_an_autocast_that_is_given_covers_the_loops_forward_passes_too(model: SmallNet) -> None:
    dropper = dropper_of(model, sgd(model), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert dropper(next(iter(dropper))[0]).dtype == torch.bfloat16


# --- the model is the user's -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["store", "freeze"])
@pytest.mark.parametrize(
    "policy", [None, FixedSchedule(ONE), LearnAndDrop(), NeverDrop()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("frozen_by", ["requires_grad", "optimizer"])
def test_a_frozen_backbone_leaves_at_the_first_step(policy: Any, execution: Any, frozen_by: str) -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=5)
    trained = [*model.layer4.parameters(), *model.fc.parameters()]
    if frozen_by == "requires_grad":
        for parameter in set(model.parameters()) - set(trained):
            parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(trained, 0.01)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(32, 3, 32, 32, generator=generator), torch.arange(32) % 5
    costs = free_store(model, (3, 32, 32))
    flags = [p.requires_grad for p in model.parameters()]
    dropper = dropper_of(
        model, optimizer, data=data, batch_size=8, epochs=3, policy=policy, execution=execution, costs=costs
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y, _ = next(iter(dropper))
    nn.functional.cross_entropy(dropper(x), y).backward()
    optimizer.step()
    moved = model.layer1[0].bn1.running_mean.clone()
    drop = dropper.step()
    assert drop is not None
    assert dropper.stage_names[dropper.cut - 1].startswith("layer3.1")
    assert "no parameter to train" in drop.reason
    assert torch.equal(model.layer1[0].bn1.running_mean, moved)
    held = {name: value.clone() for name, value in model.state_dict().items()}
    train(dropper, optimizer, epochs=1)
    for name, value in model.state_dict().items():
        if name.startswith(("conv1", "bn1", "layer1", "layer2", "layer3")):
            assert torch.equal(value, held[name]), name
            assert "running" in name or "num_batches" in name or torch.equal(value, before[name]), name
    assert not torch.equal(model.fc.weight, before["fc.weight"])
    dropper.close()
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_frozen_backbone_whose_costs_are_measured_on_the_spot_trains_on(model: SmallNet) -> None:
    model.first.requires_grad_(False)
    model.second.requires_grad_(False)
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, costs=None)
    train(dropper, optimizer)
    assert dropper.costs.known is not None
    assert dropper.costs.known.backward[0] < dropper.costs.known.forward[0]
    assert dropper.account.declined == [] or "does not pay" in dropper.account.declined[0]["reason"]


def test_a_frozen_stage_in_the_middle_does_not_keep_a_rule_from_going_on() -> None:
    torch.manual_seed(0)
    model = SmallNet()
    model.second.requires_grad_(False)
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, policy=AutoFreeze(percentile=100, intervals=8))
    train(dropper, optimizer)
    assert dropper.cut > 1


def test_what_a_user_freezes_during_the_run_leaves_too(model: SmallNet) -> None:
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, policy=NeverDrop())
    train(dropper, optimizer, epochs=1)
    assert dropper.cut == 0
    model.first.requires_grad_(False)
    train(dropper, optimizer, epochs=1)
    assert dropper.cut == 1


def test_frozen_stages_can_be_kept_and_run_no_backward_pass(model: SmallNet) -> None:
    model.first.requires_grad_(False)
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, policy=NeverDrop(), drop_frozen=False)
    ledger = dropper.count_flops((3, 24, 24))
    train(dropper, optimizer, epochs=1)
    assert dropper.cut == 0
    samples = len(dropper) * dropper.batch_size
    assert ledger.backward[0] == 0
    assert ledger.backward[1] == samples * ledger.table[1].backward_first
    assert ledger.forward[0] == samples * ledger.table[0].forward


def test_nothing_to_train_is_refused(model: SmallNet) -> None:
    with pytest.raises(UserError, match="nothing to train"):
        dropper_of(model, torch.optim.SGD(SmallNet().parameters(), 0.1))


def test_statistics_that_the_user_holds_in_evaluation_mode_stay(model: SmallNet) -> None:
    optimizer = sgd(model)
    with torch.no_grad():
        model.first[1].running_mean.fill_(0.37)
    model.first[1].eval()
    dropper = dropper_of(model, optimizer)
    train(dropper, optimizer)
    assert dropper.cut == 1
    assert bool((model.first[1].running_mean == 0.37).all())


@pytest.mark.parametrize("policy", [FixedSchedule(ONE), AutoFreeze(percentile=100, intervals=8)])
@pytest.mark.parametrize("norm", ["frozen", "no momentum", "no statistics"])
def test_other_kinds_of_batchnorm(norm: str, policy: Any) -> None:
    torch.manual_seed(0)
    model = SmallNet()
    made = {
        "frozen": FrozenBatchNorm2d(8),
        "no momentum": nn.BatchNorm2d(8, momentum=None),
        "no statistics": nn.BatchNorm2d(8, track_running_stats=False),
    }
    model.first[1] = made[norm]
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, policy=policy)
    train(dropper, optimizer)
    if norm == "no statistics":
        assert dropper.cut == 0
        assert "no running statistics" in dropper.account.declined[0]["reason"]
    else:
        assert dropper.cut >= 1
        assert norm == "frozen" or model.first[1].momentum is None


class Mixes(nn.Module):
    """Looks at the other samples of a minibatch, in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


def test_a_stage_whose_rows_depend_on_their_minibatch_is_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = SmallNet()
    model.first.append(Mixes())
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    train(dropper, optimizer)
    assert dropper.cut == 0
    assert "depends on the other samples" in caplog.text
    assert len(dropper.account.declined) == 1, "and it is not tried again"


# --- measuring -------------------------------------------------------------------------------------------------------


def test_wrapped_optimizers(model: SmallNet) -> None:
    optimizer = Lookahead(sgd(model, weight_decay=0.01))
    dropper = dropper_of(model, optimizer)
    train(dropper, optimizer)
    assert dropper.cut == 1
    assert all(p not in optimizer.state for p in model.first.parameters())
    assert dropper.costs.measure().steps[0] > 0
    assert not dropper.account.incidents


def test_two_forward_passes_a_step_count_as_one_minibatch(model: SmallNet) -> None:
    optimizer = SharpnessAware(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.05, momentum=0.9)
    dropper = dropper_of(model, optimizer)
    for _ in range(EPOCHS):
        for x, y, _ in dropper:
            for after in (optimizer.climb, optimizer.step):
                optimizer.zero_grad()
                nn.functional.cross_entropy(dropper(x), y).backward()
                after()
            dropper.step()
    assert dropper.cut == 1
    assert dropper.progress == 1.0
    assert dropper.costs.measure().steps[0] > 0
    assert not dropper.account.incidents


def test_a_closure_and_its_quasi_newton_steps(model: SmallNet) -> None:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, history_size=4)
    dropper = dropper_of(model, optimizer, policy=AutoFreeze(percentile=100, intervals=8))
    held = None
    for _ in range(EPOCHS):
        for x, y, _ in dropper:

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(dropper(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
            if dropper.step() is not None:
                held = [p.clone() for p in model.first.parameters()]
    assert dropper.cut >= 1
    assert held is not None
    assert all(torch.equal(a, b) for a, b in zip(held, model.first.parameters(), strict=True))
    assert dropper.progress == 1.0
    assert dropper.costs.measure().steps[0] > 0


class Matrices(torch.optim.SGD):
    """Takes matrices alone, as Muon does."""

    def __init__(self, params: Any, lr: float = 0.05) -> None:
        super().__init__(params, lr)
        assert all(p.dim() == 2 for group in self.param_groups for p in group["params"])


@pytest.mark.parametrize("kind", [Matrices, getattr(torch.optim, "Muon", Matrices)])
def test_an_optimizer_that_holds_some_parameters_and_takes_no_others(model: SmallNet, kind: Any) -> None:
    optimizer = kind([p for p in model.parameters() if p.dim() == 2])
    dropper = dropper_of(model, optimizer, policy=NeverDrop())
    train(dropper, optimizer)
    assert dropper.cut == 2, "nothing moves the convolutions"
    assert dropper.costs.measure().steps[0] > 0


def prune(model: SmallNet) -> None:
    from torch.nn.utils import prune as pruning

    pruning.l1_unstructured(model.first[0], "weight", 0.3)


def weight_norm(model: SmallNet) -> None:
    model.first[0] = nn.utils.parametrizations.weight_norm(model.first[0])


def spectral_norm(model: SmallNet) -> None:
    model.first[0] = nn.utils.spectral_norm(model.first[0])


@pytest.mark.parametrize("change", [prune, weight_norm, spectral_norm])
def test_costs_are_measured_where_modules_cannot_be_copied(model: SmallNet, change: Callable[[SmallNet], None]) -> None:
    change(model)
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    table = dropper.costs.measure()
    assert min(table.steps) > 0
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train(dropper, optimizer)
    assert dropper.cut == 1


def binary(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output[:, 0], target)


def regression(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, target)


@pytest.mark.parametrize("criterion", ["given", "none", "cross entropy"])
@pytest.mark.parametrize("kind", ["binary", "regression", "per pixel"])
def test_any_loss(kind: str, criterion: str) -> None:
    torch.manual_seed(0)
    x, y = small_data()
    model: nn.Module = SmallNet()
    losses: dict[str, tuple[Any, Tensor]] = {
        "binary": (binary, (y > 2).float()),
        "regression": (regression, torch.randn(len(y), 5)),
        "per pixel": (nn.functional.cross_entropy, torch.randint(3, (len(y), 24, 24))),
    }
    loss, targets = losses[kind]
    if kind == "per pixel":
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    optimizer = sgd(model)
    chosen = {"given": loss, "none": None, "cross entropy": nn.functional.cross_entropy}[criterion]
    dropper = dropper_of(model, optimizer, data=(x, targets), criterion=chosen)
    train(dropper, optimizer, loss=loss)
    assert dropper.cut == 1
    assert dropper.activations.batch(torch.arange(3))[1].equal(targets[:3])
    assert min(dropper.costs.measure().steps) > 0
    wrong = criterion == "cross entropy" and kind == "binary"
    assert bool(dropper.account.incidents) == wrong


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = SmallNet().to(dtype)
    x, y = small_data()
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, data=(x.to(dtype), y))
    train(dropper, optimizer)
    assert dropper.cut == 1
    assert dropper.activations.read(torch.arange(3)).dtype == dtype
    assert min(dropper.costs.measure().steps) > 0


def test_costs_that_cannot_be_measured_leave_training_undropped(
    model: SmallNet, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, costs=None)
    calls = []

    def fails() -> Any:
        calls.append(1)
        raise RuntimeError("no clock")

    dropper.costs.measure = fails
    train(dropper, optimizer)
    assert dropper.cut == 0
    assert len(calls) == 1
    assert "costs could not be measured" in caplog.text
    assert "no clock" in dropper.account.declined[0]["reason"]


# --- known and used --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("dtype", ["fp16", "int8", "bf16", "fp32"])
def test_a_store_that_cannot_hold_its_values_is_not_read(
    dtype: str, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    x, y = small_data()
    x[-1 if late else slice(None)] *= 1e7
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    model(x[:2])
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dropper = dropper_of(model, optimizer, data=(x, y), store=StoreOptions(dtype=dtype))
    train(dropper, optimizer)
    if dtype == "fp16":
        assert dropper.cut == 0
        assert "a store in fp16 ends at 6.55e+04" in caplog.text
    else:
        assert dropper.cut == 1
        assert bool(dropper.activations.read(torch.arange(len(x))).isfinite().all())


@pytest.mark.parametrize("dtype", ["int8", "fp32"])
def test_an_output_that_is_not_finite_is_not_stored(dtype: str) -> None:
    torch.manual_seed(0)
    x, y = small_data()
    x[-1, 0, 0, 0] = torch.nan
    model = SmallNet()
    optimizer, policy = torch.optim.SGD(model.parameters(), 0.0), FixedSchedule(ONE)
    dropper = dropper_of(model, optimizer, data=(x, y), store=StoreOptions(dtype=dtype), policy=policy)
    train(dropper, optimizer)
    assert dropper.cut == 0
    assert "is not finite" in dropper.account.declined[0]["reason"]


def test_explain_says_of_every_stage_why_it_is_there(model: SmallNet) -> None:
    model.head.requires_grad_(False)
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, policy=FixedSchedule(((0.1, 1), (0.9, 2))))
    assert all("no check was made yet" in stage.why for stage in dropper.explain().stages[:-1])
    train(dropper, optimizer, epochs=2)
    told = dropper.explain()
    assert told.stages[0].dropped_at is not None
    assert told.stages[0].why.startswith("left at step")
    assert all(stage.why and stage.dropped_at is None for stage in told.stages[1:])
    assert "no parameter to train" in told.stages[-1].why
    assert all(name in str(told) for name in dropper.stage_names)


# --- wrappers --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch 2.11, of what it imports itself
def test_a_replicated_model_is_refused_and_a_compiled_one_taken_out(model: SmallNet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and warns of what it cannot trace
        scripted: Any = torch.jit.trace(model, small_data()[0][:2])
    with pytest.raises(UserError, match=r"DataParallel.*model\.module"):
        dropper_of(nn.DataParallel(model), sgd(model), costs=None)
    with pytest.raises(UserError, match="scripted"):
        dropper_of(scripted, sgd(model), costs=None)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match=r"DistributedDataParallel.*model\.module"):
            dropper_of(nn.parallel.DistributedDataParallel(model), sgd(model), costs=None)
    finally:
        torch.distributed.destroy_process_group()
    compiled: Any = torch.compile(model)
    dropper = dropper_of(compiled, sgd(model))
    assert dropper.model is model
    assert dropper.live._wants_compiled


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("called", ["with every optimizer step", "with every minibatch"])
@pytest.mark.parametrize("given", [None, 3])
def test_accumulated_gradients_are_counted(model: SmallNet, given: int | None, called: str) -> None:
    if given and called == "with every minibatch":
        pytest.skip("accumulate= says that step() is called with the optimizer's")
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, accumulate=given, policy=FixedSchedule(((0.5, 1),)), check_every=1)
    ledger = dropper.count_flops((3, 24, 24))
    seen = []
    for _ in range(EPOCHS):
        for place, (x, y, _) in enumerate(dropper, start=1):
            (nn.functional.cross_entropy(dropper(x), y) / 3).backward()
            if place % 3 == 0:
                optimizer.step()
                optimizer.zero_grad()
            if place % 3 == 0 or called == "with every minibatch":
                dropper.step()
                seen.append((dropper.progress, dropper.cut))
    assert dropper.progress == 1.0
    assert dropper.cut == 1
    assert min(progress for progress, cut in seen if cut == 1) == 0.5
    assert dropper.total_steps == dropper.step_count
    assert sum(ledger.forward[1:2]) >= EPOCHS * len(dropper) * dropper.batch_size * ledger.table[1].forward


def test_masks_differ_between_the_minibatches_of_a_step() -> None:
    torch.manual_seed(0)
    model = SmallNet(dropout=0.5)
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    masks: list[Tensor] = []
    model.drop.register_forward_hook(lambda module, x, y: masks.append((y == 0) & (x[0] != 0)))
    batches = iter(dropper)
    for _ in range(2):
        dropper(next(batches)[0])
    assert not torch.equal(masks[0], masks[1])


def ahead(batches: Iterator[Any], depth: int = 1) -> Iterator[Any]:
    """Fetches minibatches before they are asked for."""
    waiting = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > depth:
            yield waiting.pop(0)
    yield from waiting


class Even(nn.Module):
    """Stages of one shape, so that a minibatch that enters at the wrong one would pass unnoticed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(3 * 24 * 24, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_minibatch_fetched_before_a_drop_passes_through_what_was_dropped(depth: int, mixed: bool) -> None:
    torch.manual_seed(0)
    model = Even()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dropper = dropper_of(model, optimizer, policy=FixedSchedule(((0.3, 1), (0.6, 2)), cheapest=False))
    images = small_data()[0]
    for _ in range(EPOCHS):
        for x, _, index in ahead(iter(dropper), depth):
            scaled = x * 1.0 if mixed else x
            with torch.no_grad():
                expected = model(images[index])
            torch.testing.assert_close(dropper(scaled), expected, rtol=1e-4, atol=1e-4)
            optimizer.step()
            dropper.step()
    assert dropper.cut == 2
    assert dropper.progress == 1.0


def test_progress_bars_know_the_length(model: SmallNet) -> None:
    dropper = dropper_of(model, sgd(model))
    assert len(dropper) == len(list(dropper))
    assert repr(dropper).startswith("<LayerDropper of SmallNet: 0 of 4 stages dropped by FixedSchedule, step 0 of 24")


@pytest.mark.parametrize("order", ["dropper first", "optimizer first", "optimizer before there is a dropper"])
@pytest.mark.parametrize("at", [7, 9, 12])
def test_a_run_goes_on_where_it_was_saved_in_whichever_order_it_is_loaded(order: str, at: int) -> None:
    def start() -> tuple[SmallNet, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = SmallNet(dropout=0.3)
        return model, torch.optim.AdamW(model.parameters(), 1e-2)

    def go_on(dropper: LayerDropper, optimizer: torch.optim.Optimizer, save_at: int) -> Any:
        saved = None
        while dropper.step_count < 4 * len(dropper):
            for x, y, _ in dropper:
                optimizer.zero_grad()
                nn.functional.cross_entropy(dropper(x), y).backward()
                optimizer.step()
                dropper.step()
                if dropper.step_count == save_at:
                    saved = copy.deepcopy((dropper.model.state_dict(), optimizer.state_dict(), dropper.state_dict()))
        return saved

    model, optimizer = start()
    whole = dropper_of(model, optimizer, policy=FixedSchedule(((0.2, 1), (0.7, 2))))
    saved = go_on(whole, optimizer, at)
    assert whole.cut == 2
    again, fresh = start()
    again.load_state_dict(saved[0])
    if order == "optimizer before there is a dropper":
        fresh.load_state_dict(saved[1])
    dropper = dropper_of(again, fresh, policy=FixedSchedule(((0.2, 1), (0.7, 2))))
    if order == "optimizer first":
        fresh.load_state_dict(saved[1])
    dropper.load_state_dict(saved[2])
    if order == "dropper first":
        fresh.load_state_dict(saved[1])
    assert dropper.cut == 1
    go_on(dropper, fresh, -1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("at", range(1, 12))
@pytest.mark.parametrize(("accumulate", "depth"), [(1, 2), (4, 0), (3, 2)])
def test_a_run_that_fetches_ahead_or_accumulates_goes_on_where_it_was_saved(
    accumulate: int, depth: int, at: int
) -> None:
    """Twice six minibatches; saved after every step of the first epoch, its last ones too, while some wait."""

    def go_on(saved: Any = None, save_at: int = -1) -> tuple[Any, list[Tensor], int]:
        torch.manual_seed(0)
        model = SmallNet(dropout=0.3)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        dropper = dropper_of(model, optimizer, epochs=2)
        if saved is not None:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            dropper.load_state_dict(saved[2])
            saved = None
        while True:
            for place, (x, y, _) in enumerate(ahead(iter(dropper), depth), start=1):
                nn.functional.cross_entropy(dropper(x), y).backward()
                if place % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                    dropper.step()
                    if dropper.step_count == save_at:
                        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), dropper.state_dict()))
            optimizer.zero_grad()
            if dropper.progress >= 1 or dropper.schedule.epoch == 3:
                break
        return saved, [value.clone() for value in model.state_dict().values()], dropper.step_count

    saved, whole, steps = go_on(save_at=at)
    if saved is None or saved[2]["schedule"]["consumed"] == 12:
        assert at >= steps
        return
    _, again, as_many = go_on(saved)
    assert as_many == steps
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_an_epoch_that_was_left_early_is_over(model: SmallNet) -> None:
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    for x, y, _ in dropper:
        nn.functional.cross_entropy(dropper(x), y).backward()
        optimizer.step()
        dropper.step()
        if dropper.step_count == 2:
            break
    state = dropper.state_dict()
    other = SmallNet()
    again = dropper_of(other, sgd(other))
    again.load_state_dict(state)
    assert len(list(again)) == len(again)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("batch_size", {"batch_size": 8}),
        ("policy", {"policy": LearnAndDrop()}),
        ("samples", {"data": tuple(part[:64] for part in small_data())}),
        ("execution", {"execution": "freeze"}),
        ("store dtype", {"store": StoreOptions(dtype="bf16")}),
    ],
)
def test_the_state_of_another_run_is_refused_by_name(model: SmallNet, name: str, options: dict[str, Any]) -> None:
    state = dropper_of(model, sgd(model)).state_dict()
    other = SmallNet()
    dropper = dropper_of(other, sgd(other), **options)
    with pytest.raises(ValueError, match=f"the saved state has {name}"):
        dropper.load_state_dict(state)
    assert dropper.state_dict()["facts"][name] != state["facts"][name]


def test_another_optimizers_state_is_refused_in_words(model: SmallNet) -> None:
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    train(dropper, optimizer, epochs=2)
    with pytest.raises(UserError, match="was made for another model"):
        optimizer.load_state_dict(torch.optim.SGD(list(model.parameters())[:3], 0.1).state_dict())


def test_more_epochs_than_planned_are_told(model: SmallNet, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer, policy=NeverDrop())
    train(dropper, optimizer)
    assert "goes on beyond" not in caplog.text
    train(dropper, optimizer, epochs=2)
    assert caplog.text.count("goes on beyond the 24 it was given") == 1


def test_it_speaks(model: SmallNet, caplog: pytest.LogCaptureFixture) -> None:
    optimizer, made = sgd(model), []
    dropper = dropper_of(model, optimizer, on_drop=made.append)
    with caplog.at_level(logging.INFO, "ldbench"):
        train(dropper, optimizer)
    assert made == dropper.drops
    assert "left training (1 of 4)" in caplog.text
    assert dropper.stage_names[0] in caplog.text


def test_wrong_store_options_are_refused_at_once(model: SmallNet) -> None:
    with pytest.raises(UserError, match="fp32"):
        dropper_of(model, sgd(model), store=StoreOptions(dtype="fp23"))
    with pytest.raises(UserError, match="no size"):
        dropper_of(model, sgd(model), store=StoreOptions(budget="much"))


def test_nothing_keeps_a_dropper_alive(model: SmallNet) -> None:
    import weakref

    gc.disable()
    try:
        dropper = dropper_of(model, sgd(model))
        reference = weakref.ref(dropper)
        del dropper
        assert reference() is None
    finally:
        gc.enable()


def test_images_pass_through_the_whole_network_where_a_loop_evaluates_with_the_dropper(model: SmallNet) -> None:
    optimizer = sgd(model)
    dropper = dropper_of(model, optimizer)
    train(dropper, optimizer, epochs=2)
    assert dropper.cut == 1
    images = small_data()[0][:7]
    model.eval()
    with torch.no_grad():
        assert torch.equal(dropper(images), model(images))
    assert dropper.progress == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": LearnAndDrop}, "policy is a rule"),
        ({"policy": "learn-and-drop"}, "policy is a rule"),
        ({"autocast": torch.autocast("cpu", dtype=torch.bfloat16)}, "a function that gives the context"),
        ({"check_every": 0}, "check_every is a whole number"),
        ({"accumulate": 0}, "accumulate is a whole number"),
        ({"epochs": 0}, "the run has no step"),
        ({"batch_size": None}, "give batch_size"),
        ({"augment": object()}, "augment= is for a BatchSource"),
    ],
)
def test_a_wrong_argument_is_one_line(model: SmallNet, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        dropper_of(model, sgd(model), **options)
    assert "\n" not in str(raised.value)


def test_an_optimizer_that_is_none_is_refused(model: SmallNet) -> None:
    with pytest.raises(UserError, match="no optimizer with param_groups"):
        dropper_of(model, torch.optim.SGD)
    with pytest.raises(UserError, match=r"torch\.nn\.Module"):
        LayerDropper(SmallNet, sgd(model), small_data(), batch_size=4, epochs=1)  # type: ignore[arg-type]


def test_groups_of_their_own_and_one_that_is_added_later(model: SmallNet) -> None:
    """Biases without decay, a slower backbone, and a head that joins during the run."""
    biases = [p for name, p in model.named_parameters() if name.endswith("bias") and not name.startswith("head")]
    others = [p for name, p in model.named_parameters() if name.endswith("weight") and not name.startswith("head")]
    optimizer = torch.optim.AdamW([{"params": others, "weight_decay": 0.1}, {"params": biases, "lr": 1e-4}], 1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    dropper = dropper_of(model, optimizer)
    train(dropper, optimizer, epochs=1)
    assert dropper.cut == 1
    optimizer.add_param_group({"params": list(model.head.parameters())})
    scheduler.step()
    head = model.head.weight.clone()
    train(dropper, optimizer, epochs=1)
    assert not torch.equal(head, model.head.weight)
    saved = optimizer.state_dict()
    assert [len(group["params"]) for group in saved["param_groups"]] == [len(others), len(biases), 2]
    fresh = torch.optim.AdamW([{"params": others}, {"params": biases}, {"params": list(model.head.parameters())}])
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.state[others[-1]]["exp_avg"], optimizer.state[others[-1]]["exp_avg"])
    optimizer.load_state_dict(saved)  # in the middle of a run, dropped parameters being gone
    assert all(
        p is not q for group in optimizer.param_groups for p in group["params"] for q in model.first.parameters()
    )
    dropper.close()
    groups = [group["params"] for group in optimizer.param_groups]
    assert [[id(p) for p in group] for group in groups] == [
        [id(p) for p in part] for part in (others, biases, list(model.head.parameters()))
    ]


def test_nothing_is_left_on_the_optimizer(model: SmallNet) -> None:
    optimizer = sgd(model)

    def hooks() -> int:
        names = ("step_pre", "step_post", "state_dict_post", "load_state_dict_pre")
        return sum(len(getattr(optimizer, f"_optimizer_{name}_hooks")) for name in names)

    before = hooks()
    for _ in range(3):
        with dropper_of(model, optimizer) as dropper:
            assert hooks() == before + 4
            train(dropper, optimizer, epochs=1)
        assert hooks() == before
    with pytest.raises(UserError, match="differ in length"):
        dropper_of(model, optimizer, data=(small_data()[0], small_data()[1][:3]))
    gc.collect()  # the exception holds what it came from
    assert hooks() == before
    dropper = dropper_of(model, optimizer)
    copied = copy.deepcopy(optimizer)
    assert copied.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    del dropper
    assert hooks() == before


def test_a_closed_dropper_says_so(model: SmallNet) -> None:
    optimizer = sgd(model)
    with dropper_of(model, optimizer) as dropper:
        train(dropper, optimizer, epochs=1)
    for use in (lambda: next(iter(dropper)), lambda: dropper(small_data()[0]), dropper.step):
        with pytest.raises(UserError, match="is closed"):
            use()
    assert dropper.explain().stages[0].dropped_at is not None
    assert dropper.state_dict()["cut"] == 1
