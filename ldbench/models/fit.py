"""torchvision's classification architectures, fitted to channels, image size, classes, width and dropout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.maxvit import MaxVit

from ldbench.errors import UserError, nearest, shown
from ldbench.models.timm_models import construct, is_timm

SMALL_IMAGE = 64  # pixels: up to here the stems made for 224 would throw most of the image away
WIDTH_FAMILIES = ("vgg", "resnet")
BATCHNORM_MOMENTUM = 0.1


@dataclass(frozen=True)
class ModelSpec:
    """What decides a network's structure.

    Attributes:
        name: a torchvision name, ``timm:NAME``, or ``package.module:factory``.
        image_size: pixels per side of the square images.
        width: multiplies every channel count; VGG and ResNet families only.
        dropout: probability for every dropout layer; None leaves the architecture's own.
    """

    name: str
    channels: int
    image_size: int
    classes: int
    width: float = 1.0
    dropout: float | None = None


def model_names() -> tuple[str, ...]:
    """Every classification architecture of the installed torchvision."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def family(name: str) -> str:
    """Module of torchvision that has the architecture (``vgg``, ``resnet``, ``vision_transformer``), ``timm``, or
    ``user``.

    Raises ``UserError`` with the nearest names for an unknown one.
    """
    if is_timm(name):
        return "timm"
    if ":" in name:
        return "user"
    if name not in model_names():
        hint = f"{nearest(name, model_names())} (timm's: timm:NAME; your own: package.module:factory)"
        raise UserError(f"model {shown(name)} is unknown: {hint}")
    return str(torchvision.models.get_model_builder(name).__module__).rpartition(".")[2]


class _MetaParameters(TorchFunctionMode):
    """Layers built inside have parameters without memory.

    ``torch.device("meta")`` would do, but for RegNet, which computes its widths with tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def blueprint(spec: ModelSpec) -> nn.Module:
    """The fitted network on the ``meta`` device: structure and shapes in milliseconds, no memory.

    timm's networks compute with their parameters while they are made, and are therefore made for real first.
    """
    with torch.random.fork_rng(devices=[]) if is_timm(spec.name) else _MetaParameters():
        model = _construct(spec)
    return _fit(model.to("meta"), spec)


def materialised(spec: ModelSpec) -> nn.Module:
    """The fitted network on the CPU, freshly initialised from torch's global random stream as torchvision does it."""
    if family(spec.name) in (*WIDTH_FAMILIES, "alexnet"):
        # Built without memory first: VGG's head for 7x7 features alone would draw 100 million numbers in vain.
        model = blueprint(spec).to_empty(device="cpu")
        _initialise(model, spec)
        return model
    return _fit(_construct(spec), spec)


