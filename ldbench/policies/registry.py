"""Methods: a policy (when to drop) times an execution (what is skipped), and which samples sit out, by name."""

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
from ldbench.policies.infobatch import InfoBatch
from ldbench.policies.plateaus import Egeria, ParameterFreezing, SimFreeze
from ldbench.policies.rules import FixedSchedule, LearnAndDrop, Paced, Replay

Execution = Literal["store", "freeze"]
Spread = Literal["evenly", "early", "placed"]
PRUNED = "+infobatch"


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
        prunes: builds what leaves samples out of epochs, of options of its own; None: all take part.
    """

    policy: Callable[..., Policy]
    execution: Execution = "store"
    replays: str | None = None
    stops: bool = True
    shortened: Spread | None = None
    prunes: Callable[..., InfoBatch] | None = None


_METHODS: dict[str, Method] = {
    "full": Method(NeverDrop, stops=False),
    "short": Method(NeverDrop, stops=False, shortened="evenly"),
    "short-early": Method(NeverDrop, stops=False, shortened="early"),
    "short-placed": Method(NeverDrop, stops=False, shortened="placed"),
    "learn-and-drop": Method(LearnAndDrop, "store"),
    "freeze": Method(Replay, "freeze", replays="learn-and-drop"),
    "paced": Method(Paced, "store"),
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
    "infobatch": Method(NeverDrop, stops=False, prunes=InfoBatch),
    "resize": Method(ProgressiveResizing, stops=False),
}


def method_names() -> list[str]:
    """Every known method, the user's own included, and the rules with the execution that isn't their own.

    Each of them that drops by a rule is one with ``+infobatch`` behind its name, too, which is not listed.
    """
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
    """The method called ``name``; ``NAME+store`` and ``NAME+freeze`` run the rule of NAME with the other execution,
    and ``+infobatch`` behind either leaves samples out, too.

    Raises:
        UserError: there is none, with the nearest names.
    """
    if name in _METHODS:
        return _METHODS[name]
    unpruned = [known for known in method_names() if known not in _METHODS or _drops_by_rule(_METHODS[known])]
    pruned = [known + PRUNED for known in unpruned]
    if name in pruned:
        return replace(get_method(name.removesuffix(PRUNED)), prunes=InfoBatch)
    if name not in method_names():
        known = [*method_names(), *pruned] if "+i" in name else method_names()
        raise UserError(f"unknown method {shown(name)}: {nearest(name, known)}")
    rule, _, execution = name.rpartition("+")
    return replace(_METHODS[rule], execution="store" if execution == "store" else "freeze")


def _drops_by_rule(method: Method) -> bool:
    """Whether it decides for itself when layers leave, and leaves no samples out yet."""
    return method.stops and method.replays is None and method.prunes is None


def reads_store(name: str) -> bool:
    """Whether ``name`` drops layers whose output is read from a store from then on."""
    method = get_method(name)
    return method.stops and method.execution == "store"


def replay_source(name: str) -> str | None:
    """The method whose drops ``name`` repeats, or None."""
    return get_method(name).replays


def build_policy(name: str, options: Mapping[str, Any], events: Sequence[Sequence[int]] | None = None) -> Policy:
    """The policy of method ``name`` with its options checked. Raises ``UserError`` for unknown ones."""
    factory = get_method(name).policy
    build_pruning(name, options)
    pruning = _pruning_options(name)
    known = [*inspect.signature(factory).parameters, *pruning]
    for key in options:
        if key not in known or key == "events":
            raise UserError(
                f"method {name} has no option {shown(key)}: {nearest(key, [k for k in known if k != 'events'])}"
            )
    own = {key: value for key, value in options.items() if key not in pruning}
    try:
        return factory(**own) if events is None else factory(events=events, **own)
    except TypeError as error:
        raise UserError(f"method {name}: {error}") from error


def build_pruning(name: str, options: Mapping[str, Any]) -> InfoBatch | None:
    """What leaves samples out of the epochs of method ``name``, of those options that are its own; None: all take part.

    Raises:
        UserError: one of them has a value that it cannot have.
    """
    factory, own = get_method(name).prunes, _pruning_options(name)
    return None if factory is None else factory(**{key: value for key, value in options.items() if key in own})


def _pruning_options(name: str) -> list[str]:
    factory = get_method(name).prunes
    return [] if factory is None else list(inspect.signature(factory).parameters)
