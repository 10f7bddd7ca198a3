"""Trace a model once for both modes: a ``torch.fx`` graph in which nothing of train or eval mode is frozen."""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ldbench.errors import UserError, one_line
from ldbench.stages.train_mode import preserved_modes


class StageSplitError(UserError):
    """The model cannot be cut into stages; the message says why and what to do."""


class _Differs(Exception):
    """Two nodes that should be the same in train and in eval mode are not."""


def augmented_assignment(x: Any, operation: str, y: Any) -> Any:
    """``x += y`` as a call; ``operation`` is the name in :mod:`operator` (``iadd``). Returns the new x."""
    return getattr(operator, operation)(x, y)


class _Proxy(fx.Proxy):
    """Records augmented and item assignment. fx would compute new values instead, which other names for x never see."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def _augmented(self, operation: str, y: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", augmented_assignment, (self, operation, y), {})

    __iadd__ = partialmethod(_augmented, "iadd")
    __isub__ = partialmethod(_augmented, "isub")
    __imul__ = partialmethod(_augmented, "imul")
    __itruediv__ = partialmethod(_augmented, "itruediv")
    __ifloordiv__ = partialmethod(_augmented, "ifloordiv")
    __imod__ = partialmethod(_augmented, "imod")
    __ipow__ = partialmethod(_augmented, "ipow")
    __iand__ = partialmethod(_augmented, "iand")
    __ior__ = partialmethod(_augmented, "ior")
    __ixor__ = partialmethod(_augmented, "ixor")


class _Tracer(fx.Tracer):
    """Leaves are torch.nn's own modules, modules without children, and those in ``opaque``.

    Args:
        opaque: modules to keep whole because tracing their inside failed or froze something.
    """

    # Otherwise arithmetic on a buffer is done once, while tracing, and its result frozen.
    proxy_buffer_attributes = True

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque
        self.suspects: list[nn.Module] = []  # modules whose inside cannot be traced faithfully, innermost first

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # One input; further arguments of forward() keep their defaults instead of turning into inputs.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.opaque:
            return True
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
            return False
        return super().is_leaf_module(m, module_qualified_name) or next(m.children(), None) is None

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        drawn = _random_state()
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.suspects.append(m)
            raise
        if not self.suspects and _random_state() != drawn:
            self.suspects.append(m)
        return result


def trace(model: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Trace ``model`` in train and in eval mode and return what holds in both.

    A submodule whose inside cannot be traced, draws random numbers outside the graph or depends on the mode becomes a
    leaf. A mere ``training=self.training`` in a module that holds most of the model (the model itself, its backbone)
    is read when the graph runs instead, since a leaf would swallow everything.

    Returns:
        root: a shallow copy of the model (submodules, parameters, buffers shared), with the graph's constants.
        graph: one placeholder, one output, which is a single value.

    Raises:
        StageSplitError: the outermost ``forward`` itself cannot be traced.
    """
    opaque: set[nn.Module] = set()
    with _preserved(model):
        while True:
            train, evaluated = _trace_mode(model, True, opaque), _trace_mode(model, False, opaque)
            found = next((traced for traced in (train, evaluated) if isinstance(traced, nn.Module)), None)
            if isinstance(train, tuple) and isinstance(evaluated, tuple):
                found = _reconcile(model, *train, *evaluated)
                if found is None:
                    break
            opaque |= {module for module in model.modules() if type(module) is type(found)}
    root, graph = train
    root.training = model.training
    return root, graph


def _trace_mode(model: nn.Module, mode: bool, opaque: set[nn.Module]) -> tuple[nn.Module, fx.Graph] | nn.Module:
    """Root and graph in one mode, or the innermost submodule that has to become a leaf first."""
    model.train(mode)
    # The tracer stores constants on its root: on a copy, so that the user's model stays as it was.
    root, tracer, drawn = copy.copy(model), _Tracer(opaque), _random_state()
    try:
        graph = tracer.trace(root)
    except Exception as error:
        if tracer.suspects:
            return tracer.suspects[0]
        raise StageSplitError(_cannot(model, one_line(error))) from error
    if tracer.suspects:
        return tracer.suspects[0]
    if _random_state() != drawn:
        raise StageSplitError(_cannot(model, "forward() draws random numbers that tracing would freeze"))
    _check_output(model, graph, mode)
    return root, graph


