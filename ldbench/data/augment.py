"""Random flips and crops of a minibatch, a pure function of seed and step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldbench.errors import UserError, nearest
from ldbench.seeds import derive_seed, random_words

AUGMENTATIONS = ("none", "flip", "crop", "flip+crop")


@dataclass(frozen=True)
class AugmentDraw:
    """What happens to each image of one minibatch; made on the CPU, the same for every device.

    Attributes:
        flipped: int64 [F], positions in the minibatch that are mirrored left to right; None: no flips.
        shift: int64 [B, 2], row and column of the crop's corner in the padded image, each 0..2*pad; None: no crops.
        pad: zero pixels (black, as in the files) added on every side before the crop.
    """

    flipped: Tensor | None = None
    shift: Tensor | None = None
    pad: int = 0


@dataclass(frozen=True)
class Augment:
    """Random flips and zero-padded crops (pad: an eighth of the side), a pure function of seed and step.

    Attributes:
        kind: "none", "flip", "crop" or "flip+crop".
        image_size: side of the square images in pixels.
        seed: the run's seed, or the seed of its "augment" stream.

    Raises:
        UserError: ``kind`` is none of these.
    """

    kind: str
    image_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in AUGMENTATIONS:
            raise UserError(f"unknown augmentation {self.kind!r}: {nearest(self.kind, AUGMENTATIONS)}")

    @property
    def active(self) -> bool:
        """Whether images change at all."""
        return self.kind != "none"

    def draw(self, step: int, batch: int) -> AugmentDraw:
        """Returns the draw for the minibatch of ``batch`` images at step ``step`` (counted over all epochs)."""
        if not self.active:
            return AugmentDraw()
        words = random_words(batch, derive_seed(self.seed, "augment", step))
        return self._of(words >> np.uint64(63) != 0, words)

    def of_view(self, samples: Tensor, view: int) -> AugmentDraw:
        """Returns the draw for a view (from 0) of samples (int64 [B], CPU), the same whatever minibatch they are in.

        Where images are flipped, views 2k and 2k + 1 of a sample are one as it is and one mirrored, so that an even
        number of them has both as often; each has a crop of its own.
        """
        if not self.active:
            return AugmentDraw()
        mirrored = self._words(samples, "mirrored views", view // 2) >> np.uint64(63) != view % 2
        return self._of(mirrored, self._words(samples, "cropped views", view))

    def _words(self, samples: Tensor, stream: str, part: int) -> npt.NDArray[np.uint64]:
        """A word for each sample, a function of the sample alone."""
        count = int(samples.max()) + 1 if len(samples) else 0
        words: npt.NDArray[np.uint64] = random_words(count, derive_seed(self.seed, stream, part))[samples.numpy()]
        return words

    def _of(self, mirrored: npt.NDArray[np.bool_], words: npt.NDArray[np.uint64]) -> AugmentDraw:
        flipped = shift = None
        pad = max(1, self.image_size // 8) if "crop" in self.kind else 0
        if "flip" in self.kind:
            flipped = torch.from_numpy(np.flatnonzero(mirrored))
        if pad:
            # Two fields of 24 bits, scaled to 0..2*pad: the bias of the scaling is below one in a million.
            fields = np.stack([words >> np.uint64(24), words], axis=1) & np.uint64((1 << 24) - 1)
            shift = torch.from_numpy(((fields * np.uint64(2 * pad + 1)) >> np.uint64(24)).astype(np.int64))
        return AugmentDraw(flipped, shift, pad)
