"""Random changes of stored maps, in place of the augmentation of the images they were made of.

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
    """Changes of minibatches of maps, each a pure function of seed and minibatch, drawn on the CPU.

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

    def __call__(self, x: Tensor, minibatch: int) -> Tensor:
        """Maps [B, C, H, W] changed, a tensor of the same shape and dtype; activations without a plane as they are.

        Args:
            minibatch: its number in the run.
        """
        if x.dim() != 4:
            return x
        places: Tensor | None = None  # of each place the one it is taken from: maps are read once for all changes
        for kind, strength in self.strengths.items():
            seed = derive_seed(self.seed, f"features: {kind}", minibatch)
            then = _PLACES[kind](len(x), x.shape[2], x.shape[3], strength, seed)
            places = then if places is None else _one_after_the_other(places, then)
        return x if places is None else _taken(x, places)


def _uniform(seed: int, *shape: int) -> Tensor:
    """Numbers in [0, 1), float32 on the CPU."""
    count = int(np.prod(shape))
    return torch.from_numpy((random_words(count, seed) >> np.uint64(40)).astype(np.float32) / 2.0**24).view(shape)


def _cutout(batch: int, height: int, width: int, strength: float, seed: int) -> Tensor:
    """A rectangle of a share of each map's area is zero, the same one in all channels of a sample; none where its sides
    are less than half a place.
    """
    inside = []
    for side, corners in zip((height, width), _uniform(seed, batch, 2).unbind(1), strict=True):
        cut, at = round(strength**0.5 * side), torch.arange(side)
        first = (corners * (side - cut + 1)).long()[:, None]
        inside.append((at >= first) & (at < first + cut))
    gone = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(gone, -1, torch.arange(height * width).view(height, width)).flatten(1)


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


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """Maps [B, C, H, W] that take each place from another, int64 [B, H W] on the CPU, or are zero there (-1)."""
    if bool(((places < 0) | (places == torch.arange(places.shape[1]))).all()):  # nothing moves
        return x.masked_fill((places < 0).view(len(x), 1, *x.shape[2:]).to(x.device), 0)
    places = places.to(x.device)
    behind = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    flat = x.permute(0, 2, 3, 1).flatten(1, 2) if behind else x.flatten(2)
    axis, channels = (1, 2) if behind else (2, 1)
    index = places.clamp_min(0).unsqueeze(channels).expand(flat.shape)
    taken = flat.gather(axis, index).masked_fill_((places < 0).unsqueeze(channels), 0)
    if behind:
        return taken.view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
    return taken.view(x.shape)


_PLACES: Mapping[str, Callable[[int, int, int, float, int], Tensor]] = MappingProxyType({
    "mirror": _mirror, "shift": _shift, "cutout": _cutout,
})  # fmt: skip
KINDS = tuple(_PLACES)
