"""Freeze the leading stages of a network, as one does with a backbone that was trained before."""

from __future__ import annotations

import re

from torch import nn

from ldbench.errors import UserError, nearest, shown
from ldbench.stages.split import split_stages


def freeze_stages(model: nn.Module, until: str) -> int:
    """Freeze everything in front of a stage, so that it gives the same output for an image in every step.

    No parameter there needs a gradient any more, and its modules are in evaluation mode: BatchNorm keeps the statistics
    it has, dropout is off. A module that a stage behind uses too stays as it is.

    Args:
        until: the first stage that trains, by its name or the beginning of it up to a dot ("layer4" is "layer4.0"), or
            how many stages are frozen.

    Returns:
        how many stages are frozen.

    Raises:
        UserError: there is no such stage, nothing would be frozen, or everything, or a stage on either side shares a
            parameter with one on the other.
    """
    stages = split_stages(model)
    names = [str(stage.stage_name) for stage in stages]
    count = _count(names, until)
    frozen, live = stages[:count], stages[count:]
    parameters = set(frozen.parameters())
    if not parameters.isdisjoint(live.parameters()):
        raise UserError(
            f"freeze_to {shown(until)}: stages before and behind it share a parameter: choose another stage"
        )
    for parameter in parameters:
        parameter.requires_grad_(False)
    # A stage's containers are its own, at the paths of the model's: what reads a flag there was cut from the model.
    awake = {id(model.get_submodule(path)) for stage in live for path, _ in stage.named_modules()}
    for stage in frozen:
        for path, _ in stage.named_modules():
            module = model.get_submodule(path)
            if id(module) not in awake:
                module.training = False
    return count


def _count(names: list[str], until: str) -> int:
    if re.fullmatch(r"-?[0-9]+", until):
        count = int(until) if len(until) < 9 else len(names)
    else:
        found = next((s for s, name in enumerate(names) if f"{name}.".startswith(f"{until}.")), None)
        if found is None:
            raise UserError(f"freeze_to {shown(until)} is no stage: {nearest(until, names)}")
        count = found
    if not 0 < count < len(names):
        what = "nothing" if count < 1 else f"all {len(names)} stages"
        stages = ", ".join(names) if len(names) <= 40 else f"{', '.join(names[:38])}, ..., {names[-1]}"
        raise UserError(
            f"freeze_to {shown(until)} freezes {what}: give 1 to {len(names) - 1}, or the first stage that trains; the "
            f"stages are {stages}"
        )
    return count
