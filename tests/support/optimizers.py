"""Optimizers that wrap another one, as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Lookahead(torch.optim.Optimizer):
    """Zhang et al. 2019, the way implementations of it wrap an optimizer."""

    def __init__(self, base: torch.optim.Optimizer, k: int = 3, alpha: float = 0.5) -> None:
        self.optimizer, self.k, self.alpha, self.count = base, k, alpha, 0
        self.param_groups, self.defaults = base.param_groups, base.defaults
        self.state: Any = {}
        self._optimizer_state_dict_pre_hooks: Any = {}

    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state.setdefault(p, p.detach().clone())
                if self.count % self.k == 0:
                    slow.lerp_(p.detach(), self.alpha)
                    with torch.no_grad():
                        p.copy_(slow)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class SharpnessAware(torch.optim.Optimizer):
    """Foret et al. 2021: two passes a step, and an argument that has to be given."""

    def __init__(self, params: Any, base: Callable[..., torch.optim.Optimizer], rho: float, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def climb(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["before"] = p.clone()
                    p.add_(p.grad, alpha=group["rho"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(self.state[p]["before"])
        self.base_optimizer.step()
