"""The activation store: what is written comes back by index, in every tier, dtype and layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldbench.errors import UserError
from ldbench.store import activation_store as cache
from ldbench.store.activation_store import ActivationStore
from ldbench.store.budget import StoreBudget, Tier, parse_bytes, resolve_budget, store_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize("tier", ["device", "disk"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [("fp32", 0.0), ("fp16", 2**-11), ("bf16", 2**-8)])
def test_rows_come_back_by_index(tier: str, channels_last: bool, dtype: str, rtol: float, tmp_path: Path) -> None:
    x = torch.randn(50, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    store = ActivationStore(50, (3, 5, 7), dtype, tier, CPU, channels_last=channels_last, folder=tmp_path)  # type: ignore[arg-type]
    for indices in torch.arange(50).split(16):
        store.write(indices, x[indices])
    wanted = torch.tensor([49, 0, 7, 7, 31])
    batch = store.read(wanted)
    assert batch.dtype == torch.float32
    assert batch.shape == (5, 3, 5, 7)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.is_contiguous(memory_format=layout)
    torch.testing.assert_close(batch, x[wanted], rtol=rtol, atol=0)
    assert store.nbytes == store_bytes(50, (3, 5, 7), dtype)
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_a_minibatch_is_a_copy_that_training_may_write_to() -> None:
    store = ActivationStore(4, (2, 3, 3), "fp32", "device", CPU)
    store.write(torch.arange(4), torch.ones(4, 2, 3, 3))
    store.read(torch.arange(4)).zero_()
    assert bool((store.read(torch.arange(4)) == 1).all())


def test_int8_rows_are_within_half_a_scale_step() -> None:
    x = torch.randn(20, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    store = ActivationStore(20, (4, 6, 6), "int8", "device", CPU)
    store.write(torch.arange(20), x)
    step = x.abs().amax(dim=(2, 3), keepdim=True) / 127
    assert bool(((store.read(torch.arange(20)) - x).abs() <= step * 0.5 * (1 + 1e-5)).all())
    assert store.nbytes == store_bytes(20, (4, 6, 6), "int8")


@pytest.mark.parametrize("tier", ["device", "disk"])
@pytest.mark.parametrize("shape", [(512, 1, 1), (128, 2, 2), (512,)])
def test_int8_stores_of_small_maps_take_about_a_quarter_of_fp32(
    shape: tuple[int, ...], tier: Tier, tmp_path: Path
) -> None:
    x = torch.randn(20, *shape, generator=torch.Generator().manual_seed(1))
    store = ActivationStore(20, shape, "int8", tier, CPU, folder=tmp_path)
    store.write(torch.arange(20), x)
    assert store.nbytes == store_bytes(20, shape, "int8") < 0.26 * store_bytes(20, shape, "fp32")
    step = x.abs().flatten(1).amax(1).view(20, *[1] * len(shape)) / 127
    assert bool(((store.read(torch.arange(20)) - x).abs() <= step * 0.5 * (1 + 1e-5)).all())
    store.close()


def test_the_gather_is_told_where_the_minibatch_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a GPU reads a pinned store itself, instead of the host gathering and copying."""
    store = ActivationStore(4, (2, 3, 3), "int8", "device", CPU)
    store.device = torch.device("cuda", 3)  # the rows stay where they are, as those of a pinned store do
    asked: list[object] = []
    monkeypatch.setattr(cache, "gather_rows", lambda *a, **options: asked.append((a[1].device, options["device"])))
    store.read(torch.tensor([1, 0]))
    assert asked == [(CPU, torch.device("cuda", 3))]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_pinned_store_is_read_onto_the_gpu_with_the_bits_of_one_on_the_device(dtype: str) -> None:
    gpu, x = torch.device("cuda:0"), torch.randn(40, 6, 5, 5, generator=torch.Generator().manual_seed(2))
    batches = []
    for tier in ("pinned", "device"):
        store = ActivationStore(40, (6, 5, 5), dtype, tier, gpu, channels_last=True)  # type: ignore[arg-type]
        store.write(torch.arange(40), x.to(gpu))
        assert store.rows.is_pinned() == (tier == "pinned")
        batches.append(store.read(torch.tensor([39, 0, 7, 7])))
    assert batches[0].device == batches[1].device == gpu
    assert torch.equal(*batches)


@pytest.mark.parametrize("shape", [(10,), (3, 4), (2, 5, 5)])
def test_vectors_and_token_sequences_are_stored_too(shape: tuple[int, ...]) -> None:
    x = torch.randn(6, *shape)
    store = ActivationStore(6, shape, "fp32", "device", CPU, channels_last=True)
    store.write(torch.arange(6), x)
    assert torch.equal(store.read(torch.arange(5, -1, -1)), x.flip(0))


def test_a_store_gives_back_the_dtype_it_was_made_from() -> None:
    store = ActivationStore(2, (4,), "bf16", "device", CPU)
    store.write(torch.arange(2), torch.ones(2, 4, dtype=torch.bfloat16))
    assert store.read(torch.arange(2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1k", 1000),
        ("1 KiB", 1024),
        ("1.5GB", 1_500_000_000),
        ("2GiB", 2**31),
        ("3tib", 3 * 2**40),
    ],
)
def test_sizes_are_read_as_written(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@given(st.text(max_size=12))
def test_any_other_size_is_refused_in_one_line(text: str) -> None:
    try:
        size = parse_bytes(text)
    except UserError as error:
        message = str(error)
    else:
        assert size >= 0
        return
    assert repr(text) in message


def test_budgets_name_device_host_and_disk(tmp_path: Path) -> None:
    auto = resolve_budget(None, CPU, tmp_path)
    assert auto.device > 0
    assert auto.pinned == 0  # a CPU has no second kind of host memory
    assert auto.disk > 0
    assert resolve_budget("1k,2k,3k", CPU, tmp_path) == StoreBudget(1000, 0, 3000)
    assert resolve_budget("5", CPU, tmp_path) == StoreBudget(5, 0, resolve_budget("5", CPU, tmp_path).disk)
    with pytest.raises(UserError, match="three"):
        resolve_budget("1,2,3,4", CPU, tmp_path)
    budget = StoreBudget(10, 0, 30)
    assert [budget.tier_for(size) for size in (10, 11, 31)] == ["device", "disk", None]


def test_a_disk_that_cannot_hold_the_store_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        ActivationStore(2**40, (2**12,), "fp32", "disk", CPU, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
