"""Random changes of a minibatch of images, a pure function of seed and step: flips, crops, and transforms of one image."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldbench.data.names import augmentation_parts
from ldbench.errors import UserError, one_line
from ldbench.io.user_code import user_callable
from ldbench.seeds import derive_seed, preserved_streams, random_words, seed_streams

Transform = Callable[[Tensor], Any]


@dataclass(frozen=True)
class TransformDraw:
    """A random transform of each image of one minibatch.

    Attributes:
        transform: of uint8 [C, H, W] into such a one of the same shape.
        seeds: uint64 [B], of the global random streams that it draws from.
        name: for errors.
    """

    transform: Transform
    seeds: npt.NDArray[np.uint64]
    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """The images, uint8 [B, C, H, W], transformed one by one, on the CPU: a device's own random numbers have no say. The
        global random streams are left as they were.

        Raises:
            UserError: the transform fails, or gives something else than such an image.
        """
        if self.name == "trivial-augment" and images.shape[1] not in (1, 3):
            raise UserError(f"trivial-augment is for grey images and such of three channels, not of {images.shape[1]}")
        device, images, made = images.device, images.cpu(), []
        with preserved_streams():
            for image, seed in zip(images, self.seeds.tolist(), strict=True):
                seed_streams(seed)
                try:
                    changed = self.transform(image)
                except Exception as error:
                    raise UserError(f"augmentation {self.name} fails: {one_line(error, kind=True)}") from error
                if not isinstance(changed, Tensor) or changed.shape != image.shape or changed.dtype != torch.uint8:
                    raise UserError(
                        f"augmentation {self.name} makes {_told(changed)} of {_told(image)}: it has to give an image of the "
                        "same shape and dtype"
                    )
                made.append(changed.cpu())
        return (torch.stack(made) if made else images).to(device)


def _told(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _user_transform(name: str, image_size: int) -> Transform:
    factory = user_callable("augmentation", name)
    try:
        transform: Transform = factory(image_size=image_size)
    except Exception as error:
        raise UserError(
            f"augmentation {name}: called with image_size={image_size} it fails: {one_line(error, kind=True)}"
        ) from error
    if not callable(transform):
        raise UserError(f"augmentation {name} must return a transform of an image, not {type(transform).__name__}")
    return transform


@dataclass(frozen=True)
class AugmentDraw:
    """What happens to each image of one minibatch; made on the CPU, the same for every device.

    Attributes:
        flipped: int64 [F], positions in the minibatch that are mirrored left to right; None: no flips.
        shift: int64 [B, 2], row and column of the crop's corner in the padded image, each 0..2*pad; None: no crops.
        pad: zero pixels (black, as in the files) added on every side before the crop.
        transformed: a transform of each image behind these; None: none.
    """

    flipped: Tensor | None = None
    shift: Tensor | None = None
    pad: int = 0
    transformed: TransformDraw | None = None


@dataclass(frozen=True)
class Augment:
    """Random flips and zero-padded crops (pad: an eighth of the side) and a transform behind them, a pure function of seed
    and step.

    Attributes:
        kind: "none", "flip", "crop", "flip+crop", "trivial-augment" (TrivialAugment of torchvision), or a user's
            ``package.module:factory``, which is called with ``image_size`` and gives a transform of one image, uint8
            [C, H, W]; the last two also behind "flip+", "crop+" or "flip+crop+".
        image_size: side of the square images in pixels.
        seed: the run's seed, or the seed of its "augment" stream.

    Raises:
        UserError: ``kind`` is none of these, or the user's factory cannot be had.
    """

    kind: str
    image_size: int
    seed: int

    def __post_init__(self) -> None:
        self._transform  # noqa: B018 - a factory that cannot be had is told now

    @functools.cached_property
    def _parts(self) -> tuple[bool, bool, str | None]:
        return augmentation_parts(self.kind)

    @functools.cached_property
    def _transform(self) -> Transform | None:
        name = self._parts[2]
        if name is None:
            return None
        if name != "trivial-augment":
            return _user_transform(name, self.image_size)
        from torchvision.transforms.v2 import TrivialAugmentWide

        transform: Transform = TrivialAugmentWide()
        return transform

    @property
    def active(self) -> bool:
        """Whether images change at all."""
        return self.kind != "none"

    def draw(self, step: int, batch: int) -> AugmentDraw:
        """Returns the draw for the minibatch of ``batch`` images at step ``step`` (counted over all epochs)."""
        if not self.active:
            return AugmentDraw()
        words = random_words(batch, derive_seed(self.seed, "augment", step))
        seeds = random_words(batch, derive_seed(self.seed, "transform", step)) if self._transform else None
        return self._of(words >> np.uint64(63) != 0, words, seeds)

    def of_view(self, samples: Tensor, view: int) -> AugmentDraw:
        """Returns the draw for a view (from 0) of samples (int64 [B], CPU), the same whatever minibatch they are in.

        Where images are flipped, views 2k and 2k + 1 of a sample are one as it is and one mirrored, so that an even
        number of them has both as often; each has a crop and a transform of its own.
        """
        if not self.active:
            return AugmentDraw()
        mirrored = self._words(samples, "mirrored views", view // 2) >> np.uint64(63) != view % 2
        seeds = self._words(samples, "transformed views", view) if self._transform else None
        return self._of(mirrored, self._words(samples, "cropped views", view), seeds)

    def _words(self, samples: Tensor, stream: str, part: int) -> npt.NDArray[np.uint64]:
        """A word for each sample, a function of the sample alone."""
        count = int(samples.max()) + 1 if len(samples) else 0
        words: npt.NDArray[np.uint64] = random_words(count, derive_seed(self.seed, stream, part))[samples.numpy()]
        return words

    def _of(
        self,
        mirrored: npt.NDArray[np.bool_],
        words: npt.NDArray[np.uint64],
        seeds: npt.NDArray[np.uint64] | None,
    ) -> AugmentDraw:
        flip, crop, name = self._parts
        flipped = shift = transformed = None
        pad = max(1, self.image_size // 8) if crop else 0
        if flip:
            flipped = torch.from_numpy(np.flatnonzero(mirrored))
        if pad:
            # Two fields of 24 bits, scaled to 0..2*pad: the bias of the scaling is below one in a million.
            fields = np.stack([words >> np.uint64(24), words], axis=1) & np.uint64((1 << 24) - 1)
            shift = torch.from_numpy(((fields * np.uint64(2 * pad + 1)) >> np.uint64(24)).astype(np.int64))
        if self._transform is not None and seeds is not None:
            transformed = TransformDraw(self._transform, seeds, str(name))
        return AugmentDraw(flipped, shift, pad, transformed)
