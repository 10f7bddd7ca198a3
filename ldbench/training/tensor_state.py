"""Weights, optimizer state and random states by name, as a checkpoint holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldbench.io.checksums import Damaged


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (those that are not saved with a model included), each once, under its first name."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """State of every parameter the optimizer still holds, by name, and the rate of each group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {names[id(parameter)]: dict(entry) for parameter, entry in optimizer.state.items()}
    return {"state": state, "rates": [group["lr"] for group in optimizer.param_groups]}


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Put back ``optimizer_state``, dropped stages gone from the optimizer already.

    Tensors take the memory format of their parameter, as the optimizer itself would have made them.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in held}
    if not saved["state"].keys() <= parameters.keys() or len(saved["rates"]) != len(optimizer.param_groups):
        raise Damaged("holds the state of another optimizer")
    for name, entry in saved["state"].items():
        optimizer.state[parameters[name]] = {key: _like(value, parameters[name]) for key, value in entry.items()}
    for group, rate in zip(optimizer.param_groups, saved["rates"], strict=True):
        group["lr"] = rate


def _like(value: Any, parameter: nn.Parameter) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape or value.dim() == 0:  # a step count: optimizers keep it on the CPU
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of torch's global generators, uint8: what draws neither from a named stream nor from a step's own seed."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[str(device)] = torch.cuda.get_rng_state(device)
    return states


def load_random_states(states: Mapping[str, Tensor]) -> None:
    """Put ``random_states`` back; a device that isn't there any more is left out."""
    for name, state in states.items():
        if name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(state, name)
