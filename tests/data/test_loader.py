"""Resident splits and batched augmentation, against the plain per-image way of doing it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import TrivialAugmentWide

from ldbench.data.augment import Augment, AugmentDraw
from ldbench.data.datasets import Split
from ldbench.data.loader import ResidentSplit
from ldbench.data.names import AUGMENTATIONS
from ldbench.errors import UserError
from ldbench.seeds import sample_order

MEAN, STD = (0.2, 0.5, 0.7), (0.3, 0.25, 0.1)


def make_split(n: int = 40, channels: int = 3, side: int = 8, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (n,), generator=generator))


def resident(split: Split, channels_last: bool = False, **options: Any) -> ResidentSplit:
    channels = split.images.shape[1]
    return ResidentSplit(split, MEAN[:channels], STD[:channels], "cpu", channels_last=channels_last, **options)


def normalised(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W] -> float64, by the textbook formula."""
    mean, std = (torch.tensor(c[: images.shape[1]], dtype=torch.float64).view(1, -1, 1, 1) for c in (MEAN, STD))
    return (images.double() / 255 - mean) / std


def augmented_one_by_one(images: Tensor, draw: AugmentDraw) -> Tensor:
    """Flip, pad with black, crop: one image after the other."""
    flipped = set() if draw.flipped is None else set(draw.flipped.tolist())
    out = []
    for position, image in enumerate(images):
        image = image.flip(-1) if position in flipped else image
        if draw.shift is not None:
            row, column = draw.shift[position].tolist()
            padded = F.pad(image, (draw.pad,) * 4)
            image = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
        if draw.transformed is not None:
            seed = int(draw.transformed.seeds[position])
            torch.manual_seed(seed)
            image = TrivialAugmentWide()(image)
        out.append(image)
    return torch.stack(out)


layouts = st.booleans()


