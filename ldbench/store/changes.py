"""Random changes of stored activations, in place of the augmentation of the images they were made of.

Images are augmented before the dropped stages see them; what these made of them can only be changed as it is. Which
changes are like an image's is known for few (a mirror image's activations are not the mirrored activations of a
network whose filters have a direction); what each is worth is measured, see ``docs/augmentation.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ldbench.errors import UserError, nearest, shown
from ldbench.policies.base import is_number
from ldbench.seeds import derive_seed, random_words


class Changes:
    """Changes of minibatches of activations, each a pure function of seed and minibatch, drawn on the CPU.

    Args:
        strengths: change -> its strength, a number in (0, 1); in the order in which they are made. See ``KINDS``.
        seed: the run's seed.

    Raises:
        UserError: a change is unknown, or a strength is out of range.
    """

    def __init__(self, strengths: Mapping[str, float] = MappingProxyType({}), seed: int = 0) -> None:
        if not isinstance(strengths, Mapping):
            raise UserError(
                f"changes of stored features are named with their strengths, {{'mirror': 0.5}}, not {shown(strengths)}"
            )
        for kind, strength in strengths.items():
            if kind not in KINDS:
                raise UserError(f"no change of stored features is called {shown(kind)}: {nearest(kind, KINDS)}")
            if not is_number(strength) or not 0 < strength < 1:
                raise UserError(f"the strength of {kind} lies between 0 and 1, not {shown(strength)}")
        self.strengths, self.seed = dict(strengths), seed

    @classmethod
    def named(cls, words: Iterable[str], seed: int = 0) -> Changes:
        """Of words such as "mirror=0.5". Raises ``UserError``."""
        strengths: dict[str, float] = {}
        for word in words:
            kind, _, strength = word.partition("=")
            if kind in strengths:
                raise UserError(f"the change {kind} is asked for twice")
            try:
                strengths[kind] = float(strength)
            except ValueError:
                raise UserError(
                    f"{shown(word)} is no change of stored features: write KIND=STRENGTH, such as mirror=0.5"
                ) from None
        return cls(strengths, seed)

    def __bool__(self) -> bool:
        return bool(self.strengths)

    def __call__(self, x: Tensor, y: Tensor, minibatch: int) -> tuple[Tensor, Tensor]:
        """Activations [B, C, H, W], or [B, ..., D] without a plane, and targets [B, ...], changed: tensors of the same
        shapes and dtypes.

        Args:
            minibatch: its number in the run.
        """
        places: Tensor | None = (
            None  # of each place of the maps the one it is taken from: read once for all that move them
        )
        for kind, strength in self.strengths.items():
            seed = derive_seed(self.seed, f"features: {kind}", minibatch)
            if kind in _OF_PLACES:
                if x.dim() == 4:
                    moved = _OF_PLACES[kind](len(x), x.shape[2], x.shape[3], strength, seed)
                    places = moved if places is None else _one_after_the_other(places, moved)
                continue
            x, places = _taken(x, places), None
            x, y = _mixup(x, y, strength, seed) if kind == "mixup" else (_cutout(x, strength, seed), y)
        return _taken(x, places), y

    @property
    def of_planes(self) -> list[str]:
        """Those that have to do with where on a map something is, and do nothing to features without one."""
        return [kind for kind in self.strengths if kind != "mixup"]


def _uniform(seed: int, *shape: int) -> Tensor:
    """Numbers in [0, 1), float32 on the CPU."""
    count = int(np.prod(shape))
    return torch.from_numpy((random_words(count, seed) >> np.uint64(40)).astype(np.float32) / 2.0**24).view(shape)


def _cutout(x: Tensor, strength: float, seed: int) -> Tensor:
    """A rectangle of a share of each map's area is zero, the same one in all channels of a sample; none where its sides
    are less than half a place.
    """
    sides = [round(strength**0.5 * side) for side in x.shape[2:]]
    if x.dim() != 4 or not all(sides):
        return x
    inside = []
    for axis, corners in enumerate(_uniform(seed, len(x), 2).unbind(1)):
        first = (corners * (x.shape[2 + axis] - sides[axis] + 1)).long()[:, None]
        at = torch.arange(x.shape[2 + axis])
        inside.append((at >= first) & (at < first + sides[axis]))
    keep: Tensor = ~(inside[0][:, :, None] & inside[1][:, None, :])
    return x.masked_fill(~keep[:, None].to(x.device), 0)


def _shift(batch: int, height: int, width: int, strength: float, seed: int) -> Tensor:
    """Every map is moved by whole places, up to a share of its sides, and what comes in is zero; not at all where that
    is less than half a place.
    """
    sources, inside = [], []
    for side, drawn in zip((height, width), _uniform(seed, batch, 2).unbind(1), strict=True):
        most = round(strength * side)
        source = torch.arange(side) - ((drawn * (2 * most + 1)).long() - most)[:, None]
        sources.append(source)
        inside.append((source >= 0) & (source < side))
    places = sources[0][:, :, None] * width + sources[1][:, None, :]
    there = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(there, places, -1).flatten(1)


def _mirror(batch: int, height: int, width: int, strength: float, seed: int) -> Tensor:
    """A share of the samples is mirrored left to right."""
    as_it_is = torch.arange(height * width).view(height, width)
    chosen = _uniform(seed, batch) < strength
    return torch.where(chosen[:, None, None], as_it_is.flip(1), as_it_is).flatten(1)


def _one_after_the_other(first: Tensor, then: Tensor) -> Tensor:
    """Places int64 [B, H W] of two moves made as one."""
    return torch.where(then < 0, -1, first.gather(1, then.clamp_min(0)))


def _taken(x: Tensor, places: Tensor | None) -> Tensor:
    """Maps [B, C, H, W] that take each place from another, int64 [B, H W] on the CPU, or are zero there (-1)."""
    if places is None:
        return x
    places = places.to(x.device)
    behind = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    flat = x.permute(0, 2, 3, 1).flatten(1, 2) if behind else x.flatten(2)
    axis, channels = (1, 2) if behind else (2, 1)
    index = places.clamp_min(0).unsqueeze(channels).expand(flat.shape)
    taken = flat.gather(axis, index).masked_fill_((places < 0).unsqueeze(channels), 0)
    if behind:
        return taken.view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
    return taken.view(x.shape)


def _mixup(x: Tensor, y: Tensor, strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """Every sample is mixed with another one, whose share is drawn from 0 to strength; the target is the other's with
    that probability, so that in expectation the loss, whichever it is, is that of mixup (Zhang et al., 2018,
    arXiv:1710.09412), its targets mixed alike.
    """
    order, shares, chances = _uniform(seed, 3, len(x)).unbind(0)
    other = order.argsort()
    share = strength * shares
    taken = torch.where(chances < share, other, torch.arange(len(x))).to(y.device)
    part = share.view(-1, *[1] * (x.dim() - 1)).to(x)
    return torch.lerp(x, x[other.to(x.device)], part), y[taken]


_OF_PLACES: Mapping[str, Callable[[int, int, int, float, int], Tensor]] = MappingProxyType({
    "shift": _shift, "mirror": _mirror,
})  # fmt: skip
KINDS = (*_OF_PLACES, "cutout", "mixup")
