"""The gather of cached activations against float64 arithmetic: interpreted and native kernels, and plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.kernel_cases import DEVICE, PAD, UNIT, assert_fence_untouched, fenced, forced, same_bits
from torch import Tensor

from ldbench.kernels import gather_rows, quantize_rows, row_stride, scale_count

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from ldbench.kernels import gather as kernel  # noqa: E402

BLOCK = 64
BOTH = ["triton", "reference"]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# Rows shorter than, as long as and longer than a block; spatial sizes that 16 divides and that it does not.
SHAPES = [
    (1,),
    (BLOCK - 1,),
    (BLOCK,),
    (BLOCK + 1,),
    (3, 5),
    (2, 4, 8),
    (4, 4, 4),
    (3, 7, 5),
    (1, 1, 1),
    (33, 1, 1),
    (5, 4, 8),
    (2, 0),
]
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**31)
orders = st.sampled_from(["random", "identity", "reversed", "repeated", "empty"])


@dataclass
class Store:
    """``samples`` activations and their rows between canaries, padded rows too."""

    x: Tensor
    rows: Tensor
    scales: Tensor | None
    whole: Tensor
    last: bool

    @classmethod
    def make(
        cls, shape: tuple[int, ...], dtype: torch.dtype, seed: int, samples: int = 5, last: bool = False, extra: int = 0
    ) -> Store:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, *shape, generator=generator) * torch.rand(
            samples, shape[0], *[1] * (len(shape) - 1), generator=generator
        )
        x = x.to(DEVICE)
        last = last and len(shape) == 3
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        scales = None
        if dtype == torch.int8:
            flat, scales = quantize_rows(x)
            if last and x.is_contiguous():  # ambiguous strides: quantize_rows cannot tell, the store can
                flat = flat.view(samples, *shape).permute(0, 2, 3, 1).reshape(samples, -1)
        else:
            x = x.to(dtype)
            flat = (x.permute(0, 2, 3, 1) if last else x).reshape(samples, math.prod(shape))
        stride = row_stride(math.prod(shape), dtype) + extra
        whole, buffer = fenced(samples * stride, dtype)
        rows = buffer.view(samples, stride)
        rows[:, : flat.shape[1]] = flat
        return cls(x, rows, scales, whole, last)


def draw_indices(order: str, samples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return {
        "random": torch.randint(samples, (7,), generator=generator),
        "identity": torch.arange(samples),
        "reversed": torch.arange(samples).flip(0),
        "repeated": torch.full((4,), samples - 1),
        "empty": torch.empty(0, dtype=torch.int64),
    }[order].to(DEVICE)


def oracle(store: Store, indices: Tensor) -> Tensor:
    """float64 [B, *shape] on the CPU."""
    shape = store.x.shape[1:]
    rows = store.rows[:, : math.prod(shape)].cpu().double()[indices.cpu()]
    if store.last:
        rows = rows.view(-1, *shape[1:], shape[0]).permute(0, 3, 1, 2)
    batch = rows.reshape(len(indices), *shape)
    if store.scales is not None:
        batch = batch * store.scales.cpu().double()[indices.cpu()].view(
            len(indices), store.scales.shape[1], *[1] * (len(shape) - 1)
        )
    return batch


def steps(dtype: torch.dtype) -> float:
    """Relative rounding error of a result: half a unit in the last place; a whole one for bfloat16, maybe cut off."""
    return {torch.float32: UNIT, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7, torch.float64: UNIT}[dtype]


def launch_fenced(store: Store, indices: Tensor, dtype: torch.dtype) -> Tensor:
    """The kernel with a small block into a buffer between canaries: [B, numel], canaries checked."""
    shape = store.x.shape[1:]
    numel = math.prod(shape)
    whole, buffer = fenced(len(indices) * numel, dtype)
    out = buffer.view(len(indices), numel)
    kernel.launch(store.rows, indices, store.scales, out, store.last, BLOCK)
    assert_fence_untouched(whole, out.numel())
    assert_fence_untouched(store.whole, store.rows.numel())
    return out


@given(
    shapes,
    st.sampled_from([torch.int8, *FLOATS]),
    st.sampled_from([*FLOATS, torch.float64]),
    orders,
    seeds,
    st.booleans(),
    st.sampled_from([0, 0, 16, 3]),
)
def test_kernel_matches_float64_and_stays_inside(
    shape: tuple[int, ...], stored: torch.dtype, wanted: torch.dtype, order: str, seed: int, last: bool, extra: int
) -> None:
    store = Store.make(shape, stored, seed, last=last, extra=extra)
    indices = draw_indices(order, len(store.rows), seed)
    with forced("triton"):
        out = launch_fenced(store, indices, wanted)
    expected = oracle(store, indices)
    batch = (
        out.view(len(indices), *shape[1:], shape[0]).permute(0, 3, 1, 2)
        if store.last
        else out.view(len(indices), *shape)
    ).cpu()
    slack = expected.abs() * (steps(wanted) + UNIT) + torch.finfo(wanted).smallest_normal * steps(wanted) * 2
    assert bool(((batch.double() - expected).abs() <= slack).all())


@pytest.mark.parametrize("kernels", BOTH)
@given(shapes, st.sampled_from([torch.int8, *FLOATS]), st.sampled_from(FLOATS), orders, seeds, st.booleans())
def test_minibatch_has_the_values_dtype_shape_and_strides_of_the_activations(
    kernels: str, shape: tuple[int, ...], stored: torch.dtype, wanted: torch.dtype, order: str, seed: int, last: bool
) -> None:
    store = Store.make(shape, stored, seed, last=last)
    indices = draw_indices(order, len(store.rows), seed)
    with forced(kernels):
        batch = gather_rows(store.rows, indices, shape, dtype=wanted, scales=store.scales, channels_last=store.last)
    expected = oracle(store, indices)
    assert (batch.shape, batch.dtype, batch.device) == ((len(indices), *shape), wanted, store.rows.device)
    assert batch.is_contiguous(memory_format=torch.channels_last if store.last else torch.contiguous_format)
    slack = expected.abs() * (steps(wanted) + UNIT) + torch.finfo(wanted).smallest_normal * steps(wanted) * 2
    assert bool(((batch.cpu().double() - expected).abs() <= slack).all())


@pytest.mark.parametrize("kernels", BOTH)
@given(shapes, st.sampled_from(FLOATS), seeds)
def test_gather_of_all_rows_in_order_is_the_identity_and_gathers_compose(
    kernels: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    store = Store.make(shape, dtype, seed)
    numel = math.prod(shape)
    first, second = draw_indices("random", 5, seed), draw_indices("random", 7, seed + 1)
    with forced(kernels):
        every = gather_rows(store.rows, draw_indices("identity", 5, 0), shape, dtype=torch.float32)
        once = gather_rows(store.rows, first, shape, dtype=torch.float32)
        twice = gather_rows(once.view(-1, numel) if numel else once.reshape(7, 0), second, shape)
        direct = gather_rows(store.rows, first[second], shape, dtype=torch.float32)
    assert torch.equal(every, store.x.float())
    assert same_bits(twice, direct)


@pytest.mark.parametrize("kernels", BOTH)
@given(shapes, seeds, st.booleans(), st.sampled_from([1.0, 1e-30, 1e-42, 1e30]))
def test_int8_rows_come_back_within_half_a_step(
    kernels: str, shape: tuple[int, ...], seed: int, last: bool, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(4, *shape, generator=generator) * size).to(DEVICE)
    x[0] = 0
    last = last and len(shape) == 3
    rows, scales = quantize_rows(x)
    if last:
        rows = rows.view(4, *shape).permute(0, 2, 3, 1).reshape(4, -1).contiguous()
    indices = torch.arange(4, device=DEVICE)
    with forced(kernels):
        back = gather_rows(rows, indices, shape, scales=scales, channels_last=last)
    step = scales.double().view(*scales.shape, *[1] * (len(shape) - 1))
    # The quotient and the product are each rounded at up to 127 steps.
    assert bool(((back.double() - x.double()).abs() <= step * (0.5 + 2 * 127 * UNIT)).all())
    assert bool((back[0] == 0).all())


@pytest.mark.parametrize("kernels", BOTH)
@given(  # not to bfloat16, which the interpreter rounds otherwise than PyTorch
    shapes,
    st.sampled_from([torch.int8, *FLOATS]),
    st.sampled_from([torch.float32, torch.float16]),
    seeds,
    st.integers(1, 3),
    st.booleans(),
)
def test_strided_indices_scales_and_rows_are_read_by_their_strides(
    kernels: str, shape: tuple[int, ...], stored: torch.dtype, wanted: torch.dtype, seed: int, step: int, last: bool
) -> None:
    """Every second index, a column of scales in a wider table, a store kept the other way round: the same minibatch."""
    store = Store.make(shape, stored, seed, last=last)
    indices = draw_indices("random", len(store.rows), seed)
    spread = ((indices + 1) % len(store.rows))[:, None].repeat(1, step)  # other rows lie between
    spread[:, 0] = indices
    scales = store.scales
    if scales is not None:
        scales = torch.stack([scales, torch.full_like(scales, float("nan"))], dim=2)[:, :, 0]
    options = {"dtype": wanted, "channels_last": store.last}
    with forced(kernels):
        plain = gather_rows(store.rows, indices, shape, scales=store.scales, **options)
        for rows in (store.rows, store.rows.t().contiguous().t()):
            assert same_bits(gather_rows(rows, spread[:, 0], shape, scales=scales, **options), plain)


@pytest.mark.parametrize("kernels", BOTH)
def test_every_second_index_of_a_vector_reads_the_rows_it_names(kernels: str) -> None:
    rows = torch.arange(40.0, device=DEVICE).view(5, 8)
    indices = torch.tensor([4, 0, 3, 1, 2, 0], device=DEVICE)[::2]
    with forced(kernels):
        assert gather_rows(rows, indices, (8,), dtype=torch.float16)[:, 0].tolist() == [32, 24, 16]
        column = torch.tensor([[1, 9], [4, 9], [0, 9]], device=DEVICE)[:, 0]
        assert gather_rows(rows, column, (8,), dtype=torch.float16)[:, 0].tolist() == [8, 32, 0]


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(3, 4, 8), (3, 2, 2)])
def test_what_is_not_finite_comes_back_as_nan_and_never_as_a_number(
    kernels: str, bad: float, shape: tuple[int, ...]
) -> None:
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[2, 1, 0, 1] = bad
    rows, scales = quantize_rows(x)
    with forced(kernels):
        back = gather_rows(rows, torch.arange(4, device=DEVICE), shape, scales=scales)
    spoilt = back.isnan()
    wanted = torch.zeros_like(spoilt)
    wanted[2, 1 if scale_count(shape) > 1 else slice(None)] = True
    assert torch.equal(spoilt, wanted)


@pytest.mark.parametrize("shape", [(512, 1, 1), (128, 2, 2), (512,), (64, 3, 5), (32, 4, 4), (16, 8), (8, 16)])
def test_int8_rows_and_scales_take_less_room_than_half_precision(shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    rows, scales = quantize_rows(x)
    assert scales.shape == (3, scale_count(shape))
    assert rows.nbytes + scales.nbytes < x.nbytes / 2
    # One scale for the sample: its step is the largest magnitude of the sample over 127.
    if scale_count(shape) == 1:
        assert torch.allclose(scales[:, 0] * 127, x.abs().flatten(1).amax(1), rtol=2 * UNIT, atol=0)


def test_a_channel_has_a_scale_of_its_own_from_sixteen_values_on() -> None:
    assert [scale_count(shape) for shape in [(32, 4, 4), (16, 16), (64, 3, 5), (16, 15), (512,)]] == [32, 16, 1, 1, 1]


@pytest.mark.parametrize("kernels", BOTH)
def test_one_scale_per_sample_serves_any_shape(kernels: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        numel = math.prod(shape)
        rows = torch.randint(-127, 128, (5, numel), generator=generator, dtype=torch.int8).to(DEVICE)
        scales = torch.rand(5, 1, generator=generator).to(DEVICE)
        indices = draw_indices("random", 5, 0)
        for last in (False, True) if len(shape) == 3 else (False,):
            with forced(kernels):
                batch = gather_rows(rows, indices, shape, scales=scales, channels_last=last)
            wanted = rows[indices].float() * scales[indices]
            flat = batch.permute(0, 2, 3, 1).reshape(7, -1) if last else batch.reshape(7, -1)
            assert torch.equal(flat, wanted)


def test_rows_the_kernel_cannot_address_are_left_to_pytorch() -> None:
    rows = torch.zeros(4, 32, dtype=torch.float16, device=DEVICE)
    assert kernel.serves(rows, torch.float32, 16)
    assert not kernel.serves(rows.t(), torch.float32, 4)
    assert not kernel.serves(rows, torch.float32, 2**31 - kernel.BLOCK)
    assert kernel.serves(rows, torch.float32, 2**31 - kernel.BLOCK - 1)
    assert not kernel.serves(rows.to(torch.int16), torch.float32, 16)
    assert not kernel.serves(rows, torch.int8, 16)


def test_a_capture_refuses_indices_that_a_replay_could_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldbench.kernels import dispatch

    rows, at = torch.ones(5, 16), torch.tensor([4, 0])
    monkeypatch.setattr(dispatch, "capturing", lambda device: True)
    with pytest.raises(ValueError, match="indices must lie on the GPU while a CUDA graph is captured"):
        gather_rows(rows, at, (4,), dtype=torch.float16)


def test_outside_of_compile_no_custom_op_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the custom op was taken")

    store = Store.make((2, 4, 8), torch.int8, 0)
    monkeypatch.setattr(kernel, "gather_rows_op", never)
    with forced("triton"):
        gather_rows(store.rows, torch.tensor([4, 0], device=DEVICE), (2, 4, 8), scales=store.scales)


@pytest.mark.parametrize("last", [False, True])
def test_a_compiled_call_gives_the_same_bits(last: bool) -> None:
    store = Store.make((2, 4, 8), torch.int8, 0, last=last)
    at = torch.tensor([4, 0, 0], device=DEVICE)

    def call(indices: Tensor) -> Tensor:
        return gather_rows(store.rows, indices, (2, 4, 8), scales=store.scales, channels_last=last)

    with forced("triton"):
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(at)
        assert compiled.stride() == call(at).stride()
        assert same_bits(compiled, call(at))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
def test_pinned_rows_are_read_by_the_kernel_and_indices_are_taken_at_the_call() -> None:
    shape = (4, 8, 8)
    x = torch.randn(64, *shape)
    rows, scales = (t.pin_memory() for t in quantize_rows(x))
    ahead = torch.randn(4096, 4096, device=DEVICE)
    indices = torch.zeros(16, dtype=torch.int64).pin_memory()
    for seed in range(20):
        now = torch.randint(64, (16,), generator=torch.Generator().manual_seed(seed))
        for _ in range(4):
            ahead = ahead @ ahead * 1e-4  # the device is busy when the caller goes on
        indices.copy_(now)
        batch = gather_rows(rows, indices, shape, scales=scales, device=DEVICE)
        indices.fill_(63)
        wanted = gather_rows(rows.to(DEVICE), now.to(DEVICE), shape, scales=scales.to(DEVICE))
        assert batch.device.type == "cuda"
        assert same_bits(batch, wanted)


def test_quantised_rows_keep_the_memory_order_of_their_input() -> None:
    x = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    rows, scales = quantize_rows(x)
    last_rows, last_scales = quantize_rows(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(last_rows.view(3, 5, 2, 4).permute(0, 3, 1, 2), rows.view(3, 4, 5, 2))
    assert torch.equal(scales, last_scales)
    for bad in (torch.ones(3), torch.ones(3, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="x must be floating"):
            quantize_rows(bad)


@triton.jit
def _probe(programs, indices, answers, tiles, stride, numel, BLOCK: tl.constexpr):
    n = tl.program_id(0)
    row, source, target, start = kernel.locate(tl.load(programs + n), indices, tiles, stride, numel, BLOCK)
    tl.store(answers + n * 4, row)
    tl.store(answers + n * 4 + 1, source)
    tl.store(answers + n * 4 + 2, target)
    tl.store(answers + n * 4 + 3, start)


@given(st.integers(2**16, 2**18), st.integers(2**14, 2**17), st.integers(0, 2**30 - 1), st.integers(0, 2**40))
def test_offsets_past_two_to_the_31_are_exact(numel: int, padding: int, program: int, row: int) -> None:
    """Runs the kernel's own address arithmetic on places no test could allocate."""
    tiles = triton.cdiv(numel, 2**12)
    sample = program // tiles
    row = min(row, (2**62) // (numel + padding))
    # The probe is told that its indices begin so far ahead that entry ``sample`` is the one it has.
    indices = torch.zeros(sample + 1 if sample < 2**16 else 1, dtype=torch.int64, device=DEVICE)
    if sample >= len(indices):
        program, sample = program % (tiles * 2**16), (program % (tiles * 2**16)) // tiles
        indices = torch.zeros(sample + 1, dtype=torch.int64, device=DEVICE)
    indices[sample] = row
    answers = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    with forced("triton"):
        _probe[(1,)](
            torch.tensor([program], dtype=torch.int32, device=DEVICE),
            indices,
            answers,
            tiles,
            numel + padding,
            numel,
            2**12,
        )
    assert answers.tolist() == [row, row * (numel + padding), sample * numel, program % tiles * 2**12]


@pytest.mark.parametrize("kernels", BOTH)
def test_wrong_arguments_are_named_before_any_launch(kernels: str) -> None:
    rows, int8 = torch.ones(5, 16, device=DEVICE), torch.ones(5, 16, dtype=torch.int8, device=DEVICE)
    scales, at = torch.ones(5, 2, device=DEVICE), torch.tensor([0, 4], device=DEVICE)
    wide = {"dtype": torch.float16}
    for args, options, message in [
        ((rows, at, (17,)), wide, r"rows must be \[N, stride\] with stride at least 17"),
        ((rows[0], at, (4,)), wide, r"rows must be \[N, stride\]"),
        ((rows, at.int(), (4,)), wide, "indices must be an int64 vector, not torch.int32"),
        ((rows, at.float(), (4,)), wide, "indices must be an int64 vector, not torch.float32"),
        ((rows, at[None], (4,)), wide, "indices must be an int64 vector"),
        ((rows, at.to("meta"), (4,)), wide, "indices are on meta"),
        ((rows.to("meta"), at, (4,)), {"device": DEVICE, **wide}, "rows are on meta, the minibatch is wanted on"),
        ((rows, at, (-1, 4)), wide, "shape must not have negative sizes"),
        ((rows, at, (4, 4)), {"channels_last": True}, "channels_last is for a shape"),
        ((rows, at, (4,)), {"dtype": torch.int32}, "dtype must be floating"),
        ((rows, at, (2, 4)), {"scales": scales}, "scales are for int8 rows"),
        ((int8, at, (3, 4)), {"scales": scales}, r"scales must be float32 \[5, 3\] or \[5, 1\]"),
        ((int8, at, (2, 4)), {"scales": scales[:4]}, r"scales must be float32 \[5, 2\] or \[5, 1\]"),
        ((int8, at, (2, 4)), {"scales": scales[:4, :1]}, r"scales must be float32 \[5, 2\] or \[5, 1\]"),
        ((int8, at, (2, 4)), {"scales": scales.half()}, "scales must be float32"),
        ((int8, at, (2, 4)), {"scales": scales.to("meta")}, "scales are on meta"),
    ]:
        with forced(kernels), pytest.raises(ValueError, match=message):
            gather_rows(*args, **options)
    for bad in ([5], [-1], [0, 2**40], [0, -(2**62)]):
        with forced(kernels), pytest.raises(IndexError, match="indices must lie between 0 and 4"):
            gather_rows(rows, torch.tensor(bad, device=DEVICE), (4,), **wide)
    with forced(kernels), pytest.raises(IndexError, match="indices must lie between 0 and -1"):
        gather_rows(rows[:0], at, (4,), **wide)


def test_the_custom_op_passes_opcheck_and_counts_a_multiplication_per_element() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    store = Store.make((2, 4, 8), torch.int8, 0, last=True)
    at = torch.tensor([4, 0, 0], device=DEVICE)
    with forced("triton"):
        for last in (False, True):
            torch.library.opcheck(
                kernel.gather_rows_op, (store.rows, at, store.scales, [2, 4, 8], torch.float32, last, DEVICE)
            )
        with FlopCounterMode(display=False) as counter:
            gather_rows(store.rows, at, (2, 4, 8), scales=store.scales)
    assert counter.get_total_flops() == 3 * 64


def test_every_element_of_the_result_is_written() -> None:
    store = Store.make((3, 7, 5), torch.int8, 0)
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        with forced("triton"):
            batch = gather_rows(store.rows, torch.arange(5, device=DEVICE), (3, 7, 5), scales=store.scales)
    finally:
        torch.use_deterministic_algorithms(was)
    assert bool(batch.isfinite().all())


def test_row_strides_are_padded_to_whole_loads() -> None:
    assert row_stride(1, torch.int8) == 16
    assert row_stride(16, torch.int8) == 16
    assert row_stride(9, torch.float16) == 16
    assert row_stride(33, torch.float32, pinned=True) == 64
    assert row_stride(0, torch.float32) == 0
    assert PAD * np.dtype(np.int8).itemsize % 16 == 0  # the fences keep the alignment
