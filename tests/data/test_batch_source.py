"""Data as people have it: what is read, in which order, by whom, and what is said where it is something else."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from ldbench import UserError
from ldbench.data.batch_source import as_batch_source, read_ahead
from ldbench.data.dataset_source import DatasetSource, from_data_loader
from ldbench.data.items import Reading
from ldbench.data.sample_check import check_samples, gives_random_views

CPU = torch.device("cpu")


def source(data: Any, **reading: Any) -> DatasetSource:
    made = as_batch_source(data, CPU, Reading(**reading))
    assert isinstance(made, DatasetSource)
    return made


class Pictures(Dataset[Any]):
    """Items made by a function of the index."""

    def __init__(self, make: Any, count: int = 20) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


def picture(i: int) -> Tensor:
    return torch.full((3, 4, 4), float(i))


def pair(i: int) -> Any:
    return picture(i), i % 3


def as_dict(i: int) -> Any:
    return {"pixels": picture(i), "label": i % 3, "name": f"{i}.png"}


def some(count: int = 20) -> tuple[Tensor, Tensor]:
    return torch.stack([picture(i) for i in range(count)]), torch.arange(count) % 3


# --- what is read ----------------------------------------------------------------------------------------------------


def stacked(items: list[Any]) -> Any:
    return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])


def gathered(items: list[Any]) -> Any:
    return {"x": torch.stack([item["pixels"] for item in items]), "y": torch.tensor([i["label"] for i in items])}


def pixels_and_label(item: Any) -> Any:
    return item["pixels"], item["label"]


def x_and_y(batch: Any) -> Any:
    return batch["x"], batch["y"]


def read_only(values: Any) -> Any:
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    ("data", "reading"),
    [
        (some(), {}),
        (tuple(read_only(part.numpy().copy()) for part in some()), {}),
        ((some()[0], some()[1].tolist()), {}),
        ([some()[0], list(some()[1])], {}),
        (TensorDataset(*some()), {}),
        ([pair(i) for i in range(20)], {}),
        (Pictures(pair), {}),
        (Pictures(lambda i: (picture(i).numpy(), np.int64(i % 3))), {}),
        (ConcatDataset([Subset(Pictures(pair), range(7)), Subset(Pictures(pair), range(7, 20))]), {}),
        (Pictures(as_dict), {"to_xy": pixels_and_label}),
        (Pictures(pair), {"collate_fn": stacked}),
        (Pictures(as_dict), {"collate_fn": gathered, "to_xy": x_and_y}),
        (Pictures(lambda i: (read_only(picture(i).numpy()), read_only(np.array(i % 3)))), {}),
        (tuple(part.numpy()[::-1].astype(part.numpy().dtype.newbyteorder(">"))[::-1] for part in some()), {}),
        (([*some()[0]], [*some()[1]]), {}),
        (type("Named", (Pictures,), {"batch": lambda self, batch_size: None})(pair), {}),
        (Pictures(pair), {"num_workers": 1}),
        (Pictures(as_dict), {"num_workers": 2, "to_xy": pixels_and_label}),
    ],
)
def test_samples_are_read_by_index(data: Any, reading: dict[str, Any]) -> None:
    made = as_batch_source(data, CPU, Reading(**reading))
    indices = torch.tensor([13, 2, 2, 19])
    assert len(made) == 20
    check_samples(made)
    assert not gives_random_views(made)
    read_ahead(made, [indices, torch.tensor([0])])
    for wanted in (indices, torch.tensor([0])):
        x, y = made.batch(wanted)
        assert torch.equal(x, some()[0][wanted])
        assert torch.equal(y, some()[1][wanted])


@pytest.mark.parametrize(
    "target", [2, 0.5, torch.tensor(3.0), np.array([1.0, 0.0]), torch.zeros(4, 4, dtype=torch.int64), True]
)
def test_targets_of_any_one_shape(target: Any) -> None:
    _, y = source(Pictures(lambda i: (picture(i), target))).batch(torch.tensor([1, 4]))
    expected = torch.as_tensor(target, dtype=torch.float64 if isinstance(target, float) else None)
    assert torch.equal(y, torch.stack([expected, expected]))


@settings(max_examples=25, deadline=None)
@given(
    order=st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=5), max_size=6),
    stray=st.lists(st.integers(0, 19), min_size=1, max_size=3),
    at=st.integers(0, 6),
    asked=st.integers(0, 6),
    workers=st.sampled_from([0, 0, 1]),
)
def test_reading_ahead_changes_nothing(
    order: list[list[int]], stray: list[int], at: int, asked: int, workers: int
) -> None:
    """Whatever is expected, asked for out of turn, or let go of half-way."""
    made = source(Pictures(pair), num_workers=workers)
    torch.manual_seed(4)
    for _ in range(2):
        made.expect([torch.tensor(indices) for indices in order])
        for place, indices in enumerate(order[:asked]):
            if place == at:
                assert torch.equal(made.batch(torch.tensor(stray))[0], some()[0][stray])
            assert torch.equal(made.batch(torch.tensor(indices))[0], some()[0][indices])
    made.expect([])
    drawn = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(drawn, torch.rand(3)), "the user's random numbers are left alone"


def test_workers_end_when_nothing_is_expected_any_more() -> None:
    made = source(Pictures(pair), num_workers=2)
    made.expect([torch.tensor([i]) for i in range(8)])
    made.batch(torch.tensor([0]))
    assert len(multiprocessing.active_children()) == 2
    made.expect([])
    assert multiprocessing.active_children() == []


def test_workers_end_with_the_last_minibatch_that_is_expected() -> None:
    made = source(Pictures(pair), num_workers=1)
    made.expect([torch.tensor([0]), torch.tensor([1])])
    for i in range(2):
        assert made.batch(torch.tensor([i]))[1].tolist() == [i]
    assert multiprocessing.active_children() == []


class Opened(Pictures):
    """Readable where a worker's initialisation has opened it, as files are that cannot be shared between processes."""

    opened = False

    def __getitem__(self, i: int) -> Any:
        return picture(i), int(self.opened)


