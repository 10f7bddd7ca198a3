"""What ``delta_norms`` works on, checked once and followed from then on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Watch, repeats_places, span
from .tables import BLOCK, Tables, build_tables, check_pairs


def capturing(device: torch.device) -> bool:
    """Whether what is launched on ``device`` now is recorded into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class DeltaNormPlan:
    """What ``delta_norms`` works on, checked once. Tensors may move and change afterwards: every call looks at their
    addresses, dtypes, shapes and strides.

    A plan may serve several streams, each with scratch of its own; that two calls do not update one snapshot at a time
    is the caller's business. A CUDA graph that holds a call needs the plan as long as it needs the parameters.

    Args:
        params: parameters of any shape, strides and floating dtype, all on one device.
        snapshots: one tensor per parameter with its shape and dtype, in memory of its own.
        layers: layer of each parameter, from 0 to ``n_layers - 1``; several parameters may share one. Parameters that
            are views of the same elements (tied weights, transposed or not) count once in each layer.
        n_layers: number of layers; one without parameters has norm 0.
        block: elements per program of the kernel, a power of two; tests make it small.

    Raises:
        ValueError: lengths, shapes, dtypes or devices that do not match, snapshots that share memory with each other,
            with a parameter or within themselves (``expand``), a layer out of range.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        snapshots: Sequence[Tensor],
        layers: Sequence[int],
        n_layers: int,
        block: int = BLOCK,
    ) -> None:
        if not len(params) == len(snapshots) == len(layers):
            lengths = f"{len(params)}, {len(snapshots)} and {len(layers)}"
            raise ValueError(f"params, snapshots and layers differ in length: {lengths}")
        if n_layers < 0:
            raise ValueError(f"n_layers must not be negative, not {n_layers}")
        if any(not 0 <= layer < n_layers for layer in layers):
            raise ValueError(f"layers must lie between 0 and {n_layers - 1}")
        if block < 1 or block & (block - 1):
            raise ValueError(f"block must be a power of two, not {block}")
        self.params, self.snapshots, self.n_layers = list(params), list(snapshots), n_layers
        self.layer_list, self.block = [int(layer) for layer in layers], block
        self.device = torch.device("cpu")
        self._watch: Watch | None = None
        self._tables: Tables | None = None
        self._ready: set[bool] = set()  # values of ``update`` whose kernels were launched outside of a capture
        self._scratch: dict[int, Tensor] = {}  # by stream
        self._captured: list[tuple[Tables, Tensor]] = []  # what CUDA graphs point to
        self._out_address: int | None = None
        self.follow()

    def _check_apart(self) -> None:
        spans = []  # (first byte, one past the last, whether a snapshot, index)
        for is_snapshot, tensors in ((False, self.params), (True, self.snapshots)):
            for i, tensor in enumerate(tensors):
                if tensor.numel():
                    spans.append((*span(tensor), is_snapshot, i))
                    if is_snapshot and repeats_places(tensor):
                        raise ValueError(f"several elements of snapshots[{i}] share one place; clone the snapshots")
        spans.sort()
        reach: dict[bool, tuple[int, int]] = {False: (0, -1), True: (0, -1)}  # furthest end so far, and whose it is
        for start, end, is_snapshot, i in spans:
            for other_is in (False, True) if is_snapshot else (True,):
                limit, j = reach[other_is]
                same = is_snapshot and other_is and self._same_pair(i, j)
                if start < limit and not same:
                    mine, theirs = ("snapshots" if kind else "params" for kind in (is_snapshot, other_is))
                    raise ValueError(f"{mine}[{i}] shares memory with {theirs}[{j}]; clone the snapshots")
            reach[is_snapshot] = max(reach[is_snapshot], (end, i))
        self._starts: list[int] = []  # the ranges that are taken, those that touch as one
        self._ends: list[int] = []
        for start, end, *_ in spans:
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def _same_pair(self, i: int, j: int) -> bool:
        """Whether two entries are the same parameter with the same snapshot in the same layer."""

        def identity(k: int) -> tuple[object, ...]:
            pair = (self.params[k], self.snapshots[k])
            return (self.layer_list[k], *[(t.data_ptr(), t.shape, t.stride()) for t in pair])

        return identity(i) == identity(j)

    def check_out(self, out: Tensor) -> None:
        """Raise ``ValueError`` where ``out``, a contiguous tensor, shares memory with a parameter or snapshot."""
        start = out.data_ptr()
        if start == self._out_address:
            return
        at = bisect_right(self._starts, start + out.nbytes - 1) - 1
        if out.numel() and at >= 0 and self._ends[at] > start:
            raise ValueError("out shares memory with a parameter or a snapshot")
        self._out_address = start

    def tables(self, update: bool = True) -> Tables:
        """The kernel's tables, built at the first call and again after a tensor moved or changed.

        Inside ``torch.compile`` the last ones, since addresses are unknown there; the custom op looks again.

        Raises:
            ValueError: what changed no longer matches.
            RuntimeError: while a CUDA graph is captured, the tables were never built or a tensor changed since, or
                there was no call with this ``update`` outside.
        """
        if not torch.compiler.is_compiling():
            return self._current_tables(update)
        tables: Tables = self._tables_outside(update) if self._tables is None else self._tables
        return tables

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _tables_outside(self, update: bool) -> Tables:
        return self._current_tables(update)

    def _current_tables(self, update: bool) -> Tables:
        if self._tables is None or update not in self._ready or self._watch is None or not self._watch.unchanged():
            if capturing(self.device):
                raise RuntimeError(
                    f"call delta_norms once with this plan and update={update} before capturing it in a CUDA graph"
                )
            self.follow()
            if self._tables is None:
                self._tables = build_tables(self.params, self.snapshots, self.layer_list, self.n_layers, self.block)
            self._ready.add(update)
        return self._tables

    def scratch(self, tables: Tables) -> Tensor:
        """``tables.sums`` or another like it: one that no other stream and no CUDA graph writes."""
        if self.device.type != "cuda":
            return tables.sums
        if capturing(self.device):
            self._captured.append((tables, torch.empty_like(tables.sums)))
            return self._captured[-1][1]
        stream = torch.cuda.current_stream(self.device)
        found = self._scratch.get(stream.cuda_stream)
        if found is None:
            found = torch.empty_like(tables.sums) if self._scratch else tables.sums
            self._scratch[stream.cuda_stream] = found
            for table in (*tables.chunks, tables.offsets, tables.sums):
                table.record_stream(stream)  # when tables are replaced their memory waits for this stream too
        return found

    def follow(self) -> None:
        """Check again what changed since the last look. Raises ``ValueError`` where it no longer matches."""
        if self._watch is None or not self._watch.unchanged():
            self._watch = self._tables = self._out_address = None
            self._ready.clear()
            self._scratch.clear()
            check_pairs(self.params, self.snapshots)
            self._check_apart()
            self.device = self.params[0].device if self.params else torch.device("cpu")
            self._watch = Watch([*self.params, *self.snapshots])
