"""What a user hands over as the model: a plain network, or something around one that the engine would by-pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from ldbench.errors import UserError
from ldbench.stages.flops import count_stage_flops

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


def refuse_channels_behind(stages: nn.Sequential, sample_shape: Sequence[int]) -> None:
    """Raise ``UserError`` where a stage gives maps [B, H, W, C], as a Swin transformer's do: what changes maps
    [B, C, H, W] would mirror and move those along the wrong sides.

    Args:
        sample_shape: of an image, without the minibatch.
    """
    for name, stage, count in zip(stages._modules, stages, count_stage_flops(stages, sample_shape), strict=True):
        shape, last = count.output_shape, None
        for node in cast(fx.GraphModule, stage).graph.nodes:
            layer = stage.get_submodule(str(node.target)) if node.op == "call_module" else None
            if layer is not None and next(layer.parameters(), None) is not None:
                last = layer
        width = {nn.Linear: "out_features", nn.LayerNorm: "normalized_shape"}.get(type(last), "")
        channels = getattr(last, width, None) if width else None
        channels = channels[-1] if isinstance(channels, tuple) else channels
        if len(shape) == 3 and channels == shape[2] != shape[0]:
            raise UserError(
                f"the output of {name} has its channels last, {list(shape)} a sample: stored features are changed for "
                "networks whose maps are [C, H, W]; leave change_features out, and store more views"
            )