def open_in_worker(worker: int) -> None:
    info: Any = get_worker_info()
    assert isinstance(info.dataset, Opened)
    info.dataset.opened = True


def test_a_worker_is_shown_the_users_own_data_set() -> None:
    made = source(Opened(None), num_workers=1, worker_init_fn=open_in_worker)
    made.expect([torch.tensor([4])])
    assert made.batch(torch.tensor([4]))[1].tolist() == [1]


def dies(i: int) -> Any:
    return os._exit(3) if get_worker_info() is not None else pair(i)


def hangs(i: int) -> Any:
    if get_worker_info() is not None:
        time.sleep(1.5)
    return pair(i)


@pytest.mark.parametrize(
    ("make", "reading", "said"),
    [
        (dies, {}, "exited unexpectedly"),
        (hangs, {"timeout": 0.2}, "timed out"),
        (lambda i: pair(i), {"multiprocessing_context": "spawn"}, "pickle"),
    ],
)
def test_workers_in_trouble_are_told_of_in_one_line_and_reading_can_go_on(
    make: Any, reading: dict[str, Any], said: str
) -> None:
    made = source(Pictures(make), num_workers=1, **reading)
    made.expect([torch.tensor([4]), torch.tensor([5])])
    with pytest.raises(UserError, match=f"{said}.*num_workers=0") as raised:
        made.batch(torch.tensor([4]))
    assert "\n" not in str(raised.value)
    assert multiprocessing.active_children() == []
    assert made.batch(torch.tensor([4]))[1].tolist() == [1]


def test_after_an_interruption_no_minibatch_is_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    made, workers = source(Pictures(pair), num_workers=1), DatasetSource._workers

    def interrupted(self: DatasetSource) -> Any:
        for read in workers(self):
            del read  # it has left the workers, and has not come to the loop
            raise KeyboardInterrupt
            yield

    made.expect([torch.tensor([i]) for i in (1, 2, 3)])
    monkeypatch.setattr(DatasetSource, "_workers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.batch(torch.tensor([1]))
    monkeypatch.undo()
    assert made.batch(torch.tensor([1]))[1].tolist() == [1]


def noise(i: int) -> Any:
    return torch.rand(3, 4, 4), i


def test_random_transforms_in_workers_follow_the_seed() -> None:
    def first(seed: int, times: int) -> Tensor:
        made = as_batch_source(Pictures(noise), CPU, Reading(num_workers=1), seed=seed)
        for _ in range(times):
            read_ahead(made, [torch.tensor([0, 1])])
        return made.batch(torch.tensor([0, 1]))[0]

    assert torch.equal(first(3, 1), first(3, 1))
    assert not torch.equal(first(3, 1), first(4, 1))
    assert not torch.equal(first(3, 1), first(3, 2)), "another epoch, another view"


def flipped(i: int) -> Any:
    return (picture(i).cumsum(2).flip(2) if random.random() < 0.5 else picture(i).cumsum(2)), 0


@pytest.mark.parametrize("make", [noise, flipped, lambda i: (picture(i) + np.random.rand(), 0)])  # noqa: NPY002
def test_random_views_are_noticed_and_the_random_states_put_back(make: Any) -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index]  # noqa: NPY002
    made = source(Pictures(make))
    check_samples(made)
    assert gives_random_views(made)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tobytes())  # type: ignore[index]  # noqa: NPY002


