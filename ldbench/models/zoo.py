"""Architectures by name, fitted to channels, image size and classes, with a check that the image is large enough."""

from __future__ import annotations

import bisect
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.devices import check_memory
from ldbench.errors import UserError, one_line
from ldbench.io.user_code import user_callable
from ldbench.models.fit import WIDTH_FAMILIES, ModelSpec, blueprint, family, materialised, set_dropout
from ldbench.stages.train_mode import evaluating

LARGEST_IMAGE = 1024  # pixels: no further does the search for a size that works go


def build_model(spec: ModelSpec | Mapping[str, Any]) -> nn.Module:
    """The network that ``spec`` describes: a plain torchvision module (or the user's own) on the CPU, in train mode.

    Fresh weights come from torch's global random stream. Input float [B, channels, image_size, image_size], output
    float [B, classes].

    Args:
        spec: a :class:`ModelSpec`, or a cell's ``config.json`` (model, channels, image_size, classes, width, dropout).

    Raises:
        UserError: unknown name, image too small, an option that the architecture does not have, a factory that fails.
    """
    spec = _checked(spec)
    if family(spec.name) == "user":
        return _user_model(spec)
    _check_runs(spec)
    return materialised(spec)


def describe_model(spec: ModelSpec | Mapping[str, Any]) -> dict[str, str]:
    """What fitting did, for the record: ``stem``, ``head``, ``image_size``, ``batch_norm`` in words."""
    spec = _checked(spec)
    if family(spec.name) == "user":
        model = _user_model(spec)
    else:
        _check_runs(spec)
        model = blueprint(spec)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    stem = "no convolution"
    if convolutions:
        first = convolutions[0]
        channels = f"{first.in_channels} to {first.out_channels} channels"
        stem = f"{_by(first.kernel_size)} stride {first.stride[0]}, {channels}"
        if isinstance(getattr(model, "maxpool", None), nn.Identity):
            stem += ", no max-pool"
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    pool = getattr(model, "avgpool", None)
    head = f"features pooled to {_by(pool.output_size)}, " if isinstance(pool, nn.AdaptiveAvgPool2d) else ""
    if family(spec.name) in ("vgg", "alexnet"):
        head += "linear " + "-".join(str(layer.in_features) for layer in linear) + f"-{spec.classes}"
    elif linear:
        head += f"linear {linear[-1].in_features}-{spec.classes}"
    elif convolutions:
        head += f"convolution {convolutions[-1].in_channels}-{spec.classes}"
    momenta = {m.momentum for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    norm = f"momentum {', '.join(map(str, sorted(momenta, key=str)))}" if momenta else "none"
    window = getattr(model, "partition_size", None)
    size = str(spec.image_size) + (f" (attention windows {_by(window)})" if window else "")
    return {"stem": stem, "head": head, "image_size": size, "batch_norm": norm}


def _by(size: Any) -> str:
    first, second = size if isinstance(size, tuple) else (size, size)
    return f"{first}x{second}"


def _checked(spec: ModelSpec | Mapping[str, Any]) -> ModelSpec:
    if not isinstance(spec, ModelSpec):
        name, width = str(spec["model"]), float(spec.get("width") or 1.0)
        channels, image_size, classes = (int(spec[key]) for key in ("channels", "image_size", "classes"))
        spec = ModelSpec(name, channels, image_size, classes, width, spec.get("dropout"))
    kind = family(spec.name)
    if spec.classes < 2:
        raise UserError(f"{spec.name}: a classifier needs at least 2 classes, not {spec.classes}")
    if spec.channels < 1 or spec.image_size < 1:
        raise UserError(f"{spec.name}: images of {spec.channels} channels and {spec.image_size} pixels do not exist")
    if spec.dropout is not None and not 0 <= spec.dropout < 1:
        raise UserError(f"{spec.name}: dropout must be at least 0 and below 1, not {spec.dropout}")
    if not spec.width > 0:
        raise UserError(f"{spec.name}: width must be above 0, not {spec.width}")
    if spec.width != 1 and kind not in WIDTH_FAMILIES:
        raise UserError(f"{spec.name} has no width multiplier (VGG and ResNet families have): leave width at 1")
    return spec


@functools.lru_cache(maxsize=256)
def _check_runs(spec: ModelSpec) -> None:
    """Raises ``UserError`` naming a size that works, if the network cannot take images of ``spec.image_size``."""
    problem = _problem(spec)
    if problem is None:
        if spec.width > 1:
            size = sum(4 * parameter.numel() for parameter in blueprint(spec).parameters())
            check_memory(f"{spec.name} at width {spec.width:g}", size, "take a smaller --width")
        return

    def sized(size: int) -> ModelSpec:
        return ModelSpec(spec.name, spec.channels, size, spec.classes, spec.width, spec.dropout)

    # Architectures that fix the size want a multiple of something; for all others there is a smallest size.
    near = range(spec.image_size + 1, spec.image_size + 65)
    fixed = isinstance(problem, (AssertionError, ValueError))
    if fixed:
        works = next((size for size in near if _problem(sized(size)) is None), None)
    else:
        sizes = range(spec.image_size + 1, LARGEST_IMAGE + 1)
        place = bisect.bisect_left(sizes, True, key=lambda size: _problem(sized(size)) is None)
        works = sizes[place] if place < len(sizes) else None
    refused = f"{spec.name} cannot take images of {_by(spec.image_size)} pixels"
    if works is None:
        raise UserError(f"{refused}: {one_line(problem)}")
    want = "the next size that fits is" if fixed else "the smallest that works is"
    raise UserError(f"{refused}, {want} {works}: set image_size = {works}")


def _problem(spec: ModelSpec) -> Exception | None:
    """What stops the network from being built and run at this size, tried without memory and arithmetic."""
    try:
        with torch.no_grad():
            model = blueprint(spec).eval()
            model(torch.empty(2, spec.channels, spec.image_size, spec.image_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as problem:
        return problem
    return None


def _user_model(spec: ModelSpec) -> nn.Module:
    """Call the user's factory and make sure that what it returns is a classifier for these images."""
    factory = user_callable("model", spec.name)
    options = {"channels": spec.channels, "image_size": spec.image_size, "classes": spec.classes}
    wanted = f"{spec.name} must accept the keyword arguments channels, image_size and classes"
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise UserError(f"{wanted}: {error}") from error
    except ValueError:
        pass  # a factory without a readable signature: calling it will tell
    try:
        model = factory(**options)
    except Exception as error:
        raise UserError(f"{spec.name} failed: {one_line(error, kind=True)}; --debug shows where") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec.name} must return a torch.nn.Module, not {type(model).__name__}")
    if spec.dropout is not None:
        set_dropout(model, spec.name, spec.dropout)
    _check_user_model(model, spec)
    return model


def _check_user_model(model: nn.Module, spec: ModelSpec) -> None:
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            result = model(torch.zeros(2, spec.channels, spec.image_size, spec.image_size))
    except Exception as error:
        images = f"{spec.channels}x{_by(spec.image_size)} images"
        raise UserError(f"{spec.name} does not run on {images}: {one_line(error)}") from error
    if not isinstance(result, Tensor) or result.shape != (2, spec.classes):
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise UserError(f"{spec.name} must give one tensor of shape (2, {spec.classes}) for two images, not {got}")
