"""Default training recipes, one per kind of architecture, for small images.

Fine-tuning takes the same ones, learning rate included. The habit of a tenth to a third of it was tried (VGG-11-BN and
ResNet-18 at width 0.25, pre-trained on five classes of Fashion-MNIST, tuned on 2,000 images of the other five, 8 epochs
of 16 steps, two seeds): half the rate ended 0.4 points lower, twice the rate broke one of two VGGs; with 1,000 images
and 6 epochs, two fifths of the rate cost 3 points; of MobileNetV3-small with adaptive steps, three tenths cost 1.4. Few
steps need their size. Long fine-tuning of weights from a large data set may not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ldbench.models.fit import family
from ldbench.models.timm_models import timm_family


@dataclass(frozen=True)
class Recipe:
    """How a network is trained when the experiment does not say otherwise.

    Attributes:
        optimizer: ``sgd`` (with Nesterov momentum), ``adam`` or ``adamw``.
        lr: peak learning rate, for ``batch_size`` samples per step.
        weight_decay: L2 for sgd and adam, decoupled for adamw.
        schedule: ``cosine`` to zero, ``constant`` or ``step``, after the warm-up.
        warmup_fraction: share of all steps in which the learning rate rises linearly.
        clip_norm: bound on the gradient's norm over all parameters; None for no bound.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = "cosine"  # no milestones to tune, and a compressed budget compresses it
    warmup_fraction: float = 0.1  # keeps the first steps at a high rate from blowing up
    batch_size: int = 128
    label_smoothing: float = 0.0
    clip_norm: float | None = None


def default_recipe(name: str) -> Recipe:
    """The recipe for a torchvision or timm architecture, or for ``package.module:factory``."""
    kind = family(name)
    if kind == "timm":  # torchvision's nearest
        kind = _OF_TIMM.get(timm_family(name), "timm")
    if kind == "vgg" and not name.endswith("_bn"):
        return _PLAIN
    return _BY_FAMILY.get(kind, _CAREFUL)


# BatchNorm makes the scale of the weights irrelevant, so plain SGD stands a high rate and trains in few epochs.
_BATCHNORM = Recipe(lr=0.1)

# Without BatchNorm a deep stack of convolutions diverges at a high rate; the bound catches the steps that would do it.
_PLAIN = Recipe(lr=0.05, clip_norm=1.0)

# No BatchNorm either, and few or very large layers: adaptive steps leave the plateau at the start in half the epochs.
_ADAPTIVE = Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.01, clip_norm=1.0)

# Depthwise convolutions and squeeze-and-excitation: adaptive steps get going within a few epochs where SGD needs tens.
# Stronger decay suits the decoupled kind.
_MOBILE = Recipe(optimizer="adamw", lr=2e-3, weight_decay=0.02, clip_norm=1.0)

# Attention and LayerNorm want adaptive steps, a low rate and a bounded gradient; smoothing is in the published recipes.
_CAREFUL = Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05, label_smoothing=0.1, clip_norm=1.0)

_OF_TIMM = {
    "resnet": "resnet",
    "resnetv2": "resnet",
    "vgg": "vgg",
    "densenet": "densenet",
    "regnet": "regnet",
    "efficientnet": "efficientnet",
    "mobilenetv3": "mobilenetv3",
    "ghostnet": "mobilenetv3",
    "inception_v3": "inception",
}

_BY_FAMILY = {
    "resnet": replace(_BATCHNORM, lr=0.05),  # ResNet-50 at 0.1 learns next to nothing in its first 60 steps
    "vgg": replace(_BATCHNORM, lr=0.05),  # no shortcuts: half the rate
    "densenet": _BATCHNORM,
    "regnet": replace(_BATCHNORM, lr=0.02),  # at 0.1 its first steps throw the loss up to 10
    "googlenet": replace(_BATCHNORM, lr=0.05),
    "inception": replace(_BATCHNORM, lr=0.05),
    "shufflenetv2": _BATCHNORM,
    "alexnet": replace(_ADAPTIVE, lr=5e-4),
    "squeezenet": _ADAPTIVE,
    "mnasnet": _MOBILE,
    "mobilenetv2": _MOBILE,
    "mobilenetv3": _MOBILE,
    "efficientnet": _MOBILE,
    "user": replace(_CAREFUL, label_smoothing=0.0),  # unknown: what trains nearly everything
}
