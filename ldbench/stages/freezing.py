"""Freeze the leading stages of a network, as one does with a backbone that was trained before."""

from __future__ import annotations

from torch import nn

from ldbench.errors import UserError, nearest, shown
from ldbench.stages.split import split_stages, stage_parameters


def freeze_stages(model: nn.Module, until: str) -> int:
    """Freeze everything in front of a stage: no parameter there needs a gradient, and BatchNorm is held in evaluation
    mode.

    A parameter that a stage behind it uses too goes on training.

    Args:
        until: the first stage that trains, by its name or the beginning of it up to a dot ("layer4" is "layer4.0"), or
            how many stages are frozen.

    Returns:
        how many stages are frozen.

    Raises:
        UserError: there is no such stage, or nothing would be frozen, or everything.
    """
    stages = split_stages(model)
    names = [str(stage.stage_name) for stage in stages]
    count = int(until) if until.isdecimal() else _place(names, until)
    if not 0 < count < len(names):
        raise UserError(
            f"freeze_to {shown(until)} freezes {count} of {len(names)} stages: 1 to {len(names) - 1} can be, the last one "
            f"trains; the stages are {', '.join(names)}"
        )
    parameters = stage_parameters(stages)
    trained = {id(p) for stage in parameters[count:] for p in stage}
    for parameter in (p for stage in parameters[:count] for p in stage):
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
    live = {id(module) for module in stages[count:].modules()}
    for module in stages[:count].modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in live:
            module.eval()
    return count


def _place(names: list[str], until: str) -> int:
    for place, name in enumerate(names):
        if name == until or name.startswith(f"{until}."):
            return place
    raise UserError(f"freeze_to {shown(until)} is no stage: {nearest(until, names)}")
