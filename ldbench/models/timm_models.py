"""timm's image classifiers, where timm is installed, by the name ``timm:NAME``."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import Any

from torch import nn

from ldbench.errors import UserError, nearest, one_line, shown

PREFIX = "timm:"


def is_timm(name: str) -> bool:
    """Whether a model's name asks for one of timm's."""
    return name.startswith(PREFIX)


def timm_family(name: str) -> str:
    """Module of timm that has the architecture: ``resnetv2``, ``vision_transformer``.

    Raises:
        UserError: timm isn't installed, or does not know the name; a line says what to do.
    """
    if find_spec("timm") is None:
        raise UserError(f"model {shown(name)} is one of timm's, which is not installed: pip install 'ldbench[timm]'")
    import timm

    plain = name.removeprefix(PREFIX)
    if plain.partition(".")[0] not in (known := timm.list_models()):
        raise UserError(f"model {shown(name)} is unknown to timm {timm.__version__}: {nearest(plain, known)}")
    return str(timm.model_entrypoint(plain.partition(".")[0]).__module__).rpartition(".")[2]


def construct(name: str, channels: int, image_size: int, classes: int, dropout: float | None) -> nn.Module:
    """The architecture with fresh weights from torch's global random stream, as timm makes it; nothing is downloaded.

    timm's own options fit it: ``in_chans``, ``num_classes``, ``img_size`` where an architecture fixes the size, and
    ``drop_rate``. Stems stay as they are at every image size.

    Raises:
        UserError: see ``timm_family``, or it has no dropout.
        ValueError: its patches do not fill images of this size.
    """
    timm_family(name)
    import timm

    plain = name.removeprefix(PREFIX)
    options: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
    configuration = timm.get_pretrained_cfg(plain, allow_unregistered=True)
    if configuration is not None and configuration.fixed_input_size:
        options["img_size"] = image_size
    if dropout is not None:
        options["drop_rate"] = dropout
    with contextlib.redirect_stdout(None):  # some tell what they are
        try:
            made: nn.Module = timm.create_model(plain, pretrained=False, **options)
        except TypeError as error:
            if "drop_rate" not in str(error):
                raise UserError(f"{name} cannot be fitted to these images: {one_line(error)}") from error
            raise UserError(f"{name} has no dropout to set: leave dropout out for this model") from error
    patch = getattr(getattr(made, "patch_embed", None), "patch_size", None)
    side = max(patch) if isinstance(patch, tuple) else patch or 1
    if isinstance(side, int) and image_size % side:
        raise ValueError(
            f"patches of {side} pixels do not fill {image_size}: timm would leave out the rest of the image"
        )
    return made
