"""Checks of the options that several rules have alike."""

from __future__ import annotations

from ldbench.errors import UserError, shown
from ldbench.policies.base import is_number


def check_share(rule: str, **values: object) -> None:
    """Raises ``UserError`` where an option of a rule isn't a number in [0, 1]."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= float(value) <= 1:  # type: ignore[arg-type]
            raise UserError(f"{rule}: {name} is a number in [0, 1], not {shown(value)}")


def check_flag(rule: str, **values: object) -> None:
    """Raises ``UserError`` where an option of a rule isn't true or false."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UserError(f"{rule}: {name} is true or false, not {shown(value)}")


def check_count(rule: str, least: int = 1, **values: object) -> None:
    """Raises ``UserError`` where an option of a rule isn't a whole number from ``least`` to a million."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 1_000_000:
            raise UserError(f"{rule}: {name} is a whole number from {least} up, not {shown(value)}")
