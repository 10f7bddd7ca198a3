"""Which samples sit an epoch out, and what the others count for: InfoBatch's scores, draws and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldbench.dropping.pruned_schedule import PrunedSchedule
from ldbench.errors import UserError
from ldbench.policies.infobatch import InfoBatch
from ldbench.seeds import derive_seed, random_words


class Pruning:
    """Leaves samples out of epochs by the losses that training has seen; see ``InfoBatch``.

    Which ones is a function of the seed, the epoch and the scores at its beginning. Memory: a float of each sample's on
    the device, and a byte on the CPU.

    Args:
        rule: how many sit out.
        schedule: told how long the epochs are.
        samples: of the data set.
        seed: of the run; the draws have a stream of their own.
        device: where losses are.

    Attributes:
        scores: the last loss of each sample, float32 [N]; NaN where none was seen.
        below: whether each sample's score lay below the mean when the epoch that runs began, bool [N].
        weight: what the loss of such a sample is multiplied by.
        epoch: the one that runs; None before the first.
    """

    def __init__(
        self, rule: InfoBatch, schedule: PrunedSchedule, samples: int, seed: int, device: torch.device
    ) -> None:
        self.rule, self.schedule, self.seed = rule, schedule, seed
        self.scores = torch.full((samples,), torch.nan, device=device)
        self.below = torch.zeros(samples, dtype=torch.bool)
        self.weight = 1.0
        self.epoch: int | None = None

    def select(self, order: Tensor, epoch: int, chunk: int, batch_size: int) -> Tensor:
        """The samples of an epoch in their order, those left out that sit out.

        They are chosen when an epoch is first asked for; asked again, as after an interruption, it is the same. One that
        is over comes whole.

        Args:
            order: all samples that can be drawn, int64 [n] on the CPU.
            chunk: the set of the stream that they are.
        """
        if self.epoch is not None and epoch < self.epoch:
            return order
        active, begins = order.sort().values, epoch != self.epoch
        if begins:
            self.epoch = epoch
            self.below = self._below_mean(active) if self.schedule.thins(chunk) else torch.zeros_like(self.below)
        candidates = active[self.below[active]]
        count = self.rule.left_out(len(candidates), len(order), batch_size)
        self.weight = len(candidates) / (len(candidates) - count) if count else 1.0
        words = random_words(len(candidates), derive_seed(self.seed, "pruning", epoch))
        out = torch.zeros_like(self.below)
        out[candidates[torch.from_numpy(np.argsort(words, kind="stable")[:count])]] = True
        kept = order[~out[order]]
        if begins:
            self.schedule.begin(len(order) // batch_size, len(kept) // batch_size)
        return kept

    def _below_mean(self, active: Tensor) -> Tensor:
        scores = self.scores.cpu()[active].double()
        below = torch.zeros_like(self.below)
        below[active] = scores < scores[~scores.isnan()].mean()
        return below

    def weights(self, index: Tensor) -> Tensor:
        """What the losses of the samples ``index`` (int64 [B]) are multiplied by in this epoch, float32 [B]."""
        return torch.where(self.below[index.cpu()], self.weight, 1.0).to(self.scores.device)

    def saw(self, index: Tensor, losses: Tensor) -> None:
        """Training has seen the samples ``index`` (int64 [B]) with these losses [B], not weighted.

        Raises:
            UserError: there is another number of losses.
        """
        if losses.shape != index.shape:
            raise UserError(
                f"one loss per sample is wanted, {list(index.shape)}, not {list(losses.shape)}: use "
                'reduction="none", and take the mean over everything but the samples'
            )
        device = self.scores.device
        self.scores[index.to(device)] = losses.detach().to(device, self.scores.dtype)

    def state_dict(self) -> dict[str, Any]:
        """JSON values, scores and marks."""
        return {"epoch": self.epoch, "scores": self.scores.clone(), "below": self.below.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer; the weight is that of the epoch once it is gone on with."""
        self.epoch = state["epoch"]
        self.scores.copy_(state["scores"])
        self.below.copy_(state["below"])
