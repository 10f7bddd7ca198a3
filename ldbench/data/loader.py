"""Data sets resident on the device: uint8 there, normalised there, a whole minibatch at a time.

No worker processes and no per-sample Python: a minibatch is one gather of byte rows, an optional batched augmentation
on bytes, and one multiply-add. Where the images come from is `ldbench.data.datasets`, and the random streams are
`ldbench.seeds`; their public names can be had from here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ldbench.data.augment import AugmentDraw
from ldbench.data.datasets import Split


def _crop(images: Tensor, shift: Tensor, pad: int) -> Tensor:
    """Crops images [B, P, H, W, Q] at ``shift`` (see AugmentDraw) out of their zero-padded selves: a view, same shape.

    Within the padded minibatch laid out flat, the H padded rows from a crop's corner on are one run of bytes, so the
    crop is a gather of long overlapping rows and a slice; per-pixel index grids are two to five times slower.
    """
    batch, planes, height, width, inner = images.shape
    tall, row = height + 2 * pad, (width + 2 * pad) * inner
    plane, run = tall * row, height * row
    # A crop at the far corner of the last plane runs on past its end by less than one margin.
    flat = images.new_zeros(batch * planes * plane + 2 * pad * inner)
    padded = flat[: batch * planes * plane].view(batch, planes, tall, width + 2 * pad, inner)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    corner = (shift[:, 0] * row + shift[:, 1] * inner).repeat_interleave(planes)
    start = corner + torch.arange(batch * planes, device=corner.device) * plane
    windows = flat.as_strided((len(flat) - run + 1, run), (1, 1))
    runs = windows.index_select(0, start.to(images.device, non_blocking=True))
    return runs.view(batch, planes, height, width + 2 * pad, inner)[:, :, :, :width]


def _augmented(images: Tensor, draw: AugmentDraw) -> Tensor:
    """Applies a draw to uint8 images [B, P, H, W, Q] (owned by the caller, changed in place); same shape."""
    if draw.flipped is not None and len(draw.flipped):
        flipped = draw.flipped.to(images.device, non_blocking=True)
        images.index_copy_(0, flipped, images.index_select(0, flipped).flip(3))
    if draw.shift is not None and len(images):
        images = _crop(images, draw.shift, draw.pad)
    if draw.transformed is not None:
        batch, planes, height, width, inner = images.shape
        whole = draw.transformed(images.permute(0, 1, 4, 2, 3).reshape(batch, planes * inner, height, width))
        images = whole.view(batch, planes, inner, height, width).permute(0, 1, 3, 4, 2)
    return images


class ResidentSplit:
    """One split of a data set, held where training reads it.

    Args:
        split: uint8 images [N, C, H, W] and int64 labels [N] on the CPU; not copied where its layout already fits.
        mean, std: per channel, in units where a pixel is 0..1.
        device: where minibatches are wanted.
        dtype: floating type of the minibatches; normalisation is in float32 whatever it is.
        channels_last: minibatches in torch.channels_last memory format.
        budget_bytes: device memory the images may take; above it they stay in pinned host memory. None: half of what
            is free on the device now. On the CPU there is one memory and the budget says nothing.

    Attributes:
        tier: "device" or "pinned".
        device_bytes: what its images take of a GPU's memory; 0 where they don't lie there.
    """

    def __init__(
        self,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        budget_bytes: int | None = None,
    ) -> None:
        self.device, self.dtype, self.channels_last = torch.device(device), dtype, channels_last
        self._count, channels, height, width = split.images.shape
        images = split.images.permute(0, 2, 3, 1) if channels_last else split.images
        # One minibatch is [B, P, H, W, Q]: planes outside for the usual format, channels inside for channels last.
        self._shape = (1, height, width, channels) if channels_last else (channels, height, width, 1)
        rows = images.reshape(self._count, math.prod(self._shape))
        if self.device.type == "cuda" and budget_bytes is None:
            budget_bytes = torch.cuda.mem_get_info(self.device)[0] // 2
        fits = self.device.type != "cuda" or rows.numel() <= (budget_bytes or 0)
        self.tier: Literal["device", "pinned"] = "device" if fits else "pinned"
        self._rows = rows.to(self.device) if fits else rows.pin_memory()
        self._labels = split.labels.to(self.device)
        self.device_bytes = rows.numel() if self.device.type == "cuda" and fits else 0

        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        bias = -255 * torch.tensor(mean, dtype=torch.float64) * scale
        # Constants as long as a row of pixels keep the inner loop vectorised when channels stand inside.
        span, form = (width, (1, -1)) if channels_last else (1, (-1, 1, 1))
        self._scale, self._bias = (c.float().repeat(span).view(form).to(self.device) for c in (scale, bias))

    def __len__(self) -> int:
        """Samples in the split."""
        return self._count

    def _gather(self, indices: Tensor) -> Tensor:
        """Rows of bytes on the device, uint8 [B, C*H*W], in memory nobody else uses."""
        if self.tier == "device":
            return self._rows.index_select(0, indices.to(self.device, non_blocking=True))
        # The staging buffer is pinned too: the copy is asynchronous, and PyTorch's caching host allocator does not
        # hand the buffer out again before the copy has been carried out.
        staged = torch.empty((len(indices), self._rows.shape[1]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(self._rows, 0, indices.cpu(), out=staged)
        return staged.to(self.device, non_blocking=True)

    def batch(self, indices: Tensor, augment: AugmentDraw | None = None) -> tuple[Tensor, Tensor]:
        """Returns one minibatch: images [B, C, H, W] normalised, and labels int64 [B], both on the device.

        Args:
            indices: int64 [B], on the CPU or the device (on the CPU where the tier is "pinned", or it waits).
            augment: the draw for these B images; None leaves them as they are.

        Raises:
            IndexError: an index outside the split (on the CPU; a device assertion on CUDA).
        """
        images = self._gather(indices).view(-1, *self._shape)
        if augment is not None:
            images = _augmented(images, augment)
        # Multiply, then add, and not one fused operation: with a fused one the last bit of a pixel can depend on
        # where in a vector register it falls, that is on its neighbours in the minibatch.
        lines = images.flatten(3).to(torch.float32).mul_(self._scale).add_(self._bias).to(self.dtype)
        images_out = lines.view(images.shape)
        images_out = images_out.squeeze(1).permute(0, 3, 1, 2) if self.channels_last else images_out.squeeze(4)
        return images_out, self._labels.index_select(0, indices.to(self.device, non_blocking=True))
