"""What can be named on the command line: models, data sets, methods and suites, each with a line about it."""

from __future__ import annotations

import inspect
import re
from importlib import resources
from typing import Any

from ldbench.errors import UserError, nearest, shown

KINDS = ("models", "datasets", "methods", "suites")
_DATASETS = {
    "digits": "scikit-learn's 1,797 grey digits of 8 x 8 pixels, embedded: needs no download",
    "mnist": "70,000 grey digits of 28 x 28 pixels, padded to 32",
    "fashion-mnist": "70,000 grey pictures of clothes, 28 x 28 pixels, padded to 32",
    "cifar10": "60,000 colour pictures of ten classes, 32 x 32 pixels",
    "imagenette": "13,394 photographs of ten ImageNet classes",
    "folder:PATH": "pictures of your own: PATH/train/CLASS/* and PATH/test/CLASS/*",
    "NAME=folder:PATH": "the same, with the name that records hold instead of the path",
    "synthetic:CxHxW:CLASSES:N": "N random images: for timing, without accuracy",
    "NAME[5-9]": "some classes of any of them",
}
_ABOUT = {
    "full": "The whole recipe: what everything is compared with.",
    "short": "The same recipe with a share of its epochs: what dropping layers has to beat.",
    "short-early": "short in a stream: the first chunk in full as far as the budget reaches.",
    "short-placed": "short in a stream: placed as does best on validation images.",
    "freeze": "Repeats learn-and-drop's drops and skips the backward pass alone: what the store adds.",
    "freezeout": "Freezes stages from the front by a timetable, cubic over the run (Brock et al. 2017).",
    "freezeout-linear": "The same with a linear timetable and rates that are not scaled.",
    "autofreeze": "Freezes the front stages whose gradients change least from check to check (Liu et al. 2021).",
    "egeria": "Freezes stages whose activations have come to rest, against a recent snapshot's (Wang et al. 2023).",
    "apf": "Freezes stages whose updates cancel one another out (Chen et al. 2021).",
    "simfreeze": "Freezes stages whose similarity to the initial network's activations (CKA) has settled (Li et al. 2024).",
    "stochastic-depth": "Skips residual blocks at random (Huang et al. 2016; Zhang and He 2020).",
    "progressive-depth": "Blocks are skipped at random, more of them as training goes on.",
    "infobatch": "Leaves out samples whose loss lies below the mean.",
}


def entries(kind: str) -> list[tuple[str, str]]:
    """Names of a kind with what they are. Raises ``UserError`` for an unknown kind."""
    found = {"models": _models, "datasets": lambda: list(_DATASETS.items()), "methods": _methods, "suites": _suites}
    if kind not in found:
        raise UserError(f"there is no list of {shown(kind)}: {nearest(kind, KINDS)}")
    return found[kind]()


def _models() -> list[tuple[str, str]]:
    import torchvision

    named = [(name, "") for name in torchvision.models.list_models(module=torchvision.models)]
    return [
        *named,
        ("timm:NAME", "an image classifier of timm's (pip install 'ldbench[timm]')"),
        ("package.module:factory", "one of your own"),
    ]


def _methods() -> list[tuple[str, str]]:
    from ldbench.policies.registry import get_method, method_names

    def about(name: str) -> str:
        if name in _ABOUT:
            return _ABOUT[name]
        rule, _, execution = name.rpartition("+")
        if rule:
            skipped = "also skips the forward pass" if execution == "store" else "skips the backward pass alone"
            return f"{rule}, but {skipped}."
        policy: Any = get_method(name).policy
        return (inspect.getdoc(getattr(policy, "func", policy)) or "").partition("\n\n")[0].replace("\n", " ")

    return [(name, about(name)) for name in method_names()]


def _suites() -> list[tuple[str, str]]:
    from ldbench.experiment.files import suite_names

    def about(name: str) -> str:
        lines = (resources.files("ldbench.suites") / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        told = " ".join(
            line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]
        )
        first = re.match(r"(.{30,}?)([.?](?= [A-Z]|$)|: |$)", told)
        return first[1] + first[2].strip(": .") if first else ""

    return [(name, about(name)) for name in suite_names()]
