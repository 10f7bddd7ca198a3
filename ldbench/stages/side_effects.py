"""What the nodes of a traced graph do besides computing: write to their input, pass it through, draw random numbers."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable
from typing import Any

from torch import fx, nn
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import Permute

from ldbench.stages.tracing import augmented_assignment

# Modules of torch and torchvision whose output may be their input or a view of it. Unknown modules count as such too.
_PASSING = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd, nn.Sequential, nn.PixelShuffle,
    nn.ChannelShuffle, nn.Upsample, StochasticDepth, Permute,
)  # fmt: skip

# Functions and methods, by name, whose result is new memory. Unlisted ones may return a view: a clone too many is
# a little slow, a clone too few is wrong.
_FRESH = frozenset({
    "abs", "adaptive_avg_pool2d", "adaptive_max_pool2d", "add", "addmm", "amax", "amin", "avg_pool2d", "baddbmm",
    "batch_norm", "bmm", "cat", "celu", "clamp", "clone", "concat", "conv1d", "conv2d", "conv3d", "cos", "div",
    "einsum", "elu", "empty_like", "exp", "flip", "floordiv", "gelu", "group_norm", "hardsigmoid", "hardswish",
    "hardtanh", "hstack", "instance_norm", "interpolate", "layer_norm", "leaky_relu", "linear", "log",
    "log_softmax", "logsumexp", "matmul", "max_pool2d", "mean", "mish", "mm", "mod", "mul", "neg", "normalize",
    "ones_like", "pow", "prod", "radd", "rand_like", "randn_like", "relu", "relu6", "rmul", "roll", "rsqrt", "rsub",
    "rtruediv", "scaled_dot_product_attention", "selu", "sigmoid", "silu", "sin", "softmax", "softplus", "sqrt",
    "stack", "std", "sub", "sum", "tanh", "truediv", "var", "vstack", "where", "zeros_like",
})  # fmt: skip

_DRAWING = frozenset({
    "alpha_dropout", "bernoulli", "bernoulli_", "binomial", "cauchy_", "drop_block2d", "drop_block3d", "dropout",
    "dropout1d", "dropout2d", "dropout3d", "dropout_", "exponential_", "feature_alpha_dropout",
    "fractional_max_pool2d", "fractional_max_pool3d", "geometric_", "gumbel_softmax", "log_normal_", "multinomial",
    "normal", "normal_", "poisson", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "random_", "randperm", "rrelu", "rrelu_", "stochastic_depth", "uniform_",
})  # fmt: skip


def may_write_input(nodes: Iterable[fx.Node], source: fx.Node, root: nn.Module) -> bool:
    """Whether running ``nodes`` might change the memory of ``source``'s value in place. Errs on the side of yes."""
    aliases = {source}
    for node in nodes:
        if aliases.isdisjoint(node.all_input_nodes):
            continue
        if _writes(node, aliases, root):
            return True
        if not writes_in_place(node) and not _gives_new_memory(node, root):
            aliases.add(node)
    return False


def _known(module: nn.Module) -> bool:
    """Library modules, which write to their input only when told so by ``inplace``."""
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.", "torchvision."))


def node_name(node: fx.Node) -> str:
    """Name of the method, or of the function without its module."""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def writes_in_place(node: fx.Node) -> bool:
    """Whether a method or function writes to its first argument by its very name (``add_``, ``+=``, ``x[i] = y``)."""
    if node.op not in ("call_method", "call_function"):
        return False
    name = node_name(node)
    return node.target in (operator.setitem, augmented_assignment) or (name.endswith("_") and not name.endswith("__"))


def _writes(node: fx.Node, aliases: set[fx.Node], root: nn.Module) -> bool:
    if node.op == "call_module":
        inside = list(root.get_submodule(str(node.target)).modules())
        return not all(_known(module) for module in inside) or any(getattr(m, "inplace", False) for m in inside)
    if writes_in_place(node):
        return bool(node.args) and node.args[0] in aliases
    if node.op == "call_method":
        return False
    if node.kwargs.get("out") is not None or _inplace_argument(node):
        return True
    origin = str(getattr(node.target, "__module__", None) or "torch")  # built-in functions of torch name no module
    return not origin.startswith(("torch", "math", "_operator", "builtins"))


def _inplace_argument(node: fx.Node) -> bool:
    """The ``inplace`` argument of a function like ``F.relu``, given by name or by position."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built-in functions have no signature, and no such argument
        return bool(node.kwargs.get("inplace", False))
    return bool(bound.arguments.get("inplace", False))


def _gives_new_memory(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return _known(module) and not isinstance(module, _PASSING)
    return node_name(node).strip("_") in _FRESH


def draws_random_numbers(stage: fx.GraphModule) -> bool:
    """Whether the stage's output in train mode depends on random numbers (dropout, stochastic depth, noise)."""
    return any(_node_draws(node) for node in stage.graph.nodes) or any(_module_draws(m) for m in stage.modules())


def _node_draws(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    if node_name(node) in _DRAWING:
        probability: Any = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else None)
        return bool(probability != 0)
    return any("drop" in key and _is_rate(value) for key, value in node.kwargs.items())  # fused attention, for one


def _module_draws(module: nn.Module) -> bool:
    if isinstance(module, fx.GraphModule):
        return False  # its nodes were looked at
    if isinstance(module, (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)):
        return True
    if isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth)):
        return float(module.p) > 0
    # Attention and recurrent modules keep their rate as a number (dropout, attention_dropout, drop_rate, drop_prob).
    if any("drop" in key and _is_rate(value) for key, value in vars(module).items()):
        return True
    code = getattr(type(module).forward, "__code__", None)
    return not _known(module) and code is not None and not _DRAWING.isdisjoint(code.co_names)


def _is_rate(value: Any) -> bool:
    return isinstance(value, float) and value > 0
