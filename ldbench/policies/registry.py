"""Methods: a policy (when to drop) times an execution (what is skipped), by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ldbench.errors import UserError, nearest, shown
from ldbench.policies.base import NeverDrop, Policy
from ldbench.policies.baselines import AutoFreeze, FreezeOut, StochasticDepth
from ldbench.policies.composer import LinearFreezing, ProgressiveResizing
from ldbench.policies.plateaus import Egeria, ParameterFreezing, SimFreeze
from ldbench.policies.rules import FixedSchedule, LearnAndDrop, Replay

Execution = Literal["store", "freeze"]
Spread = Literal["evenly", "early", "placed"]


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        policy: builds the policy; its keyword arguments are the method's options.
        execution: "store" skips the forward pass of dropped stages too, reading their cached output;
            "freeze" skips their backward pass alone.
        replays: name of the method whose recorded drops this one repeats for the same seed, or None.
        stops: there is something to drop, so that ``NAME+store`` and ``NAME+freeze`` are methods, too.
        shortened: how a control that trains with a part of the budget spreads it over the chunks of a stream: "evenly",
            its share of each; "early", the first in full as far as it reaches; "placed", as does best on validation
            images. The last two are for streams alone. None: it trains in full.
    """

    policy: Callable[..., Policy]
    execution: Execution = "store"
    replays: str | None = None
    stops: bool = True
    shortened: Spread | None = None


_METHODS: dict[str, Method] = {
    "full": Method(NeverDrop, stops=False),
    "short": Method(NeverDrop, stops=False, shortened="evenly"),
    "short-early": Method(NeverDrop, stops=False, shortened="early"),
    "short-placed": Method(NeverDrop, stops=False, shortened="placed"),
    "learn-and-drop": Method(LearnAndDrop, "store"),
    "freeze": Method(Replay, "freeze", replays="learn-and-drop"),
    "schedule": Method(FixedSchedule, "store"),
    "freezeout": Method(FreezeOut, "freeze"),
    "freezeout-linear": Method(functools.partial(FreezeOut, t_first=0.5, cubic=False, scaled=False), "freeze"),
    "autofreeze": Method(AutoFreeze, "freeze"),
    "egeria": Method(Egeria, "freeze"),
    "apf": Method(ParameterFreezing, "freeze"),
    "linear-freezing": Method(LinearFreezing, "freeze"),
    "simfreeze": Method(SimFreeze, "freeze"),
    "stochastic-depth": Method(StochasticDepth, stops=False),
    "progressive-depth": Method(functools.partial(StochasticDepth, gamma=100.0), stops=False),
    "resize": Method(ProgressiveResizing, stops=False),
}


def method_names() -> list[str]:
    """Every known method, the user's own included, and the rules with the execution that isn't their own."""
    other: dict[Execution, Execution] = {"store": "freeze", "freeze": "store"}
    both = [f"{name}+{other[m.execution]}" for name, m in _METHODS.items() if m.stops and m.replays is None]
    return [*_METHODS, *both]


def shortened_methods(spread: Spread | None = None) -> tuple[str, ...]:
    """The methods that train with a part of the budget; with ``spread`` those that spread it so."""
    return tuple(name for name, m in _METHODS.items() if m.shortened and spread in (None, m.shortened))


def stream_controls() -> tuple[str, ...]:
    """The methods that spread a budget in a way that only a stream knows; elsewhere they would be ``short``."""
    return shortened_methods("early") + shortened_methods("placed")


def register_method(name: str, method: Method) -> None:
    """Make ``--method name`` known. Raises ``ValueError`` when the name is taken."""
    if name in _METHODS:
        raise ValueError(f"method {name!r} exists already")
    _METHODS[name] = method


def get_method(name: str) -> Method:
    """The method called ``name``; ``NAME+store`` and ``NAME+freeze`` run the rule of NAME with the other execution.

    Raises:
        UserError: there is none, with the nearest names.
    """
    if name in _METHODS:
        return _METHODS[name]
    if name not in method_names():
        raise UserError(f"unknown method {shown(name)}: {nearest(name, method_names())}")
    rule, _, execution = name.rpartition("+")
    return replace(_METHODS[rule], execution="store" if execution == "store" else "freeze")


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