@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 9), layouts, st.integers(0, 2**31))
def test_a_batch_is_the_chosen_images_normalised(
    channels: int, side: int, batch: int, channels_last: bool, seed: int
) -> None:
    mean, std = torch.rand(2, channels, generator=torch.Generator().manual_seed(seed)).double() + 0.01
    split = make_split(30, channels, side, seed)
    data = ResidentSplit(split, mean.tolist(), std.tolist(), "cpu", channels_last=channels_last)
    indices = sample_order(30, seed, 0)[:batch]
    x, y = data.batch(indices)
    expected = (split.images[indices].double() / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    torch.testing.assert_close(x, expected.float(), rtol=1e-5, atol=1e-4)
    assert torch.equal(y, split.labels[indices])
    assert x.shape == (batch, channels, side, side)
    if channels_last:
        assert x.is_contiguous(memory_format=torch.channels_last)
    else:
        assert x.is_contiguous()


@given(
    st.sampled_from((*AUGMENTATIONS, "flip+trivial-augment")),
    st.sampled_from([1, 3]),
    st.integers(2, 20),
    st.integers(1, 9),
    layouts,
    st.integers(0, 99),
)
def test_batched_augmentation_equals_doing_it_image_by_image(
    kind: str, channels: int, side: int, batch: int, channels_last: bool, step: int
) -> None:
    split = make_split(12, channels, side)
    draw = Augment(kind, side, seed=4).draw(step, batch)
    indices = torch.arange(batch)
    x, _ = resident(split, channels_last).batch(indices, draw)
    expected = normalised(augmented_one_by_one(split.images[:batch], draw)).float()
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("channels_last", [False, True])
def test_crops_at_every_corner_read_black_outside_and_never_a_neighbour(channels_last: bool) -> None:
    split = Split(torch.full((9, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))
    shift = torch.tensor([[row, column] for row in (0, 2, 4) for column in (0, 2, 4)])
    data = ResidentSplit(split, (0, 0, 0), (1, 1, 1), "cpu", channels_last=channels_last)
    x, _ = data.batch(torch.arange(9), AugmentDraw(shift=shift, pad=2))
    white = [8 - abs(2 - row) for row in (0, 2, 4)]
    assert x.round().sum((1, 2, 3)).tolist() == [3 * a * b for a in white for b in white]


def test_augmenting_leaves_the_resident_images_alone() -> None:
    split = make_split()
    before = split.images.clone()
    data = resident(split)
    data.batch(torch.arange(40), Augment("flip+crop", 8, 0).draw(0, 40))
    assert torch.equal(split.images, before)
    torch.testing.assert_close(data.batch(torch.arange(40))[0], normalised(before).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_image_has_the_same_bits_in_every_minibatch(channels_last: bool) -> None:
    data = resident(make_split(64, side=7), channels_last)
    whole = data.batch(torch.arange(64))[0]
    for indices in (torch.tensor([5]), torch.tensor([63, 5, 5, 0, 17]), sample_order(64, 0, 0)):
        assert torch.equal(data.batch(indices)[0], whole[indices])


def test_layout_changes_no_value() -> None:
    split = make_split()
    indices = sample_order(40, 1, 0)
    assert torch.equal(resident(split).batch(indices)[0], resident(split, channels_last=True).batch(indices)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once_from_float32(dtype: torch.dtype) -> None:
    split = make_split()
    exact = resident(split).batch(torch.arange(40))[0]
    assert torch.equal(resident(split, dtype=dtype).batch(torch.arange(40))[0], exact.to(dtype))


def test_on_the_cpu_the_images_are_not_copied_and_the_tier_is_device() -> None:
    split = make_split()
    data = resident(split, budget_bytes=0)
    assert data.tier == "device"
    assert len(data) == 40
    split.images.zero_()
    torch.testing.assert_close(data.batch(torch.arange(2))[0], normalised(split.images[:2]).float())


def test_an_empty_split_and_an_empty_minibatch_work() -> None:
    nothing = resident(Split(torch.empty(0, 3, 8, 8, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)))
    assert len(nothing) == 0
    none = torch.empty(0, dtype=torch.int64)
    draw = Augment("flip+crop", 8, 0).draw(0, 0)
    for data in (nothing, resident(make_split(), channels_last=True)):
        x, y = data.batch(none, draw)
        assert x.shape == (0, 3, 8, 8)
        assert y.shape == (0,)


def test_an_index_outside_the_split_is_an_error() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        resident(make_split(4)).batch(torch.tensor([4]))


@given(st.sampled_from(AUGMENTATIONS[1:]), st.integers(8, 64), st.integers(0, 2**62), st.integers(0, 10**7))
def test_a_draw_is_a_pure_function_of_seed_and_step(kind: str, side: int, seed: int, step: int) -> None:
    torch.manual_seed(0)
    first = Augment(kind, side, seed).draw(step, 16)
    torch.manual_seed(1)
    second = Augment(kind, side, seed).draw(step, 16)
    assert (first.transformed is not None) == (second.transformed is not None) == ("trivial-augment" in kind)
    if first.transformed is not None and second.transformed is not None:
        assert first.transformed.seeds.tolist() == second.transformed.seeds.tolist()
        assert len(set(first.transformed.seeds.tolist())) == 16
    for a, b in ((first.flipped, second.flipped), (first.shift, second.shift)):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)
    assert (first.flipped is not None) == ("flip" in kind)
    if "crop" in kind:
        assert first.shift is not None
        assert first.pad == side // 8
        assert first.shift.shape == (16, 2)
        assert 0 <= int(first.shift.min()) <= int(first.shift.max()) <= 2 * first.pad


def test_a_resumed_run_draws_what_an_unbroken_one_draws() -> None:
    whole = Augment("crop", 32, 7)
    unbroken = [whole.draw(step, 8).shift for step in range(6)]
    resumed = Augment("crop", 32, 7).draw(4, 8).shift
    assert unbroken[4] is not None
    assert resumed is not None
    assert torch.equal(unbroken[4], resumed)


def test_flips_are_even_and_crops_reach_every_corner_equally() -> None:
    draw = Augment("flip+crop", 16, 0).draw(0, 50_000)
    assert draw.flipped is not None
    assert draw.shift is not None
    assert abs(len(draw.flipped) / 50_000 - 0.5) < 0.01
    cells = torch.bincount(draw.shift[:, 0] * 5 + draw.shift[:, 1], minlength=25)
    assert len(cells) == 25
    # 2,000 expected in each cell, standard deviation 44.
    assert int(cells.min()) > 1780
    assert int(cells.max()) < 2220


def test_steps_and_seeds_differ() -> None:
    shifts = {
        tuple(Augment("crop", 32, seed).draw(step, 8).shift.flatten().tolist())  # type: ignore[union-attr]
        for seed in range(5)
        for step in range(5)
    }
    assert len(shifts) == 25


def test_no_augmentation_is_not_active_and_draws_nothing() -> None:
    augment = Augment("none", 32, 0)
    assert not augment.active
    assert augment.draw(3, 8) == AugmentDraw()
    assert Augment("flip", 32, 0).active


def test_an_unknown_augmentation_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown augmentation 'flop'.*did you mean flip") as caught:
        Augment("flop", 32, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("budget", "tier"), [(None, "device"), (0, "pinned")])
def test_cuda_tiers_give_what_the_cpu_gives(channels_last: bool, budget: int | None, tier: str) -> None:
    split = make_split(400, side=16)
    cpu = resident(split, channels_last)
    cuda = ResidentSplit(split, MEAN, STD, "cuda", channels_last=channels_last, budget_bytes=budget)
    assert cuda.tier == tier
    for step in range(20):
        indices = sample_order(400, 0, step)[:64]
        draw = Augment("flip+crop", 16, 0).draw(step, 64)
        (x, y), (x_cpu, y_cpu) = cuda.batch(indices, draw), cpu.batch(indices, draw)
        assert torch.equal(x.cpu(), x_cpu)
        assert torch.equal(y.cpu(), y_cpu)
        assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@given(st.integers(0, 9), st.integers(1, 6), layouts)
def test_a_transform_of_the_users_is_repeated_and_global_streams_are_left_alone(
    seed: int, batch: int, channels_last: bool
) -> None:
    split, augment = make_split(12), Augment("flip+support.transforms:dots", 8, seed)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the streams that users draw from
    expected = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    first, _ = resident(split, channels_last).batch(torch.arange(batch), augment.draw(3, batch))
    assert torch.equal(expected[0], torch.rand(3))
    assert expected[1:] == (random.random(), np.random.rand())  # noqa: NPY002
    again, _ = resident(split, channels_last).batch(torch.arange(batch), augment.draw(3, batch))
    assert torch.equal(first, again)
    mirrored = augment.draw(3, batch).flipped
    assert mirrored is not None
    plain, _ = resident(split, channels_last).batch(torch.arange(batch), AugmentDraw(mirrored))
    changed = (first != plain).any(1).sum((1, 2))
    assert bool((changed <= 3).all())
    assert not torch.equal(first, plain)


def test_transforms_of_views_are_the_samples_own() -> None:
    data, augment = resident(make_split(12)), Augment("support.transforms:dots", 8, 1)
    order = torch.tensor([3, 7, 1, 11])
    together, _ = data.batch(order, augment.of_view(order, 2))
    alone = torch.cat([data.batch(one, augment.of_view(one, 2))[0] for one in order.split(1)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, data.batch(order, augment.of_view(order, 3))[0])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("support.transforms:nothing_named", "called with image_size=8 it fails"),
        ("support.transforms:no_transform", "must return a transform of an image, not int"),
        ("support.transforms:floats", r"makes torch.float32 \[3, 8, 8\] of torch.uint8 \[3, 8, 8\]"),
        ("support.transforms:smaller", r"makes torch.uint8 \[3, 7, 8\]"),
        ("support.transforms:an_array", "makes a ndarray"),
        ("support.transforms:fails", "fails: ValueError: no such image"),
        ("support.transforms:dot", "did you mean dots"),
        ("support.no_such_module:dots", "cannot import"),
        ("crop+:dots", "write package.module:factory"),
        ("crop+flip", r"did you mean flip\+crop"),
        ("crop+flip+support.transforms:dots", r"did you mean flip\+crop\+support.transforms:dots"),
        ("flip+flip+trivial-augment", r"did you mean flip\+trivial-augment"),
        ("trivial-augment+flip", "unknown augmentation"),
        ("flip+none", "unknown augmentation"),
    ],
)
def test_what_is_wrong_with_an_augmentation_is_said(kind: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resident(make_split()).batch(torch.arange(2), Augment(kind, 8, 0).draw(0, 2))
