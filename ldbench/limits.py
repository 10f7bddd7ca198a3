"""What this machine could never hold: said before it is tried, since the system kills such a process without a word."""

from __future__ import annotations

import os

from ldbench.errors import UserError


def check_memory(what: str, needed: int, cure: str) -> None:
    """Raises ``UserError`` where ``needed`` bytes are more than the machine's memory."""
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise UserError(f"{what} takes {needed / 1e9:.1f} GB and this machine has {present / 1e9:.1f} GB: {cure}")
