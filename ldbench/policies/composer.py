"""Two ways to speed training up that MosaicML's Composer offers, from its method cards: freezing by the clock, and images
that grow.
"""

from __future__ import annotations

import math

from ldbench.errors import UserError, shown
from ldbench.policies.base import NeverDrop, Observation, is_number, percent, reasons
from ldbench.policies.options import check_count, check_share


class LinearFreezing(NeverDrop):
    """Freezes a share of the stages that grows linearly with time: MosaicML Composer's Layer Freezing.

    After a share p of the run floor(``freeze_level`` x S x (p - ``freeze_start``) / (1 - ``freeze_start``)) of S stages
    are frozen, all but the last one at most. Formula and defaults are those of its method card
    (docs.mosaicml.com/projects/composer, method_cards/layer_freezing), which names FreezeOut (arXiv:1706.04983) and the
    Freeze Training of Raghu et al. 2017 (arXiv:1706.05806) as its models, and says that its authors have yet to see it
    improve the tradeoff of speed and accuracy: a rule that is expected to lose.

    What differs: the unit is a stage instead of a module of the ownership tree, whose order need not be that of the
    forward pass; the count is looked at at every check instead of at the end of an epoch.
    """

    exact = True

    def __init__(self, freeze_start: float = 0.5, freeze_level: float = 1.0) -> None:
        check_share("linear-freezing", freeze_start=freeze_start, freeze_level=freeze_level)
        if freeze_start == 1:
            raise UserError("linear-freezing: freeze_start is a number below 1: at the end nothing is left to freeze")
        self.freeze_start, self.freeze_level = freeze_start, freeze_level

    def frozen(self, progress: float, stages: int) -> int:
        """Stages that are frozen after a share ``progress`` of the run."""
        share = self.freeze_level * max(0.0, progress - self.freeze_start) / (1 - self.freeze_start)
        return min(math.floor(share * stages + 1e-9), stages - 1)

    def stopped(self, seen: Observation) -> int:
        return max(seen.dropped, self.frozen(seen.progress, seen.stages))

    def why(self, seen: Observation) -> list[str]:
        def reason(stage: int) -> str:
            share = (stage + 1) / seen.stages
            if share > self.freeze_level:
                return f"stays to the end: freeze_level is {self.freeze_level:g} of the stages"
            leaves = self.freeze_start + share / self.freeze_level * (1 - self.freeze_start)
            return f"is frozen after {percent(leaves)} of the run, now {percent(seen.progress)}"

        return reasons(seen, self.stopped(seen), reason)


class ProgressiveResizing(NeverDrop):
    """Trains on images scaled down, which grow to their own size: progressive resizing.

    Howard's of fast.ai (Howard and Gugger 2020, "Deep Learning for Coders with fastai and PyTorch", chapter 7), as in
    MosaicML Composer's Progressive Resizing (docs.mosaicml.com/projects/composer, method_cards/progressive_resizing,
    mode "resize"): the images' side is ``initial_scale`` of their own until ``rise_from`` of the run, rises linearly
    from there, and is their own from ``finetune_from`` on. Defaults are those of the card (initial_scale 0.5,
    finetune_fraction 0.2, and a size_increment of 4); releases since have a delay_fraction of 0.5, which is ``rise_from``
    here. It drops nothing, and is the control that is expected to win.

    What differs: a side is rounded to the nearest ``multiple`` and is never smaller than the network can take; images
    are scaled with an antialiasing filter. Where the learning rate's schedule begins anew with each chunk of a stream,
    the images begin small anew, so that every chunk ends at full size.
    """

    def __init__(
        self,
        initial_scale: float = 0.5,
        rise_from: float = 0.0,
        finetune_from: float = 0.8,
        multiple: int = 4,
    ) -> None:
        if not is_number(initial_scale) or not 0 < initial_scale <= 1:
            raise UserError(f"resize: initial_scale is a number in (0, 1], not {shown(initial_scale)}")
        check_share("resize", rise_from=rise_from, finetune_from=finetune_from)
        if rise_from > finetune_from:
            raise UserError(f"resize: rise_from ({rise_from:g}) lies behind finetune_from ({finetune_from:g})")
        check_count("resize", multiple=multiple)
        self.initial_scale, self.multiple = initial_scale, multiple
        self.rise_from, self.finetune_from = rise_from, finetune_from

    def scale(self, progress: float) -> float:
        """Factor on the images' side after a share ``progress`` of the run."""
        if progress >= self.finetune_from:
            return 1.0
        risen = max(0.0, progress - self.rise_from) / (self.finetune_from - self.rise_from or 1.0)
        return self.initial_scale + risen * (1 - self.initial_scale)

    def image_side(self, progress: float, side: int) -> int | None:
        scale = self.scale(progress)
        if scale == 1:
            return side
        rounded = self.multiple * math.floor(side * scale / self.multiple + 0.5)
        return min(side, max(self.multiple, rounded))