def test_a_view_that_is_not_a_number_is_the_same_view() -> None:
    assert not gives_random_views(source(Pictures(lambda i: (torch.full((3, 2, 2), torch.nan), 1))))


# --- a DataLoader ----------------------------------------------------------------------------------------------------


def test_a_data_loader_that_shuffles_is_taken_apart() -> None:
    loader = DataLoader(
        Pictures(pair), batch_size=8, shuffle=True, num_workers=2, collate_fn=stacked, prefetch_factor=3
    )
    dataset, size, reading, notes = from_data_loader(loader)
    assert dataset is loader.dataset
    assert (size, reading.num_workers, reading.collate_fn, reading.prefetch_factor) == (8, 2, stacked, 3)
    assert notes == ["the last 4 samples of an epoch, fewer than a minibatch, are left out (as drop_last=True)"]
    plain = DataLoader(Pictures(pair), batch_size=5, shuffle=True)
    assert from_data_loader(plain)[2:] == (Reading(), [])
    assert from_data_loader(DataLoader(Pictures(pair), batch_size=8, shuffle=True, drop_last=True))[3] == []
    assert from_data_loader(DataLoader(Pictures(pair), batch_size=32, shuffle=True))[3] == []


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from map(pair, range(9))


class Doubled(DataLoader[Any]):
    def __iter__(self) -> Any:
        return ((2 * x, y) for x, y in super().__iter__())


