"""Leaves samples out of epochs by their loss, without torch: the rule of InfoBatch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ldbench.errors import UserError
from ldbench.policies.options import check_share


@dataclass(frozen=True)
class InfoBatch:
    """A random part of the samples whose loss lies below the mean sits an epoch out; the others of them count for more.

    Qin et al. 2024 (ICLR), arXiv:2303.04947, written from the paper. A sample's score is its loss when training last saw
    it; one that was not seen yet stays. Of n samples below the mean score ``floor(ratio x n)`` are left out, drawn
    without replacement, and the loss of those that stay is multiplied by n over their number, so that the epoch's summed
    gradient is what it would be with all of them, in expectation.

    What differs: each sample is left out with probability ``ratio`` there, and the factor is 1 / (1 - ratio), which it is
    here but for the rounding of n. At least one minibatch is left of an epoch.

    Args:
        ratio: the share r in [0, 1) that is left out.
        until: the share delta in [0, 1] of the run's epochs: one that begins after it has all samples, each with weight
            1, and so has the last one however few there are, unless it is 1. Of each chunk's own epochs where data
            arrive in chunks.

    Raises:
        UserError: an option lies elsewhere.
    """

    ratio: float = 0.5
    until: float = 0.875

    def __post_init__(self) -> None:
        check_share("infobatch", ratio=self.ratio, until=self.until)
        if self.ratio == 1:
            raise UserError("infobatch: ratio lies below 1: with 1 no sample below the mean would ever be trained on")

    def left_out(self, below: int, samples: int, batch_size: int) -> int:
        """How many of the ``below`` samples under the mean sit out an epoch over ``samples``."""
        return max(0, min(math.floor(self.ratio * below), samples - batch_size))

    def thin_parts(self, lengths: list[int], epochs: float) -> list[tuple[float, float]]:
        """The share of the run, from and up to, in which the epochs that begin leave samples out: one part per chunk.

        Args:
            lengths: minibatches of a whole epoch over each chunk.
            epochs: over each of them.
        """
        until = self.until if self.until == 1 else max(0.0, min(self.until, 1 - 1 / epochs))
        begins = [sum(lengths[:chunk]) for chunk in range(len(lengths))]
        pairs = zip(begins, lengths, strict=True)
        return [(begin / sum(lengths), (begin + until * length) / sum(lengths)) for begin, length in pairs]
