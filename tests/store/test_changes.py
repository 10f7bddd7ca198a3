"""Changes of stored activations: what each does, by hand, and that it is a function of seed and minibatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldbench.errors import UserError
from ldbench.store.changes import KINDS, Changes

SHAPES = [(5, 3, 6, 4), (5, 7), (5, 4, 6), (1, 1, 1, 1)]


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3


@given(
    st.lists(st.sampled_from(sorted(KINDS)), unique=True),
    st.sampled_from(SHAPES),
    st.floats(0.01, 0.99),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_a_change_is_a_function_of_seed_and_minibatch_and_keeps_shape_and_dtype(
    kinds: list[str], shape: tuple[int, ...], strength: float, minibatch: int, dtype: torch.dtype
) -> None:
    x = maps(*shape).to(dtype)
    before = x.clone()
    changes = Changes(dict.fromkeys(kinds, strength), seed=4)
    assert bool(changes) == bool(kinds)
    changed = changes(x, minibatch)
    assert (changed.shape, changed.dtype) == (x.shape, x.dtype)
    assert bool(changed.isfinite().all())
    assert torch.equal(x, before)
    assert len(shape) == 4 or torch.equal(changed, x)  # without a plane there is nothing to move
    assert torch.equal(Changes(dict.fromkeys(kinds, strength), seed=4)(x, minibatch), changed)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_other_minibatches_and_seeds_are_changed_otherwise(kind: str) -> None:
    x = maps(64, 3, 6, 6)
    one = Changes({kind: 0.5}, seed=1)
    assert not torch.equal(one(x, 1), one(x, 2))
    assert not torch.equal(one(x, 1), Changes({kind: 0.5}, seed=2)(x, 1))


def test_a_rectangle_is_cut_out_of_all_channels_alike() -> None:
    zero = Changes({"cutout": 0.25})(torch.ones(300, 2, 8, 4), 0) == 0
    assert set(zero.sum((2, 3)).flatten().tolist()) == {4 * 2}
    assert torch.equal(zero[:, 0], zero[:, 1])
    rows = zero[:, 0].any(2).sum(1)
    assert set(rows.tolist()) == {4}
    assert float(zero[:, 0].float().mean(0).min()) > 0  # everywhere now and then


def test_maps_move_by_whole_places_and_zeros_come_in() -> None:
    x = torch.arange(1.0, 37).view(1, 1, 6, 6).repeat(400, 1, 1, 1)
    moved = Changes({"shift": 0.17})(x, 0)
    seen = set()
    for one in moved[:, 0]:
        there = one[one > 0]
        [offset] = {
            (int(at[0]) - (int(value) - 1) // 6, int(at[1]) - (int(value) - 1) % 6)
            for at, value in zip((one > 0).nonzero(), there, strict=True)
        }
        seen.add(offset)
        assert len(there) == (6 - abs(offset[0])) * (6 - abs(offset[1]))
    assert seen == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


@pytest.mark.parametrize("kind", ["shift", "cutout"])
def test_maps_of_a_few_places_are_left_alone_where_the_share_is_less_than_half_a_place(kind: str) -> None:
    for side in (1, 2, 3):
        x = maps(200, 2, side, side)
        assert torch.equal(Changes({kind: 0.02})(x, 0), x)
    x = maps(200, 2, 1, 8)
    assert torch.equal(Changes({kind: 0.1})(x, 0), x) == (kind == "cutout")


@given(st.permutations(["mirror", "shift", "cutout"]), st.integers(1, 7), st.integers(1, 9), st.floats(0.01, 0.99))
def test_moves_that_are_made_at_once_are_those_that_are_made_one_by_one(
    kinds: list[str], height: int, width: int, strength: float
) -> None:
    x = maps(6, 2, height, width)
    at_once, one_by_one = Changes(dict.fromkeys(kinds, strength), seed=3)(x, 5), x
    for kind in kinds:
        one_by_one = Changes({kind: strength}, seed=3)(one_by_one, 5)
    assert torch.equal(at_once, one_by_one)


def test_maps_keep_their_memory_format() -> None:
    x, changes = maps(4, 3, 6, 5), Changes({"mirror": 0.5, "shift": 0.3})
    last = changes(x.contiguous(memory_format=torch.channels_last), 0)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, changes(x, 0))


def test_a_share_of_the_samples_is_mirrored() -> None:
    x = maps(400, 2, 3, 5)
    changed = Changes({"mirror": 0.5})(x, 3)
    mirrored = [torch.equal(one, other.flip(2)) for one, other in zip(changed, x, strict=True)]
    same = [torch.equal(one, other) for one, other in zip(changed, x, strict=True)]
    assert [a != b for a, b in zip(mirrored, same, strict=True)] == [True] * 400
    assert 150 < sum(mirrored) < 250


@pytest.mark.parametrize(
    ("strengths", "said"),
    [({"mirro": 0.1}, "did you mean mirror"), ({"shift": 0}, "between 0 and 1"), ({"shift": True}, "between 0"),
     ({"shift": float("nan")}, "between 0 and 1"), ({"shift": "a"}, "between 0 and 1"),
     (["shift=0.1"], "named with their strengths"), ("shift=0.1", "named with their strengths")],
)  # fmt: skip
def test_wrong_changes_are_refused(strengths: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Changes(strengths)


def test_a_change_that_is_asked_for_twice_is_refused() -> None:
    with pytest.raises(UserError, match="mirror is asked for twice"):
        Changes.named(["mirror=0.5", "shift=0.1", "mirror=0.2"])