@contextmanager
def _preserved(model: nn.Module) -> Iterator[None]:
    """Train/eval mode of every module and the random states come back as they were, whatever happens."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the stream that user code may draw from
    try:
        with preserved_modes(model), torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _random_state() -> tuple[Any, ...]:
    numpy: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), torch.get_rng_state().numpy().tobytes(), numpy[1].tobytes(), numpy[2]


def _cannot(model: nn.Module, reason: str) -> str:
    return (
        f"{type(model).__name__} cannot be cut into stages: {reason}; move the part of its forward() that depends on "
        "values, shapes, chance or the mode into a submodule, which is then kept whole"
    )


def output_node(graph: fx.Graph) -> Any:
    """What the graph returns: a node, or a tuple, list or dict of nodes."""
    return next(node for node in reversed(graph.nodes) if node.op == "output").args[0]


def _check_output(model: nn.Module, graph: fx.Graph, mode: bool) -> None:
    result = output_node(graph)
    kind = type(result).__name__.removeprefix("immutable_")
    if isinstance(result, fx.Node):
        if not (isinstance(result.target, type) and issubclass(result.target, (tuple, dict))):
            return
        kind = result.target.__name__  # a named tuple
    raise StageSplitError(
        f"{type(model).__name__} cannot be cut into stages: forward() returns {kind} instead of one tensor "
        f"in {'train' if mode else 'eval'} mode; switch auxiliary heads off (torchvision: aux_logits=False) "
        "or return only the logits"
    )


def _reconcile(
    model: nn.Module, root: nn.Module, graph: fx.Graph, eval_root: nn.Module, eval_graph: fx.Graph
) -> nn.Module | None:
    """Compare train and eval graph: the first module to keep whole, or None when ``graph`` holds in both modes."""
    number: dict[fx.Node, int] = {}
    for i, (node, other) in enumerate(zip(list(graph.nodes), list(eval_graph.nodes), strict=False)):
        number[node] = number[other] = i
        path = _common_owner(node, other)
        owner = model.get_submodule(path)
        flags: list[fx.Node] = []

        def flag(path: str = path, node: fx.Node = node, flags: list[fx.Node] = flags) -> fx.Node:
            with graph.inserting_before(node):
                flags.append(graph.create_node("get_attr", f"{path}.training".lstrip(".")))
            return flags[-1]

        try:
            if node.op != other.op or node.target != other.target:
                raise _Differs
            if node.op == "get_attr":
                _same_constant(attribute(root, str(node.target)), attribute(eval_root, str(other.target)))
            node.args = _merged(node.args, other.args, number, flag)
            node.kwargs = _merged(node.kwargs, other.kwargs, number, flag)
        except _Differs:
            if owner is model:
                reason = "forward() does something else in train mode than in eval mode"
                raise StageSplitError(_cannot(model, reason)) from None
            return owner
        if flags and 2 * _size(owner) <= _size(model):
            return owner
    return None


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _merged(a: Any, b: Any, number: dict[fx.Node, int], flag: Callable[[], fx.Node]) -> Any:
    """``a``, with a flag node in each place where ``a`` says True (train) and ``b`` says False (eval)."""
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and number[a] == number[b]:
        return a
    if a is True and b is False:
        return flag()
    if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        items = [_merged(x, y, number, flag) for x, y in zip(a, b, strict=True)]
        return tuple(items) if isinstance(a, tuple) else items
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return {key: _merged(a[key], b[key], number, flag) for key in a}
    if isinstance(a, slice) and isinstance(b, slice):
        return slice(*(_merged(getattr(a, k), getattr(b, k), number, flag) for k in ("start", "stop", "step")))
    if type(a) is type(b) and not isinstance(a, fx.Node) and (a is b or a == b):
        return a
    raise _Differs


def _same_constant(a: Any, b: Any) -> None:
    if isinstance(a, Tensor) and a is not b and not (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)):
        raise _Differs


def attribute(root: nn.Module, target: str) -> Any:
    """The parameter, buffer, constant or flag that a get_attr node's target names."""
    value: Any = root
    for name in target.split("."):
        value = getattr(value, name)
    return value


def _common_owner(a: fx.Node, b: fx.Node) -> str:
    """Path of the innermost module whose ``forward`` issued both nodes; empty for the root."""
    common = ""
    for x, y in zip(_owners(a), _owners(b), strict=False):
        if x != y:
            break
        common = x
    return common


def _owners(node: fx.Node) -> list[str]:
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return stack[:-1] if node.op == "call_module" else stack
