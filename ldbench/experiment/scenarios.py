"""Scenarios: what training begins with, and how its data arrive."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ldbench.errors import UserError, shown
from ldbench.experiment.config import CHOICES
from ldbench.io.checksums import Damaged, check_regular
from ldbench.io.places import expanded

TORCHVISION = "torchvision"


@dataclass(frozen=True)
class Scenario:
    """One way in which training meets its data.

    Attributes:
        tuned: begins with weights that were made before, not with random ones.
        streamed: the data arrive in chunks, beside a bounded memory of what came before.
    """

    tuned: bool = False
    streamed: bool = False


SCENARIOS: dict[str, Scenario] = {
    "scratch": Scenario(),
    "fine-tune": Scenario(tuned=True),
    "online": Scenario(streamed=True),
    "online-fine-tune": Scenario(tuned=True, streamed=True),
}
STREAMS = CHOICES["stream"]  # the first is the default
STREAM_SCHEDULES = CHOICES["stream_schedule"]  # the first is the default
CHUNKS = 5


def init_identity(init: str | None) -> str | None:
    """What weights ``--init`` names, wherever they lie: "torchvision", or "sha256:" and 16 digits of a file's.

    Raises ``UserError`` when the file cannot be read.
    """
    if init is None or init == TORCHVISION:
        return init
    path = expanded(init)
    try:
        check_regular(path)
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    except (Damaged, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"--init {shown(init)}: {reason}; give a .safetensors file of weights, or the word torchvision"
        ) from error
