"""Parameter-delta norms against a float64 oracle: Triton's interpreter, kernels on a GPU, and plain PyTorch."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.kernel_cases import DEVICE, UNIT, VALUES, assert_fence_untouched, fenced, fill, forced, same_bits
from torch import Tensor

from ldbench.kernels import DeltaNormPlan, delta_norms

pytest.importorskip("triton")
BLOCK = 16
LAYERS = 3
SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BOTH = ["triton", "reference"]


@dataclass(frozen=True)
class Spec:
    """One parameter: its elements, layer, dtype, distance from alignment, memory order and kind of values."""

    size: int
    layer: int = 0
    dtype: torch.dtype = torch.float32
    offset: int = 0
    order: str = "flat"
    values: str = "normal"


specs = st.builds(
    Spec,
    st.sampled_from(SIZES),
    st.integers(0, LAYERS - 1),
    st.sampled_from(DTYPES),
    st.sampled_from([0, 0, 1, 3]),
    st.sampled_from(["flat", "flat", "transposed", "strided", "mixed"]),
    st.sampled_from(["normal", *VALUES]),
)
cases = st.lists(specs, max_size=5)
seeds = st.integers(0, 2**31)


class Case:
    """Parameters and snapshots built from specs, every one between canaries."""

    def __init__(self, drawn: list[Spec], seed: int, block: int = BLOCK) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.fences: list[tuple[Tensor, int, int]] = []
        self.params, self.snapshots, self.layers = [], [], [spec.layer for spec in drawn]
        for spec in drawn:
            theta, prev = self._pair(spec)
            fill(theta, prev, spec.values, generator)
            self.params.append(theta)
            self.snapshots.append(prev)
        self.thetas, self.prevs = ([t.clone() for t in ts] for ts in (self.params, self.snapshots))
        self.plan = DeltaNormPlan(self.params, self.snapshots, self.layers, LAYERS, block)

    def _pair(self, spec: Spec) -> tuple[Tensor, Tensor]:
        views = []
        for is_snapshot in (False, True):
            strided = spec.order == "strided" or (spec.order == "mixed" and is_snapshot)
            held = 2 * spec.size if strided else spec.size
            whole, view = fenced(held, spec.dtype, spec.offset)
            self.fences.append((whole, held, spec.offset))
            if strided:
                view = view[::2]
            elif spec.order == "transposed" and spec.size % 8 == 0:
                view = view.view(-1, 8).t()
            views.append(view)
        return views[0], views[1]

    def oracle(self) -> Tensor:
        squares = torch.zeros(LAYERS, 2, dtype=torch.float64)
        for theta, prev, layer in zip(self.thetas, self.prevs, self.layers, strict=True):
            now, then = theta.double().cpu(), prev.double().cpu()
            squares[layer] += torch.stack([(now - then).square().sum(), then.square().sum()])
        return squares.sqrt()

    def assert_fences(self) -> None:
        for whole, held, offset in self.fences:
            assert_fence_untouched(whole, held, offset)


def assert_close(norms: Tensor, oracle: Tensor, depth: int) -> None:
    """Within the rounding of float32: 3 for the difference and the square, ``depth`` additions, halved by the root; 1
    for the result and 1 for squares lost to underflow."""
    oracle = oracle.clone()
    oracle[oracle > torch.finfo(torch.float32).max] = torch.inf
    norms = norms.double().cpu()
    finite = oracle.isfinite()
    assert same_bits(norms.isnan(), oracle.isnan())
    assert same_bits(norms.isinf(), oracle.isinf())
    slack = oracle * ((3 + depth) / 2 + 2) * UNIT + 2.0**-149
    assert bool(((norms - oracle).abs() <= slack)[finite].all()), (norms, oracle)


@pytest.mark.parametrize("kernels", BOTH)
@given(cases, seeds, st.booleans())
@example([Spec(0), Spec(BLOCK), Spec(0), Spec(5), Spec(0)], 0, True)
@example([], 0, True)
def test_norms_match_float64_and_only_snapshots_change(
    kernels: str, drawn: list[Spec], seed: int, update: bool
) -> None:
    case = Case(drawn, seed)
    out = torch.full((LAYERS, 2), float("nan"), device=case.plan.device)
    with forced(kernels):
        assert delta_norms(case.plan, out, update) is out
    depth = BLOCK if kernels == "triton" else max([BLOCK, *[spec.size for spec in drawn]])
    assert_close(out, case.oracle(), depth)
    for now, before in zip(case.params, case.thetas, strict=True):
        assert same_bits(now, before), "a parameter changed"
    for now, wanted in zip(case.snapshots, case.thetas if update else case.prevs, strict=True):
        assert same_bits(now, wanted), "a snapshot is not what it should be"
    case.assert_fences()


@given(cases, seeds)
def test_two_runs_agree_to_the_bit_and_a_second_call_gives_zero(drawn: list[Spec], seed: int) -> None:
    case = Case([spec for spec in drawn if spec.values not in ("inf", "nan")], seed)
    with forced("triton"):
        first = delta_norms(case.plan, update=False)
        assert same_bits(first, delta_norms(case.plan, update=True))
        again = delta_norms(case.plan)
    assert bool((again[:, 0] == 0).all())
    case.thetas, case.prevs = case.thetas, case.thetas
    assert_close(again, case.oracle(), BLOCK)


@pytest.mark.parametrize("kernels", BOTH)
@given(st.lists(specs, min_size=1, max_size=3), seeds, st.integers(0, 2))
def test_norm_is_zero_if_and_only_if_equal(kernels: str, drawn: list[Spec], seed: int, changed: int) -> None:
    kinds = ["nudged" if i == changed % len(drawn) else "equal" for i in range(len(drawn))]
    drawn = [
        Spec(s.size, i, s.dtype, s.offset, s.order, kind) for i, (s, kind) in enumerate(zip(drawn, kinds, strict=True))
    ]
    case = Case(drawn, seed)
    with forced(kernels):
        moved = delta_norms(case.plan)[:, 0].tolist()
    wanted = [kind == "nudged" and spec.size > 0 for spec, kind in zip(drawn, kinds, strict=True)]
    assert [norm != 0 for norm in moved[: len(drawn)]] == wanted


@given(st.integers(2, 4 * BLOCK), st.data(), seeds, st.sampled_from(DTYPES))
def test_splitting_a_tensor_leaves_the_norm_within_the_bound(
    size: int, data: st.DataObject, seed: int, dtype: torch.dtype
) -> None:
    case = Case([Spec(size, 1, dtype)], seed)
    cut = data.draw(st.integers(0, size))
    halves = [[tensors[0][:cut], tensors[0][cut:]] for tensors in (case.params, case.snapshots)]
    with forced("triton"):
        split = delta_norms(DeltaNormPlan(halves[0], halves[1], [1, 1], LAYERS, BLOCK), update=False)
        whole = delta_norms(case.plan, update=False)
    assert_close(split, case.oracle(), BLOCK)
    assert_close(whole, split.double(), 2 * BLOCK)


def test_a_thousand_tensors_in_one_plan() -> None:
    case = Case([Spec(i % 4, i % LAYERS) for i in range(1100)], seed=1)
    with forced("triton"):
        norms = delta_norms(case.plan)
    assert_close(norms, case.oracle(), BLOCK)
    assert all(same_bits(s, p) for s, p in zip(case.snapshots, case.thetas, strict=True))


@pytest.mark.parametrize("kernels", BOTH)
def test_a_tied_parameter_counts_once_per_layer_and_all_its_snapshots_follow(kernels: str) -> None:
    weight = torch.arange(20.0, device=DEVICE)
    snapshots = [weight + 1 for _ in range(3)]
    with forced(kernels):
        norms = delta_norms(DeltaNormPlan([weight, weight, weight], snapshots, [0, 0, 1], 2, BLOCK))
    assert norms[0].tolist() == norms[1].tolist()
    assert norms[0, 0].item() == pytest.approx(20**0.5)
    assert all(torch.equal(snapshot, weight) for snapshot in snapshots)


@pytest.mark.parametrize("kernels", BOTH)
def test_channels_last_parameters_in_equal_and_in_different_order(kernels: str) -> None:
    theta = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    last = theta.contiguous(memory_format=torch.channels_last)
    for param, prev in ((last, last + 1), (last, theta + 1), (theta, last + 1)):
        snapshot = prev.clone()
        with forced(kernels):
            plan = DeltaNormPlan([param], [snapshot], [0], 1, 64)
            norms = delta_norms(plan)
        assert_close(norms, torch.stack([(param - prev).double().norm(), prev.double().norm()])[None].cpu(), 300)
        assert torch.equal(snapshot, theta)
        assert snapshot.stride() == prev.stride()


@pytest.mark.parametrize("kernels", BOTH)
def test_moved_tensors_are_noticed(kernels: str) -> None:
    param, snapshot = torch.nn.Parameter(torch.ones(40, device=DEVICE)), torch.zeros(40, device=DEVICE)
    plan = DeltaNormPlan([param], [snapshot], [0], 1, BLOCK)
    with forced(kernels):
        delta_norms(plan)
        param.data = torch.full((40,), 3.0, device=DEVICE)
        assert delta_norms(plan)[0, 0].item() == pytest.approx(2 * 40**0.5)
        snapshot.data = torch.zeros(40, device=DEVICE)
        assert delta_norms(plan)[0].tolist() == pytest.approx([3 * 40**0.5, 0])
        param.data = torch.ones(41, device=DEVICE)
        with pytest.raises(ValueError, match=r"snapshots\[0\] differs from params\[0\]"):
            delta_norms(plan)


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("change", ["transposed", "shortened", "half"])
@pytest.mark.parametrize("whose", ["parameter", "snapshot", "both"])
def test_another_layout_at_the_same_address_is_noticed(kernels: str, change: str, whose: str) -> None:
    """In every tensor alone, and in both alike; what does not fit any more is refused, never read by the old tables."""
    changes = {
        "transposed": lambda t: t.view(4, 4).t(),
        "shortened": lambda t: t[:3],
        "half": lambda t: t.view(torch.float16)[:, :4],
    }
    param = torch.nn.Parameter(torch.arange(16.0, device=DEVICE).view(4, 4).half().float())
    snapshot = torch.flip(param.detach(), (0, 1)).contiguous()
    plan = DeltaNormPlan([param], [snapshot], [0], 1, BLOCK)
    with forced(kernels):
        delta_norms(plan, update=False)
        tensors = {"parameter": [param], "snapshot": [snapshot], "both": [param, snapshot]}[whose]
        for tensor in tensors:
            address = tensor.data_ptr()
            tensor.data = changes[change](tensor.data)
            assert tensor.data_ptr() == address
        if change == "transposed" or whose == "both":
            now, then = param.detach().double(), snapshot.double()
            wanted = torch.stack([(now - then).square().sum(), then.square().sum()]).sqrt().cpu()
            assert_close(delta_norms(plan, update=True), wanted[None], 16)
            assert same_bits(snapshot, param.detach())
        else:
            before = snapshot.clone()
            for _ in range(2):  # a second call must not take the refusal for settled
                with pytest.raises(ValueError, match=r"snapshots\[0\] differs from params\[0\]"):
                    delta_norms(plan)
            assert same_bits(snapshot, before)


@pytest.mark.parametrize("kernels", BOTH)
def test_the_other_implementation_takes_over_from_what_one_has_followed(kernels: str) -> None:
    """Both look at one plan: what the first notices must not hide from the second."""
    param, snapshot = torch.nn.Parameter(torch.ones(40, device=DEVICE)), torch.zeros(40, device=DEVICE)
    plan = DeltaNormPlan([param], [snapshot], [0], 1, BLOCK)
    [other] = set(BOTH) - {kernels}
    with forced(other):
        delta_norms(plan, update=False)
    param.data = torch.full((40,), 3.0, device=DEVICE)
    for kernel in (kernels, other):
        with forced(kernel):
            assert delta_norms(plan, update=False)[0, 0].item() == pytest.approx(3 * 40**0.5)


def test_tables_are_built_once_and_a_change_that_does_not_matter_builds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldbench.kernels import layout

    def built(plan: DeltaNormPlan) -> tuple[object, ...]:
        with forced("triton"):
            first = plan.tables()
            delta_norms(plan)
            plan.params[0].requires_grad_(not plan.params[0].requires_grad)
            return first, plan.tables(), plan.tables(update=False)

    for guards in (layout.TensorGuards, None):  # the slow comparison serves where torch has no fast one
        monkeypatch.setattr(layout, "TensorGuards", guards)
        case = Case([Spec(20), Spec(7, 1)], seed=4)
        first, *later = built(case.plan)
        assert all(tables is first for tables in later)
        case.params[0].data = case.params[0].data[:13]
        case.snapshots[0].data = case.snapshots[0].data[:13]
        assert built(case.plan)[0] is not first


def test_a_look_sees_address_dtype_shape_and_strides_and_learns_what_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ldbench.kernels import layout

    tensor = torch.zeros(4, 4, dtype=torch.float16, device=DEVICE)
    views = [tensor, tensor.view(torch.bfloat16), tensor.t(), tensor[:3], tensor[1:], tensor.view(16), tensor.clone()]
    assert len({tuple(layout.signature([view])) for view in views}) == len(views)
    watched = torch.nn.Parameter(torch.zeros(3, device=DEVICE))
    watch = layout.Watch([watched])
    watched.requires_grad_(False)
    assert watch.unchanged()  # by the long comparison
    monkeypatch.setattr(layout, "signature", lambda tensors: pytest.fail("the long comparison is made again"))
    assert watch.unchanged()


@pytest.mark.parametrize("kernels", BOTH)
def test_out_in_a_parameters_or_snapshots_memory_is_refused(kernels: str) -> None:
    held = torch.arange(12.0, device=DEVICE).roll(2)
    param, snapshot = held[2:8], torch.zeros(6, device=DEVICE)
    before = held.clone()
    plan = DeltaNormPlan([param], [snapshot], [0], 1, BLOCK)
    with forced(kernels):
        for bad in (held[2:4], held[6:8], held[7:9], held[1:3], snapshot[2:4]):
            with pytest.raises(ValueError, match="out shares memory with a parameter or a snapshot"):
                delta_norms(plan, bad.view(1, 2))
        assert torch.equal(held, before)
        assert not snapshot.any()
        beside = held[8:10].view(1, 2)
        for _ in range(2):
            assert delta_norms(plan, beside, update=False)[0, 0].item() == pytest.approx(55**0.5)
        param.data = held[6:12]  # where it was all right before
        with pytest.raises(ValueError, match="out shares memory"):
            delta_norms(plan, beside, update=False)


@pytest.mark.parametrize("kernels", BOTH)
def test_views_of_one_tensor_with_other_strides_count_once_in_a_layer(kernels: str) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    wide = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    views = [weight, weight.t(), weight.view(24), wide[:, ::2], wide[:, ::2].t(), wide.t()[::2]]
    snapshots = [view.clone() + 1 for view in views]
    layers = [0, 0, 0, 1, 1, 1]
    with forced(kernels):
        norms = delta_norms(DeltaNormPlan(views, snapshots, layers, 2, BLOCK))
    then = torch.stack([(weight + 1).double().norm(), (wide[:, ::2] + 1).double().norm()])
    assert_close(norms, torch.stack([torch.tensor([24.0, 24.0]).double().sqrt(), then.cpu()], dim=1), 24)
    assert all(torch.equal(snapshot, view) for snapshot, view in zip(snapshots, views, strict=True))


@pytest.mark.parametrize("kernels", BOTH)
def test_neighbours_in_one_tensor_are_not_tied(kernels: str) -> None:
    """The same shapes and strides at other addresses, and another shape at the same one."""
    held = torch.ones(6, 4, device=DEVICE)
    views = [held[:2], held[2:4], held[:, :1], held[:2, :2]]
    with forced(kernels):
        norms = delta_norms(DeltaNormPlan(views, [torch.zeros_like(v) for v in views], [0] * 4, 1, BLOCK))
    assert norms[0, 0].item() == pytest.approx((8 + 8 + 6 + 4) ** 0.5)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("kernels", BOTH)
def test_no_call_leaves_a_graph_behind(kernels: str, watched: bool) -> None:
    """Leaves that require a gradient, dense and not, updated in place; by the custom op too, where a mode watches."""
    from torch.utils.flop_counter import FlopCounterMode

    param = torch.nn.Parameter(torch.ones(4, 10, device=DEVICE))
    for snapshot in (torch.zeros(4, 10, device=DEVICE), torch.zeros(4, 20, device=DEVICE)[:, ::2]):
        for wants_grad in (False, True):
            leaf = snapshot.detach().zero_().requires_grad_(wants_grad)
            plan, out = DeltaNormPlan([param], [leaf], [0], 1, BLOCK), torch.empty(1, 2, device=DEVICE)
            with forced(kernels), FlopCounterMode(display=False) if watched else contextlib.nullcontext():
                norms = delta_norms(plan, out)
            assert not norms.requires_grad
            assert leaf.is_leaf
            assert torch.equal(leaf.detach(), param.detach())


def test_a_capture_gets_scratch_of_its_own_and_only_what_was_launched_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any machine: the capture is played. On a GPU ``test_replays_...`` does it for real."""
    from ldbench.kernels import plan as module

    case = Case([Spec(20), Spec(7, 1)], seed=5)
    plan, out = case.plan, torch.empty(LAYERS, 2, device=DEVICE)
    with forced("triton"):
        delta_norms(plan, out, update=False)
        tables = plan.tables(update=False)
        wanted = out.clone()
        monkeypatch.setattr(module, "capturing", lambda device: True)
        assert same_bits(delta_norms(plan, out, update=False), wanted)
        with pytest.raises(RuntimeError, match="update=True before capturing"):
            delta_norms(plan, out, update=True)
        case.params[0].data = case.params[0].data.clone()
        with pytest.raises(RuntimeError, match="before capturing"):
            delta_norms(plan, out, update=False)
        monkeypatch.undo()
    with forced("triton"):
        assert plan.tables(update=False) is not tables


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
def test_replays_of_graphs_outlive_new_tables_and_other_streams() -> None:
    case = Case([Spec(5000), Spec(700, 1)], seed=6, block=1024)
    plan = case.plan
    outs = [torch.empty(LAYERS, 2, device=DEVICE) for _ in range(3)]
    wanted = delta_norms(plan, update=False)
    graphs = []
    for out in outs[:2]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            delta_norms(plan, out, update=False)
        graphs.append(graph)
    captured = [pair[0] for pair in plan._captured]
    assert len({scratch.data_ptr() for _, scratch in plan._captured}) == 2
    held = case.params[0].data
    case.params[0].data = torch.zeros_like(held)
    delta_norms(plan, update=False)  # new tables; those of the graphs must stay
    filler = [torch.full((2048,), -1, dtype=torch.int64, device=DEVICE) for _ in range(64)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(200):
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        for stream in streams:
            with torch.cuda.stream(stream):
                delta_norms(plan, outs[2], update=False)
    torch.cuda.synchronize()
    del filler
    assert all(same_bits(out, wanted) for out in outs[:2])
    assert all(pair[0] is tables for pair, tables in zip(plan._captured, captured, strict=True))


def test_addresses_past_two_to_the_31_elements_stay_exact() -> None:
    from ldbench.kernels.tables import chunk_rows

    numel, start = 2**33 + 5, 2**46
    rows = chunk_rows(start, 2 * start, numel, 4, 7, 2**24)
    assert rows[-1].tolist() == [start + 2**35, 2 * start + 2**35, 5, 7 + 2**9]
    assert int(rows[:, 2].sum()) == numel


def test_wrong_arguments_are_named() -> None:
    a, b = torch.zeros(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    both = torch.zeros(6, device=DEVICE)
    for args, message in [
        (([a], [b, b], [0], 1), "params, snapshots and layers differ in length: 1, 2 and 1"),
        (([a], [b[:3]], [0], 1), r"snapshots\[0\] differs from params\[0\]"),
        (([a], [b.double()], [0], 1), r"snapshots\[0\] differs"),
        (([a], [b.to("meta")], [0], 1), r"snapshots\[0\] differs"),
        (([a, a.to("meta")], [b, b.to("meta")], [0, 0], 1), r"params\[1\] is on meta"),
        (([a.long()], [b.long()], [0], 1), r"params\[0\] is torch.int64"),
        (([a], [b], [1], 1), "layers must lie between 0 and 0"),
        (([a], [b], [-1], 1), "layers must lie between"),
        (([a], [b], [0], -1), "n_layers must not be negative|layers must lie"),
        (([a], [b], [0], 1, 12), "block must be a power of two"),
        (([a], [a], [0], 1), r"snapshots\[0\] shares memory with params\[0\]|params\[0\] shares memory"),
        (([a, a], [b, b], [0, 1], 2), r"snapshots\[1\] shares memory with snapshots\[0\]"),
        (([a], [b[:1].expand(4)], [0], 1), r"several elements of snapshots\[0\] share one place"),
        (([a[:3], a[1:]], [both[:3], both[2:5]], [0, 0], 1), r"snapshots\[1\] shares memory with snapshots\[0\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            DeltaNormPlan(*args)
    plan = DeltaNormPlan([a], [b], [0], 1)
    for out in (
        torch.zeros(2, 2),
        torch.zeros(1, 2).double(),
        torch.zeros(1, 4)[:, ::2],
        torch.zeros(1, 2, device="meta"),
    ):
        with pytest.raises(ValueError, match="out must be contiguous float32"):
            delta_norms(plan, out if out.is_meta else out.to(DEVICE))


def _op_arguments(plan: DeltaNormPlan, out: Tensor) -> tuple[object, ...]:
    tables = plan.tables()
    strided = [number for pair in tables.strided for number in pair]
    built = (tables.signature, tables.chunks, strided, tables.offsets, tables.sums)
    return (plan.params, plan.snapshots, plan.layer_list, *built, out, True, plan.block)


def test_the_custom_op_passes_opcheck() -> None:
    from ldbench.kernels.delta_norm import delta_norms_op

    case = Case([Spec(20), Spec(7, 1, torch.float16), Spec(16, 2, order="mixed")], seed=2)
    with forced("triton"):
        torch.library.opcheck(delta_norms_op, _op_arguments(case.plan, torch.zeros(LAYERS, 2, device=DEVICE)))


def test_a_compiled_call_gives_the_same_bits_and_updates_the_snapshots() -> None:
    eager, compiled = (Case([Spec(20), Spec(7, 1, torch.float16)], seed=3) for _ in range(2))
    with forced("triton"):
        wanted = delta_norms(eager.plan)
        compiled.plan.tables()
        step = torch.compile(lambda out: delta_norms(compiled.plan, out), backend="aot_eager", fullgraph=True)
        assert same_bits(step(torch.zeros(LAYERS, 2, device=DEVICE)), wanted)
    assert all(same_bits(s, p) for s, p in zip(compiled.snapshots, compiled.thetas, strict=True))


def test_a_compiled_call_notices_another_layout_at_the_same_address() -> None:
    """Whatever it guards on: the tables it was compiled with are not taken for a transposed parameter."""
    param, snapshot = torch.nn.Parameter(torch.arange(16.0, device=DEVICE).view(4, 4)), torch.ones(4, 4, device=DEVICE)
    plan = DeltaNormPlan([param], [snapshot], [0], 1, BLOCK)
    with forced("triton"):
        delta_norms(plan, update=False)
        step = torch.compile(lambda out: delta_norms(plan, out), backend="aot_eager")
        step(torch.zeros(1, 2, device=DEVICE))
        assert torch.equal(snapshot, param.detach())
        param.data = param.data.t()
        moved = step(torch.zeros(1, 2, device=DEVICE))[0, 0].item()
        assert moved == pytest.approx(float((param.detach() - param.detach().t()).norm()))
        assert torch.equal(snapshot, param.detach())
        param.data = torch.ones(40, device=DEVICE)  # longer than its snapshot
        with pytest.raises(ValueError, match=r"snapshots\[0\] differs from params\[0\]"):
            step(torch.zeros(1, 2, device=DEVICE))


def test_the_flop_counter_sees_five_per_element() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = Case([Spec(20), Spec(7, 1)], seed=3)
    with forced("triton"), FlopCounterMode(display=False) as counter:
        delta_norms(case.plan)
    assert counter.get_total_flops() == 5 * 27


def test_the_package_works_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from ldbench.kernels import DeltaNormPlan, delta_norms, gather_rows
print(delta_norms(DeltaNormPlan([torch.ones(4)], [torch.zeros(4)], [0], 1)).tolist())
print(gather_rows(torch.ones(2, 4), torch.tensor([1]), (4,)).tolist())
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.stdout.split("\n")[:2] == ["[[2.0, 0.0]]", "[[1.0, 1.0, 1.0, 1.0]]"], answer.stderr


def test_forcing_an_unknown_or_impossible_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = DeltaNormPlan([torch.ones(4)], [torch.zeros(4)], [0], 1)
    with forced("cuda"), pytest.raises(ValueError, match="LDBENCH_KERNELS must be reference or triton"):
        delta_norms(plan)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with forced("triton"), pytest.raises(ValueError, match="only with TRITON_INTERPRET=1"):
        delta_norms(plan)
