"""Methods: a policy (when to drop) times an execution (what is skipped), by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ldbench.errors import UserError, nearest, shown
from ldbench.policies import FixedSchedule, FreezeOut, LearnAndDrop, NeverDrop, Policy, Replay

Execution = Literal["store", "freeze"]


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        policy: builds the policy; its keyword arguments are the method's options.
        execution: "store" skips the forward pass of dropped stages too, reading their cached output;
            "freeze" skips their backward pass alone.
        replays: name of the method whose recorded drops this one repeats for the same seed, or None.
        refresh_statistics: re-estimate BatchNorm's population statistics when a stage is dropped. Off for rivals whose
            papers do not, since it costs forward passes.
        own_schedule: the policy's ``lr_scales`` replace the recipe's decay.
    """

    policy: Callable[..., Policy]
    execution: Execution = "store"
    replays: str | None = None
    refresh_statistics: bool = True
    own_schedule: bool = False


_METHODS: dict[str, Method] = {
    "full": Method(NeverDrop),
    "short": Method(NeverDrop),
    "learn-and-drop": Method(LearnAndDrop, "store"),
    "freeze": Method(Replay, "freeze", replays="learn-and-drop"),
    "freezeout": Method(FreezeOut, "freeze", refresh_statistics=False, own_schedule=True),
    "schedule": Method(FixedSchedule, "store"),
}


def method_names() -> list[str]:
    """Every known method, the user's own included."""
    return list(_METHODS)


def register_method(name: str, method: Method) -> None:
    """Make ``--method name`` known. Raises ``ValueError`` when the name is taken."""
    if name in _METHODS:
        raise ValueError(f"method {name!r} exists already")
    _METHODS[name] = method


def get_method(name: str) -> Method:
    """The method called ``name``. Raises ``UserError`` with the nearest names."""
    if name not in _METHODS:
        raise UserError(f"unknown method {shown(name)}: {nearest(name, _METHODS)}")
    return _METHODS[name]


def replay_source(name: str) -> str | None:
    """The method whose drops ``name`` repeats, or None."""
    return get_method(name).replays


def build_policy(name: str, options: Mapping[str, Any], events: Sequence[Sequence[int]] | None = None) -> Policy:
    """The policy of method ``name`` with its options checked. Raises ``UserError`` for unknown ones."""
    factory = get_method(name).policy
    known = inspect.signature(factory).parameters
    for key in options:
        if key not in known or key == "events":
            raise UserError(
                f"method {name} has no option {shown(key)}: {nearest(key, [k for k in known if k != 'events'])}"
            )
    try:
        return factory(**options) if events is None else factory(events=events, **options)
    except TypeError as error:
        raise UserError(f"method {name}: {error}") from error
