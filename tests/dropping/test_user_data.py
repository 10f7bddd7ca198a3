"""Data sets in a loop of one's own: read by workers, unwrapped, tried on the network, and stored in a view of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from support.loops import SmallNet, free_store, small_data
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms.v2 import RandomHorizontalFlip

import ldbench
from ldbench import FixedSchedule, LayerDropper, UserError
from ldbench.dropping.measuring import count_on_the_spot, measure_on_the_spot
from ldbench.policies.plateaus import SimFreeze


def dropper_of(data: Any, **options: Any) -> tuple[SmallNet, torch.optim.Optimizer, LayerDropper]:
    torch.manual_seed(0)
    model = SmallNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    given: dict[str, Any] = {"epochs": 3, "check_every": 2, "policy": FixedSchedule(((0.4, 1), (0.7, 2)))}
    if not isinstance(data, DataLoader):
        given["batch_size"] = 16
    return model, optimizer, LayerDropper(model, optimizer, data, costs=free_store(model), **(given | options))


def train(optimizer: torch.optim.Optimizer, dropper: LayerDropper, epochs: int = 3) -> None:
    for _ in range(epochs):
        for x, y, _ in dropper:
            optimizer.zero_grad()
            nn.functional.cross_entropy(dropper(x), y).backward()
            optimizer.step()
            dropper.step()


def weights(data: Any, **options: Any) -> list[torch.Tensor]:
    model, optimizer, dropper = dropper_of(data, **options)
    with dropper:
        train(optimizer, dropper)
        assert dropper.cut == 2
    return list(model.state_dict().values())


class Labelled(Dataset[Any]):
    def __len__(self) -> int:
        return len(small_data()[1])

    def __getitem__(self, i: int) -> Any:
        images, targets = small_data()
        return {"image": images[i], "label": int(targets[i])}


def unpacked(item: Any) -> Any:
    return item["image"], item["label"]


@pytest.mark.parametrize("kind", ["data set", "workers", "data loader", "dicts", "arrays", "view"])
def test_every_kind_of_data_trains_to_the_same_bits(kind: str) -> None:
    images, targets = small_data()
    plain: Any = TensorDataset(images, targets)
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "data set": (plain, {}),
        "workers": (plain, {"num_workers": 1}),
        "data loader": (DataLoader(plain, batch_size=16, shuffle=True, num_workers=1), {}),
        "dicts": (Labelled(), {"to_xy": unpacked}),
        "arrays": ((images.numpy(), targets.numpy()), {}),
        "view": (plain, {"store_data": (images, targets)}),
    }
    data, options = cases[kind]
    assert all(torch.equal(a, b) for a, b in zip(weights((images, targets)), weights(data, **options), strict=True))


class Noisy(TensorDataset):
    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return x + torch.randn_like(x), y


def test_random_views_are_told_and_a_view_to_store_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    images, targets = small_data()
    _, _, dropper = dropper_of(Noisy(images, targets))
    assert "another view of a sample each time" in caplog.text
    caplog.clear()
    dropper_of(Noisy(images, targets), execution="freeze")
    model, optimizer, dropper = dropper_of(Noisy(images, targets), store_data=TensorDataset(images, targets))
    assert caplog.text == ""
    first = next(iter(dropper))
    assert not torch.equal(first[0], images[first[2]])
    train(optimizer, dropper, epochs=2)
    assert dropper.cut == 1
    with torch.no_grad():
        expected = model.first.eval()(images[:5])
    torch.testing.assert_close(dropper.activations.read(torch.arange(5)), expected, rtol=1e-5, atol=1e-6)
    dropper_of(Noisy(images, targets), store_data=Noisy(images, targets))
    assert "another view" in caplog.text


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ((small_data()[0].byte(), small_data()[1]), {}, r"does not read images uint8 \[2, 3, 24, 24\]"),
        ((small_data()[0].half(), small_data()[1]), {}, "does not read images float16"),
        ((small_data()[0].double().numpy(), small_data()[1].numpy()), {}, "does not read images float64"),
        ((small_data()[0][:, :1], small_data()[1]), {}, r"images float32 \[2, 1, 24, 24\]"),
        ((small_data()[0][..., :20], small_data()[1]), {}, r"images float32 \[2, 3, 24, 20\]"),
        ((small_data()[0].movedim(1, -1), small_data()[1]), {}, r"images float32 \[2, 24, 24, 3\]"),
        (
            small_data(),
            {"store_data": (small_data()[0][:5], small_data()[1][:5])},
            "store_data has 5 samples and data 96",
        ),
        (small_data(), {"store_data": (small_data()[0].byte(), small_data()[1])}, "does not read images uint8"),
    ],
)
def test_what_the_network_does_not_read_is_said_before_the_run(data: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        dropper_of(data, **options)
    assert "\n" not in str(raised.value)


def test_half_precision_images_are_read_where_autocast_is_given() -> None:
    images, targets = small_data()
    weights((images.half(), targets), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))


def test_trying_the_network_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = SmallNet(dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    LayerDropper(model, torch.optim.SGD(model.parameters(), 0.1), small_data(), batch_size=16, epochs=1)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("views", [False, True])
def test_workers_end_with_an_epoch_a_break_and_a_drop(views: bool) -> None:
    images, targets = small_data()
    data = TensorDataset(images, targets)
    options = {"store_data": (images, targets)} if views else {}
    _, optimizer, dropper = dropper_of(data, num_workers=2, **options)
    busy = []
    for x, y, _ in dropper:
        nn.functional.cross_entropy(dropper(x), y).backward()
        optimizer.step()
        busy.append(len(multiprocessing.active_children()))
        dropper.step()
        if dropper.step_count == 3:
            break
    assert busy == [2, 2, 2]
    assert multiprocessing.active_children() == []
    for _ in range(2):
        for x, y, _ in dropper:
            nn.functional.cross_entropy(dropper(x), y).backward()
            optimizer.step()
            if dropper.cut:
                assert multiprocessing.active_children() == []
            dropper.step()
    assert dropper.cut == 2
    assert multiprocessing.active_children() == []


class Jittered(TensorDataset):
    """Random transforms that draw from each of the global streams; whole minibatches at a time where ``bulk``."""

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        x = RandomHorizontalFlip()(x + np.random.rand())  # noqa: NPY002 - as users do
        return x * random.uniform(0.5, 1.5), y


class JitteredInBulk(Jittered):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        noise = torch.randn(len(indices))
        return [(self[i][0] + noise[k], self[i][1]) for k, i in enumerate(indices)]


def stored_rows(dropper: LayerDropper) -> torch.Tensor:
    made = dropper.activations
    return torch.stack([made.read(made.views.keys(torch.arange(96), view)) for view in range(made.views.count)])


@pytest.mark.parametrize("kind", [Jittered, JitteredInBulk])
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"refresh_views": 0.25}])
def test_random_transforms_make_views_that_differ_and_can_be_made_again(
    kind: type[Any], options: dict[str, Any]
) -> None:
    _, optimizer, dropper = dropper_of(kind(*small_data()), views=3, **options)
    train(optimizer, dropper, epochs=2)
    assert dropper.cut == 1
    rows = stored_rows(dropper)
    assert all(float((rows[a] - rows[b]).abs().amax((1, 2, 3)).min()) > 0 for a, b in ((0, 1), (0, 2), (1, 2)))
    drawn = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    dropper.activations.rebuild()
    assert torch.equal(drawn[0], torch.get_rng_state())
    assert drawn[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    assert torch.equal(stored_rows(dropper), rows)


def test_views_of_a_data_set_resume_in_another_process_of_other_workers() -> None:
    data = Jittered(*small_data())
    model, optimizer, dropper = dropper_of(data, views=2, refresh_views=0.5, seed=4)
    train(optimizer, dropper, epochs=2)
    states = model.state_dict(), optimizer.state_dict(), dropper.state_dict()
    rows = stored_rows(dropper)
    other, later, second = dropper_of(data, views=2, refresh_views=0.5, seed=4, num_workers=2)
    other.load_state_dict(states[0])
    later.load_state_dict(states[1])
    second.load_state_dict(states[2])
    assert torch.equal(stored_rows(second), rows)
    for made, optimizing in ((dropper, optimizer), (second, later)):
        train(optimizing, made, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_one_random_draw_that_is_stored_can_be_made_again_too() -> None:
    _, optimizer, dropper = dropper_of(Jittered(*small_data()))
    train(optimizer, dropper, epochs=2)
    rows = stored_rows(dropper)
    dropper.activations.rebuild()
    assert torch.equal(stored_rows(dropper), rows)


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (small_data(), {"views": 2}, "views=2: every view of a sample would be the same one"),
        (small_data(), {"refresh_views": 0.1}, "random transforms of a data set"),
        (Noisy(*small_data()), {"views": 2, "store_data": small_data()}, "random transforms of a data set"),
        (Noisy(*small_data()), {"views": 2, "execution": "freeze"}, "execution='freeze' has none"),
        (
            Noisy(*small_data()),
            {"change_features": {"mirror": 0.5}, "execution": "freeze"},
            "execution='freeze' has none",
        ),
        (
            (small_data()[0], small_data()[1][:, None, None].expand(-1, 8, 8)),
            {"change_features": {"shift": 0.1, "cutout": 0.1}},
            r"shift, cutout changes maps, and not targets such as \[8, 8\]",
        ),
        (small_data(), {"change_features": ["mirror=0.5"]}, "named with their strengths"),
        (
            Noisy(*small_data()),
            {"refresh_views": 0.5, "policy": SimFreeze(samples=10_000)},
            "none is left to be made anew",
        ),
        (Noisy(*small_data()), {"views": 0}, "whole number from 1 to 1024"),
        (Noisy(*small_data()), {"views": 2, "refresh_views": 2}, "between 0 and 1"),
        (Noisy(*small_data()), {"change_features": {"blur": 0.5}}, "no change of stored features is called 'blur'"),
    ],
)
def test_views_that_make_no_sense_are_refused(data: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dropper_of(data, **options)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [("swin_t", "mirror", r"channels last, \[8, 8, 96\]"), ("swin_t", "cutout", "channels last"),
     ("convnext_tiny", "mirror", ""), ("densenet121", "mirror", ""), ("vit_b_16", "shift", "no stage of this network")],
)  # fmt: skip
def test_features_are_changed_where_the_change_does_what_it_says(name: str, kind: str, said: str) -> None:
    size = {"image_size": 32} if name.startswith("vit") else {}
    network = getattr(torchvision.models, name)(weights=None, num_classes=3, **size)
    data = torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        LayerDropper(
            network,
            torch.optim.SGD(network.parameters()),
            data,
            batch_size=2,
            epochs=2,
            change_features={kind: 0.5},
        )


def test_measuring_costs_leaves_the_streams_that_transforms_draw_from_alone() -> None:
    _, _, dropper = dropper_of(Noisy(*small_data()), views=2)
    activations = dropper.activations
    for measure in (
        lambda: count_on_the_spot(dropper.stages, activations),
        lambda: measure_on_the_spot(dropper.stages, activations, dropper.optimizer, None, print),
    ):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        measure()
        assert torch.equal(torch.get_rng_state(), before)


class FlippedPairs(TensorDataset):
    """The target says whether the image was mirrored: another one with each view."""

    def __getitem__(self, i: int) -> Any:
        x, _ = super().__getitem__(i)
        mirrored = int(torch.rand(()) < 0.5)
        return (x.flip(-1) if mirrored else x) + 10 * mirrored, mirrored


def test_a_target_belongs_to_its_view(tmp_path: Path) -> None:
    data = FlippedPairs(*small_data())
    store = ldbench.StoreOptions(folder=tmp_path, budget="0,0,1GB", identity="pairs")
    _, optimizer, dropper = dropper_of(data, views=3, refresh_views=0.3, seed=2, store=store)
    train(optimizer, dropper, epochs=3)
    made, samples = dropper.activations, torch.arange(96)
    assert len(made.renewals) == 1

    def pairs(of: Any) -> list[Any]:
        return [of.batch(samples, number=number) for number in range(9)]

    seen = pairs(made)
    assert (
        int(torch.stack([y for _, y in seen]).float().std(0).gt(0).sum()) > 48
    )  # most samples have views of both kinds
    images = small_data()[0]
    with torch.no_grad():
        plain, mirrored = (dropper.stages[: dropper.cut].eval()(x) for x in (images, images.flip(-1) + 10))
    for x, y in seen:
        expected = torch.where(y.view(-1, *[1] * (x.dim() - 1)) == 1, mirrored, plain)
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    made.keep()
    state = dropper.state_dict()
    made.close(keep_file=True)
    _, _, other = dropper_of(data, views=3, refresh_views=0.3, seed=2, store=store)
    other.model.load_state_dict(dropper.model.state_dict())
    other.load_state_dict(state)
    for (x, y), (again, label) in zip(seen, pairs(other.activations), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, label)


class OwnGenerator(TensorDataset):
    generator = torch.Generator().manual_seed(0)

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return x + torch.randn(x.shape, generator=self.generator), y


def test_what_is_to_be_known_of_views_is_told(caplog: pytest.LogCaptureFixture) -> None:
    dropper_of(OwnGenerator(*small_data()), views=2)
    assert "a generator of their own" in caplog.text
    caplog.clear()
    dropper_of(TensorDataset(*small_data()), views=2)
    assert "all the same" in caplog.text
    caplog.clear()
    dropper_of(Noisy(*small_data()), views=2)
    assert caplog.text == ""
    state = torch.get_rng_state()  # drawn from since the seed by the model's weights alone
    torch.manual_seed(0)
    SmallNet()
    assert torch.equal(torch.get_rng_state(), state)


class Slow(TensorDataset):
    """A minibatch of 16 takes at least 16 ms to read."""

    reads = 0

    def __getitem__(self, i: int) -> Any:
        time.sleep(1e-3)
        self.reads += 1
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_costs_what_the_loop_waits_for_it(workers: int) -> None:
    data = Slow(*small_data())
    _, optimizer, dropper = dropper_of(data, policy=FixedSchedule(()), num_workers=workers)
    for x, y, _ in dropper:
        nn.functional.cross_entropy(dropper(x), y).backward()
        optimizer.step()
        dropper.step()
        time.sleep(0.1 * workers)  # a worker reads meanwhile
    before = data.reads
    assert (dropper.costs.measure().input_seconds >= 0.016) == (workers == 0)
    assert data.reads == before + 16, "it isn't read anew in every round"
