"""The stream: what arrives when, what is remembered, and which row of a store is whose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldbench.data.stream import Stream, arrival_order, chunked
from ldbench.store.activations import first_rows, next_rows

LABELS = torch.arange(200) % 5
streams = st.builds(
    lambda chunks, memory, seed, order: (chunked(LABELS, seed, chunks=chunks, memory=memory, stream=order), memory),
    chunks=st.integers(2, 40),
    memory=st.integers(0, 120),
    seed=st.integers(0, 1000),
    order=st.sampled_from(["shuffled", "by-class"]),
)


@given(streams)
def test_every_chunk_brings_as_many_new_samples_and_what_leaves_the_memory_never_comes_back(
    case: tuple[Stream, int],
) -> None:
    stream, memory = case
    size, seen, gone = 200 // len(stream), set[int](), set[int]()
    for chunk in range(len(stream)):
        now, new = set(stream.sets[chunk].tolist()), set(stream.arrivals(chunk).tolist())
        assert len(new) == size
        assert not new & seen
        remembered = now - new
        assert remembered <= seen
        assert len(remembered) == min(memory, chunk * size)
        assert not remembered & gone
        gone |= seen - remembered
        seen |= new
        assert stream.still_to_come(chunk) == size * (len(stream) - chunk - 1)
    assert stream.capacity == max(map(len, stream.sets)) <= size + memory


@given(streams)
def test_a_store_has_one_row_for_each_sample_that_can_be_drawn_and_none_moves(case: tuple[Stream, int]) -> None:
    stream, _ = case
    rows = first_rows(stream.sets[0], 200)
    for chunk in range(1, len(stream)):
        following = next_rows(rows, stream.sets[chunk], stream.capacity)
        held = torch.nonzero(following >= 0).flatten()
        assert torch.equal(held, stream.sets[chunk])
        assert len(set(following[held].tolist())) == len(held)
        assert int(following.max()) < stream.capacity
        stays = (rows >= 0) & (following >= 0)
        assert torch.equal(rows[stays], following[stays])
        rows = following


def test_the_memory_is_a_uniform_sample_of_everything_seen() -> None:
    counts = torch.zeros(200)
    for seed in range(2000):
        stream = chunked(LABELS, seed, chunks=4, memory=30)
        order = arrival_order(LABELS, seed, "shuffled")
        kept = torch.isin(order[:150], stream.sets[3])  # by place in the stream: early and late alike
        counts[:150] += kept
    share = counts[:150] / 2000
    assert share.mean() == pytest.approx(0.2)
    assert float((share - 0.2).abs().max()) < 5 * (0.2 * 0.8 / 2000) ** 0.5


def test_the_order_is_the_seeds_own_and_class_after_class_where_asked() -> None:
    orders = [arrival_order(LABELS, seed, "shuffled").tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(200))
    firsts = set()
    for seed in range(8):
        classes = LABELS[arrival_order(LABELS, seed, "by-class")]
        assert len(torch.unique_consecutive(classes)) == 5
        firsts.add(int(classes[0]))
    assert len(firsts) > 1


def test_sets_that_are_no_sets_are_refused() -> None:
    for sets in ([], [torch.tensor([], dtype=torch.int64)], [torch.tensor([1, 1])], [torch.tensor([2, 1])]):
        with pytest.raises(ValueError, match="ascending"):
            Stream(sets)