class Unmeasured(Dataset[Any]):
    def __getitem__(self, i: int) -> Any:
        return pair(i)


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (lambda: DataLoader(Endless(), batch_size=4), "front to back"),
        (lambda: Doubled(Pictures(pair), batch_size=4, shuffle=True), "a way of its own"),
        (lambda: DataLoader(Unmeasured(), 4, sampler=torch.utils.data.RandomSampler(range(9))), "has no __len__"),
        (lambda: DataLoader(Pictures(pair), batch_size=4), "SequentialSampler"),
        (lambda: DataLoader(Pictures(pair), 4, sampler=WeightedRandomSampler([1.0] * 20, 20)), "WeightedRandomSampler"),
        (lambda: DataLoader(Pictures(pair), 4, sampler=SequentialSampler(range(20))), "SequentialSampler"),
        (lambda: DataLoader(Pictures(pair), batch_sampler=[[1, 2], [3]]), "minibatches of its own"),
        (lambda: DataLoader(Pictures(pair), batch_size=None, shuffle=True), "minibatches of its own"),
        (
            lambda: DataLoader(
                Pictures(pair), 4, sampler=torch.utils.data.RandomSampler(Pictures(pair), num_samples=8)
            ),
            "not every sample",
        ),
    ],
)
def test_a_data_loader_of_another_kind_is_refused(loader: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        from_data_loader(loader())
    assert "\n" not in str(raised.value)


# --- something else --------------------------------------------------------------------------------------------------


class Short(Pictures):
    def __getitems__(self, indices: list[int]) -> Any:
        return [pair(i) for i in indices[1:]]


def fails(i: int) -> Any:
    if i >= 7:
        raise FileNotFoundError(f"{i}.png\nis gone")
    return pair(i)


@pytest.mark.parametrize(
    ("data", "reading", "said"),
    [
        (None, {}, "not None"),
        (iter([]), {}, "a data set with a length"),
        (Endless(), {}, "a data set with a length"),
        ({"x": 1, "y": 2}, {}, "dict with 'x', 'y'"),
        ([], {}, "no sample"),
        (Pictures(pair, 0), {}, "no sample"),
        ((torch.zeros(0, 3, 4, 4), torch.zeros(0)), {}, "no sample"),
        ((torch.zeros(4, 3, 4, 4), torch.zeros(5)), {}, "differ in length"),
        ((torch.zeros(4), torch.zeros(4, 3, 4, 4)), {}, "swapped"),
        ((torch.zeros(4, 3, 4, 4), ["cat", "dog"] * 2), {}, "targets are a list of str"),
        ((torch.zeros(4, 3, 4, 4), None), {}, "targets are a NoneType"),
        ((torch.zeros(4, 3, 4, 4), np.array([object()] * 4)), {}, "targets are a ndarray"),
        (Pictures(as_dict), {}, r"to_xy=lambda item: \(item\['pixels'\], item\['label'\]\)"),
        (
            Pictures(lambda i: {"id": i, "image": picture(i), "coarse_label": 1}),
            {},
            r"lambda item: \(item\['image'\], item\['coarse_label'\]\)",
        ),
        (Pictures(lambda i: {"pixels": picture(i)}), {}, r"lambda item: \(item\['pixels'\], item\['label'\]\)"),
        (Pictures(picture), {}, "sample 0 is a Tensor: items are"),
        (Pictures(lambda i: (torch.tensor(i), picture(i))), {}, "the image of sample 0 is one number"),
        (Pictures(lambda i: (picture(i), np.str_("cat"))), {}, "the target of sample 0 is"),
        (Subset(Pictures(fails), range(20)), {}, "sample 8 of the data set cannot be read: FileNotFoundError"),
        (Short(pair), {}, "__getitems__ of the data set gives 7 items for 8 samples"),
        (Pictures(pair, "20"), {}, "__len__ fails: TypeError"),  # type: ignore[arg-type]
        (some(), {"to_xy": pixels_and_label}, "to_xy and collate_fn are for the items of a data set"),
        (Pictures(lambda i: (picture(i),)), {}, "sample 0 is a tuple"),
        (Pictures(lambda i: None), {}, "sample 0 is a NoneType"),
        (Pictures(lambda i: (picture(i), "cat")), {}, "the target of sample 0 is 'cat'"),
        (Pictures(lambda i: (picture(i), None)), {}, "the target of sample 0 is None"),
        (Pictures(lambda i: (picture(i), [1, 2])), {}, "the target of sample 0 is a list"),
        (Pictures(lambda i: ("a.png", 1)), {}, "the image of sample 0 is a str"),
        (Pictures(lambda i: (torch.zeros(3, 4, 4 + (i == 19)), 1)), {}, r"sample 19 \[3, 4, 5\]: all images"),
        (Pictures(lambda i: (picture(i), torch.zeros(1 + (i == 19)))), {}, r"sample 19 \[2\]: all targets"),
        (Pictures(fails), {}, "sample 8 of the data set cannot be read: FileNotFoundError: 8.png is gone"),
        (Pictures(pair), {"to_xy": lambda item: item["x"]}, "to_xy fails on sample 0: TypeError"),
        (Pictures(as_dict), {"collate_fn": gathered}, "collate_fn gives a dict with 'x', 'y'"),
        (Pictures(pair), {"collate_fn": lambda items: 3}, "collate_fn gives no"),
        (Pictures(pair), {"collate_fn": lambda items: stacked(items[1:])}, "7 images and 7 targets of 8 samples"),
        (Pictures(pair), {"collate_fn": lambda items: 1 / 0}, "collate_fn or to_xy fails"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data: Any, reading: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        check_samples(as_batch_source(data, CPU, Reading(**reading)))
    assert "\n" not in str(raised.value)


def test_pictures_that_are_no_tensors_are_named() -> None:
    from PIL import Image

    with pytest.raises(UserError, match=r"PIL.*ToTensor"):
        check_samples(source(Pictures(lambda i: (Image.new("RGB", (4, 4)), 1))))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_fails_in_the_middle_of_a_run_is_named(workers: int) -> None:
    made = source(Pictures(fails), num_workers=workers)
    made.expect([torch.tensor([1, 2]), torch.tensor([3, 9])])
    assert len(made.batch(torch.tensor([1, 2]))[1]) == 2
    with pytest.raises(UserError, match=r"sample 9 of the data set cannot be read: FileNotFoundError: 9\.png is gone"):
        made.batch(torch.tensor([3, 9]))


def test_what_failed_in_a_worker_is_chained_with_its_place() -> None:
    made = source(Pictures(fails), num_workers=1)
    made.expect([torch.tensor([9])])
    with pytest.raises(UserError) as raised:
        made.batch(torch.tensor([9]))
    assert "in fails" in str(raised.value.__cause__)


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(UserError, match="num_workers is -1"):
        Reading(num_workers=-1)
