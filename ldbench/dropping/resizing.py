"""The images of a step scaled down, for a policy that trains on small ones first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ldbench.errors import UserError, one_line
from ldbench.stages.flops import StageFlops, count_stage_flops

_PROGRESS = 1000  # points of a run at which its sizes are looked for
Size = tuple[int, int]  # height and width in pixels


class Resizing:
    """Scales images to the size that a policy wants at a step, or the next larger one that the network can take.

    Each size that a run has is tried on the network beforehand, and its FLOPs are counted. The scaling itself is
    bilinear with an antialiasing filter, on the images' device: its time is the step's, and like pooling it has no
    multiply-adds that are counted.

    Args:
        stages: the network's.
        sample_shape: of one image at its own size (C, H, W).
        image_side: of the policy, see ``Policy``.
        compiled: the network is compiled.

    Attributes:
        full: the images' own size.
        tables: FLOPs of every stage per sample, by size.
        size: that the last minibatch was scaled to.

    Raises:
        UserError: the network can take no size but the images' own, or gives another shape of output; it is compiled,
            which would be done anew for each size, in the middle of training.
    """

    def __init__(
        self,
        stages: nn.Sequential,
        sample_shape: Sequence[int],
        image_side: Callable[[float, int], int | None],
        compiled: bool = False,
    ) -> None:
        if compiled:
            raise UserError(
                "images that change their size have a compiled network compiled anew for each, within training: "
                "leave --compile (compile=) out, or take another method"
            )
        if len(sample_shape) != 3:
            raise UserError(f"images are scaled as [C, H, W], not in the shape {list(sample_shape)}")
        channels, height, width = sample_shape
        self._image_side, self.full = image_side, (height, width)
        self.size = self.full
        wanted = {self._wanted(step / _PROGRESS) for step in range(_PROGRESS + 1)} - {self.full}
        self.tables = {self.full: count_stage_flops(stages, (channels, *self.full))}
        shape, refused = self.tables[self.full][-1].output_shape, ""
        for size in wanted:
            try:
                table = count_stage_flops(stages, (channels, *size))
            except Exception as error:  # whatever the user's network raises
                refused = one_line(error)
                continue
            if table[-1].output_shape == shape:
                self.tables[size] = table
            else:
                refused = f"its output would be {list(table[-1].output_shape)} instead of {list(shape)}"
        if wanted and len(self.tables) == 1:
            raise UserError(
                f"the network can't be trained on images smaller than {height} x {width} pixels ({refused}): resize wants "
                "one that pools its features to a fixed size, or images with pixels to spare"
            )

    def _wanted(self, progress: float) -> Size:
        height, width = (self._image_side(progress, side) or side for side in self.full)
        return height, width

    def fitting(self, progress: float) -> Size:
        """The size at this progress: what the policy wants, or the next larger one that the network can take."""
        height, width = self._wanted(progress)
        return min((h, w) for h, w in self.tables if h >= height and w >= width)

    def __call__(self, images: Tensor, progress: float) -> Tensor:
        """``images`` [B, C, H, W] scaled to [B, C, h, w] for this progress; of their own dtype and memory format."""
        self.size = self.fitting(progress)
        if self.size == self.full:
            return images
        scaled = images.float() if images.dtype.itemsize < 4 else images  # CPUs scale no half precision
        scaled = nn.functional.interpolate(scaled, self.size, mode="bilinear", align_corners=False, antialias=True)
        return scaled.to(images.dtype)

    @property
    def table(self) -> Sequence[StageFlops] | None:
        """FLOPs of every stage per sample at the present size; None at the images' own."""
        return None if self.size == self.full else self.tables[self.size]

    @property
    def side(self) -> int:
        """Width in pixels that the images are scaled to; 0 at their own size."""
        return 0 if self.size == self.full else self.size[1]
