"""Several views of each sample: what a step reads is what the dropped stages make of an augmented image."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldbench.data.augment import Augment
from ldbench.data.datasets import Split
from ldbench.data.loader import ResidentSplit
from ldbench.data.stream import Stream
from ldbench.errors import UserError
from ldbench.seeds import sample_order
from ldbench.store.activations import Activations
from ldbench.store.budget import Tier
from ldbench.store.views import Views

CPU, SAMPLES, SIDE = torch.device("cpu"), 23, 8


def images() -> ResidentSplit:
    words = torch.randint(256, (SAMPLES, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ResidentSplit(Split(words, torch.arange(SAMPLES)), [0.5], [0.5], CPU)


def stages() -> nn.Sequential:
    torch.manual_seed(1)
    first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
    return nn.Sequential(
        first, nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    )


def activations(
    count: int, kind: str, sets: Stream, *, tier: Tier, dtype: str, folder: Path, batch_size: int, renewed: float = 0.0
) -> Activations:
    augment, seed = Augment(kind, SIDE, 3), 3
    return Activations(
        stages(), images(), sets, batch_size=batch_size, device=CPU, dtype=dtype, folder=folder, channels_last=False,
        autocast=contextlib.nullcontext, identity="these", views=Views(count, augment.of_view, repr(augment), seed, renewed), probed=2,
    )  # fmt: skip


def direct(made: Activations, view: int, numbers: dict[int, int]) -> Tensor:
    """What the dropped stages make of a view, sample by sample, with nothing of the store's; ``numbers``: by key, of
    those that were made anew.
    """
    augment, rows = Augment("flip+crop", SIDE, 3), []
    for sample in made.active.split(1):
        number = numbers.get(int(sample) * made.views.count + view, view)
        x, _ = images().batch(sample, augment.of_view(sample, number) if made.views.count > 1 else None)
        with torch.no_grad():
            rows.append(made.stages[: made.stored_cut].eval()(x))
    return torch.cat(rows)


def held(made: Activations) -> list[Tensor]:
    """All that can be read now, view by view."""
    return [made.read(made.views.keys(made.active, view)).clone() for view in range(made.views.count)]


@given(
    count=st.integers(1, 5),
    tier=st.sampled_from(["device", "disk"]),
    dtype=st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
    sets=st.lists(st.sets(st.integers(0, SAMPLES - 1), min_size=2), min_size=1, max_size=3),
    batch_size=st.integers(2, 9),
    second=st.booleans(),
    renewed=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
)
@settings(max_examples=40)
def test_every_view_of_every_sample_is_what_the_stages_make_of_it(
    count: int, tier: Tier, dtype: str, sets: list[set[int]], batch_size: int, second: bool, renewed: float
) -> None:
    renewed = renewed if count > 1 else 0.0
    numbers: dict[int, int] = {}
    stream = Stream([torch.tensor(sorted(chosen)) for chosen in sets])
    error = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2}[dtype]
    with tempfile.TemporaryDirectory() as folder:
        made = activations(
            count, "flip+crop", stream, tier=tier, dtype=dtype, folder=Path(folder), batch_size=batch_size,
            renewed=renewed,
        )  # fmt: skip
        store, _ = made.fill(1, tier)
        made.take(store, 1, tier)
        turn = before = made_anew = 0
        for chunk in range(len(sets)):
            if chunk:
                assert made.advance(chunk) == len(stream.arrivals(chunk)) * count
                for key in list(numbers):
                    if key // count in stream.arrivals(chunk):
                        del numbers[key]
            probed = {int(sample) * count for sample in made.active[sample_order(len(made.active), 0, 0)[:2]]}
            keys = [key for key in made.views.all_keys(made.active).tolist() if key not in probed]
            turn = 0 if chunk == 0 or not keys else turn % before * len(keys) // before if before else 0
            before = len(keys)
            for epoch in (0, 1):  # counted anew in each chunk
                due = math.ceil(renewed * len(keys))
                assert made.renew(epoch) == due
                assert made.renew(epoch) == 0  # as a run that goes on in this epoch asks again
                made_anew += 1 if renewed else 0
                for place in range(turn, turn + due):
                    key = keys[place % len(keys)]
                    numbers[key] = key % count + made_anew * count
                turn += due
            if second and chunk == len(sets) - 1:
                store, _ = made.fill(2, tier)
                made.take(store, 2, tier)
            assert made.store is not None
            assert made.store.samples == made.capacity == stream.capacity * count
            for view, rows in enumerate(held(made)):
                exact = direct(made, view, numbers)
                assert float((rows - exact).norm()) <= error * float(exact.norm()) + 1e-6
        before = held(made)
        made.rebuild()
        assert all(torch.equal(now, then) for now, then in zip(held(made), before, strict=True))
        made.keep()
        state = made.state_dict()
        made.close(keep_file=True)
        other = activations(
            count, "flip+crop", stream, tier=tier, dtype=dtype, folder=Path(folder), batch_size=batch_size,
            renewed=renewed,
        )  # fmt: skip
        other.load_state_dict(state)
        assert all(torch.equal(now, then) for now, then in zip(held(other), before, strict=True))
        x, targets = other.batch(other.active, number=7)
        assert torch.equal(targets, other.active)
        keys = other.views.chosen(other.active, 7)
        assert torch.equal(x, other.read(keys))
        other.close()


def test_one_view_is_the_image_as_it_is_whatever_the_augmentation(tmp_path: Path) -> None:
    rows = []
    for kind in ("flip+crop", "none"):
        made = activations(1, kind, Stream.whole(SAMPLES), tier="device", dtype="fp32", folder=tmp_path, batch_size=5)
        made.take(made.fill(2, "device")[0], 2, "device")
        rows += held(made)
    assert torch.equal(*rows)


def test_a_step_reads_each_view_as_often_and_the_same_ones_again() -> None:
    views = Views(3, seed=5)
    keys = torch.cat([views.chosen(torch.arange(40), step) for step in range(300)])
    assert set(Counter((keys // 3).tolist()).values()) == {300}
    counts = Counter((keys % 3).tolist())
    assert all(abs(counts[view] - 4000) < 5 * (12000 * 2 / 9) ** 0.5 for view in range(3))
    assert torch.equal(views.chosen(torch.arange(40), 17), Views(3, seed=5).chosen(torch.arange(40), 17))
    assert not torch.equal(views.chosen(torch.arange(40), 17), views.chosen(torch.arange(40), 18))
    assert not torch.equal(views.chosen(torch.arange(40), 17), Views(3, seed=6).chosen(torch.arange(40), 17))


@given(st.integers(1, 4), st.integers(0, 3), st.permutations(range(9)))
def test_the_draw_of_a_view_is_the_samples_own_and_views_come_in_mirrored_pairs(
    pair: int, seed: int, order: list[int]
) -> None:
    augment, samples = Augment("flip+crop", 16, seed), torch.tensor(order)
    one, other = (augment.of_view(samples, 2 * pair + which) for which in (0, 1))
    assert one.flipped is not None
    assert other.flipped is not None
    assert sorted([*one.flipped.tolist(), *other.flipped.tolist()]) == list(range(9))
    again = augment.of_view(torch.arange(9), 2 * pair)
    assert again.flipped is not None
    assert again.shift is not None
    assert one.shift is not None
    assert sorted(samples[one.flipped].tolist()) == again.flipped.tolist()
    assert torch.equal(one.shift, again.shift[samples])
    assert other.shift is not None
    assert not torch.equal(one.shift, other.shift)
    assert int(one.shift.min()) >= 0
    assert int(one.shift.max()) <= 2 * one.pad == 4


@pytest.mark.parametrize(
    ("count", "share", "said"),
    [(2, -0.1, "between 0 and 1"), (2, 1.1, "between 0 and 1"), (2, True, "between 0 and 1"), (1, 0.5, "ask for 2")],
)
def test_wrong_shares_to_make_anew_are_refused(count: int, share: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Views(count, renewed=share)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, 1025, "4"])
def test_wrong_numbers_of_views_are_refused(count: object) -> None:
    with pytest.raises(UserError, match="whole number from 1 to 1024"):
        Views(count)  # type: ignore[arg-type]
