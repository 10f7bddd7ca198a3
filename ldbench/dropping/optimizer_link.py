"""The user's optimizer as the engine deals with it: whose parameters leave, come back, and what is saved meanwhile."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, cast

import torch
from torch import nn

from ldbench.errors import UserError

# What wrappers call the optimizer inside: accelerate's, Lightning Fabric's, lookahead, sharpness-aware minimisation.
_INSIDE = ("optimizer", "base_optimizer", "_optimizer")


class OptimizerLink:
    """An optimizer whose parameters can be retired, and put back when the engine is done.

    While parameters are retired ``optimizer.state_dict()`` goes on naming all of them, those without a state, so that
    it can be loaded into a fresh optimizer or into one that retired the same parameters, whichever comes first.

    Args:
        optimizer: an optimizer, or a wrapper of one.

    Attributes:
        optimizer: the innermost optimizer.
        see_gradients: called at every step of the optimizer while its gradients are there, with the factor that they
            are scaled by (None without one), whatever ``zero_grad`` does later.
        hears_steps: whether it is an optimizer of torch's, which tells of its steps.

    Raises:
        UserError: it is no optimizer.
    """

    def __init__(self, optimizer: Any) -> None:
        self._chain = _unwrapped(optimizer)
        self.optimizer: torch.optim.Optimizer = self._chain[-1]
        self.see_gradients: Callable[[Any], None] = lambda scale: None
        self.hears_steps = hasattr(self.optimizer, "register_step_pre_hook")
        self._flags: dict[nn.Parameter, bool] = {}  # of retired parameters: whether they needed a gradient before
        self._whole: list[list[nn.Parameter]] = []  # parameters of each group, the retired ones in their places
        self._note_groups()
        self._handles: list[Any] = []
        if self.hears_steps:
            link = weakref.ref(self)
            self._handles = [
                self.optimizer.register_step_pre_hook(_forward(link, "_before_step")),
                self.optimizer.register_step_post_hook(_forward(link, "_after_step")),
                self.optimizer.register_state_dict_post_hook(_forward(link, "_completed")),
                self.optimizer.register_load_state_dict_pre_hook(_forward(link, "_reduced")),
            ]
        # Also where the engine it was made for could not be: hooks would pile up on the user's optimizer.
        weakref.finalize(self, _remove, self._handles).atexit = False

    # --- what trains -------------------------------------------------------------------------------------------------

    def trained(self) -> set[nn.Parameter]:
        """The parameters that a step can move: held by the optimizer, and in need of a gradient."""
        return {p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad}

    @property
    def rate(self) -> float:
        """The learning rate of the last group; 1.0 for an optimizer that finds its own."""
        rate = self.optimizer.param_groups[-1].get("lr")
        return 1.0 if rate is None else float(rate)

    # --- gradients ---------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not _takes_closure(args, kwargs):
            self.see_gradients(_scale(optimizer))

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if _takes_closure(args, kwargs):  # which made the gradients during the step
            self.see_gradients(_scale(optimizer))

    # --- retiring ----------------------------------------------------------------------------------------------------

    def retire(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take parameters out of training: gradients, entries in the optimizer, and its state of them.

        Modules are left as they are, since a live stage may share one, such as a dropout: whoever sends a minibatch
        through dropped stages has them in evaluation mode meanwhile (``LiveNetwork``, ``Activations``).
        """
        self._note_groups()
        for parameter in parameters:
            self._flags.setdefault(parameter, parameter.requires_grad)
            parameter.grad = None  # a stale gradient is how momentum and weight decay move frozen layers elsewhere
            parameter.requires_grad_(False)
        self._set_groups()

    def restore(self) -> None:
        """Put retired parameters back into their groups, and their need of a gradient; their state is gone."""
        for parameter, needed in self._flags.items():
            parameter.requires_grad_(needed)
        self._note_groups()
        self._flags = {}
        self._set_groups()

    def close(self) -> None:
        """``restore``, and hear no more of the optimizer."""
        self.restore()
        _remove(self._handles)

    @property
    def holds_any(self) -> bool:
        """Whether parameters are retired now."""
        return bool(self._flags)

    def unfrozen(self) -> bool:
        """Whether somebody has made a retired parameter need a gradient again."""
        return any(parameter.requires_grad for parameter in self._flags)

    def _note_groups(self) -> None:
        """Take up what was added to the optimizer meanwhile."""
        for place, group in enumerate(self.optimizer.param_groups):
            if place == len(self._whole):
                self._whole.append([])
            known = set(self._whole[place])
            self._whole[place] += [p for p in group["params"] if p not in known]

    def _set_groups(self) -> None:
        for optimizer in self._chain:
            for group, whole in zip(optimizer.param_groups, self._whole, strict=False):
                # An emptied group stays: schedulers count the groups.
                group["params"] = [p for p in whole if p not in self._flags]
            for parameter in self._flags:
                optimizer.state.pop(parameter, None)
            if isinstance(optimizer, torch.optim.LBFGS):  # it keeps a list of its own, and pairs of the whole length
                own = cast(Any, optimizer)
                own._params, own._numel_cache = optimizer.param_groups[0]["params"], None
                optimizer.state.clear()

    # --- the optimizer's saved state ---------------------------------------------------------------------------------

    def _completed(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any] | None:
        """The state to save: retired parameters are named in it, in their places."""
        if not self._flags:
            return None
        self._note_groups()
        place = {p: i for i, p in enumerate(chain(*self._whole))}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        number = {i: place[p] for i, p in enumerate(held)}
        groups = [
            {**group, "params": [place[p] for p in whole]}
            for group, whole in zip(state["param_groups"], self._whole, strict=True)
        ]
        return {
            **state,
            "state": {number.get(key, key): entry for key, entry in state["state"].items()},
            "param_groups": groups,
        }

    def _reduced(self, optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state to load, without what is retired by now; UserError where it is another optimizer's."""
        self._note_groups()
        saved = [len(group["params"]) for group in state["param_groups"]]
        held = [len(group["params"]) for group in optimizer.param_groups]
        whole = [len(group) for group in self._whole]
        if saved == held:
            return None
        if saved != whole:
            raise UserError(
                f"the optimizer's saved state is of {saved} parameters in its groups, this optimizer has {whole}: it "
                "was made for another model, or its groups were made in another way"
            )
        groups, gone = [], set()
        for group, parameters in zip(state["param_groups"], self._whole, strict=True):
            pairs = list(zip(group["params"], parameters, strict=True))
            gone |= {key for key, p in pairs if p in self._flags}
            groups.append({**group, "params": [key for key, p in pairs if p not in self._flags]})
        kept = {key: entry for key, entry in state["state"].items() if key not in gone}
        return {**state, "state": kept, "param_groups": groups}


def _unwrapped(optimizer: Any) -> list[Any]:
    """The optimizer and what it wraps, from the outside in."""
    found = [optimizer]
    while True:
        inside = next((getattr(found[-1], n) for n in _INSIDE if hasattr(getattr(found[-1], n, None), "step")), None)
        if inside is None or any(inside is known for known in found):
            break
        found.append(inside)
    if not hasattr(found[-1], "param_groups") or not hasattr(found[-1], "state"):
        name = type(optimizer).__name__
        raise UserError(f"{name} is no optimizer with param_groups and state: give the torch optimizer that steps")
    return [each for each in found if hasattr(each, "param_groups") and hasattr(each, "state")]


def _forward(link: weakref.ref[OptimizerLink], method: str) -> Callable[..., Any]:
    """A hook that does not keep the link, and with it the engine, alive."""

    def hook(*arguments: Any) -> Any:
        there = link()
        return None if there is None else getattr(there, method)(*arguments)

    return hook


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _takes_closure(args: Any, kwargs: Any) -> bool:
    return (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None


def _scale(optimizer: Any) -> Any:
    """What a gradient scaler has multiplied the gradients by, where the optimizer takes the factor off by itself."""
    return getattr(optimizer, "grad_scale", None)
