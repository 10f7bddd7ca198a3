"""The way from a call of the network, somewhere in a library's loop, to the ``LayerDropper``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ldbench.dropping.engine import LayerDropper
from ldbench.errors import UserError
from ldbench.policies.base import Policy


def find_network(module: nn.Module, name: str) -> nn.Module:
    """The submodule that layers are dropped from: ``name`` as in ``get_submodule``; "" is ``module`` itself.

    Raises:
        UserError: there is none of that name.
    """
    try:
        return module.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in module.named_children()) or "none"
        raise UserError(
            f"{type(module).__name__} has no network named {name!r}: say with network= which of its submodules maps "
            f"images to logits (it has {children}), or network='' for itself"
        ) from None


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for what the library's loop would not follow, of the options of ``LayerDropper``: a policy that
    sets learning rates, pruning, which has to be told the loss of every sample, and draws of augmentation.
    """
    if options.get("augment") is not None:
        raise UserError(
            "augment= is for a loop of your own: put random transforms into the data set; views= stores several"
        )
    if options.get("pruning") is not None:
        raise UserError(
            "pruning= wants the loss of every sample and weighs it, which only a loop of your own can do: use "
            "ldbench.LayerDropper there, or leave pruning= out"
        )
    policy: Policy | None = options.get("policy")
    if policy is not None and policy.lr_scales(0.0, 1) is not None:
        raise UserError(
            f"{type(policy).__name__} sets a learning rate for every stage, which only a loop of your own can follow: "
            "use ldbench.LayerDropper there, or another policy"
        )


@contextmanager
def detour(network: nn.Module, dropper: LayerDropper) -> Iterator[None]:
    """Meanwhile ``network(x)``, for a minibatch [B, ...] of the dropper, is ``dropper(x)``.

    Nothing else changes: parameters, their names and the network's own hooks stay.
    """

    def forward(x: Tensor) -> Tensor:
        return dropper(x)

    own = vars(network)  # past __setattr__, which a compiled module hands on to the module inside
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before
