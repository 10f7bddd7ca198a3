"""What a user hands over as the model: a plain network, or something around one that the engine would by-pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from ldbench.errors import UserError
from ldbench.stages.flops import StageFlops
from ldbench.store.changes import Changes

_REPLICATED = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule")


def plain_network(model: nn.Module) -> tuple[nn.Module, bool]:
    """The network itself, and whether it was to be compiled.

    Raises:
        UserError: it is wrapped for several devices, scripted, or lies on several devices or on none.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a torch.nn.Module, not {type(model).__name__}")
    kinds = {kind.__name__ for kind in type(model).__mro__}
    wrapper = next((name for name in _REPLICATED if name in kinds), None)
    if wrapper is not None:
        raise UserError(
            f"the model is wrapped in {wrapper}: training over several devices is not supported, and what is dropped "
            "would differ between them; give the network itself (model.module) and train it on one device"
        )
    if "_FabricModule" in kinds:
        raise UserError(
            "the model is wrapped by Fabric: give the network itself (model.module), autocast=fabric.autocast"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("the model is scripted, which cannot be cut into stages: give the module torch.jit was given")
    inside = getattr(model, "_orig_mod", None)
    compiled = isinstance(inside, nn.Module) or getattr(model, "_compiled_call_impl", None) is not None
    network = inside if isinstance(inside, nn.Module) else model
    places = sorted({str(p.device) for p in network.parameters()})
    if len(places) > 1:
        raise UserError(f"the model's parameters lie on several devices ({', '.join(places)}): move it to one")
    if places == ["meta"]:
        raise UserError("the model's parameters have no values (device meta): give it weights, then make the dropper")
    return network, compiled


def bypassed(model: nn.Module, stages: Iterable[nn.Module], autocast_given: bool) -> list[str]:
    """What takes part in ``model(x)`` and not when its stages are run one after another, a sentence each.

    accelerate's replacement of ``forward`` does nothing but to mind the precision: with ``autocast_given`` all is said.
    """
    told = []
    if "forward" in vars(model) and not (autocast_given and hasattr(model, "_original_forward")):
        told.append(
            "model.forward was replaced (as accelerate does for mixed precision): the stages run without what that "
            "adds; give what it does to precision as autocast="
        )
    called: set[int] = set()
    for stage in stages:
        graph = cast(fx.GraphModule, stage).graph
        for node in graph.nodes:
            if node.op == "call_module":
                called |= {id(m) for m in stage.get_submodule(str(node.target)).modules()}
    for name, module in model.named_modules():
        hooks: Any = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if any(hooks) and id(module) not in called:
            where = f"of {name}" if name else "of the model itself"
            told.append(f"the hooks {where} are not called when its stages run: put them on layers")
    return told


def check_changes(
    changes: Changes,
    stages: nn.Sequential,
    flops: Sequence[StageFlops],
    target_shape: Sequence[int] = (),
) -> None:
    """Raise ``UserError`` where changes of stored features would do something else than they say, or nothing.

    Args:
        flops: of the stages, which know what shape each gives.
        target_shape: of one target.
    """
    if not changes:
        return
    moved, shapes = ", ".join(changes.strengths), [count.output_shape for count in flops]
    if len(target_shape) > 1:
        raise UserError(
            f"{moved} changes maps, and not targets such as {list(target_shape)} with them: leave it out, and store more "
            "views"
        )
    if not any(len(shape) == 3 for shape in shapes[:-1]):
        raise UserError(f"{moved} changes maps [C, H, W], and no stage of this network gives one: leave it out")
    for name, stage, shape in zip(stages._modules, stages, shapes, strict=True):
        if _channels_behind(cast(fx.GraphModule, stage), shape):
            raise UserError(
                f"the output of {name} has its channels last, {list(shape)} a sample: {moved} is for "
                "networks whose maps are [C, H, W]; leave it out, and store more views"
            )


def _channels_behind(stage: fx.GraphModule, shape: Sequence[int]) -> bool:
    """Whether a stage gives maps [H, W, C], as a Swin transformer's do: its last layer says how many channels there are."""
    last: Any = None
    for node in stage.graph.nodes:
        layer = stage.get_submodule(str(node.target)) if node.op == "call_module" else None
        if layer is not None and next(layer.parameters(), None) is not None:
            last = layer
    channels = None
    if isinstance(last, nn.Linear):
        channels = last.out_features
    elif isinstance(last, nn.LayerNorm):
        channels = last.normalized_shape[-1]
    return len(shape) == 3 and channels == shape[2] != shape[0]
