"""The context that forward passes run in: the user's own, or the automatic mixed precision their loop was seen in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from ldbench.errors import UserError


class ForwardContext:
    """Calling it gives the context; stores and statistics are made in it, since training reads what it computes.

    Args:
        given: gives the context; None: automatic mixed precision as it was in the loop's last forward pass.
        device: whose passes they are.

    Raises:
        UserError: a context was given instead of a function.
    """

    def __init__(self, given: Callable[[], AbstractContextManager[Any]] | None, device: torch.device) -> None:
        if hasattr(given, "__enter__") and not isinstance(given, type):
            raise UserError("autocast= is a function that gives the context: lambda: torch.autocast(...)")
        self.given, self.kind = given, device.type
        self.dtype: torch.dtype | None = None

    def __call__(self) -> AbstractContextManager[Any]:
        if self.given is not None:
            return self.given()
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=self.dtype)

    def of_training(self) -> AbstractContextManager[Any]:
        """The context of a forward pass of the loop: the user's own context where one was given, else the loop's."""
        if self.given is not None:
            return self.given()
        if torch.is_grad_enabled():  # else it evaluates
            self.dtype = torch.get_autocast_dtype(self.kind) if torch.is_autocast_enabled(self.kind) else None
        return contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        return {"dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch.")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s answer."""
        self.dtype = None if state["dtype"] is None else getattr(torch, state["dtype"])
