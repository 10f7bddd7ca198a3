"""Random streams: pure, independent, the same on every machine and version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldbench.seeds import derive_seed, random_words, sample_order, stratified_order

any_seed = st.integers(-(2**70), 2**70)


@given(
    any_seed, st.sampled_from(["weights", "order", "augment", "dropout"]), st.lists(st.integers(0, 10**9), max_size=3)
)
def test_a_derived_seed_is_one_that_torch_and_numpy_take(seed: int, stream: str, parts: list[int]) -> None:
    derived = derive_seed(seed, stream, *parts)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)
    np.random.SeedSequence(derived)


def test_streams_seeds_and_parts_never_share_a_derived_seed() -> None:
    streams = ("weights", "order", "augment", "dropout")
    seeds = {
        derive_seed(s, stream, *parts) for s in range(50) for stream in streams for parts in ((), (0,), (1,), (0, 1))
    }
    assert len(seeds) == 50 * 4 * 4
    assert derive_seed(1, "order", 23) != derive_seed(12, "order", 3)


def test_random_streams_are_frozen_so_that_old_results_can_be_repeated() -> None:
    assert derive_seed(0, "weights") == 7843391457542245125
    assert random_words(2, 1).tolist() == [5599841837815857887, 15655913098571550255]
    assert sample_order(8, seed=3, epoch=5).tolist() == [2, 1, 3, 0, 5, 6, 7, 4]


@given(st.integers(0, 300), any_seed, st.integers(0, 1000))
def test_sample_order_is_a_permutation_and_a_pure_function(n: int, seed: int, epoch: int) -> None:
    torch.manual_seed(0)
    order = sample_order(n, seed, epoch)
    torch.manual_seed(1)
    torch.rand(3)
    assert order.dtype == torch.int64
    assert torch.equal(order, sample_order(n, seed, epoch))
    assert torch.equal(order.sort().values, torch.arange(n))


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(sample_order(20, seed, epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_positions_of_a_sample_over_epochs_are_uniform() -> None:
    n, epochs = 10, 2000
    places = torch.stack([sample_order(n, 0, epoch) for epoch in range(epochs)])
    counts = torch.stack([torch.bincount(places[:, place], minlength=n) for place in range(n)]).double()
    expected = epochs / n
    # 81 degrees of freedom: chi-square beyond 150 has a chance of a few in a million.
    assert ((counts - expected) ** 2 / expected).sum() < 150


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), any_seed, st.data())
def test_every_prefix_of_a_stratified_order_keeps_the_class_shares(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    order = stratified_order(labels, seed)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    taken = data.draw(st.integers(1, len(labels)))
    counts = torch.bincount(labels[order[:taken]], minlength=len(sizes))
    for count, size in zip(counts.tolist(), sizes, strict=True):
        share = size / len(labels)
        assert abs(count - taken * share) <= 1 + share * len(sizes)


@given(st.integers(2, 12), st.integers(1, 30), any_seed)
def test_classes_of_one_size_stay_level_in_a_stratified_order(classes: int, each: int, seed: int) -> None:
    labels = torch.arange(classes * each) % classes
    order = stratified_order(labels, seed)
    for taken in range(0, len(labels) + 1, classes):
        assert torch.bincount(labels[order[:taken]], minlength=classes).tolist() == [taken // classes] * classes


def test_stratified_order_shuffles_within_classes_and_follows_its_seed() -> None:
    labels = torch.arange(200) % 4
    first, second = stratified_order(labels, 0), stratified_order(labels, 1)
    assert not torch.equal(first, second)
    of_class = first[labels[first] == 2]
    assert not torch.equal(of_class, of_class.sort().values)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_random_words_of_a_shorter_draw_are_the_start_of_a_longer_one(count: int) -> None:
    assert random_words(count, 9).tolist() == random_words(7, 9)[:count].tolist()