def _construct(spec: ModelSpec) -> nn.Module:
    """The architecture as torchvision gives it, with the options that it takes itself."""
    kind = family(spec.name)
    if kind == "timm":
        return construct(spec.name, spec.channels, spec.image_size, spec.classes, spec.dropout)
    options: dict[str, Any] = {"num_classes": spec.classes}
    if kind == "maxvit" and spec.name == "maxvit_t" and spec.image_size % 32 == 0:
        # maxvit_t() fixes windows of 7x7, which fit no image below 224. The same network, with windows that shrink with
        # the image.
        options |= {"input_size": (spec.image_size, spec.image_size), "partition_size": spec.image_size // 32}
        options |= {"block_channels": [64, 128, 256, 512], "block_layers": [2, 2, 5, 2]}
        maxvit: nn.Module = MaxVit(stem_channels=64, head_dim=32, stochastic_depth_prob=0.2, **options)
        return maxvit
    if kind == "maxvit":
        options["input_size"] = (spec.image_size, spec.image_size)
    if kind == "vision_transformer":
        options["image_size"] = spec.image_size
    if kind in ("googlenet", "inception"):
        # Auxiliary heads make the output a tuple and cannot be cut. Their own initialisation is the published one.
        options |= {"aux_logits": False, "init_weights": True}
    model: nn.Module = torchvision.models.get_model(spec.name, weights=None, **options)
    return model


def _fit(model: nn.Module, spec: ModelSpec) -> nn.Module:
    kind = family(spec.name)
    if kind == "timm":
        _fit_batchnorm(model)
        return model
    if spec.channels != 3:
        _fit_channels(model, spec.channels)
    if kind == "resnet" and spec.image_size <= SMALL_IMAGE:
        path, stem = _first_convolution(model)
        channels = (stem.in_channels, stem.out_channels)
        _replace(model, path, _convolution(stem, *channels, kernel_size=3, stride=1, padding=1))
        _replace(model, "maxpool", nn.Identity())
    if kind in ("vgg", "alexnet"):
        _fit_head(model, spec, small=kind == "vgg" and spec.image_size <= SMALL_IMAGE)
    if spec.width != 1:
        _widen(model, spec)
    _fit_batchnorm(model)
    if spec.dropout is not None:
        set_dropout(model, spec.name, spec.dropout)
    return model


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Path and module of the convolution that sees the image: the first one."""
    return next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _convolution(old: nn.Conv2d, channels_in: int, channels_out: int, **changes: Any) -> nn.Conv2d:
    names = ("kernel_size", "stride", "padding", "dilation", "groups")
    geometry = {name: getattr(old, name) for name in names} | changes
    return nn.Conv2d(channels_in, channels_out, **geometry, bias=old.bias is not None, device=old.weight.device)


def _fit_channels(model: nn.Module, channels: int) -> None:
    """Give the first convolution another number of input channels, drawn so that its output has the same variance."""
    path, old = _first_convolution(model)
    new = _convolution(old, channels, old.out_channels)
    if not old.weight.is_meta:
        with torch.no_grad():
            new.weight.normal_(0, float(old.weight.std()) * math.sqrt(old.in_channels / channels))
            if new.bias is not None and old.bias is not None:
                new.bias.copy_(old.bias)
    _replace(model, path, new)


def _fit_head(model: Any, spec: ModelSpec, small: bool) -> None:
    """Pool the features to no more than they have (torchvision blows 1x1 up to 7x7) and fit the first linear layer.

    ``small``: the head customary for CIFAR, 1x1 features and hidden layers as wide as the features (512).
    """
    images = torch.empty(2, spec.channels, spec.image_size, spec.image_size, device="meta")
    with torch.no_grad():
        features: Tensor = model.features(images)
    size = 1 if small else min(features.shape[-1], _pooled_to(model))
    if size == _pooled_to(model):
        return
    model.avgpool = nn.AdaptiveAvgPool2d((size, size))
    linear = [path for path, module in model.classifier.named_modules() if isinstance(module, nn.Linear)]
    channels_in = features.shape[1] * size * size
    for path in linear:
        old = model.classifier.get_submodule(path)
        channels_out = features.shape[1] if small and path != linear[-1] else old.out_features
        _replace(model.classifier, path, nn.Linear(channels_in, channels_out, device="meta"))
        channels_in = channels_out


def _pooled_to(model: Any) -> int:
    return int(model.avgpool.output_size[0])


def _widen(model: nn.Module, spec: ModelSpec) -> None:
    """Multiply every channel count but the image's and the classes'. Rounded to a multiple of the groups (ResNeXt)."""
    multiple = max(module.groups for module in model.modules() if isinstance(module, nn.Conv2d))

    def scaled(channels: int) -> int:
        return max(multiple, round(channels * spec.width / multiple) * multiple)

    image = _first_convolution(model)[0]
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    channels = 0  # of the features that the first linear layer flattens
    for path, old in list(model.named_modules()):
        if isinstance(old, nn.Conv2d):
            channels_in = old.in_channels if path == image else scaled(old.in_channels)
            _replace(model, path, _convolution(old, channels_in, scaled(old.out_channels)))
            channels = old.out_channels
        elif isinstance(old, nn.BatchNorm2d):
            _replace(model, path, nn.BatchNorm2d(scaled(old.num_features), device="meta"))
        elif isinstance(old, nn.Linear):
            positions = old.in_features // channels if path == linear[0] else 1
            channels_in = scaled(old.in_features // positions) * positions
            channels_out = spec.classes if path == linear[-1] else scaled(old.out_features)
            _replace(model, path, nn.Linear(channels_in, channels_out, device="meta"))


def _fit_batchnorm(model: nn.Module) -> None:
    """Population statistics must follow within a short run: MNASNet's momentum of 0.0003 needs ten thousand steps."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = max(module.momentum, BATCHNORM_MOMENTUM)


def set_dropout(model: nn.Module, name: str, probability: float) -> None:
    """Set every dropout layer's probability, not stochastic depth's. Raises ``UserError`` where there is none."""
    found = probability == 0
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p, found = probability, True
        elif isinstance(getattr(module, "drop_rate", None), float):  # DenseNet's layers
            module.drop_rate, found = probability, True  # type: ignore[assignment]
    if not found:
        raise UserError(f"{name} has no dropout layer to set to {probability}: leave dropout out for this model")


def _initialise(model: nn.Module, spec: ModelSpec) -> None:
    """torchvision's initialisation of its VGG, ResNet and AlexNet, for a network that was built without memory."""
    kind = family(spec.name)
    # torchvision draws VGG's linear layers with 0.01, right for 25,088 and 4,096 inputs; behind 512 or fewer, three
    # such layers pass on a thousandth of the signal and nothing is learnt. A fitted head is drawn for its own size, but
    # its last layer stays small behind BatchNorm, where the signal is strong and large first guesses cost epochs.
    published_head = spec.width == 1 and _pooled_to(model) == 7
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d) and kind != "alexnet":
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Linear) and kind == "vgg":
            if published_head or (spec.name.endswith("_bn") and module.out_features == spec.classes):
                nn.init.normal_(module.weight, 0, 0.01)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
