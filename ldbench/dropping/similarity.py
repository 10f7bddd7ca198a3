"""How similar each stage's output still is to what it was at the beginning: linear CKA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.dropping.monitor import Levels, Monitor
from ldbench.stages.train_mode import evaluating
from ldbench.store.fill import Autocast


def centred_gram(rows: Tensor) -> Tensor | None:
    """The centred b x b Gram matrix of b samples' features (float [b, p]) over its Frobenius norm, float64 [b, b].

    None where it has none: all samples alike, or a feature that is not finite. The inner product of two of them is the
    linear CKA of Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited" (arXiv:1905.00414):
    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with HSIC(K, L) = tr(K H L H) / (b - 1)^2, K = X X^T and H = I - 1 1^T / b,
    since H X X^T H is the Gram matrix of the features less their means.
    """
    centred = rows - rows.mean(0)
    gram = (centred @ centred.t()).double()
    norm = torch.linalg.matrix_norm(gram)
    return gram / norm if bool(norm > 0) and bool(norm.isfinite()) else None


class CkaMonitor(Monitor):
    """Linear CKA of each stage's output with that of the network at the beginning, on a fixed probe batch in evaluation
    mode.

    Of the network at the beginning only the centred Gram matrix of every stage is kept: b^2 numbers a stage, and one
    pass more. They are taken when the optimizer makes its first step: the weights are those that training began with,
    BatchNorm has seen one minibatch. In a stream the probe batch is drawn from what can be drawn now, so that it is
    another one in each chunk, and the first chunk's network is gone by then: the beginning is then that of the chunk.
    Figures of two chunks have nothing to do with each other, so a chunk's first check gives none.

    Args:
        stages: the network's.
        samples: b.
        source: gives what the stages from a cut on read, for the probe batch of b samples.
        autocast: gives the context the forward pass runs in.
    """

    def __init__(
        self, stages: nn.Sequential, samples: int, source: Callable[[int, int], Tensor], autocast: Autocast
    ) -> None:
        super().__init__(len(stages))
        self.stages, self.samples, self.source, self.autocast = stages, samples, source, autocast
        self.reference: list[Tensor | None] = []  # empty: to be taken
        self.anew = False  # whether the next check is the first of a later chunk
        self._passed, self._own = 0, [0] * len(stages)  # since the last check

    def see_gradients(self, scale: Any) -> None:
        """The optimizer is about to make a step: the reference is taken where there is none."""
        if not self.reference:
            self.reference = self._grams()

    @torch.no_grad()
    def check(self, progress: float, summed_rate: float) -> dict[str, Levels]:
        figures: Levels = [None] * len(self.stages)
        if not self.reference:
            self.reference = self._grams()
        elif not self.anew:
            for stage, (now, then) in enumerate(zip(self._grams(), self.reference, strict=True)):
                if now is not None and then is not None:
                    figures[stage] = float((now * then).sum())
                    self._own[stage] += 2 * now.numel()
        self.anew = False
        self.probed, self.flops = self._passed, self._own
        self._passed, self._own = 0, [0] * len(self.stages)
        return {"cka": figures}

    @torch.no_grad()
    def _grams(self) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * self.dropped
        with evaluating(self.stages):
            x = self.source(self.samples, self.dropped)
            self._passed += len(x)
            for place in range(self.dropped, len(self.stages)):
                with self.autocast():
                    x = self.stages[place](x)
                rows = x.detach().float().flatten(1)
                self._own[place] += 2 * len(rows) ** 2 * (rows.shape[1] + 1)  # the matrix and its norm
                found.append(centred_gram(rows))
        return found

    def drop(self, cut: int) -> None:
        super().drop(cut)
        self.reference = [None if s < cut else gram for s, gram in enumerate(self.reference)]

    def begin_chunk(self) -> None:
        self.reference, self.anew = [], True

    def state_dict(self) -> dict[str, Any]:
        return {
            "reference": list(self.reference),
            "anew": self.anew,
            "passed": self._passed,
            "own": list(self._own),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = next(self.stages.parameters()).device
        self.reference = [None if gram is None else gram.to(device) for gram in state["reference"]]
        self.anew, self._passed, self._own = state["anew"], state["passed"], list(state["own"])
